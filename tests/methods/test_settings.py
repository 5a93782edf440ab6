"""Settings: what a value may be, and the one sentence for one that may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda_demo.methods import METHODS, make_method
from tda_demo.methods.base import EvidenceMethod, SequenceMethod
from tda_demo.methods.settings import Range, check, ordered_fields, parse, setting
from tda_demo.support.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Common:
    name: ClassVar[str] = "common"

    late: int = setting(0, "one that all have", Range(0, 9))


@dataclass(frozen=True)
class Coloured(Common):
    name: ClassVar[str] = "coloured"

    colour: Literal["red", "green", "blue"] = setting("red", "one of three")
    share: float = setting(0.5, "a share", Range(0, 1))


def test_a_methods_own_settings_come_before_those_it_has_in_common() -> None:
    assert [field.name for field in ordered_fields(Coloured)] == ["colour", "share", "late"]
    for kind in METHODS.values():
        told = list(kind().settings())
        assert told == [field.name for field in ordered_fields(kind)]
        common = ["first", "rest"] if issubclass(kind, SequenceMethod) else []
        common += ["prior", "refresh"] if issubclass(kind, EvidenceMethod) else []
        assert told[len(told) - len(common) :] == common and told[0] == kind.dial.setting


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_a_choice_is_taken_and_parsed(colour: Any) -> None:
    assert parse(Coloured, [f"colour={colour}", "late=3"]) == {"colour": colour, "late": 3}
    check(Coloured(colour, 0.2, late=3))


@given(st.text(max_size=9).filter(lambda text: text not in ("red", "green", "blue")))
def test_another_is_refused_in_a_sentence_that_names_them(text: Any) -> None:
    for refused in (lambda: parse(Coloured, [f"colour={text}"]), lambda: check(Coloured(text))):
        with pytest.raises(UserError) as raised:
            refused()
        assert str(raised.value) == f"colour is {text}; it must be red or green or blue."


@pytest.mark.parametrize("value", [None, 1, 0.5, True, (), ("red",), b"red"])
def test_what_is_no_text_is_no_choice(value: Any) -> None:
    with pytest.raises(UserError, match="it must be red or green or blue"):
        check(Coloured(value))


@pytest.mark.parametrize("name", METHODS)
def test_every_choice_of_every_method_can_be_written_on_the_command_line(name: str) -> None:
    kind = METHODS[name]
    types = get_type_hints(kind)
    for field in ordered_fields(kind):
        if get_origin(types[field.name]) is Literal:
            choices = get_args(types[field.name])
            assert field.default in choices
            for choice in choices:
                assert make_method(name, [f"{field.name}={choice}"]).settings()[field.name] == choice
            with pytest.raises(UserError, match=f"{field.name} is other; it must be {' or '.join(choices)}"):
                make_method(name, [f"{field.name}=other"])
