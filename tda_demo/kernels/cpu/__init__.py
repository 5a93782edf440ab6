"""Compiled kernels for CPUs: the whole decode step, a prompt layer by layer, and single linears for all else.

Here numba is set up: where compiled kernels are kept, and the threads that they run on.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import numba

from ...support.errors import UserError
from ...support.files import cache_root
from ...support.lazy import torch
from .kept_code import compile_undisturbed, forget_old_code, keep_code_in


def _sources() -> str:
    here = Path(__file__).parent
    constants = [here.parent / f"{name}.py" for name in ("activations", "nf4", "q4_sizes")]  # compiled into the loops
    files = [*sorted(here.rglob("*.py")), *constants]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


# Compiled kernels are kept per state of all sources here: numba itself would not see that a function another one calls
# has changed in another file. A folder that the user names for numba's cache is kept to.
_NAMED: str = numba.config.CACHE_DIR  # type: ignore[attr-defined]
_FOLDER = (Path(_NAMED) if _NAMED else cache_root() / "compiled") / _sources()
keep_code_in(_FOLDER)
compile_undisturbed()

_running = threading.RLock()
_process: int | None = None  # whose threads they are, once they have been started


def is_first_start() -> bool:
    """Whether no kernel of the present sources has been compiled on this machine yet, and what is compiled can be kept.

    Numba compiles one function at a time: it is then worth a second process.
    """
    try:
        _FOLDER.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(_FOLDER, os.W_OK) and not any(_FOLDER.rglob("*.nbi"))


def check_runnable() -> None:
    """Raises UserError where compiled kernels cannot run: they are switched off, or their threads have been forked."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise UserError("NUMBA_DISABLE_JIT is set, and without compiled code no model runs here: unset it.")
    if _process not in (None, os.getpid()):
        raise UserError(
            "This process was forked from one that had computed already, and its threads are not here: start it with "
            "multiprocessing's 'spawn' instead, or before anything is computed."
        )


def most_threads() -> int:
    """How many threads compiled kernels can have."""
    return numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


class Alone:
    """Within the context no other thread of this process runs a compiled kernel.

    Two at once would share the cores and spoil each other's times, and not every threading layer of numba allows it.
    A thread that is within one may enter another, as a step does in which a hook decodes a copy.

    Every step waits for what is done here, when all else has been pushed out of the processor's caches: a generator in
    place of a class takes 20 us more then, and asking numba how many threads there are 40.
    """

    def __enter__(self) -> None:
        if _process != os.getpid():
            check_runnable()  # first: in a process that was forked, nobody is there to release the lock
        _running.acquire()
        if _process is None:
            try:
                _start_pool()
            except BaseException:
                _running.release()
                raise

    def __exit__(self, *error: object) -> None:
        _running.release()


alone = Alone()


class _Cores(Alone):
    def __init__(self, threads: int) -> None:
        self._wanted = min(threads, most_threads())

    def __enter__(self) -> None:
        super().__enter__()
        try:
            self._before = numba.get_num_threads()
            if self._wanted != self._before:
                numba.set_num_threads(self._wanted)
        except BaseException:
            super().__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            if self._wanted != self._before:
                numba.set_num_threads(self._before)
        finally:
            super().__exit__(*error)


def cores(threads: int) -> Alone:
    """A context, entered once, within which the caller is ``alone`` and numba has ``threads`` threads."""
    return _Cores(threads)


def turn(threads: int) -> Alone:
    """A context as ``cores`` gives, to be entered again and again, but not by who is within it or another of fewer.

    Outside of ``cores`` every thread of a process has all of numba's: then nothing has to be set.
    """
    return alone if threads == most_threads() else cores(threads)


def _start_pool() -> None:
    """Starts numba's threads. Its OpenMP layer sets the thread count that torch goes by too: that is put back.

    Raises:
        UserError: numba has no threads here.
    """
    global _process
    threads = torch.get_num_threads()
    try:
        numba.set_num_threads(most_threads())
    except ValueError as error:  # the layer that was asked for is not installed
        layer = numba.config.THREADING_LAYER  # type: ignore[attr-defined]
        raise UserError(
            f"numba's threading layer '{layer}' cannot be used here: install it, or unset NUMBA_THREADING_LAYER."
        ) from error
    _process = os.getpid()
    torch.set_num_threads(threads)
    if not _NAMED:
        forget_old_code(_FOLDER)
