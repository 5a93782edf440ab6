"""A projection of a layer (gate, up, query, key or value), whether it has a matrix of its own or a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..support.lazy import nn, torch
from .family import DecoderLayout


@dataclass(frozen=True, eq=False)
class Projection:
    """The ``rows`` of ``linear`` that compute one projection; the rest of a fused matrix computes others."""

    linear: nn.Linear
    rows: slice

    @classmethod
    def whole(cls, linear: nn.Linear) -> Projection:
        return cls(linear, slice(0, linear.out_features))

    @classmethod
    def parts(cls, linear: nn.Linear, counts: Sequence[int]) -> tuple[Projection, ...]:
        """The projections that ``linear`` holds one after the other, ``counts`` rows each."""
        return tuple(cls(linear, slice(sum(counts[:part]), sum(counts[: part + 1]))) for part in range(len(counts)))

    @property
    def out_features(self) -> int:
        """How many rows."""
        return self.rows.stop - self.rows.start

    @property
    def is_whole(self) -> bool:
        """Whether it has a matrix of its own."""
        return self.out_features == self.linear.out_features

    @property
    def weight(self) -> torch.Tensor:
        """[rows, d], a view of what the linear holds; without meaning where bitsandbytes has quantised it."""
        return self.linear.weight.detach()[self.rows]

    @property
    def bias(self) -> torch.Tensor | None:
        """[rows], a view; None where the linear has none."""
        return None if self.linear.bias is None else self.linear.bias.detach()[self.rows]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., rows] for ``x`` [..., d]; hooks on the linear do not see this."""
        return self.linear.forward(x)[..., self.rows]


def linears_of(projections: Sequence[Projection]) -> tuple[nn.Linear, ...]:
    """The linears that hold ``projections``, in their order, one that holds several once."""
    return tuple(dict.fromkeys(projection.linear for projection in projections))


def query_key_value(layout: DecoderLayout, attention: Any, config: Any) -> tuple[Projection, ...]:
    """The three projections of the module ``attention``, whatever linears hold them."""
    linears = [getattr(attention, name) for name in layout.qkv]
    if len(linears) == 3:
        return tuple(Projection.whole(linear) for linear in linears)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    return Projection.parts(linears[0], [count * attention.head_dim for count in heads])
