"""``methods``: the methods and their settings."""

from __future__ import annotations

import argparse

from .arguments import Commands


def add(commands: Commands) -> None:
    methods = commands.add_parser("methods", help="list the methods and their settings")
    methods.set_defaults(run=run)


def run(_: argparse.Namespace) -> None:
    from ..methods import METHODS
    from ..methods.settings import ordered_fields

    for method in METHODS.values():
        print(f"{method.name}: {(method.__doc__ or '').splitlines()[0]}")
        for field in ordered_fields(method):
            within = field.metadata["within"]
            default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            limits = f" ({within})" if within else ""
            print(f"  {field.name}={default}  {field.metadata['explanation']}{limits}")
