"""Scores against transformers and float64; runs that are cut off, split up, or given too little."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from model_files import write_model
from parity import random_sets, stored
from plain import plain_tda
from scipy import stats
from tiny import tiny
from transformers import DynamicCache

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.calibration.sources import PASSAGES
from tda_demo.calibration.thresholds import threshold_table
from tda_demo.decode.arm import Prefill
from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.evaluate import EvaluationSettings, evaluate, evaluation, scoring
from tda_demo.evaluate.generation import compare
from tda_demo.evaluate.result import summary
from tda_demo.methods import TDA
from tda_demo.methods.ranked import DensePolicy
from tda_demo.methods.sequence import SequencePolicy
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.loading import LoadedModel
from tda_demo.stats import metrics
from tda_demo.support.errors import UserError

PROMPT, SCORED = 20, 9
SETTINGS = EvaluationSettings(PROMPT, SCORED)
METHOD = plain_tda(cett=0.4, online=True)


class Fixed(SequencePolicy):
    """A selector that keeps given neurons, whatever it is shown, and remembers how much it was shown."""

    def __init__(self, lm: LoadedModel) -> None:
        self.active = random_sets(lm, tuple(block.d_ff // 2 + block.layer for block in lm.blocks))
        self.shown: set[int] = set()

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        self.shown.add(len(activations))
        mask = torch.zeros(block.d_ff, dtype=torch.bool)
        return mask.index_fill(0, self.active.indices[block.layer], True)

    def count_fired_in_prompt(self, *_: Any) -> torch.Tensor:
        raise NotImplementedError


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    return logits.double().log_softmax(dim=-1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_scores_are_those_of_transformers_with_the_dropped_columns_zeroed(family: str) -> None:
    lm = tiny(family)
    selector: Any = Fixed(lm)
    ids = torch.randint(5, 90, (3, PROMPT + SCORED), generator=torch.Generator().manual_seed(0))
    scores = scoring.score_texts(lm, [selector], ids, PROMPT)[0]
    assert selector.shown == {PROMPT}
    dense = [log_softmax(lm.model(input_ids=each[None]).logits[0, PROMPT - 1 : -1]) for each in ids]
    caches = [DynamicCache() for _ in ids]
    for each, cache in zip(ids, caches, strict=True):
        lm.model(input_ids=each[None, : PROMPT - 1], past_key_values=cache, use_cache=True)
    for block, indices in zip(lm.blocks, selector.active.indices, strict=True):
        dropped = torch.ones(block.d_ff, dtype=torch.bool).index_fill(0, indices, False)
        block.down.weight[:, dropped] = 0
    for each, cache, log_p, found in zip(ids, caches, dense, scores, strict=True):
        scored = lm.model(input_ids=each[None, PROMPT - 1 : -1], past_key_values=cache, use_cache=True).logits[0]
        log_q = log_softmax(scored)
        at = np.arange(SCORED), each[PROMPT:].numpy()
        assert found.tokens == SCORED
        assert found.dense_loss == pytest.approx(-log_p[at].sum(), abs=1e-4)
        assert found.sparse_loss == pytest.approx(-log_q[at].sum(), abs=1e-4)
        assert found.kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), abs=1e-4)
        assert found.agreeing == (log_p.argmax(1) == log_q.argmax(1)).sum()
        assert found.kept == tuple(selector.active.counts())


@torch.inference_mode()
def test_cett_and_recall_are_those_of_the_dense_activations(lm: LoadedModel) -> None:
    selector: Any = Fixed(lm)
    ids = torch.randint(5, 90, (1, PROMPT + SCORED), generator=torch.Generator().manual_seed(1))
    found = scoring.score_texts(lm, [selector], ids, PROMPT)[0][0]
    for block, indices in zip(lm.blocks, selector.active.indices, strict=True):
        seen: list[torch.Tensor] = []
        hook = block.down.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0][0]))
        lm.model(input_ids=ids[:, :-1])
        hook.remove()
        a = seen[0][PROMPT - 1 :].double().numpy()
        down = block.down.weight.double().numpy()
        dropped = np.setdiff1d(np.arange(block.d_ff), indices.numpy())
        error = np.linalg.norm(a[:, dropped] @ down[:, dropped].T, axis=1) / np.linalg.norm(a @ down.T, axis=1)
        own = np.argsort(-np.abs(a) * np.linalg.norm(down, axis=0), axis=1)[:, : len(indices)]
        assert found.cett[block.layer] == pytest.approx(error.mean(), rel=1e-4)
        assert found.recall[block.layer] == pytest.approx(np.isin(own, indices.numpy()).mean(), abs=1e-6)


def test_recall_does_not_ask_for_neurons_that_do_not_fire() -> None:
    contributions = np.array([[3.0, 0, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]], dtype=np.float32)
    active = np.array([True, True, False, False])
    assert metrics.mask_recall(contributions, active) == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert metrics.mask_recall(contributions, np.ones(4, dtype=bool)) == 1
    assert metrics.mask_recall(contributions, np.zeros(4, dtype=bool)) == 0


def test_perplexity_beyond_a_float_is_infinite() -> None:
    assert metrics.perplexity(2 * math.log(3), 2) == pytest.approx(3)
    assert metrics.perplexity(1e6, 2) == math.inf


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "int8", "nf4"])
def test_bytes_are_the_engines(family: str, precision: str) -> None:
    lm = stored(tiny(family), precision)
    engine = engine_for(lm)
    active = random_sets(lm, tuple(3 + block.layer for block in lm.blocks))
    prefill: Any = engine.prefill([5, 6, 7], TDA(cett=0).bind(lm))
    sparse = engine.sparse_arm(Prefill(**{**vars(prefill), "plan": active}), 1)
    read = step_bytes(lm)
    assert read.dense == engine.dense_arm(prefill, 1).weight_bytes
    assert read.read(DensePolicy(), active.counts()).bytes == pytest.approx(sparse.weight_bytes)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    random = np.random.default_rng(0)
    lengths = [40, 29, 12, 60, 33, 29, 31, 28, 50, 40]
    words = [" ".join(f"w{word}" for word in random.integers(5, 90, length)) for length in lengths]
    path.write_text("\n###\n".join(words), encoding="utf-8")
    return path


def test_short_texts_are_left_out_and_counted(lm: LoadedModel, texts: Path) -> None:
    found = evaluate(lm, METHOD, texts, SETTINGS).to_json()
    assert (found["documents"], found["short"], found["scored_tokens"]) == (8, 2, 8 * SCORED)
    assert found["kl"] > 0 and 0 < found["sparsity"] < 1 and found["byte_bound"] > 1
    first = evaluate(lm, METHOD, texts, EvaluationSettings(PROMPT, SCORED, documents=2)).to_json()
    assert (first["documents"], first["short"]) == (2, 0)


def test_the_interval_of_kl_is_over_texts(lm: LoadedModel, texts: Path, tmp_path: Path) -> None:
    """Equally long texts, eight of them: Student's interval of the mean of each text's own KL."""
    found = evaluate(lm, METHOD, texts, SETTINGS)
    each: list[float] = []
    for text in texts.read_text(encoding="utf-8").split("\n###\n"):
        if len(text.split()) >= PROMPT + SCORED:
            (tmp_path / "one.txt").write_text(text, encoding="utf-8")
            alone = evaluate(lm, METHOD, tmp_path / "one.txt", SETTINGS).to_json()
            assert alone["kl_low"] is None and alone["kl_high"] is None
            each.append(alone["kl"])
    low, high = stats.t.interval(0.95, len(each) - 1, np.mean(each), stats.sem(each))
    told = found.to_json()
    assert 0 < low < np.mean(each) == pytest.approx(told["kl"], rel=1e-5)
    assert (told["kl_low"], told["kl_high"]) == pytest.approx((low, high), rel=2e-3)
    assert f"95 % over texts: {low:.2f}" in summary(found)
    exact = evaluate(lm, TDA(cett=0), texts, SETTINGS).to_json()
    assert (exact["kl_low"], exact["kl_high"]) == (0, 0)


def test_the_zero_setting_is_the_dense_model_exactly(lm: LoadedModel, texts: Path) -> None:
    found = evaluate(lm, TDA(cett=0), texts, SETTINGS).to_json()
    assert found["kl"] == 0 and found["agreement"] == 1 and found["sparsity"] == 0 and found["byte_bound"] == 1
    assert found["perplexity"]["dense"] == found["perplexity"]["sparse"]


def test_text_is_scored_with_thresholds_of_passages(lm: LoadedModel, texts: Path, little_text: None) -> None:
    method = plain_tda(cett=0.4, shape="uniform")
    found = evaluate(lm, method, texts, SETTINGS).to_json()
    policy = method.bind(lm, source=PASSAGES)
    assert policy.limits.tolist() == threshold_table(lm, weighted=False, source=PASSAGES).at(0.4).tolist()
    kl, kept = [], []
    for text in texts.read_text(encoding="utf-8").split("\n###\n"):
        ids = lm.tokenizer(text)["input_ids"][: PROMPT + SCORED]
        if len(ids) == PROMPT + SCORED:
            ((score,),) = scoring.score_texts(lm, [policy], torch.tensor([ids]), PROMPT)
            kl.append(score.kl / SCORED)
            kept.append(np.mean(score.kept) / 70)
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert found["sparsity"] == pytest.approx(1 - np.mean(kept))


def test_a_run_that_was_killed_is_taken_up_and_ends_the_same(
    lm: LoadedModel, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = evaluate(lm, METHOD, texts, SETTINGS)
    calls: list[int] = []
    whole = scoring.score_texts

    def counted(*arguments: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return whole(*arguments)

    result = tmp_path / "out" / "result.json"
    monkeypatch.setattr(evaluation, "score_texts", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, METHOD, texts, SETTINGS, result=result)
    (partial,) = result.parent.iterdir()
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"key": "torn')
    calls[:] = [0]
    assert evaluate(lm, METHOD, texts, SETTINGS, result=result) == uninterrupted
    assert len(calls) == 2  # one unit was left to score
    calls.clear()
    other = EvaluationSettings(PROMPT, SCORED - 1)
    with pytest.raises(KeyboardInterrupt):  # nothing kept for other settings
        evaluate(lm, METHOD, texts, other, result=result)


def test_references_are_compared_with_what_both_arms_write(lm: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    row = {"text": "w5 w6 w7 w8", "reference": "w9"}
    path.write_text(json.dumps(row), encoding="utf-8")
    found = evaluate(lm, METHOD, path, EvaluationSettings(PROMPT, SCORED, max_new_tokens=5))
    assert found.quality is None and found.generation is not None and found.generation.documents == 1
    assert found.to_json()["perplexity"] is None
    told = compare([("The cat sat", "a dog"), ("yes", "Yes \n")], ["the cat ran", "yes"], 5)
    assert told.rouge_l == {"dense": pytest.approx((2 / 3 + 1) / 2), "sparse": 0.5}
    assert told.exact_match == {"dense": 0.5, "sparse": 0.5}


def test_what_cannot_be_scored_is_one_sentence(lm: LoadedModel, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"as long as 60 prompt and 40 scored tokens: the longest, from line 7, has 60"):
        evaluate(lm, METHOD, texts, EvaluationSettings(60, 40), result=tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == [texts]
    with pytest.raises(UserError, match="takes 128"):
        evaluate(lm, METHOD, texts, EvaluationSettings(200, 57))
    with pytest.raises(UserError, match="score_tokens is 0"):
        EvaluationSettings(20, 0)


def test_the_command_prints_or_writes_and_leaves_nothing_else(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())
    cut = ["--prompt-tokens", str(PROMPT), "--score-tokens", str(SCORED), "--set", "online=1"]
    target = tmp_path / "deep" / "result.json"
    assert main(["evaluate", "--text", str(texts), *cut]) == 0
    assert "nats/token" in capsys.readouterr().out
    assert main(["evaluate", "--text", str(texts), *cut, "--json", str(target)]) == 0
    assert [each.name for each in target.parent.iterdir()] == ["result.json"]
    told = json.loads(target.read_text(encoding="utf-8"))
    fixed = "model method settings documents scored_tokens perplexity kl agreement sparsity byte_bound"
    assert set(fixed.split()) <= set(told) and set(told["perplexity"]) == {"dense", "sparse"}
    assert main(["evaluate", "--text", str(tmp_path / "nowhere"), *cut]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_what_one_gives(texts: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    repository = Path(__file__).parents[2]
    command = ["evaluate", "--text", str(texts), "--model", str(model), "--threads", "1"]
    command += ["--prompt-tokens", str(PROMPT), "--score-tokens", str(SCORED), "--set", "online=1", "--device", "cpu"]
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes=2",
        "--num_machines=1",
        "--main_process_port=0",
    ]
    one, two = (tmp_path / name / "result.json" for name in ("one", "two"))
    assert main([*command, "--json", str(one)]) == 0
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tda_demo", *command, "--json", str(two)],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [each.name for each in two.parent.iterdir()] == ["result.json"]
    assert json.loads(one.read_text(encoding="utf-8")) == json.loads(two.read_text(encoding="utf-8"))
