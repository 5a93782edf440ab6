"""What the processor can do that numba compiles for: this machine's, or the one that numba was told of.

``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES`` and ``NUMBA_ENABLE_AVX`` tell it; an instruction that the processor has and
numba was told to leave alone is one that it cannot compile.
"""

from __future__ import annotations

import numba
from numba.core.codegen import get_host_cpu_features


def _features() -> set[str]:
    told: str | None = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    listed = get_host_cpu_features() if told is None else told
    return {feature[1:] for feature in listed.split(",") if feature.startswith("+")}


_present = _features()

HAS_SHUFFLE = "avx2" in _present
"""Bytes, shorts and their products, 32 bytes at once."""

HAS_HALVES = HAS_SHUFFLE and "f16c" in _present
"""Half precision is widened by an instruction; without one each number would be a call."""

HAS_DOT = HAS_SHUFFLE and ("avxvnni" in _present or {"avx512vnni", "avx512vl"} <= _present)
"""Four products of bytes are added up at once."""
