"""Hub models, fetched by the real client from a hub of our own on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, fake_hub
from model_files import write_model
from transformers import AutoConfig, BertConfig

from tda_demo.model.loading import load_model
from tda_demo.model.weights import find_config
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress, silent


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-llama")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


def test_hub_model(hub: FakeHub, model_folder: Path) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (model_folder / "modeling_own.py").write_text("raise SystemExit")
    hub.repos["someone/tiny"] = model_folder
    heard: list[Progress] = []
    loaded = load_model("someone/tiny", report=heard.append)
    assert loaded.name == "someone/tiny"
    assert loaded.fingerprint == hashlib.sha256(f"someone/tiny@{COMMIT}".encode()).hexdigest()
    assert "model.safetensors" in hub.fetched
    assert not {"pytorch_model.bin", "modeling_own.py"} & set(hub.fetched)
    size = (model_folder / "model.safetensors").stat().st_size
    assert [each for each in heard if each.unit == "B"][-1] == Progress("Downloading someone/tiny", size, size, "B")


def test_hub_model_without_network_comes_from_the_hub_cache(
    hub: FakeHub, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.repos["someone/tiny"] = model_folder
    first = load_model("someone/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert load_model("someone/tiny").fingerprint == first.fingerprint
    with pytest.raises(UserError, match="The hub cannot be reached and 'someone/other' is not stored here"):
        load_model("someone/other")


def test_a_configuration_alone_fetches_no_weights(hub: FakeHub, model_folder: Path) -> None:
    hub.repos["someone/tiny"] = model_folder
    config = find_config("someone/tiny", silent)
    assert config.vocab_size == AutoConfig.from_pretrained(model_folder).vocab_size
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]


def test_hub_model_that_does_not_exist(hub: FakeHub) -> None:
    with pytest.raises(UserError, match="no folder and no hub model called 'no/such'"):
        load_model("no/such")


def test_gated_hub_model(hub: FakeHub, model_folder: Path) -> None:
    hub.repos["someone/gated"] = model_folder
    hub.gated.add("someone/gated")
    with pytest.raises(UserError, match="'someone/gated' is gated: accept its terms"):
        load_model("someone/gated")


def test_hub_model_of_pickles(hub: FakeHub, model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    hub.repos["someone/pickles"] = model_folder
    with pytest.raises(UserError, match=r"'someone/pickles' holds no .safetensors"):
        load_model("someone/pickles")
    assert "pytorch_model.bin" not in hub.fetched


def test_unsupported_hub_model_is_refused_before_its_weights(hub: FakeHub, model_folder: Path) -> None:
    BertConfig().save_pretrained(model_folder)
    hub.repos["someone/bert"] = model_folder
    with pytest.raises(UserError, match="'bert' is not supported"):
        load_model("someone/bert")
    assert "model.safetensors" not in hub.fetched


@pytest.mark.parametrize("name", ["", " ", "a/b/c", "../up", "no such model", "x" * 5000, "nul\0", "<script>", "-rf"])
def test_names_that_no_model_can_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(UserError, match="cannot have that name"):
        load_model(name)
