"""How threads divide work among them."""

from __future__ import annotations

import numpy as np
from numba import njit

from .nf4_loops import LOOP


@njit(**LOOP)
def share(count, t, threads):
    """The first of ``count`` things that are thread ``t``'s, and the first that is not any more.

    In numba's loops over threads t is unsigned; what is called with such numbers would be compiled for them apart.
    """
    count, t, threads = np.int64(count), np.int64(t), np.int64(threads)
    return count * t // threads, count * (t + 1) // threads
