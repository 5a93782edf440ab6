"""Quality on text: what a method costs, measured on every token it computes."""

from .evaluation import EvaluationSettings, evaluate
from .result import Evaluation

__all__ = ["Evaluation", "EvaluationSettings", "evaluate"]
