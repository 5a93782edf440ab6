"""One view of a feed-forward (MLP) block, whatever the model family calls its parts.

A neuron is one row of ``up`` (and of ``gate``) plus the matching column of ``down``. Two layouts exist:

* GLU: ``a = act(x Wg^T) * (x Wu^T)``, ``y = a Wd^T`` (llama, mistral, qwen2, qwen3, gemma2, gemma3; phi3 keeps
  gate and up in one matrix, gate rows first);
* plain: ``a = act(x W1^T + b1)``, ``y = a W2^T + b2`` (opt, gpt_neox).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from .errors import UserError
from .later import nn, torch
from .placement import hooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The three matrices of block ``layer``.

    ``gate`` is None for plain blocks and for fused ones; a fused ``up`` holds d_ff gate rows, then d_ff up rows.
    ``down.weight`` is [d_model, d_ff]; its input is the activation vector ``a`` [..., d_ff]. ``d_ff`` is the full
    width, also while the matrices hold fewer neurons. ``attention`` holds the layer's other matrices, its attention
    projections.
    """

    layer: int
    gate: nn.Linear | None
    up: nn.Linear
    down: nn.Linear
    d_ff: int
    fused: bool = False
    attention: tuple[nn.Linear, ...] = ()

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The block's matrices in the order they are read."""
        return tuple(linear for linear in (self.gate, self.up, self.down) if linear is not None)

    @cached_property
    def output_norms(self) -> torch.Tensor:
        """``||Wd[:, j]||_2`` of every neuron: float32 [d_ff]."""
        return self.output_weight().norm(dim=0)

    @cached_property
    def input_norms(self) -> torch.Tensor:
        """``||Wg[j]||_2 ||Wu[j]||_2`` of every neuron, ``||W1[j]||_2`` in plain blocks: float32 [d_ff]."""
        rows = torch.cat([_values(linear).norm(dim=1) for linear in self.linears[:-1]])
        return rows.view(-1, self.d_ff).prod(dim=0)  # a fused ``up`` has both norms of a neuron too, d_ff apart

    def output_weight(self) -> torch.Tensor:
        """The values of ``down.weight``, float32 [d_model, d_ff], however bitsandbytes may hold them."""
        return _values(self.down)

    @property
    def is_quantised(self) -> bool:
        """Whether its matrices are bitsandbytes', whose rows and columns cannot be taken out as they are."""
        return not all(linear.weight.is_floating_point() for linear in self.linears)

    @property
    def is_offloaded(self) -> bool:
        """Whether accelerate keeps its matrices elsewhere and puts them in for each call, in place of any others."""
        return any(linear.weight.is_meta for linear in self.linears)

    @property
    def can_be_packed(self) -> bool:
        """Whether copies of some neurons' rows and columns can take the place of its matrices."""
        return not (self.is_quantised or self.is_offloaded)


def _values(linear: nn.Linear) -> torch.Tensor:
    """The values of ``linear.weight``, float32 [out, in], however bitsandbytes or accelerate may hold them."""
    weight: Any = linear.weight
    if weight.is_meta:
        (hook,) = hooks(linear)
        return hook.weights_map["weight"].to(hook.execution_device).float()
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if weight.dtype == torch.int8:  # with a float32 largest magnitude a row, which the first forward pass moves
        holder: Any = linear
        largest = weight.SCB if getattr(weight, "SCB", None) is not None else holder.state.SCB
        return weight.data.float() * (largest / 127)[:, None]
    return weight.detach().float()


@dataclass(frozen=True)
class _Names:
    """Where a family keeps its parts: dotted paths, ``stack`` from the model, the rest from one layer of it."""

    stack: str
    up: str
    down: str
    gate: str | None = None
    fused: bool = False


_GLU = _Names("model.layers", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")
_FAMILIES = {
    "llama": _GLU,
    "mistral": _GLU,
    "qwen2": _GLU,
    "qwen3": _GLU,
    "gemma2": _GLU,
    "gemma3_text": _GLU,
    "gemma3": _Names("model.language_model.layers", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),
    "phi3": _Names("model.layers", up="mlp.gate_up_proj", down="mlp.down_proj", fused=True),
    "opt": _Names("model.decoder.layers", up="fc1", down="fc2"),
    "gpt_neox": _Names("gpt_neox.layers", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
}
SUPPORTED = tuple(name for name in _FAMILIES if name != "gemma3_text")


def find_blocks(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """The feed-forward blocks of ``model``, first layer first.

    Raises:
        UserError: the architecture is not one of ``SUPPORTED``.
    """
    names = _names(model)
    return tuple(_block(index, layer, names) for index, layer in enumerate(_stack(model, names)))


def find_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The decoder layers that ``find_blocks`` gives the blocks of; raises what it raises."""
    return tuple(_stack(model, _names(model)))


def _names(model: PreTrainedModel) -> _Names:
    names = _FAMILIES.get(model.config.model_type)
    if names is None:
        raise UserError(
            f"The architecture '{model.config.model_type}' is not supported; supported are: {', '.join(SUPPORTED)}."
        )
    return names


def _stack(model: PreTrainedModel, names: _Names) -> nn.ModuleList:
    return cast(nn.ModuleList, model.get_submodule(names.stack))


def _block(index: int, layer: nn.Module, names: _Names) -> FeedForward:
    own = [cast(nn.Linear, layer.get_submodule(path)) for path in (names.gate, names.up, names.down) if path]
    *gate, up, down = own
    return FeedForward(
        layer=index,
        gate=gate[0] if gate else None,
        up=up,
        down=down,
        d_ff=down.in_features,
        fused=names.fused,
        attention=tuple(each for each in layer.modules() if isinstance(each, nn.Linear) and each not in own),
    )


@contextmanager
def observed(blocks: Iterable[FeedForward], see: Callable[[FeedForward, torch.Tensor], None]) -> Iterator[None]:
    """Within the context, ``see(block, a)`` gets the activations ``a`` [tokens, d_ff] of every block that runs.

    The input of the down projection is ``a`` in every family, so one hook serves them all.
    """

    def hook(block: FeedForward) -> Callable[..., None]:
        return lambda _module, inputs: see(block, inputs[0].reshape(-1, block.down.in_features))

    handles = [block.down.register_forward_pre_hook(hook(block)) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
