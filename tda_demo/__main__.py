"""The command line: parse, call, print. Errors a user can mend are one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import write_text
from .progress import Progress, terminal_bar

if TYPE_CHECKING:
    from .methods import Method
    from .result import RaceResult


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except UserError as error:
        print(f"tda_demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tda_demo: stopped.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tda_demo", description="Dynamic activation, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    race = commands.add_parser("race", help="race the dense model against a method on one prompt")
    race.add_argument("prompt", metavar="PROMPT")
    _add_model(race)
    race.add_argument("--method", default="tda", metavar="NAME", help="see `python -m tda_demo methods`; default tda")
    race.add_argument("--set", action="append", default=[], metavar="K=V", help="a setting, e.g. cett=0.2; repeatable")
    race.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    race.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    race.add_argument("--top-p", type=float, default=1.0, metavar="P")
    race.add_argument("--seed", type=int, default=0, metavar="S")
    race.add_argument("--json", metavar="FILE", help="write the result there; - prints it")
    race.set_defaults(command=_race)

    calibrate = commands.add_parser("calibrate", help="find a model's thresholds and keep them for its races")
    _add_model(calibrate)
    calibrate.add_argument("--text", type=Path, metavar="FILE", help="documents separated by lines holding only ###")
    calibrate.add_argument("--weighted", action="store_true", help="for the score times the output norm")
    calibrate.add_argument("--out", type=Path, metavar="FILE", help="write the table there instead of the user's cache")
    calibrate.set_defaults(command=_calibrate)

    bench = commands.add_parser("bench", help="measure decoding speed: transformers, dense, packed active sets")
    bench.add_argument("--model", metavar="M", help="a hub id, a folder or a .gguf file; default: the embedded model")
    bench.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    bench.add_argument("--precision", metavar="P", help="one precision; default: all")
    bench.add_argument("--threads", type=int, metavar="N", help="default: the cores this process may use")
    bench.add_argument("--json", metavar="FILE", help="write the rows there; - prints them instead of the table")
    bench.set_defaults(command=_bench)

    methods = commands.add_parser("methods", help="list the methods and their settings")
    methods.set_defaults(command=_methods)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="a hub id, a folder or a .gguf file; default: the embedded model")
    parser.add_argument("--precision", metavar="P")
    parser.add_argument("--device", metavar="D", help="cpu or cuda")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the cores this process may use")


def _race(options: argparse.Namespace) -> None:
    from .environment import use_threads
    from .models import load_model
    from .race import Finished, RaceSettings, Stepped, race
    from .result import summary

    method = _method(options.method, options.set)
    settings = RaceSettings(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    result: RaceResult | None = None
    stepped = 0
    use_threads(options.threads)
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        for event in race(lm, method, options.prompt, settings, report=report):
            if isinstance(event, Stepped):
                stepped += 1
                report(Progress("Racing", stepped, 2 * settings.max_new_tokens, "tokens"))
            elif isinstance(event, Finished):
                result = event.result
    assert result is not None, "a race ends with Finished"
    if options.json is None:
        print(summary(result))
    else:
        _write_json(result.to_json(), options.json)


def _calibrate(options: argparse.Namespace) -> None:
    from .calibrate import calibrate, kept_table_path, read_passages, save_table, shipped_passages
    from .environment import use_threads
    from .models import load_model

    use_threads(options.threads)
    passages = read_passages(options.text) if options.text else shipped_passages()
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        table = calibrate(lm, passages, weighted=options.weighted, report=report)
    path = options.out or kept_table_path(lm, options.weighted)
    save_table(table, path)
    print(f"{path}: {len(table.thresholds)} layers, {table.passages} passages, {table.tokens} tokens")


def _bench(options: argparse.Namespace) -> None:
    import torch

    from .bench import bench, markdown
    from .environment import describe, use_threads

    if options.device != "cpu":
        raise UserError("The speed table measures the CPU so far; use --device cpu.")
    use_threads(options.threads)
    with terminal_bar() as report:
        table = bench(options.model, options.precision, report=report)
    if options.json is not None:
        _write_json([dataclasses.asdict(row) for row in table.rows], options.json)
    if options.json != "-":
        environment = describe(torch.device("cpu"), options.precision or "all")
        print(markdown(table.rows, environment, table.read_gb_per_second))


def _methods(_: argparse.Namespace) -> None:
    from .methods import METHODS

    for method in METHODS.values():
        print(f"{method.name}: {(method.__doc__ or '').splitlines()[0]}")
        for field in dataclasses.fields(method):
            within = field.metadata["within"]
            default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            limits = f" ({within})" if within else ""
            print(f"  {field.name}={default}  {field.metadata['explanation']}{limits}")


def _method(name: str, assignments: Sequence[str]) -> Method:
    from .methods import METHODS
    from .methods.settings import parse

    if name not in METHODS:
        raise UserError(f"There is no method '{name}'; there are: {', '.join(METHODS)}.")
    return METHODS[name](**parse(METHODS[name], assignments))


def _write_json(content: dict[str, Any] | list[dict[str, Any]], destination: str) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    if destination == "-":
        print(text)
    else:
        write_text(Path(destination), text + "\n")


if __name__ == "__main__":
    sys.exit(main())
