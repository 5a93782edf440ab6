"""What machine this is: the figures that must stand beside every time measured on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from .errors import UserError

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores this process may use: its CPU affinity, and the cgroup's quota where one is set (containers, Spaces)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min(cores, _cgroup_quota() or cores))


def _cgroup_quota() -> int | None:
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


def use_threads(asked: int | None) -> None:
    """Sets how many threads every kernel uses; None lowers torch's own choice to the cores this process may use.

    Raises:
        UserError: ``asked`` is below 1 or above the cores there are.
    """
    cores = available_cores()
    if asked is not None and not 1 <= asked <= cores:
        raise UserError(f"{asked} threads: this process may use 1 to {cores}.")
    torch.set_num_threads(asked or min(torch.get_num_threads(), cores))


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: torch.device, precision: str) -> dict[str, Any]:
    """``cpu`` or ``gpu`` by name, ``threads``, ``ram_gb``, ``precision``, and versions."""
    from importlib.metadata import version

    processor = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {"cpu": cpu_name()}
    return {
        **processor,
        "threads": torch.get_num_threads(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "precision": precision,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }
