"""What lies between a step's large products on a GPU: sums and norms in one launch, three projections in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_device import DEVICE, DTYPES, ON_A_CARD, TOLERANCE, relative_error
from gpu_step import on_device
from tiny import tiny
from torch import nn

from tda_demo.decode.gpu.kernel_layers import KernelLayer, install_layers, merge_linears
from tda_demo.decode.shared_model import share_weights
from tda_demo.decode.weight_bytes import bytes_per_step
from tda_demo.kernels.gpu.attention import add_rms_norm, rms_norm
from tda_demo.kernels.gpu.linear import LinearTiles

pytestmark = ON_A_CARD


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("added", [0.0, 1.0])
@pytest.mark.parametrize("width", [1, 48, 2050])
def test_a_sum_and_its_norm_are_those_of_two_steps_to_the_bit(width: int, added: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, update = (torch.randn(3, width, device=DEVICE).to(dtype) for _ in range(2))
    weight = torch.randn(width, device=DEVICE).to(dtype)
    total, normed = add_rms_norm(x, update, weight, 1e-5, added)
    assert torch.equal(total, x + update)
    assert torch.equal(normed, rms_norm(x + update, weight, 1e-5, added))
    exact = (x + update).double()
    exact = exact / (exact.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * (weight.double() + added)
    assert relative_error(normed, exact) < TOLERANCE[dtype]


def three(bias: bool = False) -> list[nn.Linear]:
    return [nn.Linear(8, rows, bias=bias).requires_grad_(False) for rows in (12, 4, 4)]


@pytest.mark.parametrize("bias", [False, True])
def test_one_linear_is_its_parts_and_holds_their_weights(bias: bool) -> None:
    parts = three(bias)
    x = torch.randn(1, 8)
    expected = torch.cat([each(x) for each in parts], dim=1)
    whole, again = merge_linears(parts), merge_linears(parts)
    assert whole is not None and again is not None
    torch.testing.assert_close(whole(x), expected)
    torch.testing.assert_close(torch.cat([each(x) for each in parts], dim=1), expected)
    assert whole.weight.data_ptr() == again.weight.data_ptr() == parts[0].weight.data_ptr()
    parts[2].weight.fill_(3.0)
    assert (whole.weight[-4:] == 3.0).all()


def test_parts_that_cannot_be_one_stay_as_they_are() -> None:
    class Quantised(nn.Linear):
        pass

    assert merge_linears([*three()[:2], Quantised(8, 4, bias=False)]) is None
    assert merge_linears([*three()[:2], nn.Linear(8, 4)]) is None


@pytest.mark.parametrize("tiles", [None, LinearTiles()])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
def test_layers_read_what_the_models_read(family: str, tiles: LinearTiles | None) -> None:
    lm = on_device(tiny(family))
    model: Any = share_weights(lm.model)
    before = bytes_per_step(model)
    assert install_layers(model, tiles, 16)
    assert bytes_per_step(model) == before
    attention = model.model.layers[0].self_attn
    assert len(attention.qkv) == 1
    assert isinstance(model.model.layers[0], KernelLayer) == (family != "gemma2")


def test_other_layouts_keep_their_layers() -> None:
    assert not install_layers(tiny("opt").model, None, 16)
