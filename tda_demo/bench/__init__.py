"""Speed tables: on a CPU of a model's precisions, on a GPU of a model's shapes."""

from .run import BenchSettings, Table, bench
from .table import BenchRow, markdown

__all__ = ["BenchRow", "BenchSettings", "Table", "bench", "markdown"]
