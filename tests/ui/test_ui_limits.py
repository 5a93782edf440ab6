"""What a visitor may ask for."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tda_demo.methods import GRIFFIN, METHODS, TDA
from tda_demo.model import loading as models
from tda_demo.support.errors import UserError
from tda_demo.ui.models import EMBEDDED
from tda_demo.ui.race.controls import defaults, parse_link
from tda_demo.ui.race.method_controls import settings
from tda_demo.ui.requests import AUTOMATIC, HUB_MODELS, LIMITS, Budget, Offers, RunRequest, layer_list, parse_request

OFFERS = Offers()
ROOT = Path(__file__).parents[2]


def ask(**wishes: Any) -> RunRequest:
    return parse_request(OFFERS, **{"prompt": "Hello", **wishes})


def test_a_prompt_alone_is_enough() -> None:
    assert ask() == RunRequest(prompt="Hello")


def test_everything_arrives() -> None:
    own = {"cett": "0.3", "scale": [1, 0.5], "exempt": "0, 2-4", "online": True}
    request = ask(method="tda", settings=own, max_new_tokens=7.0, model=HUB_MODELS[0], precision="float32")
    assert (request.max_new_tokens, request.model, request.precision) == (7, HUB_MODELS[0], "float32")
    assert request.method == TDA(cett=0.3, scale=(1.0, 0.5), exempt=(0, 2, 3, 4), online=True)


@pytest.mark.parametrize("given", [0.3, "0.3"])
def test_a_setting_arrives_as_a_number_or_as_text(given: Any) -> None:
    assert ask(settings={"cett": given}).method == TDA(cett=0.3)


def test_a_request_can_travel() -> None:
    request = ask(settings={"cett": 0.3, "scale": [1, 0.5]}, rival="griffin", by="quality")
    assert pickle.loads(pickle.dumps(request)) == request


def test_factors_of_one_fit_every_model() -> None:
    assert ask(method="tda", settings={"scale": [1, 1.0, 1]}).method == TDA()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_what_its_controls_hold(method: str) -> None:
    own = {
        setting.field.name: setting.control_value(setting.field.default)
        for setting in settings()
        if setting.method.name == method
    }
    request = ask(method=method, settings=own)
    assert request.method == METHODS[method]()


@pytest.mark.parametrize("method", METHODS)
def test_every_dial_goes_from_end_to_end_and_no_further(method: str) -> None:
    dial = METHODS[method].dial
    for end in (dial.dense, dial.sparsest):
        assert ask(method=method, settings={dial.setting: end}).method == METHODS[method](**{dial.setting: end})
    with pytest.raises(UserError, match=f"{dial.setting} is"):
        ask(method=method, settings={dial.setting: -0.01})


def test_a_budget_is_one_of_two() -> None:
    assert ask(by="quality", kl="0.5").budget == Budget("kl", 0.5)
    assert ask(by="bytes", mlp_percent=60, kl="not looked at").budget == Budget("mlp_share", 0.6)


def test_a_rival_has_settings_of_its_own() -> None:
    asked = ask(rival="griffin", rival_settings={"keep": "0.4"}, settings={"cett": 0.3})
    assert (asked.method, asked.rival) == (TDA(cett=0.3), GRIFFIN(keep=0.4))
    assert ask(rival="dense", rival_settings={}) == ask(rival=None) == ask()


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
        ({"method": "no-such"}, "does not offer that method: choose one of tda, "),
        ({"method": ["tda"]}, "does not offer that method"),
        ({"rival": "no-such"}, "does not offer that method: choose one of tda, "),
        ({"rival": ["tda"]}, "does not offer that method"),
        ({"method": "tt", "rival": "tt"}, "TT cannot race itself: choose another"),
        ({"rival_settings": {"keep": 0.5}}, "no rival: name the method"),
        ({"rival": "griffin", "rival_settings": {"keep": 2}}, "from 0 to 1"),
        ({"rival": "griffin", "rival_settings": {"cett": 0.2}}, "'griffin' has no setting 'cett'"),
        ({"settings": {"cett": math.nan}}, "from 0 to 0.7"),
        ({"settings": {"cett": 0.71}}, "from 0 to 0.7"),
        ({"settings": {"shape": "round"}}, "it must be sensitivity or uniform"),
        ({"settings": {"shape": None}}, "it must be sensitivity or uniform"),
        ({"settings": {"rest": {"a": 1}}}, "it must be skip or 4bit"),
        ({"settings": {"first": 1e9}}, "from 0 to 4096"),
        ({"settings": {"prior": -1}}, "0 or more"),
        ({"method": "random", "settings": {"prior": 1}}, "'random' has no setting 'prior'"),
        ({"settings": {"cett": "much"}}, "'much' is not a number"),
        ({"settings": {"cett": None}}, "'' is not a number"),
        ({"settings": {"cett": {"a": 1}}}, "is not a number"),
        ({"settings": {"magic": 1}}, "no setting 'magic'"),
        ({"settings": {"\ud800": 1}}, r"no setting '\?'"),
        ({"settings": [0.2]}, "names and values"),
        ({"settings": {"exempt": "0-9999"}}, "at most 4,000"),
        ({"method": "griffin", "settings": {"cett": 0.2}}, "'griffin' has no setting 'cett'; it has: keep"),
        ({"by": "magic"}, "by setting, by quality or by bytes"),
        ({"by": "quality", "kl": "low"}, "KL budget must be a number"),
        ({"by": "bytes", "mlp_percent": 101}, "from 0 to 100"),
        ({"temperature": -1}, "from 0 to 2"),
        ({"temperature": math.inf}, "from 0 to 2"),
        ({"top_p": 0}, "top-p is 0"),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"seed": -1}, "seed"),
        ({"settings": {"scale": [1, math.nan]}}, "factor"),
        ({"settings": {"scale": [1, 3]}}, "from 0 to 2"),
        ({"settings": {"scale": "half"}}, "list of numbers"),
        ({"settings": {"exempt": "all"}}, "layer numbers"),
        ({"settings": {"exempt": "1-"}}, "layer numbers"),
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


def test_the_page_offers_every_method_before_torch_is_in_memory() -> None:
    script = (
        "import sys; from tda_demo.ui.page import build_page; from tda_demo.ui.requests import Offers; "
        "from tda_demo.ui.service import Service; build_page(Service(Offers())); print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False"]


def test_a_link_sets_the_controls() -> None:
    parameters = {"prompt": "Hi", "method": "coreinfer", "coreinfer.keep": "0.6", "coreinfer.exempt_last": "2"}
    found = parse_link(
        OFFERS, LIMITS, {**parameters, "by": "bytes", "mlp_percent": "80", "__theme": "dark", "seed": "7"}
    )
    expected = {"prompt": "Hi", "coreinfer.keep": 0.6, "coreinfer.exempt_last": 2, "by": "bytes", "mlp_percent": 80.0}
    assert found.items() >= expected.items() and found["seed"] == 7
    assert found.keys() <= {"prompt", *defaults()} and "__theme" not in found


def test_a_link_s_layers_and_factors_reach_their_controls() -> None:
    found = parse_link(OFFERS, LIMITS, {"tda.exempt": "0,2-3", "tda.scale": "1,0.5", "griffin.keep": "nonsense"})
    assert (found["tda.exempt"], found["tda.scale"]) == ("0, 2, 3", [1.0, 0.5]) and "griffin.keep" not in found


def test_no_link_changes_nothing_and_a_wrong_one_is_refused() -> None:
    assert parse_link(OFFERS, LIMITS, {"__theme": "dark"}) == {}
    for wrong in ({"tda.cett": "9"}, {"method": "no-such"}, {"model": "/etc/passwd"}, {"max_new_tokens": "many"}):
        with pytest.raises(UserError):
            parse_link(OFFERS, LIMITS, wrong)
