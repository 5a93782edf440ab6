"""``allocate``: TDA's byte budget spread over the layers by measured sensitivity."""

from __future__ import annotations

import argparse

from ..support.progress import terminal_bar
from .arguments import Commands, add_json, add_model, write_json


def add(commands: Commands) -> None:
    allocate = commands.add_parser("allocate", help="find a threshold factor for each layer of TDA, for a byte budget")
    allocate.add_argument("--share", type=float, default=0.7, metavar="S", help="of the MLP bytes to read; default 0.7")
    allocate.add_argument("--texts", type=int, default=24, metavar="N", help="answers to calibrate on; default 24")
    add_model(allocate)
    add_json(allocate)
    allocate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..calibration.sensitivity import allocate, sensitivity, uniform
    from ..calibration.sources import ANSWERS
    from ..methods.tda import with_cett_by_layer
    from ..model.loading import load_model
    from ..support.environment import use_threads

    use_threads(options.threads)
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        measured = sensitivity(lm, ANSWERS, most=options.texts, report=report)
    layers = allocate(measured, options.share)
    method = with_cett_by_layer(lm, layers)
    scale = ",".join(f"{factor:.4g}" for factor in method.scale)
    if options.json is not None:
        budget = {"model": lm.name, "share": options.share, "uniform_cett": uniform(measured, options.share)}
        settings = {"cett": method.cett, "shape": method.shape, "scale": method.scale}
        write_json(
            {**budget, "cett_per_layer": layers.tolist(), "kl_per_layer": list(measured.kl), "settings": settings},
            options.json,
        )
    if options.json != "-":
        print(f"--set cett={method.cett} --set shape={method.shape} --set scale={scale}")
