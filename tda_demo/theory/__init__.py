"""The paper's explanation of sparsity, measured: three claims and a training run, an experiment a file.

Every experiment is a function of a model (but the training run), settings, texts where it takes some, a progress
report and a ``threading.Event`` that stops it. It returns a Finding and leaves the model as it was.
"""

from .findings import Check, Finding, Table, summary
from .inertia import InertiaSettings, inertia
from .root_cause import RootCauseSettings, root_cause
from .statistics import Estimate
from .training import TrainingPoint, TrainingSettings, training
from .uncertainty import UncertaintySettings, uncertainty

__all__ = [
    "Check",
    "Estimate",
    "Finding",
    "InertiaSettings",
    "RootCauseSettings",
    "Table",
    "TrainingPoint",
    "TrainingSettings",
    "UncertaintySettings",
    "inertia",
    "root_cause",
    "summary",
    "training",
    "uncertainty",
]
