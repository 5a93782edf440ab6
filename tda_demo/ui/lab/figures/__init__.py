"""The lab's plots: of a finding's tables, and of a training run while it goes on; what each shows, a file."""

from __future__ import annotations

from . import inertia, root_cause, training, uncertainty

PLOTS = {
    "root-cause": root_cause.PLOTS,
    "uncertainty": uncertainty.PLOTS,
    "inertia": inertia.PLOTS,
    "training": training.PLOTS,
}
