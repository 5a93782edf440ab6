"""Where the parts of a model go that is larger than one GPU: accelerate spreads it, and only the eager engine runs it.

What fits no GPU stays in main memory or on disk and is copied to a GPU whenever it is needed. There a step is as slow
as the copies, and the sparse arm saves nothing: it zeroes the neurons it leaves out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..support.lazy import torch
from .feedforward import transfer_hooks
from .precision import PRECISIONS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

DeviceMap = str | dict[str, Any]

_FOR_WEIGHTS = 0.9  # of a GPU's free memory; the rest is for caches and packed copies


def automatic_device_map(folder: Path, precision: str, device: torch.device) -> DeviceMap | None:
    """``auto`` where the safetensors in ``folder`` do not fit the GPU ``device``; None where they do, or on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return "auto" if _parameters(folder) * PRECISIONS[precision].bytes_per_weight > _FOR_WEIGHTS * free else None


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def is_spread(model: nn.Module) -> bool:
    """Whether parts of ``model`` are in different places."""
    places: dict[str, Any] = getattr(model, "hf_device_map", {})
    return len(set(places.values())) > 1


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the embedding computes, which is where token ids go."""
    embedding: Any = model.get_input_embeddings()
    for hook in transfer_hooks(embedding):
        return torch.device(hook.execution_device)
    return embedding.weight.device
