"""Before anything is timed: that the kernels and the captured step compute what they should on this card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..decode.eager import EagerEngine
from ..decode.engine import Engine
from ..decode.gpu.kernel_blocks import BlockWeights
from ..kernels.gpu.blocks import ActiveBuffer, Scratch, feed_forward
from ..kernels.gpu.choice import KernelChoice, vendor
from ..kernels.gpu.matrices import Matrices
from ..kernels.gpu.nf4 import Nf4Matrices
from ..methods.sequence import SequencePolicy
from ..stats import metrics
from .random_model import QUANTISED

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

_LIMITS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@torch.no_grad()
def check_blocks(blocks: BlockWeights, choice: KernelChoice, keep: float = 0.5) -> str:
    """First and last block, all neurons and ``keep`` of them, against float64 on the same stored values; in words.

    Raises:
        ArithmeticError: a relative error is above what the dtype's rounding gives.
    """
    worst = 0.0
    for weights in (blocks.weights[0], blocks.weights[-1]):
        x = torch.randn(1, weights.width, device=weights.device).to(blocks.dtype)
        indices = torch.randperm(weights.d_ff, device=x.device)[: round(keep * weights.d_ff)].sort().values
        active = ActiveBuffer.full(weights.d_ff, x.device)
        active.set(indices)
        every = weights.decode(stored=True) if isinstance(weights, Nf4Matrices) else weights
        listed = weights.decode() if isinstance(weights, Nf4Matrices) else weights
        assert isinstance(every, Matrices) and isinstance(listed, Matrices)
        for matrices, buffer in ((every, None), (listed.take(indices), active)):
            tiles = choice.tiles(sparse=buffer is not None)
            scratch = Scratch.for_(weights, tiles, blocks.dtype)
            scratch.out.fill_(torch.nan)
            expected = vendor(matrices.to(torch.float64), x.double())
            out = feed_forward(weights, x, buffer, scratch, tiles).double()
            worst = max(worst, _relative(out, expected))
    return _verdict("blocks against float64", worst, _LIMITS[blocks.dtype])


@torch.no_grad()
def check_step(lm: LoadedModel, engine: Engine, ids: list[int], half: SequencePolicy) -> str:
    """Logits of one dense and one sparse step against transformers on the same prompt; in words.

    ``half`` selects the neurons of the sparse one. NF4 weights, whose down projection was quantised again, are
    compared by KL and cannot fail.

    Raises:
        ArithmeticError: a float model's logits differ by more than its rounding over all layers can explain.
    """
    prefill = engine.prefill(ids[:-1], half)
    arm = engine.dense_arm(prefill, 1)
    expected = lm.model(input_ids=torch.tensor([ids], device=lm.device)).logits[0, -1].float()
    dense = arm.step(ids[-1]).clone()
    if lm.precision in QUANTISED:
        kl = float(
            metrics.compare_forced(expected[None], dense[None], torch.zeros(1, dtype=torch.int64, device=lm.device)).kl
        )
        return f"logits of a step against bitsandbytes: KL {kl:.2e} nats (random weights)"
    limit = 5 * _LIMITS[lm.model.dtype]  # roundings of all layers add up
    packed = EagerEngine(lm).sparse_arm(prefill, 1).step(ids[-1])
    sparse = engine.sparse_arm(prefill, 1).step(ids[-1])
    worst = max(_relative(dense, expected), _relative(sparse, packed))
    return _verdict("logits of a dense and a sparse step against transformers", worst, limit)


def _relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def _verdict(what: str, error: float, limit: float) -> str:
    if not error <= limit:  # NaN fails too
        raise ArithmeticError(f"{what}: relative error {error:.2e} is above {limit:.0e}")
    return f"{what}: relative error {error:.2e} at most"
