"""The table of real shapes, its machinery on tiny shapes without a card; how fast anything is only a card can say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_device import CUDA, DEVICE, ON_A_CARD
from transformers import LlamaConfig

from tda_demo.__main__ import main
from tda_demo.bench import BenchSettings
from tda_demo.bench.checks import check_blocks
from tda_demo.bench.random_model import NAMES, config_of
from tda_demo.bench.shapes import ShapesTable, bench_shapes, measure_shapes
from tda_demo.decode.gpu.graph import CudaGraphEngine
from tda_demo.decode.gpu.kernel_blocks import BlockWeights
from tda_demo.kernels.gpu.blocks import Tiles
from tda_demo.kernels.gpu.choice import KernelChoice
from tda_demo.kernels.gpu.device import eager_runner, graph_runner
from tda_demo.kernels.gpu.linear import LinearTiles
from tda_demo.kernels.gpu.matrices import Matrices
from tda_demo.model.loading import LoadedModel
from tda_demo.support.errors import UserError

pytestmark = ON_A_CARD
SMALL = Tiles(rows=64, down_rows=64, down_columns=64, splits=2)
CHOICE = KernelChoice(SMALL, SMALL, "kernels", "kernels", {"dense, kernels": 1.0})
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    max_position_embeddings=512,
    initializer_range=0.2,
)


def measured(monkeypatch: pytest.MonkeyPatch) -> ShapesTable:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # it would pack anew, on a CPU only
    monkeypatch.setattr("tda_demo.bench.shapes._ROOM", 8)
    if not CUDA:  # an interpreter takes a second a step
        monkeypatch.setattr("tda_demo.bench.shapes.KEEPS", (0.5,))
        monkeypatch.setattr("tda_demo.bench.shapes._KEEPS_WITH_REST", (0.5,))

    def engine(lm: LoadedModel) -> CudaGraphEngine:
        make = graph_runner if CUDA else eager_runner
        return CudaGraphEngine(lm, make, lambda _: CHOICE, lambda _: SMALL, lambda _: LinearTiles())

    return measure_shapes(
        CONFIG,
        ("float32", "nf4"),
        DEVICE,
        dtype=torch.float32,
        context=12,
        settings=BenchSettings(rounds=1, block=1, settle=0),
        make_engine=engine,
        copy_bytes=4096,
    )


def test_rows_of_both_precisions_and_every_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    table = measured(monkeypatch)
    found = {(row.engine, row.precision, row.keep) for row in table.rows}
    keeps = (0.75, 0.5, 0.3) if CUDA else (0.5,)
    for precision in ("float32", "nf4"):
        assert {(engine, precision, 1.0) for engine in ("transformers", "dense", "MLP dense")} <= found
        assert {(engine, precision, keep) for engine in ("sparse", "MLP sparse") for keep in keeps} <= found
    assert {("sparse, NF4 rest", "float32", keep) for keep in keeps if keep < 0.75} <= found
    assert ("bitsandbytes", "nf4", 1.0) in found
    assert ("MLP vendor", "float32", 1.0) in found
    rates = {"read bandwidth": table.read_gb_per_second, "copy bandwidth": table.copy_gb_per_second}
    name, best = table.bandwidth
    assert rates[name] == best == max(rates.values()) and min(rates.values()) > 0
    halves = [row for row in table.rows if row.engine == "MLP sparse" and row.keep == 0.5]
    assert [row.byte_bound for row in halves] == [pytest.approx(2), pytest.approx(2)]
    assert all(row.over_transformers is None for row in table.rows if row.engine.startswith("MLP"))
    told = "\n".join(table.notes)
    assert "reading" in told and "copying" in told
    assert "against float64" in told and "again: RMS error" in told and "bitsandbytes under the same graph" in told


def test_wrong_kernels_are_found_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    up = torch.randn(8, 16, device=DEVICE)
    blocks = BlockWeights([Matrices(up, up, up, None, None, None, 0)], (), torch.float32, ())
    tiles = Tiles(rows=8, down_rows=8, down_columns=16, splits=1)
    choice = KernelChoice(tiles, tiles, "kernels", "kernels", {})
    assert "relative error" in check_blocks(blocks, choice)

    def wrong(_weights: Any, x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.zeros_like(x)

    monkeypatch.setattr("tda_demo.bench.checks.feed_forward", wrong)
    with pytest.raises(ArithmeticError, match="float64"):
        check_blocks(blocks, choice)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_have_the_size_their_names_say(name: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    billions = {"llama3-8b": 8.03, "llama2-7b": 6.74, "mistral-7b": 7.25, "qwen3-4b": 4.02}[name]
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize(
    "options",
    [["--device", "cuda", "--shapes", "llama3-8b"], ["--shapes", "llama3-8b"], ["--device", "cuda", "--model", "m"]],
    ids=" ".join,
)
@pytest.mark.skipif(CUDA, reason="there is a card here")
def test_without_a_card_one_sentence_says_so(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    told = capsys.readouterr().err
    assert "CUDA device" in told and told.count("\n") == 1


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="llama3-8b"):
        config_of("llama9")


@pytest.mark.parametrize("beside", [["--model", "m"], ["--device", "cpu"]], ids=" ".join)
def test_shapes_are_not_those_of_a_model_nor_of_a_cpu(beside: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--shapes", "llama3-8b", *beside]) == 2
    assert "leave out --model and --device cpu" in capsys.readouterr().err


@pytest.fixture
def measurable(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A card as far as the command asks for one; what would be measured on it, in arguments."""
    asked: list[dict[str, Any]] = []

    def measure(config: Any, precisions: Any, _device: Any, **more: Any) -> ShapesTable:
        asked.append({"config": config, "precisions": precisions, **more})
        return ShapesTable([], 1.0, 1.0, more["context"], ["measured"])

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("tda_demo.bench.shapes.has_triton", lambda: True)
    monkeypatch.setattr("tda_demo.bench.shapes.triton_runs", lambda _device: True)
    monkeypatch.setattr("tda_demo.bench.shapes.measure_shapes", measure)
    monkeypatch.setattr("tda_demo.support.environment.describe", lambda *_: {"cpu": "c", "threads": 1, "torch": "t"})
    return asked


def test_a_model_s_own_shapes_need_no_weights(
    tmp_path: Path, measurable: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own"
    CONFIG.save_pretrained(folder)
    assert main(["bench", "--device", "cuda", "--model", str(folder), "--precision", "bfloat16"]) == 0
    (asked,) = measurable
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    assert [getattr(asked["config"], size) for size in sizes] == [getattr(CONFIG, size) for size in sizes]
    assert asked["precisions"] == ("bfloat16",) and asked["context"] + 128 == CONFIG.max_position_embeddings
    told = capsys.readouterr().out
    assert f"{folder}, random weights" in told and "measured" in told


def test_without_a_model_or_shapes_it_is_the_embedded_one(
    tmp_path: Path, measurable: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    CONFIG.save_pretrained(tmp_path)
    monkeypatch.setattr("tda_demo.model.weights.embedded.embedded_weights", lambda _report: tmp_path)
    assert main(["bench", "--device", "cuda"]) == 0
    assert measurable[0]["config"].vocab_size == CONFIG.vocab_size


def test_a_family_the_kernels_do_not_know_is_refused() -> None:
    config = CONFIG.__class__.from_dict({**CONFIG.to_dict(), "hidden_act": "tanh"})
    with pytest.raises(UserError, match="do not know this llama model's layout in float32"):
        measure_shapes(config, ("float32",), DEVICE, dtype=torch.float32, context=12, copy_bytes=4096)


def test_shapes_too_large_for_the_card_are_one_sentence(
    measurable: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("tda_demo.bench.shapes.measure_shapes", full)
    with pytest.raises(UserError, match="do not fit"):
        bench_shapes("llama3-8b", precision="bfloat16")
    assert not measurable
