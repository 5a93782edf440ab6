"""A large model's folder read straight into a storage format, against the same weights by way of floats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_files import write_model
from parity import TOLERANCE, logits_in_floats
from safetensors.torch import load_file, save_file
from torch import nn

from tda_demo.kernels.cpu import matmul
from tda_demo.methods import GRIFFIN
from tda_demo.model import precision as model_precision
from tda_demo.model.loading import load_model
from tda_demo.model.precision import REFERENCE, round_weights
from tda_demo.model.stored import StoredEmbedding, StoredLinear
from tda_demo.race import Finished, RaceSettings, race
from tda_demo.support.errors import UserError

IDS = torch.tensor([[3, 7, 40, 41, 90]])


@pytest.fixture(autouse=True)
def every_model_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_precision, "LARGE", 1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("precision", ["q4", "int8"])
def test_it_computes_what_one_held_in_floats_does(family: str, precision: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", family)
    lm = load_model(str(folder), precision=precision, device="cpu")
    expected = load_model(str(folder), precision=REFERENCE, device="cpu")
    round_weights(expected.model, precision)
    torch.testing.assert_close(*(logits_in_floats(each, IDS) for each in (lm, expected)), rtol=1e-4, atol=1e-5)
    logits = expected.model(IDS).logits
    assert (lm.model(IDS).logits - logits).abs().max() < TOLERANCE[precision] * logits.abs().max()
    assert lm.fingerprint == expected.fingerprint
    matrices = [module for module in lm.model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert all(isinstance(module, StoredLinear | StoredEmbedding) for module in matrices)
    *_, last = race(lm, GRIFFIN(0.5), "alpha beta", RaceSettings(4))
    assert isinstance(last, Finished) and last.result.dense.tokens == 4


def test_a_family_without_a_compiled_step_keeps_floats(tmp_path: Path) -> None:
    lm = load_model(str(write_model(tmp_path / "model", "opt")), precision="int8", device="cpu")
    assert not any(isinstance(module, StoredLinear) for module in lm.model.modules())


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_small_model_keeps_floats_where_codes_have_no_matmul(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_precision, "LARGE", 1e9)
    folder = str(write_model(tmp_path / "model"))
    if matmul.WITH_MATMUL and precision == "int8":
        lm = load_model(folder, precision=precision, device="cpu")
        assert any(isinstance(module, StoredLinear) for module in lm.model.modules())
    monkeypatch.setattr(matmul, "WITH_MATMUL", ())  # as of a processor without AVX2
    lm = load_model(folder, precision=precision, device="cpu")
    assert not any(isinstance(module, StoredLinear) for module in lm.model.modules())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "lack 1 tensors"),
        (lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"][0].fill_(torch.nan), "no number"),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.down_proj.weight": torch.ones(3, 5)}),
            "do not match its config.json",
        ),
    ],
)
def test_damaged_weights_are_one_sentence(change: object, told: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=told):
        load_model(str(folder), precision="int8", device="cpu")


def test_a_file_cut_short_is_one_sentence(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        load_model(str(path.parent), precision="int8", device="cpu")
