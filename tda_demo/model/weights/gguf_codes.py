"""From a GGUF file straight into a kernels' format: tensor by tensor, no float copy of the model anywhere.

Matrices in Q4_0, Q4_1 and Q4_K are taken over code by code where the format is q4, whose fields are theirs. Others are
unpacked a stretch of rows at a time and rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...kernels import q4
from ...kernels.cpu import cores, gguf_blocks
from ...kernels.formats import BFLOAT16, Q4, ByNeuron, Rows, format_of
from ...support.errors import UserError
from ...support.memory import map_large_blocks, trim_memory
from ...support.progress import Progress, Report
from ..family import family_of
from ..feedforward import find_blocks
from ..precision import PRECISIONS
from ..stored import joined, store
from .folder import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 15 << 16  # weights unpacked at a time: just less in float32 than what ``map_large_blocks`` maps anew
_TABLE = BFLOAT16.name  # of an embedding that is no output head
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20}  # of 32 weights: a scale, in Q4_1 a minimum, and 16 bytes of codes
_FIELDS_OF_Q4 = (*_BLOCK_BYTES, "Q4_K")  # four bits, and a scale and a minimum every 32 weights

Rearrange = Callable[[np.ndarray], np.ndarray]
"""Puts a tensor's rows into transformers' order."""


def can_store(precision: str) -> bool:
    """Whether ``precision`` holds codes, which take less than floats do."""
    return PRECISIONS[precision].dtype is None


def read_codes(gguf: Path, folder: Path, precision: str, report: Report) -> PreTrainedModel | None:
    """The model of ``gguf`` with matrices in the formats of ``precision`` (``stored``), norms and biases in float32.

    ``folder`` has its configuration. None where its family has no compiled step, which is what reads codes.

    Raises:
        UserError: the file is not a whole GGUF model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    from .gguf_reader import QuickReader, quick_reading

    name = gguf.name
    map_large_blocks()
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if family_of(model).decoder is None:
        return None
    model.tie_weights()
    try:
        reader = QuickReader(gguf)
        architecture = str(reader.fields["general.architecture"].contents())
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
        with quick_reading():
            names = get_gguf_hf_weights_map(model, processor)
        places = _Places(model, precision)
        tensors: list[Any] = [tensor for tensor in reader.tensors if tensor.name in names]
        for done, tensor in enumerate(tensors):
            report(Progress(f"Reading {name}", done, len(tensors), "tensors"))
            places.put(names[tensor.name], tensor, lambda rows, name=tensor.name: processor.process(rows, name).weights)
            reader.let_go()
        trim_memory()
    except UserError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the reader, with any exception
        raise UserError(
            f"'{name}' cannot be read as a GGUF model; it may be damaged or cut short: download it again."
        ) from error
    if (folder / "generation_config.json").is_file():  # with every token that ends a text
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    missing = [path for path, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise UserError(f"'{name}' lacks {len(missing)} of the model's tensors: download all of it.")
    return model


class _Places:
    """Where the tensors of a file belong in a ``model``, whose weights lie on the meta device, in ``precision``."""

    def __init__(self, model: PreTrainedModel, precision: str) -> None:
        self.model, self.precision = model, precision
        self.downs = {block.down for block in find_blocks(model)}
        self.head: Any = model.get_output_embeddings()
        self.table: Any = model.get_input_embeddings()
        self.tied = self.head.weight is self.table.weight

    def put(self, name: str, tensor: Any, rearrange: Rearrange) -> None:
        """Puts a GGUF ``tensor`` into the parameter ``name``."""
        path, _, kind = name.rpartition(".")
        module: Any = self.model.get_submodule(path)
        head_format = PRECISIONS[self.precision].head_format
        if module is self.table and not self.tied:
            store(module, _rows(tensor, _TABLE, rearrange), _TABLE)
        elif module in (self.table, self.head):
            codes = _rows(tensor, head_format, rearrange)
            for sharing in (self.table, self.head) if self.tied else (self.head,):
                store(sharing, codes, head_format)
        elif isinstance(module, nn.Linear) and kind == "weight":
            codes = _columns(tensor, self.precision) if module in self.downs else None
            store(module, codes or _rows(tensor, self.precision, rearrange), self.precision)
        else:
            values = np.array(rearrange(_values(tensor, slice(None))), np.float32).reshape(getattr(module, kind).shape)
            setattr(module, kind, nn.Parameter(torch.from_numpy(values), requires_grad=False))


def _rows(tensor: Any, precision: str, rearrange: Rearrange) -> Rows:
    """A matrix [rows, columns] by row."""
    form, kind = format_of(precision), tensor.tensor_type.name
    if form is Q4 and kind in _FIELDS_OF_Q4:
        rows = joined([_as_rows(code_by_code(tensor.data[part], kind)) for part in _parts(tensor)])
    else:
        rows = joined([form.encode(torch.from_numpy(_values(tensor, part))) for part in _parts(tensor)])
    return Rows(np.ascontiguousarray(rearrange(rows.codes)), np.ascontiguousarray(rearrange(rows.scales)))


def _as_rows(rows: q4.Q4Rows) -> Rows:
    return Rows(rows.words, np.ones(len(rows.words), np.float32))


def _columns(tensor: Any, precision: str) -> ByNeuron:
    """A down projection [d, d_ff] by neuron."""
    return format_of(precision).encode_by_neuron(torch.from_numpy(_values(tensor, slice(None))))


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


def _parts(tensor: Any) -> Iterator[slice]:
    """Stretches of rows, of about as many weights as are unpacked at a time."""
    columns, rows = (int(size) for size in tensor.shape)
    step = max(1, _AT_ONCE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _values(tensor: Any, rows: slice) -> np.ndarray:
    """Float32 values of some rows.

    Raises:
        UserError: one is no number, or infinite: everything computed from it would be so too.
    """
    values = np.ascontiguousarray(_unpacked(tensor.data[rows], tensor.tensor_type), dtype=np.float32)
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise UserError(
            f"The weights are damaged: {tensor.name} holds what is no number (NaN or infinite). Fetch the file again."
        )
    return values


def _unpacked(data: np.ndarray, tensor_type: Any) -> np.ndarray:
    """Rows of blocks as the ``gguf`` package unpacks them, by compiled loops where there are some for the kind."""
    from gguf import dequantize

    kind, threads = tensor_type.name, torch.get_num_threads()
    if kind in _BLOCK_BYTES:
        return q4.decode(code_by_code(data, kind)).numpy()
    if kind not in gguf_blocks.KINDS:
        return dequantize(data, tensor_type)
    with cores(threads):
        return gguf_blocks.unpack(data, kind, threads)
