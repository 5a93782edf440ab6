"""Kernels are compiled for the processor that numba compiles for, not for one that it was told to forget."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AVX2 = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+popcnt,+ssse3,+sse4.2"}

pytestmark = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="of x86 processors")


def told(program: str, **variables: str) -> str:
    """What a process of its own says."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (AVX2, "True True False"),
        ({**AVX2, "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}, "True False False"),
        ({"NUMBA_CPU_NAME": "generic"}, "False False False"),
        ({"NUMBA_ENABLE_AVX": "0"}, "False False False"),
    ],
)
def test_what_it_has_is_what_numba_compiles_for(variables: dict[str, str], expected: str) -> None:
    program = "from tda_demo.kernels.cpu import processor as p; print(p.HAS_SHUFFLE, p.HAS_HALVES, p.HAS_DOT)"
    assert told(program, **variables) == expected


@pytest.mark.parametrize("variables", [AVX2, {"NUMBA_CPU_NAME": "generic"}], ids=["avx2", "generic"])
def test_products_are_right_where_it_has_less(variables: dict[str, str]) -> None:
    """Rows of four bits, whose kernel has one more instruction than others."""
    program = (
        "import torch\n"
        "from tda_demo.kernels.cpu import cores\n"
        "from tda_demo.kernels.cpu.linear import RowMajor, compiled\n"
        "from tda_demo.kernels.formats import encode, format_of\n"
        "rows = encode(torch.randn(20, 70, generator=torch.Generator().manual_seed(0)), 'q4')\n"
        "x = torch.randn(70, generator=torch.Generator().manual_seed(1))\n"
        "expected = format_of('q4').decode_rows(rows.codes, rows.scales, 70) @ x\n"
        "import numpy as np\n"
        "product = compiled(RowMajor(rows, np.empty(0, np.float32)), x)\n"
        "print(float((product - expected).abs().max() / expected.abs().max()) < 0.02)\n"
    )
    assert told(program, **variables) == "True"
