"""``bench``: the speed table."""

from __future__ import annotations

import argparse
import dataclasses

from ..support.errors import UserError
from ..support.progress import terminal_bar
from .arguments import Commands, add_threads, write_json


def add(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="measure decoding speed: transformers, dense, packed active sets")
    bench.add_argument("--model", metavar="M", help="a hub id, a folder or a .gguf file; default: the embedded model")
    bench.add_argument("--device", choices=["cpu", "cuda"], help="cuda: random weights of M's shapes; default: cpu")
    bench.add_argument("--shapes", metavar="S", help="on a GPU, in place of M: shapes by name, e.g. llama3-8b")
    bench.add_argument("--precision", metavar="P", help="one precision; default: all")
    add_threads(bench)
    bench.add_argument("--json", metavar="FILE", help="write the rows there; - prints them instead of the table")
    bench.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import torch

    from ..bench import bench, markdown
    from ..support.environment import describe, use_threads

    if options.shapes and (options.model or options.device == "cpu"):
        raise UserError("--shapes measures random weights on a GPU: leave out --model and --device cpu.")
    use_threads(options.threads)
    if options.device == "cuda" or options.shapes:
        _on_a_gpu(options)
        return
    with terminal_bar() as report:
        table = bench(options.model, options.precision, report=report)
    if options.json is not None:
        write_json([dataclasses.asdict(row) for row in table.rows], options.json)
    if options.json != "-":
        environment = describe(torch.device("cpu"), options.precision or "all")
        print(markdown(table.rows, environment, table.read_gb_per_second))


def _on_a_gpu(options: argparse.Namespace) -> None:
    import torch

    from ..bench.shapes import bench_shapes
    from ..bench.table import markdown
    from ..model.loading import EMBEDDED
    from ..support.environment import describe

    with terminal_bar() as report:
        table = bench_shapes(options.shapes, options.model, options.precision, report)
    if options.json is not None:
        write_json([dataclasses.asdict(row) for row in table.rows], options.json)
    if options.json != "-":
        environment = describe(torch.device("cuda"), options.precision or "all")
        name = options.shapes or options.model or EMBEDDED
        print(f"{name}, random weights, batch 1, context {table.context}")
        bandwidth, gb_per_second = table.bandwidth
        print(markdown(table.rows, environment, gb_per_second, bandwidth))
        print("\n".join(["", *table.notes]))
