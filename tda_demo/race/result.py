"""What a race found, and the JSON it is told in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from ..methods import METHODS, Method
from ..methods.controls import against, is_control
from ..stats.metrics import Speedup, decided_efficiency, is_beyond, is_equal_work


@dataclass(frozen=True)
class ArmResult:
    """One arm. ``tokens`` counts the first one, which no step made; ``step_ms`` has one entry fewer.

    ``tokens_per_second`` is over the positions that all arms have written. ``weight_bytes`` of a step, the mean where
    steps differ; None where they do and there was none. ``prefill_ms`` of a method's arm includes choosing and packing
    its active sets.
    """

    text: str
    tokens: int
    step_ms: list[float]
    prefill_ms: float
    tokens_per_second: float | None
    weight_bytes: int | None
    ended: str


@dataclass(frozen=True)
class RaceQuality:
    """Teacher-forced on the dense arm's text: ``agreement`` 0..1 and ``kl`` in nats per token over ``positions``.

    ``divergence`` is the token at which the free-running texts part, ``divergence_at`` the character, both counted from
    0; None where they do not. ``cett`` is the realised CETT of each layer.
    """

    agreement: float
    kl: float
    positions: int
    divergence: int | None
    divergence_at: int | None
    cett: list[float]


@dataclass(frozen=True)
class FirstEnd:
    """How far the arms were at equal decode time: the ``arm`` that ended first, and the ``tokens`` of each one then.

    Arms are called "dense", "sparse" and "rival".
    """

    arm: str
    tokens: dict[str, int]


@dataclass(frozen=True)
class MethodResult:
    """What a race measured of one method, whose arm is ``sparse``; ``note`` says what it took to make, if much."""

    method: str
    settings: dict[str, Any]
    sparse: ArmResult
    speedup: Speedup | None
    byte_bound: float | None
    efficiency: float | None
    sparsity: list[float]
    quality: RaceQuality | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        fields = asdict(self)
        fields["arm"] = fields.pop("sparse")
        fields["sparsity"] = _per_layer(self.sparsity)
        return fields


@dataclass(frozen=True)
class RaceResult:
    """Everything a race measured, and what it was measured on: of the method as a ``MethodResult`` has it.

    Speeds are of the positions that all arms have written. ``first_end`` is None where a race was stopped, or an arm
    ended without a step. ``speedup_over_rival`` is the rival's time / the method's, as ``speedup`` is the dense arm's.
    ``fewer_bits``: what a dense step would read in nearly exact precisions of fewer bytes, by name; none was raced.
    ``rounded_in``: those of them that would round this model's weights, which are not known to have so few bits.
    """

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
    quality: RaceQuality | None
    environment: dict[str, Any]
    note: str = ""
    first_end: FirstEnd | None = None
    rival: MethodResult | None = None
    speedup_over_rival: Speedup | None = None
    fewer_bits: dict[str, int] = field(default_factory=dict)
    rounded_in: tuple[str, ...] = ()

    @property
    def methods(self) -> list[RaceResult | MethodResult]:
        """What was measured of the method, and of its rival where there is one."""
        return [self] if self.rival is None else [self, self.rival]

    @property
    def arms(self) -> list[tuple[str, ArmResult]]:
        """Every arm with the name of its method."""
        return [("dense", self.dense), *((result.method, result.sparse) for result in self.methods)]

    @property
    def machine(self) -> str:
        return f"{self.environment.get('gpu') or self.environment['cpu']}, {self.environment['threads']} threads"

    def to_json(self) -> dict[str, Any]:
        """Plain types; ``speedup``, ``efficiency`` and ``quality`` are null where a run was too short to have them.

        ``rival`` and ``speedup_over_rival`` are there only where there was a rival.
        """
        fields = asdict(self)
        del fields["rival"]
        over_rival = fields.pop("speedup_over_rival")
        fields["arms"] = {"dense": fields.pop("dense"), "sparse": fields.pop("sparse")}
        fields["sparsity"] = _per_layer(self.sparsity)
        if self.rival is not None:
            fields |= {"rival": self.rival.to_json(), "speedup_over_rival": over_rival}
        return fields


def _per_layer(sparsity: list[float]) -> dict[str, Any]:
    return {"mean": fmean(sparsity), "per_layer": sparsity}


def summary(result: RaceResult) -> str:
    """The result as a few lines of text, every number with its unit."""
    lines = [f"{result.model}, {result.precision} on {result.machine}, {result.engine}"]
    for name, arm in result.arms:
        rate = "too few steps to time" if arm.tokens_per_second is None else f"{arm.tokens_per_second:.1f} tokens/s"
        lines.append(f"\n[{name}: {arm.tokens} tokens, {rate}, prompt {arm.prefill_ms:.0f} ms]\n{arm.text}")
    lines.append("")
    if result.rival is None:
        return "\n".join([*lines, *_figures(result), *filter(None, [fewer_bits(result)])])
    for of_method in result.methods:
        settings = ", ".join(f"{name}={value}" for name, value in of_method.settings.items())
        lines += [f"{of_method.method} ({settings}), against dense:", *(f"  {line}" for line in _figures(of_method))]
    if speed := result.speedup_over_rival:
        lines.append(f"{result.method} over {result.rival.method}: {_speedup(speed, result.rival.method)}")
    return "\n".join([*lines, *filter(None, [against_control(result)])])


def against_control(result: RaceResult, named: Callable[[str], str] = str) -> str:
    """Whether a method beats the control it raced, in one sentence; empty where not one of the two is a control.

    ``named`` turns a method's name into the one it is shown by.
    """
    rival = result.rival
    if rival is None or is_control(result.method) == is_control(rival.method):
        return ""
    method, control = (rival, result) if is_control(result.method) else (result, rival)
    read, control_read = (raced.sparse.weight_bytes for raced in (method, control))
    kl, control_kl = (raced.quality and raced.quality.kl for raced in (method, control))
    return against(named(method.method), read, kl, named(control.method), control_read, control_kl)


def fewer_bits(result: RaceResult) -> str:
    """What storing the weights in fewer bits would save without any method, in one sentence; empty where nothing."""
    if not result.fewer_bits or result.dense.weight_bytes is None:
        return ""
    rounding = dict.fromkeys(result.rounded_in, " (which rounds these weights to four bits)")
    others = " and ".join(
        f"{read / 1e6:.0f} MB in {name}{rounding.get(name, '')}" for name, read in result.fewer_bits.items()
    )
    arms = [f"{name} {arm.weight_bytes / 1e6:.0f} MB" for name, arm in result.arms if arm.weight_bytes is not None]
    return f"Without any method a dense step would read {others}; in {result.precision} {', '.join(arms)}"


def _figures(result: RaceResult | MethodResult) -> list[str]:
    """What was measured of a method, in lines."""
    lines = [f"{result.method}: {result.note}"] if result.note else []
    if result.speedup and result.byte_bound:
        equal = is_equal_work(fmean(result.sparsity), result.byte_bound)
        told = f"{_speedup(result.speedup, 'dense', equal=equal)}; byte bound {result.byte_bound:.3f}x"
        if not equal and (share := decided_efficiency(result.speedup, result.byte_bound)) is not None:
            told += f", efficiency {share:.0%}"
        if is_beyond(result.speedup, result.byte_bound) and not equal:
            told += " (more than the bytes allow, which is no gain)"
        lines.append(told)
    leaves_out = METHODS.get(result.method, Method).leaves_out
    lines.append(f"sparsity {fmean(result.sparsity):.1%} {leaves_out} (mean over layers)")
    if quality := result.quality:
        parting = "nowhere" if quality.divergence is None else f"at token {quality.divergence + 1}"
        lines.append(
            f"agreement {quality.agreement:.1%}, KL {quality.kl:.3f} nats/token over {quality.positions} tokens; "
            f"texts part {parting}; realised CETT {fmean(quality.cett):.3f} (mean over layers)"
        )
    return lines


def _speedup(speed: Speedup, other: str, *, equal: bool = False) -> str:
    if speed.doubt:
        return f"speedup: {speed.doubt}"
    capped = f", {speed.capped} steps capped" if speed.capped else ""
    verdict = " (undecided: no difference was measured)" if speed.undecided else ""
    if speed.high < 1:
        verdict = f" (slower than {other})"
    if equal:
        verdict = " (at equal work)"
    return (
        f"speedup {speed.ratio:.3f}x, 95 % interval {speed.low:.3f} to {speed.high:.3f}, n = {speed.n}{capped}{verdict}"
    )
