"""The choice of the engine that runs all arms of a race."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kernels.cpu import check_runnable
from ..methods.policy import Policy
from .cpu.compiled_step import CpuStepEngine
from .cpu.fast_linears import FastLinearsEngine
from .cpu.layout import has_layout
from .eager import EagerEngine
from .engine import Engine
from .gpu.graph import CudaGraphEngine, can_decode
from .weight_bytes import StepBytes

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


def engine_for(lm: LoadedModel, *policies: Policy) -> Engine:
    """The fastest engine that runs ``lm`` under each of ``policies``; without one, under any sequence-level method."""
    if lm.device.type == "cpu":
        check_runnable()
    if lm.is_spread:
        return EagerEngine(lm)
    if has_layout(lm) and all(CpuStepEngine.runs(policy) for policy in policies):
        return CpuStepEngine(lm)
    if can_decode(lm) and all(CudaGraphEngine.runs(policy) for policy in policies):
        return CudaGraphEngine(lm)
    return FastLinearsEngine(lm) if lm.device.type == "cpu" else EagerEngine(lm)


def step_bytes(lm: LoadedModel, *policies: Policy) -> StepBytes:
    """The weight bytes that the arms of ``lm`` read on the engine that runs it under ``policies``."""
    return engine_for(lm, *policies).step_bytes
