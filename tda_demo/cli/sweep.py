"""``sweep``: methods, settings and precisions as one table of quality beside bytes and measured speed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..support.files import write_text
from ..support.progress import silent, terminal_bar
from .arguments import Commands, add_threads


def add(commands: Commands) -> None:
    sweep = commands.add_parser("sweep", help="a grid of methods and settings as a table of quality beside bytes")
    sweep.add_argument("--model", metavar="M", help="a hub id, a folder or a .gguf file; default: the embedded model")
    sweep.add_argument("--method", default="tda", metavar="NAME", help="the method of axes that name none; default tda")
    sweep.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="[METHOD.]K=V,V",
        help="an axis, e.g. cett=0.1,0.2; repeatable; all combinations of a method's axes are taken",
    )
    sweep.add_argument("--precision", action="append", metavar="P", help="repeatable; default: all of the device")
    sweep.add_argument("--device", metavar="D", help="cpu or cuda")
    sweep.add_argument("--text", type=Path, metavar="FILE", help="as for evaluate; default: the held-out passages")
    sweep.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="default 128")
    sweep.add_argument("--score-tokens", type=int, default=64, metavar="N", help="default 64")
    sweep.add_argument("--documents", type=int, metavar="N", help="take the first N; default: all")
    sweep.add_argument("--time", action="store_true", help="measure every row's tokens/s too, interleaved with dense")
    sweep.add_argument("--out", type=Path, required=True, metavar="FILE", help=".csv, .parquet or .json")
    sweep.add_argument("--report", type=Path, metavar="FILE", help="write the rows there as self-contained HTML too")
    add_threads(sweep)
    sweep.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..calibration.documents import count_documents, held_out_passages, read_documents
    from ..evaluate.bookkeeping import Ledger, shard
    from ..evaluate.evaluation import EvaluationSettings
    from ..evaluate.speed import SpeedSettings
    from ..evaluate.sweep import grid, sweep
    from ..evaluate.sweep_table import check_format, write_table
    from ..methods.controls import not_beating
    from ..model.loading import load_model
    from ..model.precision import available_precisions
    from ..report import sweep_report
    from ..support.environment import use_threads

    check_format(options.out)
    methods = grid(options.method, options.grid)
    settings = EvaluationSettings(options.prompt_tokens, options.score_tokens, options.documents)
    if options.text:
        count_documents(options.text, options.documents)
    held_out = held_out_passages()
    use_threads(options.threads)
    with shard(options.device) as mine, terminal_bar() as bar:
        report = bar if mine.first else silent
        rows = sweep(
            lambda precision: load_model(options.model, precision=precision, device=mine.device, report=report),
            methods,
            options.precision or available_precisions(mine.device),
            (lambda: read_documents(options.text)) if options.text else (lambda: held_out.documents),
            options.text.name if options.text else held_out.name,
            settings,
            speed=SpeedSettings() if options.time else None,
            ledger=lambda key: Ledger(options.out, key, mine.rank),
            shard=mine,
            report=report,
        )
        if not mine.first:
            return
    write_table(rows, options.out)
    if options.report:
        write_text(options.report, sweep_report([asdict(row) for row in rows]))
    Ledger(options.out, "").discard()
    print("\n".join([f"{options.out}: {len(rows)} rows", *not_beating([asdict(row) for row in rows])]))
