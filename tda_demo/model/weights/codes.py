"""Matrices straight into a kernels' format, one at a time: no float copy of the model anywhere.

What each kind of file adds is how its matrices are read (``Matrix``); where they belong is said here. They are rounded
a stretch of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from ...kernels.formats import ByNeuron, Format, Rows, format_of
from ...support.errors import UserError
from ...support.memory import map_large_blocks
from ..family import family_of
from ..feedforward import find_blocks
from ..precision import PRECISIONS
from ..stored import store
from .folder import quiet_transformers
from .rooms import Rooms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 15 << 16  # weights unpacked at a time: just less in float32 than what ``map_large_blocks`` maps anew


class Matrix(Protocol):
    """A tensor of a file, [rows, columns] or [columns]."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def values(self, rows: slice) -> np.ndarray:
        """Float32 values of some rows."""
        ...

    def codes(self, form: Format, rows: slice) -> Rows | None:
        """Some rows in the format ``form`` where they need no float values between; None elsewhere.

        A scale that is no number says that a value of its row is none.
        """
        ...

    def in_order(self, rows: np.ndarray) -> np.ndarray:
        """Rows of values, codes or scales as transformers has them, which may be in another order than the file."""
        ...


def can_store(precision: str) -> bool:
    """Whether ``precision`` holds codes, which take less than floats do."""
    return PRECISIONS[precision].dtype is None


def empty_model(folder: Path) -> PreTrainedModel | None:
    """The model that the configuration in ``folder`` describes, its weights on the meta device.

    None where its family has no compiled step, which is what reads codes.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    map_large_blocks()
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if family_of(model).decoder is None:
        return None
    model.tie_weights()
    if (folder / "generation_config.json").is_file():  # with every token that ends a text
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def count_missing(model: PreTrainedModel) -> int:
    """Tensors that nothing was put in."""
    return sum(parameter.is_meta for parameter in model.parameters())


class Places:
    """Where tensors belong in a ``model``, whose weights lie on the meta device, in ``precision``."""

    def __init__(self, model: PreTrainedModel, precision: str) -> None:
        self.model, self.precision = model, precision
        self.downs = {block.down for block in find_blocks(model)}
        self.head: Any = model.get_output_embeddings()
        self.table: Any = model.get_input_embeddings()
        self.tied = self.head.weight is self.table.weight
        self.rooms = Rooms(model, precision)

    def is_row_matrix(self, name: str) -> bool:
        """Whether the parameter ``name`` is the weight of a linear that is neither a down projection nor the head."""
        path, _, kind = name.rpartition(".")
        module: Any = self.model.get_submodule(path)
        return isinstance(module, nn.Linear) and kind == "weight" and module not in (*self.downs, self.head)

    def put(self, name: str, matrix: Matrix) -> None:
        """Puts ``matrix`` into the parameter ``name``.

        Raises:
            ValueError: it is of another shape.
        """
        path, _, kind = name.rpartition(".")
        module: Any = self.model.get_submodule(path)
        if isinstance(module, nn.Linear | nn.Embedding) and getattr(module, kind).shape != matrix.shape:
            raise ValueError(f"{name} is {matrix.shape}, not {tuple(getattr(module, kind).shape)}")
        head_format = PRECISIONS[self.precision].head_format
        if module in (self.table, self.head):
            codes = _rows(matrix, head_format)
            for sharing in (self.table, self.head) if self.tied else (module,):
                store(sharing, codes, head_format)
        elif module in self.downs and kind == "weight":
            store(module, _by_neuron(matrix, self.precision, self.rooms.of_down(module)), self.precision)
        elif isinstance(module, nn.Linear) and kind == "weight":
            store(module, _rows(matrix, self.precision, self.rooms.of(module)), self.precision)
        else:
            values = np.array(matrix.in_order(_finite(matrix, slice(None))), np.float32)
            values = values.reshape(getattr(module, kind).shape)
            setattr(module, kind, nn.Parameter(torch.from_numpy(values), requires_grad=False))


def _rows(matrix: Matrix, precision: str, room: Rows | None = None) -> Rows:
    """``matrix`` in the format ``precision``, in its ``room`` where it has one."""
    form = format_of(precision)
    stored = room or form.empty(*matrix.shape)
    for part in stretches(matrix.shape):
        rows = matrix.codes(form, part) or form.encode(torch.from_numpy(_finite(matrix, part)))
        if not np.isfinite(rows.scales).all():
            raise _no_number(matrix)
        stored.codes[part], stored.scales[part] = rows.codes, rows.scales
    for each in (stored.codes, stored.scales):
        ordered = matrix.in_order(each)
        if ordered is not each:
            each[:] = np.array(ordered)
    return stored


def _by_neuron(matrix: Matrix, precision: str, room: ByNeuron) -> ByNeuron:
    """A down projection [d, d_ff], in its ``room``."""
    form = format_of(precision)
    by_row = form.down or form
    if by_row.is_by_channel:
        neurons = by_row.turn_over(_rows(matrix, by_row.name), room.codes)
    else:
        neurons = form.encode_by_neuron(torch.from_numpy(_finite(matrix, slice(None))))
        room.codes[:], room.block_scales[:] = neurons.codes, neurons.block_scales
    room.output_scales[:] = neurons.output_scales
    return room


def stretches(shape: tuple[int, ...]) -> Iterator[slice]:
    """Of [rows, columns], as many rows as are unpacked at a time."""
    rows, columns = shape
    step = max(1, _AT_ONCE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _finite(matrix: Matrix, rows: slice) -> np.ndarray:
    """Float32 values of some rows.

    Raises:
        UserError: one is no number, or infinite: everything computed from it would be so too.
    """
    values = np.ascontiguousarray(matrix.values(rows), dtype=np.float32)
    looks_damaged = not np.isfinite(values.sum())  # or has numbers too large to be added up
    if looks_damaged and not np.isfinite(values).all():
        raise _no_number(matrix)
    return values


def _no_number(matrix: Matrix) -> UserError:
    return UserError(
        f"The weights are damaged: {matrix.name} holds what is no number (NaN or infinite). Fetch the file again."
    )
