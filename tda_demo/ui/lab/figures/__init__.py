"""The lab's plots: of a finding's tables, and of a training run while it goes on; what each shows, a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import inertia, root_cause, training, uncertainty
from .chart import Plot

# By the experiment's name; one that is not here has no plots.
PLOTS: Mapping[str, Sequence[Plot]] = {
    "root-cause": root_cause.PLOTS,
    "uncertainty": uncertainty.PLOTS,
    "inertia": inertia.PLOTS,
    "training": training.PLOTS,
}
