"""Model folders in the layout of transformers: what is accepted, and which weights they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...support.errors import UserError
from ..feedforward import find_blocks

_EDGE_BYTES = 1 << 20


def check_weights(folder: Path, name: str) -> None:
    """Refuse a folder without safetensors, above all one with pickled weights: opening a pickle can run code.

    Raises:
        UserError: there is no ``.safetensors`` file.
    """
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.gguf")):
        raise UserError(f"'{name}' is a folder of GGUF files: give the path of one .gguf file.")
    raise UserError(
        f"'{name}' holds no .safetensors weights, and pickled ones (.bin, .pt) are never opened because they can run "
        "code: convert them to safetensors, or choose another model."
    )


def check_config(folder: Path, name: str) -> None:
    """Refuse, before any weight is fetched or read, a model that could not be raced.

    Raises:
        UserError: no readable config.json, an architecture that is not supported, or weights already quantised.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise UserError(
            f"'{name}' is an adapter, which changes another model: merge it into that model (peft's merge_and_unload), "
            "save it, and give that folder."
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"'{name}' holds no config.json, so it is not a model folder.")
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # unknown model types, custom code and broken JSON each raise their own
            if _is_of_a_known_type(folder):
                raise _contradiction(name, error) from error
            raise UserError(
                f"The config.json of '{name}' is damaged, of an unknown architecture, or asks for custom code, which "
                "is never run: choose another model."
            ) from error
        if getattr(config, "quantization_config", None) is not None:
            raise UserError(f"The weights of '{name}' are quantised already: choose the model they were made from.")
        try:
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # sizes that contradict each other fail in each architecture's own way
            if "Unrecognized configuration class" in str(error):
                raise UserError(f"'{name}' ({config.model_type}) is not a decoder that continues text.") from error
            raise _contradiction(name, error) from error
    find_blocks(skeleton)


def _is_of_a_known_type(folder: Path) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    try:
        config = json.loads((folder / "config.json").read_bytes())
        return config["model_type"] in CONFIG_MAPPING_NAMES and "auto_map" not in config
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return False


def _contradiction(name: str, error: Exception) -> UserError:
    why = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    return UserError(f"The config.json of '{name}' describes no model that can be built: {why}.")


def fingerprint(files: Iterable[Path]) -> str:
    """Hex id of weight files, from their names, sizes and first and last MB: cheap, and the same for every copy."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only from transformers and the hub client, and no bars; afterwards everything is as it was before."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
