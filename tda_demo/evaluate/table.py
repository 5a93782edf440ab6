"""Tidy tables on disk: CSV, Parquet or JSON, as the file's name says."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..support.errors import UserError
from ..support.files import write_bytes
from .row import SweepRow

FORMATS = (".csv", ".parquet", ".json")


def check_format(path: Path) -> None:
    """Raises UserError where ``path`` has no known ending, or it is Parquet and pyarrow is not installed."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path.name}: a table is written as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError("Parquet needs pyarrow: pip install pyarrow, or write a .csv.") from error


def write_table(rows: Sequence[SweepRow], path: Path) -> None:
    """One line a row; figures of a CSV have six digits.

    Raises:
        UserError: see ``check_format``; or the file cannot be written.
    """
    import pandas

    check_format(path)
    frame = pandas.DataFrame([asdict(row) for row in rows])
    buffer = io.BytesIO()
    if path.suffix == ".csv":
        frame.to_csv(buffer, index=False, float_format="%.6g")
    elif path.suffix == ".parquet":
        frame.to_parquet(buffer, index=False)
    else:
        frame.to_json(buffer, orient="records", indent=1)
    write_bytes(path, buffer.getvalue())
