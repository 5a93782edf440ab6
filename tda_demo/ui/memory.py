"""How much memory is free for a model: the machine's, as far as this process's container may use it, or the GPU's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_DRIVER = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows


@dataclass(frozen=True)
class Room:
    """``free`` bytes of ``what``: memory, or GPU memory."""

    free: float
    what: str

    def plus(self, given_back: float) -> Room:
        """As it will be once that many bytes are given back."""
        return Room(self.free + given_back, self.what)


def has_nvidia_driver() -> bool:
    """Whether there may be a CUDA GPU: asked while the page starts, when torch, which knows, is not imported."""
    return any(path.exists() for path in _DRIVER)


def is_zero_gpu_space() -> bool:
    """Whether this is a Space that is lent a GPU for one call at a time (ZeroGPU)."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def main_memory(cgroup: Path = _CGROUP) -> Room:
    """The smaller of what the machine has available and what the container's limit (cgroup v2) leaves."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        if limit != "max":
            free = min(free, max(0, int(limit) - used + _reclaimable(cgroup)))
    except (OSError, ValueError):
        pass  # no such limit here
    return Room(free, "memory")


def gpu_memory() -> Room:
    """Of all CUDA devices, over which a model too large for one is spread; torch's own unused blocks count as free."""
    import torch

    devices = range(torch.cuda.device_count())
    free = sum(torch.cuda.mem_get_info(device)[0] for device in devices)
    unused = sum(torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) for device in devices)
    return Room(free + unused, "GPU memory")


def _reclaimable(cgroup: Path) -> int:
    """File pages that count as used and make way when memory is asked for: weights once read lie there."""
    lines = (cgroup / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
