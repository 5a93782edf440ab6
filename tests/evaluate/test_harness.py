"""lm-evaluation-harness against a task of our own, offline, and against log-probabilities from transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain import PLAIN
from tiny import tiny
from transformers import DynamicCache

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.support.errors import UserError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an optional extra")

from tda_demo.evaluate import harness

CONTEXT = "w5 w9 w17 w30 w31 w44 w58 w60"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> harness.MethodLM:
    monkeypatch.setattr(harness, "load_model", lambda *_args, **_kwargs: tiny())
    return harness.MethodLM(cett=0.4, online=True, **PLAIN)


def expected(context: list[int], continuation: list[int], model: harness.MethodLM) -> float:
    """By transformers alone: the context dense, then its last token and the continuation with columns zeroed."""
    lm, cache = tiny(), DynamicCache()
    seen: list[torch.Tensor] = []
    hooks = [block.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0])) for block in lm.blocks]
    lm.model(input_ids=torch.tensor([context]), past_key_values=cache, use_cache=True)
    cache.crop(-1)
    for block, a, hook in zip(lm.blocks, list(seen), hooks, strict=True):
        hook.remove()
        block.down.weight[:, ~model.policy.select(block, a)] = 0
    inputs = torch.tensor([[context[-1], *continuation[:-1]]])
    log_p = lm.model(input_ids=inputs, past_key_values=cache).logits[0].double().log_softmax(-1)
    return float(sum(log_p[at, token] for at, token in enumerate(continuation)))


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


@torch.inference_mode()
def test_every_continuation_token_is_the_methods(model: harness.MethodLM) -> None:
    pairs = [(CONTEXT, " w7"), (CONTEXT, " w8 w9 w10"), ("w40 w41 w42", " w7"), (CONTEXT, " w8")]
    found = model.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        ids, following = (model.tokenizer(text)["input_ids"] for text in (context, continuation))
        assert value == pytest.approx(expected(ids, following, model), abs=1e-4)
        dense = tiny().model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        assert abs(value - float(dense[following[0]])) > 1e-3  # the method is felt, even in one token


@torch.inference_mode()
def test_a_running_text_is_scored_stride_by_stride(model: harness.MethodLM) -> None:
    model.stride, model.max_length = 4, 8
    ids = list(range(20, 31))
    (found,) = model.loglikelihood_rolling([request(" ".join(f"w{token}" for token in ids))], disable_tqdm=True)
    whole = [1, *ids]
    parts = [expected(whole[max(0, at - 5) : at], whole[at : at + 4], model) for at in (1, 5)]
    parts.append(expected(whole[3:9], whole[9:], model))
    assert found == pytest.approx(sum(parts), abs=1e-3)


def test_writing_stops_at_a_stop_and_at_the_length(model: harness.MethodLM) -> None:
    whole, short = model.generate_until(
        [request(CONTEXT, {"until": [], "max_gen_toks": 12}), request(CONTEXT, {"until": [], "max_gen_toks": 5})],
        disable_tqdm=True,
    )
    assert len(whole.split()) == 12 and whole.split()[:5] == short.split()
    stop = whole.split()[3]
    (stopped,) = model.generate_until([request(CONTEXT, {"until": [stop], "max_gen_toks": 12})], disable_tqdm=True)
    assert stopped == whole[: whole.find(stop)]
    assert harness.up_to_stop("abcabc", ["c", "b", ""]) == "a"


def test_settings_of_the_harness_are_those_of_the_method() -> None:
    method = harness.method_of("tda", {"cett": 0.3, "exempt": "0;2", "online": True})
    assert method.settings() | {"cett": 0.3, "exempt": (0, 2), "online": True} == method.settings()
    with pytest.raises(UserError, match="no method 'magic'"):
        harness.method_of("magic", {})
    with pytest.raises(UserError, match="no setting 'certain'"):
        harness.method_of("tda", {"certain": 1})


def test_the_command_runs_a_task_defined_locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "load_model", lambda *_args, **_kwargs: tiny())
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    items = tmp_path / "items.jsonl"
    rows = [{"question": "w5 w6 w7", "choices": ["w8", "w9 w10"], "answer": at % 2} for at in range(3)]
    items.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(tmp_path / "data")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "own.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    options = ["--model", "tda", "--model_args", "method=tda,cett=0.4,online=true,prior=0,rest=skip", "--tasks", "own"]
    out = tmp_path / "out"
    assert main(["lm-eval", *options, "--include_path", str(tmp_path), "--output_path", str(out)]) == 0
    (told,) = out.rglob("results_*.json")
    assert json.loads(told.read_text(encoding="utf-8"))["results"]["own"]["acc,none"] in (1 / 3, 2 / 3)
