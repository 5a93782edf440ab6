"""Attention's projections inside the compiled step: one thread's share of a matrix's rows.

A token-level rule that leaves out parts of them (``token.channels``) has an overload of its own; under every other, and
without one, all rows are read.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from .rows import FAST, matvec

QKV, OUT = 0, 1  # which matrix

_own: set[type] = set()
_OPTIONS: Any = {"fastmath": FAST, "nogil": True}


def project(rule, layer, which, codes, scale, x, first, last, out):
    """out[i] = row i of the matrix times x float32 [columns], for i from first to last; its bias is added later.

    ``codes`` and ``scale`` are the layer's, as ``formats.Rows`` has them.
    """
    raise NotImplementedError("only inside compiled code")


def projection(rule_type):
    """Makes the decorated function ``project`` for rules of the named tuple ``rule_type``."""
    _own.add(rule_type)

    def register(function):
        @overload(project, jit_options=_OPTIONS)
        def for_rule(rule, layer, which, codes, scale, x, first, last, out):
            ours = isinstance(rule, types.NamedTuple) and rule.instance_class is rule_type
            return function if ours else None

        return function

    return register


@overload(project, jit_options=_OPTIONS)
def _whole(rule, layer, which, codes, scale, x, first, last, out):
    own = isinstance(rule, types.NamedTuple) and rule.instance_class in _own
    return None if own else _all_columns


def _all_columns(rule, layer, which, codes, scale, x, first, last, out):
    matvec(codes, scale, x, None, first, last, out)
