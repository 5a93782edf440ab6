"""``evaluate``: a method's quality on a file of texts."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..support.progress import silent, terminal_bar
from .arguments import (
    TEXT,
    Commands,
    add_json,
    add_method,
    add_model,
    add_preset,
    chosen_method,
    write_json,
)


def add(commands: Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a method's quality on a file of texts")
    evaluate.add_argument("--text", type=Path, required=True, metavar="FILE", help=TEXT)
    evaluate.add_argument("--prompt-tokens", type=int, default=384, metavar="N", help="run dense; default 384")
    evaluate.add_argument("--score-tokens", type=int, default=128, metavar="N", help="scored; default 128")
    evaluate.add_argument("--documents", type=int, metavar="N", help="take the first N; default: all")
    evaluate.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="written where a text has a reference; default 64"
    )
    add_model(evaluate)
    add_method(evaluate)
    add_preset(evaluate)
    add_json(evaluate)
    evaluate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..calibration.documents import count_documents
    from ..evaluate import EvaluationSettings, evaluate
    from ..evaluate.bookkeeping import shard
    from ..evaluate.evaluation import open_ledger
    from ..evaluate.result import summary
    from ..model.loading import load_model
    from ..support.environment import use_threads

    method = chosen_method(options.method, options.preset, options.set)
    settings = EvaluationSettings(
        options.prompt_tokens, options.score_tokens, options.documents, options.max_new_tokens
    )
    count_documents(options.text, options.documents)  # before minutes go into a model
    use_threads(options.threads)
    result = Path(options.json) if options.json not in (None, "-") else None
    with shard(options.device) as mine, terminal_bar() as bar:
        report = bar if mine.first else silent
        lm = load_model(options.model, precision=options.precision, device=mine.device, report=report)
        evaluation = evaluate(lm, method, options.text, settings, result=result, shard=mine, report=report)
        if not mine.first:
            return
    if options.json is None:
        print(summary(evaluation))
    else:
        write_json(evaluation.to_json(), options.json)
        open_ledger(lm, method, settings, result).discard()
