"""The GPU kernels against float64: in Triton's interpreter on CPU tensors, on the card itself where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gpu_blocks import FUNCTIONS, check, random_matrices
from gpu_device import CUDA, DEVICE, DTYPES, ON_A_CARD, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

from tda_demo.kernels.activations import GELU_ERF, GELU_TANH, RELU, SILU, activation_of
from tda_demo.kernels.gpu.blocks import ActiveBuffer
from tda_demo.kernels.gpu.choice import vendor
from tda_demo.kernels.gpu.matrices import Matrices, lay_out_by_neuron

pytestmark = [
    *ON_A_CARD,
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
]  # its limits are the right ones


@given(
    d=st.integers(1, 40),
    d_ff=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
    activation=st.sampled_from(sorted(FUNCTIONS)),
    glu=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_active_sets_of_any_shape(
    d: int, d_ff: int, share: float, activation: int, glu: bool, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    matrices = random_matrices(d, d_ff, dtype, activation, glu, bias)
    indices = torch.randperm(d_ff)[: round(share * d_ff)].sort().values.to(DEVICE)
    active = ActiveBuffer.full(d_ff, DEVICE)
    active.set(indices)
    active.chosen[len(indices) :] = 2**30  # what lies behind the set must not be read as a neuron
    check(matrices, matrices, torch.randn(1, d).to(DEVICE, dtype), indices, active)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("glu", [True, False])
def test_the_dense_kernel_computes_all_neurons(glu: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrices = random_matrices(35, 61, dtype, GELU_TANH, glu, bias=True)
    check(matrices, matrices, torch.randn(1, 35).to(DEVICE, dtype), torch.arange(61, device=DEVICE), None)


def test_large_inputs_saturate_the_activation_functions() -> None:
    matrices = random_matrices(1, 2, torch.float32, SILU, glu=False, bias=False)
    matrices.up.copy_(torch.tensor([[1.0], [-1.0]]))
    for activation in FUNCTIONS:
        each = Matrices(None, matrices.up, matrices.down, None, None, None, activation)
        check(each, each, torch.tensor([[200.0]], device=DEVICE), torch.arange(2, device=DEVICE), None)


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_blocks_are_read_through_the_view_and_keep_computing(family: str) -> None:
    lm = tiny(family)
    block = lm.blocks[0]
    x = torch.randn(5, block.down.out_features)
    before, down = block.down(torch.ones(block.d_ff)), block.down.weight.clone()
    matrices = Matrices.of(block, RELU)
    assert torch.equal(block.down.weight, down)
    torch.testing.assert_close(block.down(torch.ones(block.d_ff)), before)
    assert lay_out_by_neuron(block.down).data_ptr() == matrices.down.data_ptr() == block.down.weight.data_ptr()
    expected = block.down(F.relu(block.up(x)) if block.gate is None else F.relu(block.gate(x)) * block.up(x))
    assert relative_error(vendor(matrices, x), expected) < 1e-6


def test_activation_names_of_transformers() -> None:
    found = {family: activation_of(tiny(family).model.config) for family in ("llama", "gemma2", "opt", "gpt_neox")}
    assert found == {"llama": SILU, "gemma2": GELU_TANH, "opt": RELU, "gpt_neox": GELU_ERF}


@pytest.mark.skipif(CUDA, reason="the card itself compiles them")
def test_the_programs_compile_for_cards_that_are_not_there_with_wide_loads_and_no_spills() -> None:
    """Triton's compiler needs no card. In a process of its own, because here the programs are interpreted."""
    script = Path(__file__).parents[1] / "helpers" / "compile_gpu_programs.py"
    told = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
