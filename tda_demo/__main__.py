"""The command line: parse, call. Errors a user can mend are one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .cli import COMMANDS
from .cli.arguments import Parser
from .support.errors import UserError

_BROKEN_PIPE = 141  # what a shell says of a program that SIGPIPE has ended


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter fails again as it ends
        return _BROKEN_PIPE
    except UserError as error:
        print(f"tda_demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tda_demo: stopped.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    program = "python -m tda_demo" if __name__ == "__main__" else "tda-demo"  # the command that `pip install` makes
    parser = Parser(prog=program, description="Dynamic activation, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
