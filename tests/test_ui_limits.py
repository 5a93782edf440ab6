"""What a visitor may ask for."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from tda_demo import models
from tda_demo.errors import UserError
from tda_demo.methods import TDA
from tda_demo.methods.settings import check
from tda_demo.ui.limits import LIMITS, RunRequest, checked, layer_list
from tda_demo.ui.offers import AUTOMATIC, EMBEDDED, HUB_MODELS, Offers
from tda_demo.ui.race.controls import DEFAULTS

OFFERS = Offers()


def ask(**wishes: Any) -> RunRequest:
    return checked(OFFERS, **{"prompt": "Hello", **wishes})


def test_a_prompt_alone_is_enough() -> None:
    assert ask() == RunRequest(prompt="Hello")


def test_everything_arrives() -> None:
    request = ask(
        cett="0.3", max_new_tokens=7.0, model=HUB_MODELS[0], precision="float32", scale=[1, 0.5], exempt="0, 2-4"
    )
    assert (request.cett, request.max_new_tokens, request.model, request.precision) == (
        0.3,
        7,
        HUB_MODELS[0],
        "float32",
    )
    assert (request.scale, request.exempt) == ((1.0, 0.5), (0, 2, 3, 4))


def test_factors_of_one_fit_every_model() -> None:
    assert ask(scale=[1, 1.0, 1]).scale == ()


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert ask(prompt="a\ud800b").prompt == "a?b"


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n\t"}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "x" * (LIMITS.prompt_characters + 1)}, "at most 8,000"),
        ({"max_new_tokens": 0}, "from 1 to 512"),
        ({"max_new_tokens": -3}, "from 1 to 512"),
        ({"max_new_tokens": 10**12}, "from 1 to 512"),
        ({"max_new_tokens": 2.5}, "from 1 to 512"),
        ({"max_new_tokens": math.nan}, "from 1 to 512"),
        ({"max_new_tokens": math.inf}, "from 1 to 512"),
        ({"max_new_tokens": None}, "from 1 to 512"),
        ({"cett": math.nan}, "from 0 to 0.6"),
        ({"cett": -0.01}, "from 0 to 0.6"),
        ({"cett": 0.61}, "from 0 to 0.6"),
        ({"cett": "much"}, "from 0 to 0.6"),
        ({"temperature": -1}, "from 0 to 2"),
        ({"temperature": math.inf}, "from 0 to 2"),
        ({"top_p": 0}, "top-p is 0"),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"seed": -1}, "seed"),
        ({"scale": [1, math.nan]}, "factor"),
        ({"scale": [1, 3]}, "from 0 to 2"),
        ({"scale": "0.5"}, "list of numbers"),
        ({"exempt": "all"}, "layer numbers"),
        ({"exempt": "1-"}, "layer numbers"),
        ({"model": "no/such-model"}, "does not offer that model"),
        ({"model": "../../etc/passwd"}, "does not offer that model"),
        ({"model": 7}, "does not offer that model"),
        ({"precision": "float8"}, "does not offer that precision"),
        ({"precision": ["int8"]}, "does not offer that precision"),
    ],
)
def test_bad_wishes_are_refused_in_a_sentence(wish: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ask(**wish)


@pytest.mark.parametrize(
    ("text", "layers"), [("", ()), (None, ()), ("3", (3,)), (" 2;0 , 2", (0, 2)), ("27–29", (27, 28, 29)), ("5-3", ())]
)
def test_layer_lists(text: str | None, layers: tuple[int, ...]) -> None:
    assert layer_list(text) == layers


def test_any_model_only_where_the_owner_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert Offers.here(allow_any_model=True).model("some/model") == "some/model"
    with pytest.raises(UserError):
        Offers.here(allow_any_model=False).model("some/model")


def test_never_any_model_on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/space")
    with pytest.raises(UserError):
        Offers.here(allow_any_model=True).model("some/model")


def test_the_default_choices_leave_the_choice_to_the_loader() -> None:
    assert OFFERS.model(EMBEDDED) is None and OFFERS.precision(AUTOMATIC) is None


def test_what_is_written_here_without_torch_agrees_with_the_core() -> None:
    assert EMBEDDED == models.EMBEDDED
    assert {*OFFERS.precisions} == {AUTOMATIC, *models.PRECISIONS}
    for cett in LIMITS.cett:
        check(TDA(cett=cett))


def test_every_setting_of_a_request_can_be_wished() -> None:
    assert {field.name for field in fields(RunRequest)} == {"prompt", "scale", *DEFAULTS}
