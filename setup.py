"""The packages of an installation; everything else about it stands in ``pyproject.toml``, which cannot say this part:
all packages there are, and beside them one whose folder lies elsewhere.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["tda_demo", "tda_demo.*"]), "tda_demo.assets"])
