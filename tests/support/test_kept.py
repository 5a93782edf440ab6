"""Kept files know their content, and the oldest make way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from tda_demo.support.kept import Damaged, locked, make_way, read_kept, remove_kept, write_kept
from tda_demo.support.progress import Progress


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_kept(tmp_path / "a.json", b"content")
    assert read_kept(tmp_path / "a.json") == b"content"


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    content = bytes(range(64))
    write_kept(path := tmp_path / "a.bin", content)
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(Damaged):
            read_kept(path)
    path.write_bytes(content)
    assert read_kept(path) == content


def test_so_is_a_change_of_the_sum_and_a_cut(tmp_path: Path) -> None:
    write_kept(path := tmp_path / "a.bin", b"content")
    path.write_bytes(b"conten")
    with pytest.raises(Damaged):
        read_kept(path)
    write_kept(path, b"content")
    (sum_file,) = tmp_path.glob(".*.sha256")
    sum_file.write_text(sum_file.read_text()[:-1] + "?")
    with pytest.raises(Damaged):
        read_kept(path)


def test_a_kill_between_the_two_leaves_what_does_not_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kept(path := tmp_path / "a.bin", b"old")
    written: list[Path] = []

    def killed(target: Path, content: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(target)
        target.write_bytes(content)

    monkeypatch.setattr("tda_demo.support.kept.write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        write_kept(path, b"new")
    with pytest.raises(Damaged):
        read_kept(path)


def test_a_file_of_an_older_version_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"content")
    assert read_kept(tmp_path / "a.json") == b"content"


def aged(path: Path, age: int) -> Path:
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def test_what_was_used_longest_ago_makes_way(tmp_path: Path) -> None:
    for age in range(5):
        write_kept(tmp_path / f"{age}.bin", b"x" * 10)
        aged(tmp_path / f"{age}.bin", age)
    read_kept(tmp_path / "4.bin")  # used just now
    make_way(tmp_path, most=3, most_bytes=1000)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["0.bin", "1.bin", "4.bin"]
    assert len(list(tmp_path.glob(".*.sha256"))) == 3, "sums go with their files"


def test_bytes_count_too_folders_whole_and_the_last_one_stays(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "part").write_bytes(b"x" * 100)
    aged(tmp_path / "half", 5)
    write_kept(tmp_path / "new.bin", b"x" * 50)
    make_way(tmp_path, most=9, most_bytes=120)
    assert not (tmp_path / "half").exists() and (tmp_path / "new.bin").exists()
    make_way(tmp_path, most=9, most_bytes=0)
    assert (tmp_path / "new.bin").exists()


def test_removing_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    remove_kept(tmp_path / "none")
    make_way(tmp_path / "nowhere", 1, 1)


def test_who_waits_for_a_lock_is_heard_and_may_give_up(tmp_path: Path) -> None:
    def give_up(progress: Progress) -> None:
        assert "Waiting for another process" in progress.stage
        raise KeyboardInterrupt

    path, taken, done = tmp_path / "a.lock", threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(path):
            taken.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(10)
    with pytest.raises(KeyboardInterrupt), locked(FileLock(path), give_up):
        pass
    done.set()
    with locked(FileLock(path), give_up):
        pass
    holder.join()
