"""``race``: the dense model against a method, on one prompt."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_text
from ..progress import Progress, terminal_bar
from .shared import Commands, add_json, add_method, add_model, chosen_method, write_json

if TYPE_CHECKING:
    from ..result import RaceResult


def add(commands: Commands) -> None:
    race = commands.add_parser("race", help="race the dense model against a method on one prompt")
    race.add_argument("prompt", metavar="PROMPT")
    add_model(race)
    add_method(race)
    race.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    race.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    race.add_argument("--top-p", type=float, default=1.0, metavar="P")
    race.add_argument("--seed", type=int, default=0, metavar="S")
    add_json(race)
    race.add_argument("--report", type=Path, metavar="FILE", help="write the race there as self-contained HTML")
    race.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..environment import use_threads
    from ..evaluate.weight_bytes import step_bytes
    from ..models import load_model
    from ..race import Finished, PromptRead, RaceSettings, Stepped, race
    from ..report import race_report
    from ..report.record import RaceRecord, traced
    from ..result import summary

    method = chosen_method(options.method, options.set)
    settings = RaceSettings(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    result: RaceResult | None = None
    read: PromptRead | None = None
    steps: list[Stepped] = []
    use_threads(options.threads)
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        for event in race(lm, method, options.prompt, settings, report=report):
            if isinstance(event, PromptRead):
                read = event
            elif isinstance(event, Stepped):
                steps.append(event)
                report(Progress("Racing", len(steps), 2 * settings.max_new_tokens, "tokens"))
            elif isinstance(event, Finished):
                result = event.result
    assert result is not None and read is not None, "a race begins with PromptRead and ends with Finished"
    if options.report:
        seen = [(step.text, step.fired) for step in steps if step.fired is not None]
        neurons = step_bytes(lm)
        trace = traced(read, neurons.widths, [text for text, _ in seen], [fired for _, fired in seen])
        share = neurons.read(trace.kept, method.bind(lm)).mlp_share
        write_text(options.report, race_report(RaceRecord(options.prompt, asdict(settings), result, trace, share)))
    if options.json is None:
        print(summary(result))
    else:
        write_json(result.to_json(), options.json)
