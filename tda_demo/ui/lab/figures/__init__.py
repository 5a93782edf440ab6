"""The lab's plots: of a finding's tables, and of a training run while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import gradients, sets
from .chart import Plot

# By the experiment's name; one that is not here has no plots.
PLOTS: Mapping[str, Sequence[Plot]] = {
    "root-cause": gradients.ROOT_CAUSE_PLOTS,
    "uncertainty": sets.UNCERTAINTY_PLOTS,
    "inertia": sets.INERTIA_PLOTS,
    "training": gradients.TRAINING_PLOTS,
}
