"""What the command line and the page's program take, and how they refuse what they do not."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser``, its subcommands' ones too, that says what is wrong in one line instead of its usage."""

    def error(self, message: str) -> NoReturn:
        """Prints ``message`` on stderr and exits with code 2."""
        told = " ".join(message.split())  # an argument may hold line breaks
        self.exit(2, f"{self.prog}: {told} (for more: {self.prog} --help)\n")
