"""From a GGUF file to a plain model folder that loads in a second, without any GGUF code."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...support.errors import UserError
from ...support.progress import Progress, Report
from ..feedforward import find_blocks
from .folder import check_config, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def convert(gguf: Path, folder: Path, name: str, report: Report) -> None:
    """Write the model of ``gguf`` into ``folder`` as float32 safetensors, configurations and tokenizer.

    float32, because a block-quantised weight (half-precision scale times integer, plus half-precision minimum) has
    more digits than bfloat16 holds: whatever precision is asked for later is rounded once, from the exact values.

    Raises:
        UserError: the file is not a whole GGUF model, or its architecture is not supported.
        OSError: ``folder`` cannot be written.
    """
    from safetensors import SafetensorError

    from .gguf_reader import quick_reading

    stage = f"Converting {name}"
    report(Progress(stage, 0, 0, "tensors"))
    telling = _each_tensor(lambda done, total: report(Progress(stage, done, total, "tensors")))
    with quiet_transformers(), quick_reading(), telling:
        model, tokenizer = _read(gguf, name)
        find_blocks(model)
        _forget_gguf(model)
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # its writer's own I/O errors carry no errno
            raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error


def write_text(gguf: Path, folder: Path, name: str, report: Report) -> None:
    """Write the configuration and the tokenizer of ``gguf`` into ``folder``.

    Raises:
        UserError: the file is not a whole GGUF model, or its architecture is not supported.
        OSError: ``folder`` cannot be written.
    """
    from transformers import AutoConfig, AutoTokenizer

    from .gguf_reader import quick_reading

    report(Progress(f"Reading the tokenizer of {name}", 0, 0, "tensors"))
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    with quiet_transformers(), quick_reading():
        try:
            config = AutoConfig.from_pretrained(gguf.parent, **source)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        except Exception as error:  # a damaged file fails anywhere in the reader, with any exception
            raise _unreadable(name, error) from error
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    check_config(folder, name)


def _unreadable(name: str, error: Exception) -> UserError:
    if "is not supported yet" in str(error):
        return UserError(f"'{name}' holds an architecture that cannot be read from GGUF: {error}")
    return UserError(f"'{name}' cannot be read as a GGUF model; it may be damaged or cut short: download it again.")


def _forget_gguf(model: Any) -> None:
    """The weights are plain tensors by now, but transformers still calls the model quantised and would not save it."""
    model.hf_quantizer = None
    del model.config.quantization_config


def _read(gguf: Path, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, output_loading_info=True, **source
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    except Exception as error:  # a damaged file fails anywhere in the reader, with any exception
        raise _unreadable(name, error) from error
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(f"'{name}' lacks {len(info['missing_keys'])} of the model's tensors: download all of it.")
    return model, tokenizer


@contextmanager
def _each_tensor(report: Callable[[int, int], None]) -> Iterator[None]:
    """Call ``report(done, total)`` where transformers would draw a bar of its own over the tensors of a GGUF file."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils

    def counted(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        tensors = list(tensors)
        for done, tensor in enumerate(tensors, start=1):
            yield tensor
            report(done, len(tensors))

    bar, reader.tqdm = reader.tqdm, counted
    try:
        yield
    finally:
        reader.tqdm = bar
