"""What only a card can show: captured graphs, real shapes, no wait inside a step, the measured choice."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch
from gpu_blocks import random_matrices, reference
from gpu_device import CUDA, DEVICE, TOLERANCE, relative_error
from gpu_step import engine_of, on_device
from parity import PROMPT_IDS
from plain import plain_tda
from tiny import tiny

from tda_demo.decode.choose import engine_for
from tda_demo.decode.gpu.graph import CudaGraphEngine
from tda_demo.kernels.activations import SILU
from tda_demo.kernels.gpu.blocks import ActiveBuffer, Scratch, Tiles, driver_version, feed_forward, launch_options
from tda_demo.kernels.gpu.choice import choose_float, multiprocessors
from tda_demo.kernels.gpu.device import graph_ms, graph_runner
from tda_demo.kernels.gpu.linear import LinearTiles, linear
from tda_demo.kernels.gpu.nf4 import Nf4Matrices, Nf4Rows, quantise
from tda_demo.kernels.gpu.rest import MatricesWithRest
from tda_demo.kernels.gpu.stages import LINEAR_TILES, float_stages, nf4_stages, rest_stages

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]


@pytest.mark.parametrize(("d", "d_ff"), [(4096, 14336), (4096, 11008), (2560, 9728), (576, 1536)])
def test_every_tiling_that_is_tried_is_right_at_real_shapes(d: int, d_ff: int) -> None:
    torch.manual_seed(0)
    matrices = random_matrices(d, d_ff, torch.bfloat16, SILU, glu=True, bias=False)
    x = torch.randn(1, d, device=DEVICE).bfloat16()
    indices = torch.randperm(d_ff, device=DEVICE)[: d_ff // 3].sort().values
    active = ActiveBuffer.full(d_ff, DEVICE)
    active.set(indices)
    _, expected = reference(matrices, x, indices)
    for option in (option for stage in float_stages(d, multiprocessors(DEVICE)) for option in stage):
        tiles = dataclasses.replace(Tiles(), **option)
        out = feed_forward(matrices, x, active, Scratch.for_(matrices, tiles, x.dtype), tiles)
        assert relative_error(out, expected) < TOLERANCE[torch.bfloat16], tiles
    rows = [quantise(each.float()) for each in (matrices.up, matrices.down)]
    nf4 = Nf4Matrices(quantise(matrices.up.float()), rows[0], rows[1], None, None, None, SILU)
    _, expected = reference(nf4.decode(), x, indices)
    for option in (option for stage in nf4_stages(d, multiprocessors(DEVICE)) for option in stage):
        tiles = dataclasses.replace(Tiles(down_columns=512), **option)
        out = feed_forward(nf4, x, active, Scratch.for_(nf4, tiles, x.dtype), tiles)
        assert relative_error(out, expected) < TOLERANCE[torch.bfloat16], tiles
    with_rest = MatricesWithRest(matrices, nf4)
    left_out = torch.ones(d_ff, dtype=torch.bool, device=DEVICE).index_fill(0, indices, False).nonzero().squeeze(1)
    active.set(indices, left_out)
    expected = reference(matrices, x, indices)[1] + reference(nf4.decode(), x, left_out)[1]
    for option in (option for stage in rest_stages(d, multiprocessors(DEVICE)) for option in stage):
        tiles = dataclasses.replace(Tiles(down_columns=512), **option)
        out = feed_forward(with_rest, x, active, Scratch.for_(with_rest, tiles, x.dtype), tiles)
        assert relative_error(out, expected) < TOLERANCE[torch.bfloat16], tiles


def test_a_replayed_graph_sees_the_set_that_lies_in_its_buffer_now() -> None:
    torch.manual_seed(0)
    matrices = random_matrices(256, 1000, torch.bfloat16, SILU, glu=True, bias=True)
    x = torch.randn(1, 256, device=DEVICE).bfloat16()
    active, scratch = ActiveBuffer.full(1000, DEVICE), Scratch.for_(matrices, Tiles(), x.dtype)
    feed_forward(matrices, x, active, scratch, Tiles())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        feed_forward(matrices, x, active, scratch, Tiles())
    for count in (1000, 0, 1, 333, 7):
        indices = torch.randperm(1000, device=DEVICE)[:count].sort().values
        active.set(indices)
        scratch.out.fill_(torch.nan)
        graph.replay()
        assert relative_error(scratch.out, reference(matrices, x, indices)[1]) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "opt", "gpt_neox"])
def test_the_step_is_captured_and_waits_for_nothing_inside(family: str) -> None:
    lm = on_device(tiny(family))
    engine = engine_for(lm)
    assert isinstance(engine, CudaGraphEngine)
    engine.warm_up()
    arm: Any = engine.sparse_arm(engine.prefill(PROMPT_IDS, plain_tda(cett=0.3, online=True).bind(lm)), 4)
    assert arm.decoder.runner.name == "CUDA graph" and engine.name.startswith("CUDA graph (")
    arm.step(40)
    torch.cuda.set_sync_debug_mode("error")
    try:
        arm.decoder.token.fill_(41)
        arm.decoder.runner.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "opt"])
def test_a_hundred_replays_give_the_same_bits(family: str, sparse: bool) -> None:
    """Launches overlap; one that read what the launch before it has not written yet would show here."""
    engine = engine_of(on_device(tiny(family)))
    prefill = engine.prefill(PROMPT_IDS, plain_tda(cett=0.3, online=True).bind(engine.lm))
    arm: Any = (engine.sparse_arm if sparse else engine.dense_arm)(prefill, 4)
    seen = []
    for _ in range(100):
        arm.decoder.cache.position.fill_(len(PROMPT_IDS))
        seen.append(arm.decoder.step(40).clone())
    assert all(torch.equal(seen[0], logits) for logits in seen)


def test_levels_from_other_lanes_are_those_of_the_table() -> None:
    """Decoding on a card, by shuffles, against float64 over every pair of codes a byte can hold."""
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).repeat(4)[None].repeat(8, 1)
    rows = Nf4Rows(codes, torch.rand(8, codes.shape[1] // 32, device=DEVICE) + 0.5)
    x = torch.randn(1, rows.width, device=DEVICE)
    for tiles in (*LINEAR_TILES, LinearTiles(1, 1), LinearTiles(2, 2)):
        assert relative_error(linear(x, rows, None, tiles), x.double() @ rows.decode().double().T) < 1e-5, tiles


def test_a_graph_goes_on_when_another_one_is_gone() -> None:
    weight, x = torch.randn(4096, 4096, device=DEVICE).bfloat16(), torch.randn(64, 4096, device=DEVICE).bfloat16()
    out = torch.empty_like(x)
    kept, gone = (graph_runner(lambda: torch.mm(x, weight, out=out)) for _ in range(2))
    assert kept.name == gone.name == "CUDA graph"
    del gone
    gc.collect()
    torch.cuda.empty_cache()
    filler = torch.full((2**26,), torch.nan, device=DEVICE)  # where the other's memory was
    out.fill_(torch.nan)
    kept.run()
    assert relative_error(out, x.double() @ weight.double()) < TOLERANCE[torch.bfloat16]
    assert filler.isnan().all()


def test_launches_overlap_where_card_and_driver_can() -> None:
    assert driver_version() >= 12000  # a driver that a CUDA build of torch runs on says which it is
    able = torch.cuda.get_device_capability() >= (9, 0) and driver_version() >= 12030
    assert launch_options(DEVICE)["OVERLAP"] == able


def test_the_measured_choice_is_complete() -> None:
    choice = choose_float([random_matrices(1024, 4096, torch.bfloat16, SILU, glu=True, bias=False) for _ in range(2)])
    ways = {f"{arm}, {way}" for arm in ("dense", "sparse") for way in ("kernels", "vendor")}
    assert set(choice.times_ms) == {*ways, "dense, vendor, usual layout"}
    assert all(ms > 0 for ms in choice.times_ms.values())


def test_graph_times_are_those_of_the_work() -> None:
    small, large = (torch.randn(size, size, device=DEVICE) for size in (64, 8192))
    assert graph_ms(lambda: large @ large) > graph_ms(lambda: small @ small) > 0
