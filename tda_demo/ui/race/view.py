"""What the page knows of one race: a reducer from events to state. It knows neither gradio nor a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ...methods import Method
from ...race.events import Ended, Finished, Judging, Priced, PromptRead, Stepped
from ...stats import metrics
from ...stats.clock import StepClock, shared_steps
from ..job import JobView
from ..requests import RunRequest
from .runs import Ready, SettingFound

if TYPE_CHECKING:
    from ...race.result import MethodResult, RaceQuality, RaceResult
    from ...stats.metrics import Speedup

ARMS = ("dense", "sparse", "rival")


@dataclass(frozen=True)
class Price:
    """What a method has cost: of ``positions`` judged ``same`` next tokens are dense's; ``kl`` nats per token."""

    same: int
    positions: int
    kl: float

    @property
    def agreement(self) -> float:
        return self.same / self.positions


@dataclass
class ArmView:
    """One arm so far: ``pieces`` of its text, one a token; ``times``, what its steps count for; ``step_bytes``, the
    weight bytes they read. ``ended`` is empty while it writes.
    """

    pieces: list[str] = field(default_factory=list)
    times: StepClock = field(default_factory=StepClock)
    step_bytes: list[int] = field(default_factory=list)
    ended: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        return len(self.pieces)


@dataclass
class MethodView(ArmView):
    """The arm of ``method``, None where none is racing; and what is known of the method against the ``dense`` arm.

    ``title`` is what it is called, where that is not the method's name. ``fired`` holds one int64 [layers] per step,
    ``agrees`` and ``kl`` a value a position judged so far.
    """

    dense: ArmView = field(default_factory=ArmView)
    method: Method | None = None
    title: str = ""
    ready: Ready | None = None
    found: SettingFound | None = None
    prompt: PromptRead | None = None
    fired: list[np.ndarray] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    speedup: Speedup | None = None
    result: RaceResult | MethodResult | None = None

    @property
    def name(self) -> str:
        """What the arm is called: the method."""
        return self.title or (type(self.method).__name__ if self.method else "sparse")

    @property
    def byte_bound(self) -> float | None:
        """Known from the prompt where the active sets are, else of the steps so far."""
        if self.result is not None:
            return self.result.byte_bound
        if self.prompt is not None and self.prompt.byte_bound is not None:
            return self.prompt.byte_bound
        if not (self.dense.step_bytes and self.step_bytes):
            return None
        return fmean(self.dense.step_bytes) / fmean(self.step_bytes)

    @property
    def kept(self) -> np.ndarray | None:
        """Neurons computed in each layer, float64 [layers]: the active sets', or the mean over the steps so far."""
        if self.prompt is not None and self.prompt.kept is not None:
            return np.array(self.prompt.kept, dtype=np.float64)
        return np.mean(self.fired, axis=0) if self.fired else None

    @property
    def cett_target(self) -> float | None:
        """The CETT the method aims at, None where it aims at none."""
        return self.method.settings().get("cett") if self.method else None

    @property
    def sparsity(self) -> float | None:
        """Mean over layers, 0..1."""
        if self.result is not None:
            return float(np.mean(self.result.sparsity))
        if self.kept is None or self.ready is None:
            return None
        return float(np.mean(1 - self.kept / np.array(self.ready.d_ff)))

    @property
    def is_equal_work(self) -> bool:
        """Whether it does what dense does."""
        return metrics.is_equal_work(self.sparsity, self.byte_bound)

    @property
    def quality(self) -> RaceQuality | None:
        return self.result.quality if self.result else None

    @property
    def price(self) -> Price | None:
        """What is judged by now: of a finished race everything."""
        if (quality := self.quality) is not None:
            return Price(round(quality.agreement * quality.positions), quality.positions, quality.kl)
        return Price(sum(self.agrees), len(self.agrees), max(0.0, fmean(self.kl))) if self.agrees else None

    def mlp_share(self, dense_bytes: int | None) -> float | None:
        """Share 0..1 of the MLP weight bytes that the arm read, once the race is over."""
        if self.result is None or self.ready is None:
            return None
        return metrics.mlp_share_read(dense_bytes, self.result.byte_bound, self.ready.mlp_bytes)


@dataclass
class RaceView(JobView):
    """State of the race of ``request``. Without a request it is the page before its first race.

    ``phase`` is one of empty, queued, loading, reading, running, judging, finished, stopped, failed. ``first_end`` is
    the arm that ended first, and the tokens of all arms then.
    """

    request: RunRequest | None = None
    dense: ArmView = field(default_factory=ArmView)
    sparse: MethodView = field(init=False)
    rival: MethodView = field(init=False)
    ready: Ready | None = None
    first_end: tuple[str, dict[str, int]] | None = None
    result: RaceResult | None = None

    def __post_init__(self) -> None:
        self.sparse, self.rival = MethodView(dense=self.dense), MethodView(dense=self.dense)
        if (request := self.request) is not None:
            self.sparse.method, self.rival.method = request.method, request.rival

    @property
    def racing(self) -> dict[str, ArmView]:
        """The arms that take part, by name."""
        return {name: self.arm(name) for name in ARMS if name != "rival" or self.rival.method}

    @property
    def methods(self) -> list[MethodView]:
        """The methods that take part."""
        return [self.sparse, self.rival] if self.rival.method else [self.sparse]

    @property
    def shared(self) -> int:
        """Positions that all arms have written: those that are compared."""
        return shared_steps(*(arm.times for arm in self.racing.values()))

    @property
    def leader(self) -> str | None:
        """The arm with the most tokens, now or when the first one ended, if it also took the least time for what all
        have written; a token more or less is none ahead.
        """
        tokens = self.first_end[1] if self.first_end else {name: arm.tokens for name, arm in self.racing.items()}
        if self.sparse.prompt is None or max(tokens.values()) - min(tokens.values()) <= 1:
            return None
        first = max(tokens, key=lambda arm: tokens[arm])
        spent = {name: float(arm.times.first(self.shared).sum()) for name, arm in self.racing.items()}
        return first if spent[first] == min(spent.values()) else None

    def arm_name(self, arm: str) -> str:
        return arm if arm == "dense" else self.method(arm).name

    def arm(self, name: str) -> ArmView:
        return self.dense if name == "dense" else self.method(name)

    def method(self, name: str) -> MethodView:
        return self.rival if name == "rival" else self.sparse

    def measure(self) -> None:
        """The speedups by now; of a race that is over they are the result's."""
        for arm in self.methods:
            if arm.result is None and (arm.speedup is None or arm.speedup.n != self.shared):
                arm.speedup = metrics.speedup(self.dense.times, arm.times, self.shared)

    def receive(self, event: Any) -> None:
        match event:
            case Stepped():
                self._step(event)
            case PromptRead():
                self.sparse.prompt, self.rival.prompt = event, event.rival
                self.say("running", "Racing at equal decode time.")
            case Priced():
                arm = self.method(event.arm)
                arm.agrees += event.agrees
                arm.kl += event.kl
            case Ended():
                self._end(event)
            case Judging():
                self.say("judging", "Judging what is left: both models reread the dense text.")
            case Finished():
                self._finish(event)
            case Ready():
                self.ready = self.sparse.ready = self.rival.ready = event
            case SettingFound():
                arm = self.sparse if type(self.sparse.method) is type(event.method) else self.rival
                arm.method, arm.found = event.method, event

    def begin(self) -> None:
        self.say("reading", "Reading the prompt…")

    def close(self) -> None:
        begun = self.sparse.prompt is not None
        self.say("stopped", "Stopped: the page was out of reach for a moment." if begun else "Stopped before it began.")

    def out_of_time(self, seconds: float) -> str:
        return f"Stopped: the race took {seconds:g} s, the most this page gives to one."

    def _step(self, event: Stepped) -> None:
        arm = self.arm(event.arm)
        if event.index < arm.tokens:  # text held back until the arm ended
            arm.pieces[event.index] += event.text
            return
        arm.pieces.append(event.text)
        if event.ms is not None:
            arm.times.add(event.ms)
            if event.weight_bytes is not None:
                arm.step_bytes.append(event.weight_bytes)
        if event.fired is not None:
            self.method(event.arm).fired.append(event.fired)

    def _end(self, event: Ended) -> None:
        self.arm(event.arm).ended = event.reason
        if self.first_end is None and event.reason != "stopped":
            self.first_end = event.arm, {name: arm.tokens for name, arm in self.racing.items()}

    def _finish(self, event: Finished) -> None:
        self.measure()
        result = self.result = event.result
        for arm, of_arm in zip(self.methods, result.methods, strict=True):
            arm.result, arm.speedup = of_arm, of_arm.speedup
        if any(arm.ended == "stopped" for arm in self.racing.values()):
            self.say("stopped", self.timed_out or "Stopped.")
        else:
            self.say("finished", "Finished.")
