"""Models in several places at once: what accelerate moves about must not change a word, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import write_model

from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.eager import EagerEngine
from tda_demo.decode.shared_model import share_weights
from tda_demo.evaluate.result import quality
from tda_demo.evaluate.scoring import score_texts
from tda_demo.methods import METHODS
from tda_demo.model import placement
from tda_demo.model.feedforward import transfer_hooks
from tda_demo.model.loading import LoadedModel, load_model
from tda_demo.race import Finished, RaceSettings, race
from tda_demo.race.result import RaceResult
from tda_demo.support.errors import UserError

PROMPT = "w5 w9 w17 w30 w31 w44 w58 w60 w71"


def spread(folder: Path) -> dict[str, str]:
    """One block in memory, the rest of the stack on disk."""
    config: Any = load_model(str(folder), device="cpu", precision="float32").model.config
    stack = {f"model.layers.{layer}": "cpu" if layer == 0 else "disk" for layer in range(config.num_hidden_layers)}
    return {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu", **stack}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("spread"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu", precision="float32")


@pytest.fixture
def parted(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu", device_map=spread(folder))


@pytest.fixture(autouse=True)
def quantiles(own_cache: Path) -> Path:
    """CATS keeps what it measured of a model."""
    return own_cache


def raced(lm: LoadedModel, method: str, **settings: Any) -> RaceResult:
    last = list(race(lm, METHODS[method](**settings), PROMPT, RaceSettings(max_new_tokens=5)))[-1]
    assert isinstance(last, Finished)
    return last.result


def test_it_is_recognised_and_runs_eagerly(parted: LoadedModel, whole: LoadedModel) -> None:
    assert parted.is_spread and not whole.is_spread and parted.precision == "float32"
    assert [block.is_offloaded for block in parted.blocks] == [False] + [True] * (len(parted.blocks) - 1)
    assert type(engine_for(parted)) is EagerEngine and parted.device == torch.device("cpu")
    for ours, theirs in zip(parted.blocks, whole.blocks, strict=True):
        assert torch.equal(ours.output_norms, theirs.output_norms)
        assert torch.equal(ours.input_norms, theirs.input_norms)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("tda", {"cett": 0.3, "online": True, "prior": 0, "rest": "skip"}),
        ("griffin", {"keep": 0.5}),
        ("cats", {"keep": 0.5}),
    ],
)
def test_a_race_gives_what_the_model_in_one_place_gives(
    parted: LoadedModel, whole: LoadedModel, method: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = raced(parted, method, **settings)
    monkeypatch.setattr("tda_demo.race.run.engine_for", lambda lm, _: EagerEngine(lm))
    expected = raced(whole, method, **settings)
    assert (got.dense.text, got.sparse.text) == (expected.dense.text, expected.sparse.text)
    assert got.sparsity == pytest.approx(expected.sparsity) and max(expected.sparsity) > 0
    assert got.quality is not None and expected.quality is not None
    assert got.quality.kl == pytest.approx(expected.quality.kl, abs=1e-6)


def test_evaluation_counts_what_the_parts_in_memory_save(parted: LoadedModel) -> None:
    rule = METHODS["griffin"](keep=0.5).bind(parted)
    ids = parted.prompt_ids(PROMPT)
    (scores,) = score_texts(parted, [rule], torch.tensor([[*ids, 40, 41]]), len(ids))
    found = quality(scores, step_bytes(parted, rule), rule)
    engine = engine_for(parted, rule)
    prefill = engine.prefill(ids, rule)
    dense, arm = engine.dense_arm(prefill, 1), engine.sparse_arm(prefill, 1)
    assert found.step_bytes == arm.weight_bytes
    assert found.byte_bound == (dense.weight_bytes or 0) / (arm.weight_bytes or 1) > 1
    assert found.mlp_share == pytest.approx(1 - 0.5 / len(parted.blocks))


def test_a_second_tree_holds_no_weights_and_leaves_the_first_alone(parted: LoadedModel) -> None:
    model: Any = parted.model
    ids = torch.tensor([[5, 9, 17]])
    with torch.inference_mode():
        before = model(ids).logits
    twin: Any = share_weights(model)
    ours, theirs = model.model.layers[1].mlp.down_proj, twin.model.layers[1].mlp.down_proj
    (own,), (other,) = transfer_hooks(ours), transfer_hooks(theirs)
    assert own is not other and own.weights_map is other.weights_map
    assert all(one is two for one, two in zip(model.parameters(), twin.parameters(), strict=True))
    theirs.register_forward_pre_hook(lambda _, inputs: inputs[0] * 0)
    with torch.inference_mode():
        assert not torch.equal(before, twin(ids).logits)
        assert torch.equal(before, model(ids).logits)


@pytest.mark.parametrize(("free", "expected"), [(1e4, "auto"), (1e9, None)])
def test_what_does_not_fit_one_gpu_is_spread(
    folder: Path, whole: LoadedModel, monkeypatch: pytest.MonkeyPatch, free: float, expected: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free, free))
    assert placement.automatic_device_map(folder, "bfloat16", torch.device("cuda")) == expected
    assert placement.automatic_device_map(folder, "bfloat16", torch.device("cpu")) is None
    assert placement._parameters(folder) == sum(parameter.numel() for parameter in whole.model.parameters())


def test_a_sketch_of_weights_that_are_elsewhere_is_refused(parted: LoadedModel) -> None:
    with pytest.raises(UserError, match="copy is made from the weights"):
        raced(parted, "sketch")


def test_a_cpu_s_other_precisions_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="float32 only"):
        load_model(str(folder), device="cpu", precision="int8", device_map="auto")
