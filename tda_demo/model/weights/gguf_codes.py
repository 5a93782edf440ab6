"""From a GGUF file straight into a kernels' format (``codes``).

Matrices in Q4_0, Q4_1 and Q4_K are taken over code by code where the format is q4, whose fields are theirs. Others are
unpacked and rounded; those of kinds that compiled loops know to int8 row by row, so that a row's values never leave
the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...kernels import q4
from ...kernels.cpu import cores, gguf_blocks
from ...kernels.formats import INT8, Q4, Format, Rows
from ...support.errors import UserError
from ...support.memory import trim_memory
from ...support.progress import Progress, Report
from .codes import Places, count_missing, empty_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20}  # of 32 weights: a scale, in Q4_1 a minimum, and 16 bytes of codes
_FIELDS_OF_Q4 = (*_BLOCK_BYTES, "Q4_K")  # four bits, and a scale and a minimum every 32 weights


def read_codes(gguf: Path, folder: Path, precision: str, report: Report) -> tuple[PreTrainedModel, bool] | None:
    """The model of ``gguf`` with matrices in the formats of ``precision`` (``stored``), norms and biases in float32.

    The second is whether what q4 holds in four bits has no more in the file. ``folder`` has the configuration. None
    where its family has no compiled step, which is what reads codes.

    Raises:
        UserError: the file is not a whole GGUF model.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    from .gguf_reader import QuickReader, quick_reading

    name = gguf.name
    if (model := empty_model(folder)) is None:
        return None
    try:
        reader = QuickReader(gguf)
        architecture = str(reader.fields["general.architecture"].contents())
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
        with quick_reading():
            names = get_gguf_hf_weights_map(model, processor)
        places = Places(model, precision)
        tensors: list[Any] = [tensor for tensor in reader.tensors if tensor.name in names]
        for done, tensor in enumerate(tensors):
            report(Progress(f"Reading {name}", done, len(tensors), "tensors"))
            places.put(names[tensor.name], _Tensor(tensor, processor))
            reader.let_go()
        trim_memory()
        in_four_bits = [tensor for tensor in tensors if places.is_row_matrix(names[tensor.name])]
        has_four_bits = all(tensor.tensor_type.name in _FIELDS_OF_Q4 for tensor in in_four_bits)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the reader, with any exception
        raise UserError(
            f"'{name}' cannot be read as a GGUF model; it may be damaged or cut short: download it again."
        ) from error
    if missing := count_missing(model):
        raise UserError(f"'{name}' lacks {missing} of the model's tensors: download all of it.")
    return model, has_four_bits


@dataclass(frozen=True)
class _Tensor:
    """A ``tensor`` of the file; transformers' ``processor`` puts its rows in order."""

    tensor: Any
    processor: Any

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self.tensor.shape))

    def values(self, rows: slice) -> np.ndarray:
        return _unpacked(self.tensor.data[rows], self.tensor.tensor_type)

    def codes(self, form: Format, rows: slice) -> Rows | None:
        kind, threads = self.tensor.tensor_type.name, torch.get_num_threads()
        if form is INT8 and kind in gguf_blocks.KINDS:
            with cores(threads):
                return Rows(*gguf_blocks.round_to_int8(self.tensor.data[rows], kind, threads))
        if form is Q4 and kind in _FIELDS_OF_Q4:
            words = code_by_code(self.tensor.data[rows], kind).words
            return Rows(words, np.ones(len(words), np.float32))
        return None

    def in_order(self, rows: np.ndarray) -> np.ndarray:
        return self.processor.process(rows, self.name).weights


def code_by_code(data: np.ndarray, kind: str) -> q4.Q4Rows:
    """Rows of Q4_0, Q4_1 or Q4_K blocks, uint8 [rows, bytes], as records with the same codes.

    Those of Q4_0 and Q4_1 stand for the same values, bit by bit; of Q4_K, whose scales and minima are products, for
    values rounded as ``gguf_blocks.q4_k_groups`` says. A Q4_0 code stands for ``scale * (code - 8)``; the minimum
    ``-8 * scale`` has a half's digits, but not always its range: a scale beyond an eighth of the largest half, which no
    weight has, is refused.

    Raises:
        ValueError: such a scale, or a damaged one.
    """
    if kind == "Q4_K":
        nibbles, scales, minima = gguf_blocks.q4_k_groups(data)
        _check_finite(scales, minima)
        return q4.of_groups(nibbles, scales, minima, 32 * scales.shape[1])
    blocks = np.ascontiguousarray(data).reshape(len(data), -1, _BLOCK_BYTES[kind])
    numbers = np.ascontiguousarray(blocks[:, :, :-16]).view(np.float16)
    scales = numbers[:, :, 0]
    with np.errstate(over="ignore"):
        minima = numbers[:, :, 1] if kind == "Q4_1" else np.float16(-8) * scales
    _check_finite(scales, minima)
    return q4.of_groups(blocks[:, :, -16:], scales, minima, 32 * blocks.shape[1])


def _check_finite(*numbers: np.ndarray) -> None:
    if not all(np.isfinite(each).all() for each in numbers):
        raise ValueError("a scale is not a number, or too large")


def _unpacked(data: np.ndarray, tensor_type: Any) -> np.ndarray:
    """Rows of blocks as the ``gguf`` package unpacks them, by compiled loops where there are some for the kind."""
    from gguf import dequantize

    kind, threads = tensor_type.name, torch.get_num_threads()
    if kind not in gguf_blocks.KINDS:
        return dequantize(data, tensor_type)
    with cores(threads):
        return gguf_blocks.unpack(data, kind, threads)
