"""The reader of texts: every cut of a file, and everything that can be wrong with one."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda_demo.calibration import documents
from tda_demo.calibration.documents import count_documents, read_documents
from tda_demo.support.errors import UserError

LINES = st.text(st.sampled_from("aé漢🏁 #\t"), max_size=9).filter(lambda line: line.strip() != "###")


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(min_value=8, max_value=16),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_pieces_of_any_size_give_the_same_documents(
    parts: list[list[str]], piece: int, newline: str, closed: bool
) -> None:
    lines = [line for part in parts for line in [*part, "###"]][: None if closed else -1]
    expected, begun = [], 1
    for part in parts:
        if text := "\n".join(part).strip():
            first = next(index for index, line in enumerate(part) if line.strip())
            expected.append((text, begun + first))
        begun += len(part) + 1
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_PIECE_BYTES", piece)
        path = Path(folder) / "texts.txt"
        path.write_bytes(newline.join(lines).encode())
        found = [(each.text.replace("\r\n", "\n"), each.line) for each in read_documents(path)]
    # str.strip at both ends is all that may be lost.
    assert found == expected


def test_a_long_line_with_a_separator_at_a_piece_boundary_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_PIECE_BYTES", 8)
    path = tmp_path / "texts.txt"
    path.write_text("abcdefgh###\n###\nx", encoding="utf-8")
    assert [each.text for each in read_documents(path)] == ["abcdefgh###", "x"]


def test_memory_stays_flat_on_a_file_of_one_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"word " * (1 << 18))
    tracemalloc.start()
    (document,) = read_documents(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 80e6 and peak < 8e6
    assert len(document.text) >= documents.KEPT_CHARACTERS - 1


def test_json_lines_give_text_reference_and_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": "one\ntwo", "reference": "r"}, {"text": "  "}, {"text": "half a pair: \ud83c"}]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = list(read_documents(path))
    assert [(each.line, each.reference) for each in found] == [(1, "r"), (5, None)]
    assert found[0].text == "one\ntwo" and found[1].text == "half a pair: ?"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt holds no text."),
        ("blank.txt", b" \n###\n\n###\n", "blank.txt holds no text."),
        ("latin.txt", b"one\ntwo\nna\xefve\n", "latin.txt is not UTF-8 text: line 3 "),
        ("cut.txt", b"one\n\xe6\xbc", "cut.txt is not UTF-8 text: line 2 "),
        ("wide.txt", "one".encode("utf-16"), "wide.txt is not UTF-8 text: line 1 "),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl, line 2 is not JSON: "),
        ("latin.jsonl", b'{"text": "a"}\n\n{"text": "\xef"}\n', "latin.jsonl is not UTF-8 text: line 3 "),
        ("list.jsonl", b"[1]", "list.jsonl, line 1 has no text"),
        ("none.jsonl", b'{"text": "a"}\n{"prompt": "a"}', "none.jsonl, line 2 has no text"),
        ("number.jsonl", b'{"text": 3}', "number.jsonl, line 1 has no text"),
        ("reference.jsonl", b'{"text": "a", "reference": ["b"]}', "line 1: its 'reference' is not a string"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl, line 1 is not JSON that can be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        count_documents(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_line_too_long_to_parse_and_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_LINE_BYTES", 100)
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "x" * 200}), encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1 is longer than"):
        count_documents(path)
    with pytest.raises(UserError, match=r"Cannot read .*: Is a directory"):
        count_documents(tmp_path)
    with pytest.raises(UserError, match=r"Cannot read .*: No such file"):
        count_documents(tmp_path / "nowhere")
