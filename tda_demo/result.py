"""What a race found, and the JSON it is told in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from .metrics import Speedup


@dataclass(frozen=True)
class ArmResult:
    """One arm. ``tokens`` counts the first one, which no step made; ``step_ms`` has one entry fewer.

    ``weight_bytes`` of a step, the mean where steps differ; None where they do and there was none.
    ``prefill_ms`` of the sparse arm includes choosing and packing its active sets.
    """

    text: str
    tokens: int
    step_ms: list[float]
    prefill_ms: float
    tokens_per_second: float | None
    weight_bytes: int | None
    ended: str


@dataclass(frozen=True)
class Quality:
    """Teacher-forced on the dense arm's text: ``agreement`` 0..1 and ``kl`` in nats per token over ``positions``.

    ``divergence`` is the token at which the free-running texts part, ``divergence_at`` the character; None where they
    do not. ``cett`` is the realised CETT of each layer.
    """

    agreement: float
    kl: float
    positions: int
    divergence: int | None
    divergence_at: int | None
    cett: list[float]


@dataclass(frozen=True)
class RaceResult:
    """Everything a race measured, and what it was measured on; ``note`` says what the method took to make, if much."""

    model: str
    device: str
    precision: str
    engine: str
    method: str
    settings: dict[str, Any]
    prompt_tokens: int
    dense: ArmResult
    sparse: ArmResult
    speedup: Speedup | None
    byte_bound: float | None
    efficiency: float | None
    sparsity: list[float]
    quality: Quality | None
    environment: dict[str, Any]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain types; ``speedup``, ``efficiency`` and ``quality`` are null where a run was too short to have them."""
        fields = asdict(self)
        fields["arms"] = {"dense": fields.pop("dense"), "sparse": fields.pop("sparse")}
        fields["sparsity"] = {"mean": fmean(self.sparsity), "per_layer": self.sparsity}
        return fields


def summary(result: RaceResult) -> str:
    """The result as a few lines of text, every number with its unit."""
    lines = [f"{result.model}, {result.precision} on {_machine(result)}, {result.engine}"]
    for name, arm in (("dense", result.dense), (result.method, result.sparse)):
        rate = "too few steps to time" if arm.tokens_per_second is None else f"{arm.tokens_per_second:.1f} tokens/s"
        lines.append(f"\n[{name}: {arm.tokens} tokens, {rate}, prompt {arm.prefill_ms:.0f} ms]\n{arm.text}")
    lines.append("")
    if result.note:
        lines.append(f"{result.method}: {result.note}")
    if result.speedup and result.byte_bound and result.efficiency:
        speed = result.speedup
        verdict = " (slower than dense)" if speed.median < 1 else ""
        lines.append(
            f"speedup {speed.median:.3f}x, 95 % interval {speed.low:.3f} to {speed.high:.3f}, n = {speed.n}{verdict}; "
            f"byte bound {result.byte_bound:.3f}x, efficiency {result.efficiency:.0%}"
        )
    lines.append(f"sparsity {fmean(result.sparsity):.1%} (mean over layers)")
    if quality := result.quality:
        parting = "nowhere" if quality.divergence is None else f"at token {quality.divergence}"
        lines.append(
            f"agreement {quality.agreement:.1%}, KL {quality.kl:.3f} nats/token over {quality.positions} tokens; "
            f"texts part {parting}; realised CETT {fmean(quality.cett):.3f} (mean over layers)"
        )
    return "\n".join(lines)


def _machine(result: RaceResult) -> str:
    environment = result.environment
    return f"{environment.get('gpu') or environment['cpu']}, {environment['threads']} threads"
