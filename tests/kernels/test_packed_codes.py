"""Blocks that hold codes, limited to some neurons: copies of those codes, for the library's patched model."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from parity import TOLERANCE
from tiny import tiny

from tda_demo.kernels.formats import encode, encode_by_neuron
from tda_demo.kernels.reference import limit, mask
from tda_demo.methods import GRIFFIN
from tda_demo.model.loading import LoadedModel
from tda_demo.model.stored import is_stored, store


def of_codes(lm: LoadedModel, precision: str) -> LoadedModel:
    """``lm``, its blocks' matrices in ``precision`` and in nothing else."""
    for block in lm.blocks:
        for linear in dict.fromkeys(block.input_linears):
            store(linear, encode(linear.weight.detach(), precision), precision)
        store(block.down, encode_by_neuron(block.down.weight.detach(), precision), precision)
    return lm


@pytest.mark.parametrize("precision", ["int8", "q4", "nf4"])
@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
@pytest.mark.parametrize("kept", [0, 1, 6, 33])
@torch.no_grad()
def test_limited_blocks_compute_what_masked_ones_do(family: str, precision: str, kept: int) -> None:
    ids = torch.arange(5, 12)[None]
    lm, expected = of_codes(tiny(family), precision), tiny(family)
    for one, other in zip(lm.blocks, expected.blocks, strict=True):  # the same rounded values, in floats
        for linear, twin in zip(one.linears, other.linears, strict=True):
            twin.weight.copy_(linear.weight)
    dense = lm.model(ids).logits
    sets = [torch.randperm(block.d_ff)[:kept].sort().values for block in lm.blocks]
    with ExitStack() as limited:
        for one, other, indices in zip(lm.blocks, expected.blocks, sets, strict=True):
            limited.callback(limit(one, indices))
            limited.callback(mask(other, indices))
        assert all(is_stored(linear) and linear.in_features >= 0 for block in lm.blocks for linear in block.linears)
        assert all(block.down.in_features == kept for block in lm.blocks)
        for tokens in (ids, ids[:, :1]):
            computed, reference = lm.model(tokens).logits, expected.model(tokens).logits
            assert (computed - reference).abs().max() <= TOLERANCE[precision] * reference.abs().max()
    assert torch.equal(lm.model(ids).logits, dense)


@pytest.mark.parametrize("precision", ["int8", "q4"])
def test_a_patched_model_of_codes_generates_and_is_itself_afterwards(precision: str) -> None:
    lm, seen = of_codes(tiny(), precision), set[int]()
    dense = lm.generate("w5 w9 w17 w30", max_new_tokens=8)
    watch = lm.blocks[1].down.register_forward_pre_hook(lambda down, _inputs: seen.add(down.in_features))
    with GRIFFIN(keep=0.5)(lm):
        lm.generate("w5 w9 w17 w30", max_new_tokens=8)
    watch.remove()
    width = lm.blocks[1].d_ff
    assert seen == {width, width // 2}  # the prompt's, and the tokens'
    assert lm.generate("w5 w9 w17 w30", max_new_tokens=8) == dense
