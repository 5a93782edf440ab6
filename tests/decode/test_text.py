"""Streaming text never shows half a character, and loses none."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tda_demo.decode.text import TextStream, decode
from tda_demo.model.loading import LoadedModel


def test_pieces_join_to_the_whole_text(embedded: LoadedModel) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.text(min_size=1, max_size=30))
    def check(text: str) -> None:
        tokens = embedded.tokenizer(text)["input_ids"]
        stream = TextStream(embedded.tokenizer)
        pieces = [stream.push(token) for token in tokens]
        assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces)
        assert "".join(pieces) + stream.finish() == decode(embedded.tokenizer, tokens)

    check()


def test_a_character_of_several_tokens_comes_at_once(embedded: LoadedModel) -> None:
    stream = TextStream(embedded.tokenizer)
    pieces = [stream.push(token) for token in embedded.tokenizer("a \N{HERB}!")["input_ids"]]
    assert "\N{HERB}" in "".join(pieces) and "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
