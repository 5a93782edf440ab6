"""``record``: the race that the page shows before anybody has run one, as the file it is shown from."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from ..support.files import write_text
from ..support.progress import terminal_bar
from .arguments import Commands, add_model


def add(commands: Commands) -> None:
    record = commands.add_parser("record", help="race dense, TDA's default and the paper's, as the page shows at first")
    record.add_argument("prompt", metavar="PROMPT", help="what all sides answer, in quotes")
    record.add_argument("--presets", nargs=2, default=["default", "paper"], metavar="NAME", help="of TDA; two of them")
    record.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default 128")
    record.add_argument("--out", type=Path, metavar="FILE", help="write it there, as the file that the page shows")
    add_model(record)
    record.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..decode.choose import step_bytes
    from ..methods import TDA
    from ..methods.presets import preset_named
    from ..model.loading import load_model
    from ..race import RaceSettings, race
    from ..race.recording import Recording
    from ..race.result import summary
    from ..support.environment import use_threads

    methods = [preset_named(TDA, name).of(TDA) for name in options.presets]
    use_threads(options.threads)
    settings = RaceSettings(options.max_new_tokens)
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        for warm in (RaceSettings(16), settings):  # what is slow once falls into a race that is not kept
            events = list(race(lm, methods[0], options.prompt, warm, report=report, rival=methods[1]))
    neurons = step_bytes(lm)
    recording = Recording(
        prompt=options.prompt,
        titles=[f"TDA {name}" for name in options.presets],
        max_new_tokens=options.max_new_tokens,
        date=datetime.now(UTC).date().isoformat(),
        d_ff=list(neurons.widths),
        mlp_bytes=neurons.mlp,
        events=events,
    )
    print(summary(recording.result))
    if options.out:
        write_text(options.out, recording.text())
        print(f"written to {options.out}")
