"""The paper's explanation of sparsity, measured: three claims and a training run. One experiment, one file or folder.

``experiment`` holds the contract, ``findings`` what an experiment returns. Nothing here imports torch before an
experiment runs: the page shows the claims and asks for the settings before torch is in memory.
"""

from .experiment import Experiment
from .inertia import Inertia
from .root_cause import RootCause
from .training import Training
from .uncertainty import Uncertainty

_ALL: tuple[type[Experiment], ...] = (RootCause, Uncertainty, Inertia, Training)
EXPERIMENTS: dict[str, type[Experiment]] = {experiment.name: experiment for experiment in _ALL}

__all__ = ["EXPERIMENTS", "Experiment", "Inertia", "RootCause", "Training", "Uncertainty"]
