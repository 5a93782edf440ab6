"""What machine this is: the figures that must stand beside every time measured on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch


def available_cores() -> int:
    """Cores this process may use: its CPU affinity, and the cgroup's quota where one is set (containers, Spaces)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min(cores, _cgroup_quota() or cores))


def _cgroup_quota() -> int | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


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
