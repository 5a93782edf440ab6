"""The precisions a model can be held in, all that is true of each, and what it means on a device.

A precision names what every matrix is stored as. On a GPU that is the dtype of the model, or the storage that
bitsandbytes gives its matrices (NF4, LLM.int8). On a CPU it is the compiled kernels' format of the same name
(``kernels.formats``), whose arithmetic and layout that module knows; the transformers model, which scores texts, holds
the same rounded values in float32, so both compute the same function, but for keys and values, which compiled steps may
keep in half precision. A new precision is a ``Precision`` here and a ``Format`` there. All of it is known before torch
is imported.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..kernels.formats import round_by_neuron, round_by_row
from ..support.errors import UserError
from ..support.lazy import nn, no_grad, torch
from ..support.memory import trim_memory
from .feedforward import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Device = Literal["cpu", "cuda"]


LARGE = 1e9  # weights of a model whose floats are too much beside its codes


def holds_codes_only(precision: str, weights: float) -> bool:
    """Whether a CPU holds a model of so many ``weights`` as codes only, where its family has a compiled step.

    It does where floats would read a prompt no faster, or would be too much.
    """
    from ..kernels.cpu.matmul import WITH_MATMUL
    from ..kernels.formats import FORMATS

    if PRECISIONS[precision].dtype is not None:
        return False
    return weights >= LARGE or FORMATS[precision].code_type in WITH_MATMUL


@dataclass(frozen=True)
class Precision:
    """What holds of a precision wherever it is named.

    Args:
        name: as users write it, and the name of the kernels' format on a CPU.
        summary: one line on what is stored.
        bytes_per_weight: in memory, scales included.
        symbol: its points in plots, by plotly's name; ``report.svg`` and ``assets/pareto.js`` draw the same ones.
        dtype: the torch dtype that holds its values; None where they are codes with scales.
        head: the format on a CPU of the output head and of the table of embeddings; None is that of all other matrices.
        devices: where it is offered.
        default_on: where it is the default.
        bitsandbytes: on a GPU, what ``BitsAndBytesConfig`` is given, for the dtype that is computed with; None where
            bitsandbytes has no part in it.
    """

    name: str
    summary: str
    bytes_per_weight: float
    symbol: str
    dtype: str | None = None
    head: str | None = None
    devices: tuple[Device, ...] = ("cpu", "cuda")
    default_on: tuple[Device, ...] = ()
    bitsandbytes: Callable[[torch.dtype], dict[str, Any]] | None = None

    @property
    def head_format(self) -> str:
        """The format of the output head on a CPU, and of the table of embeddings."""
        return self.head or self.name

    @property
    def number_bytes(self) -> float:
        """Bytes of a number that a GPU computes with: of caches, and of what bitsandbytes does not quantise."""
        return max(self.bytes_per_weight, 2)


def _int8_of_bitsandbytes(_dtype: torch.dtype) -> dict[str, Any]:
    return {"load_in_8bit": True}


def _nf4_of_bitsandbytes(dtype: torch.dtype) -> dict[str, Any]:
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}


REFERENCE = "float32"
"""The precision that holds weights as they are published, without rounding: others are compared with it."""

PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision(REFERENCE, "the published values, 32 bits each", 4.0, "circle", dtype="float32"),
        Precision("bfloat16", "the upper half of a float32", 2.0, "square", dtype="bfloat16", default_on=("cuda",)),
        # On the embedded model its KL to float32 is 0.005 nats per token (held-out passages).
        Precision(
            "int8",
            "whole numbers up to 127, a scale a row",
            1.0,
            "diamond",
            default_on=("cpu",),
            bitsandbytes=_int8_of_bitsandbytes,
        ),
        # Five bits in the rows of gate and up, eight in down (``kernels.formats``); the head, int8 too, costs 0.001.
        Precision(
            "q4",
            "16 levels, a scale and a minimum every 32 columns; down in 8 bits",
            0.75,
            "triangle-down",
            head="int8",
            devices=("cpu",),
        ),
        # The head stays int8, as bitsandbytes does not quantise it either: on the embedded model, whose head is tied to
        # its embedding, a head in nf4 too raises the KL from 0.32 to 0.52.
        Precision(
            "nf4",
            "16 levels, a scale every 64 columns",
            0.5625,
            "triangle-up",
            head="int8",
            bitsandbytes=_nf4_of_bitsandbytes,
        ),
    )
}
"""All precisions by name, from the most bytes a weight to the fewest."""


NEARLY_EXACT = ("int8", "q4")  # of the compiled kernels: KL to float32 below 0.01 on the embedded model
OF_FOUR_BITS = ("q4",)  # nearly exact only where the weights, as published, have no more: else KL 0.04 and above


def precisions_on(device: Device) -> tuple[str, ...]:
    """The names of those offered on ``device``."""
    return tuple(name for name, precision in PRECISIONS.items() if device in precision.devices)


def default_precision(device: Device) -> str:
    """The name of the default on ``device``; a GPU that does not compute in its dtype takes ``REFERENCE`` instead."""
    return next(name for name, precision in PRECISIONS.items() if device in precision.default_on)


def precision_of(name: str, device: Device) -> Precision:
    """The precision called ``name``.

    Raises:
        UserError: there is no such precision, or it is not offered on ``device``.
    """
    names = precisions_on(device)
    if name not in names:
        raise UserError(f"'{name}' is not a precision on {device}: use {in_words(names)}.")
    return PRECISIONS[name]


def symbol_of(name: str) -> str:
    """The symbol of ``name`` in plots: also of a precision that a table from elsewhere names and nothing here knows."""
    return PRECISIONS[name].symbol if name in PRECISIONS else "circle"


def in_words(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def available_precisions(device: str | None) -> tuple[str, ...]:
    """The precisions of ``device`` (``cpu``, ``cuda``), or of the one a model is loaded on where none is named."""
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return precisions_on("cuda" if on_gpu else "cpu")


def choose_precision(asked: str | None, device: torch.device) -> str:
    """``asked``, or the device's default: what a sensible person would run there.

    Raises:
        UserError: there is no such precision, or not on this device.
    """
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    if asked is not None:
        return precision_of(asked, kind).name
    return REFERENCE if kind == "cuda" and not _has_bfloat16() else default_precision(kind)


def model_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the transformers model: under bitsandbytes of what it computes with and does not quantise.

    That is bfloat16, or float16 on cards before Ampere, which only emulate bfloat16.
    """
    if device.type == "cpu":
        return torch.float32
    if dtype := PRECISIONS[precision].dtype:
        return getattr(torch, dtype)
    return torch.bfloat16 if _has_bfloat16() else torch.float16


def loading_arguments(precision: str, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` needs to know beside the dtype: on a GPU bitsandbytes quantises while loading."""
    settings = PRECISIONS[precision].bitsandbytes
    if device.type == "cpu" or settings is None:
        return {}
    from transformers import BitsAndBytesConfig

    # Its int8 product warns at every call, within every timing, that it rounds its input, which it is there to do.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = BitsAndBytesConfig(**settings(model_dtype(precision, device)))
    return {"quantization_config": config, "device_map": {"": device}}


def give_back_memory() -> None:
    """Frees what models that nothing uses any more still hold, on a GPU too.

    bitsandbytes' 4-bit weights and their modules hold each other, so they do not go with the last use.
    """
    gc.collect()
    trim_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16 itself."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def head_format(precision: str) -> str:
    """The format of the output head on a CPU, and of the table of embeddings."""
    return PRECISIONS[precision].head_format


@no_grad
def round_weights(model: PreTrainedModel, precision: str) -> None:
    """Rounds every matrix of a float32 model to what the kernels' format holds.

    Norms and biases stay float32, as in the kernels.
    """
    if precision == REFERENCE:
        return
    downs = {block.down for block in find_blocks(model)}
    head: Any = model.get_output_embeddings()
    table: Any = model.get_input_embeddings()
    if table.weight is not head.weight:
        table.weight.data = round_by_row(table.weight, head_format(precision))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            store = round_by_neuron if module in downs else round_by_row
            kind = head_format(precision) if module is head else precision
            module.weight.data = store(module.weight, kind)  # of the parameter, which an embedding may share
    for module in model.modules():  # what else there is, little, would keep the whole mapped file of weights in memory
        if not isinstance(module, nn.Linear | nn.Embedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.clone()
