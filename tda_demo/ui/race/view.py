"""What the page knows of one race: a reducer from events to state. It knows neither gradio nor a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ...methods import Method
from ...stats import metrics
from ..job import JobView
from ..requests import RunRequest
from .runs import Ready, SettingFound

if TYPE_CHECKING:
    from ...race import Ended, Finished, PromptRead, Stepped
    from ...race.result import MethodResult, RaceQuality, RaceResult
    from ...stats.metrics import Speedup

ARMS = ("dense", "sparse", "rival")
_SPEEDUP_EVERY = 8  # positions: the interval's bootstrap costs as much as all the rest of a frame


@dataclass
class ArmView:
    """One arm so far. ``step_bytes`` are the weight bytes its steps read; ``ended`` is empty while it writes."""

    text: str = ""
    tokens: int = 0
    step_ms: list[float] = field(default_factory=list)
    step_bytes: list[int] = field(default_factory=list)
    ended: str = ""


@dataclass
class MethodView(ArmView):
    """The arm of ``method``, None where none is racing; and what is known of the method against the ``dense`` arm.

    ``fired`` holds one int64 [layers] per step and ``written`` what that step wrote.
    """

    dense: ArmView = field(default_factory=ArmView)
    method: Method | None = None
    ready: Ready | None = None
    found: SettingFound | None = None
    prompt: PromptRead | None = None
    written: list[str] = field(default_factory=list)
    fired: list[np.ndarray] = field(default_factory=list)
    speedup: Speedup | None = None
    result: RaceResult | MethodResult | None = None

    @property
    def name(self) -> str:
        """What the arm is called: the method."""
        return type(self.method).__name__ if self.method else "sparse"

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
        if self.prompt is not None and self.prompt.active is not None:
            return np.array(self.prompt.active.counts(), dtype=np.float64)
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
    def quality(self) -> RaceQuality | None:
        return self.result.quality if self.result else None

    def mlp_share(self, dense_bytes: int | None) -> float | None:
        """Share 0..1 of the MLP weight bytes that the arm read, once the race is over."""
        if self.result is None or self.ready is None:
            return None
        return metrics.mlp_share_read(dense_bytes, self.result.byte_bound, self.ready.mlp_bytes)

    def measure(self) -> None:
        """The speedup so far, after a step of one of the two arms."""
        positions = min(len(self.dense.step_ms), len(self.step_ms))
        if positions % _SPEEDUP_EVERY == metrics.WARM_UP_STEPS:
            self.speedup = metrics.speedup(self.dense.step_ms, self.step_ms)

    def finish(self, result: RaceResult | MethodResult) -> None:
        self.result, self.speedup = result, result.speedup


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

    def arm_name(self, arm: str) -> str:
        return arm if arm == "dense" else self.method(arm).name

    def arm(self, name: str) -> ArmView:
        return self.dense if name == "dense" else self.method(name)

    def method(self, name: str) -> MethodView:
        return self.rival if name == "rival" else self.sparse

    def receive(self, event: Any) -> None:
        # Imported late, because torch comes with it: whoever has an event to show has already loaded a model.
        from ...race import Ended, Finished, Judging, PromptRead, Stepped

        match event:
            case Stepped():
                self._step(event)
            case PromptRead():
                self.sparse.prompt, self.rival.prompt = event, event.rival
                self.say("running", "Racing at equal decode time.")
            case Ended():
                self._end(event)
            case Judging():
                self.say("judging", "Judging: both models reread the dense text.")
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
        self.say("stopped", "Stopped before the race began.")

    def out_of_time(self, seconds: float) -> str:
        return f"Stopped: the race took {seconds:g} s, the most this page gives to one."

    def _step(self, event: Stepped) -> None:
        arm = self.arm(event.arm)
        arm.text += event.text
        arm.tokens = event.index + 1
        if event.ms is not None:
            arm.step_ms.append(event.ms)
            if event.weight_bytes is not None:
                arm.step_bytes.append(event.weight_bytes)
            for method_view in self.methods:
                method_view.measure()
        if event.fired is not None:
            method = self.method(event.arm)
            method.written.append(event.text)
            method.fired.append(event.fired)

    def _end(self, event: Ended) -> None:
        self.arm(event.arm).ended = event.reason
        if self.first_end is None and event.reason != "stopped":
            self.first_end = event.arm, {name: arm.tokens for name, arm in self.racing.items()}

    def _finish(self, event: Finished) -> None:
        result = self.result = event.result
        self.sparse.finish(result)
        if result.rival is not None:
            self.rival.finish(result.rival)
        if any(arm.ended == "stopped" for arm in self.racing.values()):
            self.say("stopped", self.timed_out or "Stopped.")
        else:
            self.say("finished", "Finished.")
