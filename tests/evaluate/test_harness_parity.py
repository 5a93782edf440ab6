"""At a method's zero setting the adapter says what the harness's own ``hf`` model says of the same weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_files import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an optional extra")

from lm_eval.models.huggingface import HFLM

from tda_demo.evaluate.harness import MethodLM
from tda_demo.model.weights import find_weights
from tda_demo.support.errors import UserError

LONGEST = 24  # tokens: shorter than some of the texts
TEXT = "the other then thinks that this is the thing, and that there is nothing there"
PAIRS = [
    ("the", " theme"),
    ("so t", "he end"),  # "t" + "he" is one token of the whole, two of the context
    ("the end of ", "the thing"),  # a space at the end moves
    ("", "the beginning"),
    (TEXT, " and so on"),  # too long: the context loses its beginning
    ("x", "y" * (LONGEST - 2)),
    ("<|im_start|>user", " the"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose tokenizer joins letters, read from GGUF."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDA_DEMO_CACHE", str(tmp_path_factory.mktemp("cache")))
        gguf = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
        return find_weights(str(gguf), lambda _: None).folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return HFLM(
        pretrained=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        max_length=LONGEST,
        batch_size=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def ours(folder: Path) -> MethodLM:
    return MethodLM(str(folder), "griffin", "float32", max_length=LONGEST, stride=5, keep=1.0, prior=0, rest="skip")


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


@pytest.mark.parametrize("pair", PAIRS)
def test_log_likelihoods(ours: MethodLM, theirs: Any, pair: tuple[str, str]) -> None:
    (found,), (expected,) = (model.loglikelihood([request(*pair)], disable_tqdm=True) for model in (ours, theirs))
    assert found[0] == pytest.approx(expected[0], abs=1e-4) and found[1] == expected[1]


@pytest.mark.parametrize("text", ["the", TEXT, TEXT * 3, "", "<|im_start|>" + TEXT])
def test_running_texts(ours: MethodLM, theirs: Any, text: str) -> None:
    (found,), (expected,) = (
        model.loglikelihood_rolling([request(text)], disable_tqdm=True) for model in (ours, theirs)
    )
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"until": ["t", "e"]}, {"until": "\n"}, {"max_gen_toks": 1}])
@pytest.mark.parametrize("context", ["the end", TEXT, "<|im_start|>user\nthe<|im_end|>\n"])
def test_what_is_written(ours: MethodLM, theirs: Any, context: str, options: dict[str, Any]) -> None:
    asked = {"until": [], "max_gen_toks": 12, "do_sample": False, **options}
    found, expected = (model.generate_until([request(context, asked)], disable_tqdm=True) for model in (ours, theirs))
    assert found == expected


def test_a_token_that_spans_the_join_is_scored_not_given_away(ours: MethodLM) -> None:
    """Where nothing of the continuation is left, the harness's own model ends with an assertion."""
    assert ours.tok_encode("the") == ours.tok_encode("th" + "e") and len(ours.tok_encode("the")) == 1
    assert len(ours.tok_encode("th")) == 1
    ((value, likely),) = ours.loglikelihood([request("th", "e")], disable_tqdm=True)
    ids = [*ours.tok_encode("th"), *ours.tok_encode("e")]
    (expected,) = ours._loglikelihood_tokens([(("", ""), ids[:1], ids[1:])], disable_tqdm=True)
    assert value < -0.1 and (value, likely) == expected


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1, 0])
def test_an_answer_that_leaves_no_room_for_the_prompt_is_refused(ours: MethodLM, length: int) -> None:
    with pytest.raises(UserError, match="max_gen_toks"):
        ours.generate_until([request("the", {"until": [], "max_gen_toks": length})], disable_tqdm=True)


def test_a_continuation_that_is_nothing_or_too_long_is_refused(ours: MethodLM) -> None:
    for continuation in ([], [5] * (LONGEST + 1)):
        with pytest.raises(UserError, match="continuation"):
            ours._loglikelihood_tokens([(("", ""), [4], continuation)], disable_tqdm=True)
