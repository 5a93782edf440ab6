"""The commands of ``python -m tda_demo``, one a file: what each takes, calls and prints."""

from . import bench, calibrate, evaluate, methods, race

COMMANDS = (race, evaluate, bench, calibrate, methods)
