"""Weights from the Hugging Face hub: text files and safetensors are fetched, pickles and code never are."""

from __future__ import annotations

import errno
from pathlib import Path
from threading import Lock
from typing import Any

from ...support.errors import UserError
from ...support.progress import Progress, Report
from .folder import check_config, check_weights, quiet_transformers

_DESCRIPTION = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors"]
_TIMEOUT_SECONDS = 10.0


def hub_weights(name: str, report: Report) -> tuple[Path, str]:
    """The local folder of the hub model ``name``, and its commit hash. Without network, what is cached is used.

    Raises:
        UserError: no such model, gated, no network, not supported, or no safetensors.
    """
    hub_description(name, report)
    folder = _fetch(name, _WEIGHTS, report)
    check_weights(folder, name)
    return folder, folder.name


def hub_description(name: str, report: Report) -> Path:
    """The local folder of the hub model ``name`` with its configuration and tokenizer; weights are not fetched.

    Raises:
        UserError: as ``hub_weights``, but for the weights.
    """
    folder = _fetch(name, _DESCRIPTION, report)
    check_config(folder, name)
    return folder


def _fetch(name: str, patterns: list[str], report: Report) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        with quiet_transformers():
            folder = snapshot_download(
                name,
                allow_patterns=patterns,
                etag_timeout=_TIMEOUT_SECONDS,
                tqdm_class=_byte_counter(f"Downloading {name}", report),
            )
    except HFValidationError as error:
        raise UserError(f"There is no folder '{name}', and a hub model cannot have that name.") from error
    except GatedRepoError as error:
        raise UserError(
            f"'{name}' is gated: accept its terms on its hub page, log in with `hf auth login`, and start again."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no folder and no hub model called '{name}' (a private one needs `hf auth login`)."
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"The hub answered with an error ({error.response.status_code}) for '{name}': try again later."
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"The hub cannot be reached and '{name}' is not stored here: check the network connection, or give a "
            "folder or a .gguf file."
        ) from error
    except Exception as error:  # whatever the network or the disk does halfway
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(
                f"The disk is full: free some space, or point HF_HOME elsewhere, to load '{name}'."
            ) from error
        raise UserError(
            f"The download of '{name}' broke off ({type(error).__name__}): check the network connection and start "
            "again, it goes on where it stopped."
        ) from error
    return Path(folder)


def _byte_counter(stage: str, report: Report) -> type:
    """A class that stands in for the hub client's bars and reports bytes; some count files, those stay silent."""
    from tqdm import tqdm

    lock = Lock()  # files arrive in several threads
    most = 0

    class ByteCounter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            with lock:
                self.n += n or 0
                if self._bytes and self.n > most:  # two bars count the same bytes: received, and written
                    most = int(self.n)
                    report(Progress(stage, most, int(self.total or 0), "B"))

    return ByteCounter
