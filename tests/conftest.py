"""What more than one test file uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gpu_device  # first of all: it decides how Triton is imported
import pytest
import torch
from hypothesis import settings
from little_text import little_text, shared_cache  # noqa: F401 - fixtures
from tiny import tiny

from tda_demo.decode.gpu import graph
from tda_demo.model.loading import LoadedModel

if not gpu_device.CUDA:  # a longer cache is read by more programs, each of which is interpreted
    graph._ROOM = 64
settings.register_profile("no deadline", deadline=None)  # a first example may compile, and machines are slow at times
settings.load_profile("no deadline")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: threads that wait for one another would mostly wait for the other worker's.
    torch.set_num_threads(1)
pytest.register_assert_rewrite("gpu_blocks", "gpu_step", "parity")  # an assertion there says what it saw, as in a test


@pytest.fixture
def lm() -> LoadedModel:
    """A tiny random llama."""
    return tiny()


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """What is computed is computed by two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What the test computes is computed by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("TDA_DEMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def embedded() -> LoadedModel:
    """The embedded model in float32, from the user's cache; downloaded where it is not there."""
    from tda_demo.model.loading import load_model

    return load_model(precision="float32")
