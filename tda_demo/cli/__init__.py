"""The commands of ``python -m tda_demo``, one a file: what each takes, calls and prints."""

from . import (
    allocate,
    bench,
    calibrate,
    evaluate,
    expected,
    lm_eval,
    methods,
    presets,
    race,
    record,
    sweep,
    theory,
    train,
)

COMMANDS = (
    race,
    evaluate,
    sweep,
    lm_eval,
    bench,
    theory,
    calibrate,
    train,
    allocate,
    presets,
    expected,
    record,
    methods,
)
