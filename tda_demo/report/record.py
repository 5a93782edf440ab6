"""A race with everything the page drew of it: what a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..race import PromptRead
    from ..race.result import RaceResult


@dataclass(frozen=True, eq=False)
class Trace:
    """Which neurons fired and which were computed, a layer and a token at a time.

    ``prompt_fired`` int64 [prompt tokens, layers] and ``fired``, int64 [layers] a step of the sparse arm, belong to
    ``prompt_tokens`` and ``tokens``; ``indices`` int64 [kept] are each layer's active neurons of ``d_ff``, None where
    they are not the same for every step: ``fired`` is then what it computed. The times of reading the prompt are in ms.
    """

    prompt_tokens: tuple[str, ...]
    prompt_fired: np.ndarray
    tokens: tuple[str, ...]
    fired: tuple[np.ndarray, ...]
    indices: tuple[np.ndarray, ...] | None
    d_ff: tuple[int, ...]
    prefill_ms: float
    selection_ms: float
    packing_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "prompt_tokens": list(self.prompt_tokens),
            "prompt_fired": self.prompt_fired.tolist(),
            "tokens": list(self.tokens),
            "fired": [step.tolist() for step in self.fired],
            "active": self.indices and [own.tolist() for own in self.indices],
            "d_ff": list(self.d_ff),
            "prefill_ms": self.prefill_ms,
            "selection_ms": self.selection_ms,
            "packing_ms": self.packing_ms,
        }

    def computed(self) -> np.ndarray:
        """How many neurons each step computed, int64 [steps, layers]."""
        if self.indices is None:
            return np.array(self.fired, dtype=np.int64).reshape(-1, len(self.d_ff))
        return np.tile([len(own) for own in self.indices], (len(self.fired), 1))

    @property
    def kept(self) -> list[float]:
        """Neurons a step computes of each layer, the mean where steps differ; all of them before there is a step."""
        if self.indices is not None:
            return [len(own) for own in self.indices]
        return self.computed().mean(axis=0).tolist() if self.fired else list(self.d_ff)


@dataclass(frozen=True, eq=False)
class RaceRecord:
    """``decoding`` are the settings of both arms by name; ``date`` is the day, UTC.

    ``mlp_share`` is the share 0..1 of the MLP weight bytes that a sparse step reads, ``rival_mlp_share`` that of the
    rival's; None where it is not known.
    """

    prompt: str
    decoding: Mapping[str, Any]
    result: RaceResult
    trace: Trace
    mlp_share: float | None
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    rival_mlp_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The race's own JSON, with the prompt, the decoding settings, the day and the trace."""
        told = {"prompt": self.prompt, "decoding": dict(self.decoding), "date": self.date, "mlp_share": self.mlp_share}
        rival = {} if self.result.rival is None else {"rival_mlp_share": self.rival_mlp_share}
        return {**told, **self.result.to_json(), **rival, "trace": self.trace.to_json()}


def traced(read: PromptRead, d_ff: Sequence[int], tokens: Sequence[str], fired: Sequence[np.ndarray]) -> Trace:
    """From what a race told of its prompt, and of each step of the sparse arm: its text, and what fired."""
    active = read.active
    return Trace(
        prompt_tokens=read.tokens,
        prompt_fired=read.fired,
        tokens=tuple(tokens),
        fired=tuple(fired),
        indices=None if active is None else tuple(own.cpu().numpy() for own in active.indices),
        d_ff=tuple(d_ff),
        prefill_ms=read.prefill_ms,
        selection_ms=read.selection_ms,
        packing_ms=read.packing_ms,
    )
