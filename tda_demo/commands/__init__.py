"""The commands of ``python -m tda_demo``, one a file: what each takes, calls and prints."""

from . import bench, calibrate, methods, race, theory

COMMANDS = (race, bench, calibrate, theory, methods)
