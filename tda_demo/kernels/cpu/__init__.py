"""Compiled kernels for CPUs: the whole decode step, and single linears for what it does not cover."""

import hashlib
from pathlib import Path

import numba

from ...support.files import cache_root


def _sources() -> str:
    here = Path(__file__).parent
    files = [*sorted(here.rglob("*.py")), here.parent / "nf4.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


# Compiled kernels are kept per state of all sources here: numba itself would not see that a function another one calls
# has changed in another file.
numba.config.CACHE_DIR = str(cache_root() / "compiled" / _sources())  # type: ignore[attr-defined]
