"""The measured choice, with times that are told instead of measured, and where the kernels can run at all."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch
from gpu_blocks import random_matrices
from gpu_device import CUDA, DEVICE, ON_A_CARD
from tiny import tiny

from tda_demo.decode.choose import engine_for
from tda_demo.decode.eager import EagerEngine
from tda_demo.decode.gpu import graph
from tda_demo.kernels.activations import SILU
from tda_demo.kernels.gpu import choice as ways
from tda_demo.kernels.gpu import device
from tda_demo.kernels.gpu.device import triton_runs
from tda_demo.kernels.gpu.linear import LinearTiles
from tda_demo.kernels.gpu.matrices import Matrices
from tda_demo.kernels.gpu.nf4 import Nf4Matrices, quantise
from tda_demo.kernels.gpu.rest import MatricesWithRest
from tda_demo.kernels.gpu.stages import LINEAR_TILES, Stages, float_stages, nf4_stages, rest_stages
from tda_demo.support.errors import UserError

pytestmark = ON_A_CARD
STAGES = (
    [{"rows": 2}, {"rows": 4}],
    [{"splits": 2, "down_columns": 16}, {"splits": 4}],
)
DENSE = [5.0, 4.0, 3.5, 3.0]  # rows, rows, splits, splits
SPARSE = [4.0, 5.0, 2.0, 3.0]
Time = float | Exception


@pytest.fixture(autouse=True)
def few_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "float_stages", lambda *_: STAGES)


def blocks_of(count: int = 2) -> list[Matrices]:
    return [random_matrices(8, 12, torch.float32, SILU, glu=True, bias=False) for _ in range(count)]


def told(times: list[Time], runs: bool = False) -> Callable[[Callable[[], object]], float]:
    """A timer that gives ``times`` one by one: where there is no card an interpreter would run what is timed."""
    left: Iterator[Time] = iter(times)

    def timer(call: Callable[[], object]) -> float:
        if runs:
            call()
        ms = next(left)
        if isinstance(ms, Exception):
            raise ms
        return ms

    return timer


def test_each_arm_gets_its_fastest_tiles_and_way() -> None:
    choice = ways.choose_float(blocks_of(), told([*DENSE, *SPARSE, 8.0, 9.0, 1.0]))
    assert (choice.dense_tiles.rows, choice.dense_tiles.splits) == (4, 4)
    assert (choice.sparse_tiles.rows, choice.sparse_tiles.splits) == (2, 2)
    assert choice.tiles(sparse=False) == choice.dense_tiles and choice.tiles(sparse=True) == choice.sparse_tiles
    assert (choice.dense, choice.sparse) == ("kernels", "vendor")
    assert choice.times_ms == {
        "dense, kernels": 1.5,
        "sparse, kernels": 1.0,
        "dense, vendor": 4.0,
        "dense, vendor, usual layout": 4.5,
        "sparse, vendor": 0.5,
    }
    assert str(choice) == "dense kernels; sparse packed copies, vendor GEMV"


def test_the_usual_layout_is_chosen_only_where_there_is_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[Time] = [*DENSE, *SPARSE, 2.5, 1.0, 9.0]
    choice = ways.choose_float(blocks_of(), told(times))
    assert choice.dense == "vendor, usual layout"
    assert "usual layout" in str(choice)
    monkeypatch.setattr(ways, "_free_bytes", lambda _: 0)
    choice = ways.choose_float(blocks_of(), told(times))
    assert choice.dense == "vendor"
    assert choice.times_ms["dense, vendor, usual layout"] == 0.5  # told all the same


def test_the_rivals_have_the_layout_in_which_they_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[torch.Tensor] = []
    monkeypatch.setattr(ways, "vendor", lambda block, _x: ran.append(block.down))
    ways.choose_float(blocks_of(1), told([*DENSE, *SPARSE, 1.0, 1.0, 1.0], runs=True))
    by_neuron, usual, packed = ran
    assert by_neuron.is_contiguous() and usual.t().is_contiguous() and packed.t().is_contiguous()
    assert torch.equal(by_neuron, usual)
    assert packed.shape == (6, 8)


def test_tiles_that_fail_on_the_card_are_never_the_fastest(caplog: pytest.LogCaptureFixture) -> None:
    failing = subprocess.CalledProcessError(1, "ptxas")
    times: list[Time] = [5.0, failing, 3.0, failing, *SPARSE, 9.0, 9.0, 9.0]
    choice = ways.choose_float(blocks_of(), told(times))
    assert (choice.dense_tiles.rows, choice.dense_tiles.splits) == (2, 2)
    assert "ptxas" in caplog.text


def test_an_arm_without_a_way_that_runs_is_refused() -> None:
    with pytest.raises(UserError, match="cpu"):
        ways.choose_int8(blocks_of(), torch.float32, told([RuntimeError("no")] * 8))


def test_blocks_with_a_rest_get_tiles_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = STAGES
    wide = (first, [{**tile, "down_columns": 64} for tile in second])
    monkeypatch.setattr(ways, "rest_stages", lambda *_: wide)
    exact = [random_matrices(64, 12, torch.float32, SILU, glu=True, bias=False)]
    copies = [
        Nf4Matrices(
            *(quantise(part) for part in (each.gate, each.up, each.down) if part is not None), *[None] * 3, SILU
        )
        for each in exact
    ]
    weights = [MatricesWithRest(*pair) for pair in zip(exact, copies, strict=True)]
    tiles = ways.choose_rest(weights, told(SPARSE, runs=True))
    assert (tiles.rows, tiles.splits, tiles.down_columns) == (2, 2, 64)
    with pytest.raises(UserError, match="cpu"):
        ways.choose_rest(weights, told([RuntimeError("no")] * 4))


def test_linear_layers_run_on_the_kernel_where_it_is_faster() -> None:
    ran: list[LinearTiles | None] = []

    def kernels(tiles: LinearTiles) -> Callable[[], object]:
        return lambda: ran.append(tiles)

    times: list[Time] = [3.0, 2.0, *[RuntimeError("no")] * (len(LINEAR_TILES) - 2)]
    assert ways.choose_linear(lambda: ran.append(None), kernels, told([*times, 2.5], runs=True)) == LINEAR_TILES[1]
    assert ran == [*LINEAR_TILES, None]
    assert ways.choose_linear(lambda: None, kernels, told([*times, 1.5])) is None
    assert ways.choose_linear(lambda: None, kernels, told([RuntimeError("no")] * (len(LINEAR_TILES) + 1))) is None


def test_enough_blocks_are_measured_to_be_larger_than_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(7)
    assert len(ways.Trial.of(blocks, torch.float32).blocks) == 7  # all of them are still small
    monkeypatch.setattr(ways, "_BYTES", 5 * 12 * blocks[0].neuron_bytes)
    assert len(ways.Trial.of(blocks, torch.float32).blocks) == 5
    monkeypatch.setattr(ways, "_BYTES", 1)
    assert len(ways.Trial.of(blocks, torch.float32).blocks) == 4


@pytest.mark.parametrize("stages_of", [float_stages, nf4_stages, rest_stages])
@pytest.mark.parametrize("width", [4096, 2560, 576, 64])
def test_tiles_are_cut_for_the_card_and_the_width(stages_of: Callable[[int, int], Stages], width: int) -> None:
    first, second = stages_of(width, 132)
    sizes = [tile[name] for tile in (*first, *second) for name in tile if name != "programs"]
    assert all(size > 0 and size & (size - 1) == 0 for size in sizes)
    assert {tile["programs"] % 132 for tile in first} == {0}
    assert max(tile["splits"] for tile in second) <= 1024


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    triton_runs.cache_clear()
    yield
    triton_runs.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
def test_triton_is_tried_once() -> None:
    assert triton_runs(DEVICE) and triton_runs(DEVICE)
    assert triton_runs.cache_info().hits == 1


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), subprocess.CalledProcessError(1, "cc")])
def test_where_triton_is_installed_and_fails_transformers_decodes(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(device, "rms_norm", failing)
    assert not triton_runs(DEVICE)
    assert str(error) in caplog.text
    monkeypatch.setattr(graph, "triton_runs", lambda _: triton_runs(DEVICE))
    lm = dataclasses.replace(tiny(), device=torch.device("cuda"))
    assert not graph.can_decode(lm)
    if not CUDA:
        assert type(engine_for(lm)) is EagerEngine


def test_without_triton_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_triton", lambda: False)
    assert not triton_runs.__wrapped__(DEVICE)
