"""Scales, minima and codes of the low-bit format (``kernels.q4``): the search for those with about the least error.

A group's first scale and minimum are its ends', in 15 steps. Two more begin there and at ends drawn in a little, and
are fitted by turns to the codes, and the codes to them; what errs least is taken. Groups whose ends hold them exactly
keep these: nothing errs less than not at all.

Sixteen groups are searched at once, a lane of a vector each, written in LLVM's own language: within one group nearly
all of the time goes into adding up lanes and into arithmetic of single numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..q4_sizes import GROUP, LEVELS
from .nf4_loops import LOOP
from .vectors import constant, external, float32, int8, int16, int32, load, need_contiguous, pointer, vector

LANES = 16  # groups

_SHRINKINGS = (1.0, 0.88)  # of a group's range; clipping its ends a little costs less than coarse steps
_REFITS = 3  # both shrinkings: a sixth less squared error
_MOST_HALF = 65504.0
_LEAST_NORMAL, _QUANTUM = 2.0**-14, 2.0**-24  # of half precision
_EXPONENTS = 127 - 15  # how far apart those of single and half precision are

_Floats, _Ints = ir.VectorType(float32, LANES), ir.VectorType(int32, LANES)
_Shorts, _Bytes = ir.VectorType(int16, LANES), ir.VectorType(int8, LANES)


@njit(**LOOP | {"fastmath": False})  # one weight is rounded alike, whatever the numbers were it was read from
def fit(weights, codes, halves):
    """Of ``weights`` float32 [32, 16], a group each column, ``codes`` uint8 [32, 16], and scales and minima.

    These are written into ``halves`` uint16 [2, 16] as the bits of half precision. What is no number gives no number.
    """
    _fit(weights, codes, halves)


class _Lane:
    """A number of each group, with the operators of numbers. No product is joined with a sum: values are computed as
    whoever reads the format computes them, so that an error of zero is one.
    """

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    def __add__(self, other: Any) -> _Lane:
        return self._by(self.builder.fadd, other)

    def __sub__(self, other: Any) -> _Lane:
        return self._by(self.builder.fsub, other)

    def __mul__(self, other: Any) -> _Lane:
        return self._by(self.builder.fmul, other)

    def __truediv__(self, other: Any) -> _Lane:
        return self._by(self.builder.fdiv, other)

    def below(self, other: Any) -> Any:
        return self.builder.fcmp_ordered("<", self.value, self._like(other).value)

    def where(self, condition: Any, other: Any) -> _Lane:
        """Itself where ``condition`` holds, ``other`` elsewhere."""
        return _Lane(self.builder, self.builder.select(condition, self.value, self._like(other).value))

    def least(self, other: Any) -> _Lane:
        return self.where(self.below(other), other)

    def most(self, other: Any) -> _Lane:
        return self._like(other).where(self.below(other), self)

    def nearest(self) -> _Lane:
        """The nearest whole number."""
        return _Lane(self.builder, self.builder.call(_of_all(self.builder, "llvm.rint.v16f32"), [self.value]))

    def magnitude(self) -> _Lane:
        return _Lane(self.builder, self.builder.call(_of_all(self.builder, "llvm.fabs.v16f32"), [self.value]))

    def half(self) -> _Lane:
        """The nearest value of half precision; its largest where it has none as large."""
        clipped = self.least(_MOST_HALF).most(-_MOST_HALF)
        bits = clipped.bits()
        odd = self.builder.and_(self.builder.lshr(bits, _ints(13)), _ints(1))
        rounded = self.builder.and_(
            self.builder.add(self.builder.add(bits, _ints(0xFFF)), odd), _ints(0xFFFFE000 - 2**32)
        )
        normal = _Lane(self.builder, self.builder.bitcast(rounded, _Floats))
        small = (clipped * (1 / _QUANTUM)).nearest() * _QUANTUM
        return small.where(clipped.magnitude().below(_LEAST_NORMAL), normal)

    def half_bits(self) -> Any:
        """The 16 bits of a value that half precision has."""
        bits, magnitude = self.bits(), self.magnitude()
        sign = self.builder.and_(self.builder.lshr(bits, _ints(16)), _ints(0x8000))
        normal = self.builder.sub(self.builder.lshr(magnitude.bits(), _ints(13)), _ints(_EXPONENTS << 10))
        small = self.builder.fptosi((magnitude * (1 / _QUANTUM)).value, _Ints)
        chosen = self.builder.select(magnitude.below(_LEAST_NORMAL), small, normal)
        return self.builder.trunc(self.builder.or_(sign, chosen), _Shorts)

    def bits(self) -> Any:
        return self.builder.bitcast(self.value, _Ints)

    def _by(self, operation: Callable[..., Any], other: Any) -> _Lane:
        return _Lane(self.builder, operation(self.value, self._like(other).value))

    def _like(self, other: Any) -> _Lane:
        if isinstance(other, _Lane):
            return other
        return _Lane(self.builder, ir.Constant(_Floats, [ir.Constant(float32, float(other))] * LANES))


def _of_all(builder: Any, name: str) -> Any:
    return external(builder, name, _Floats, _Floats)


def _ints(number: int) -> Any:
    return vector([number] * LANES, int32)


class _Search:
    """That of the groups whose weights lie at the address ``weights``."""

    def __init__(self, builder: Any, weights: Any) -> None:
        self._builder = builder
        self._weights = weights

    def best(self) -> tuple[_Lane, _Lane]:
        """The scale and the minimum."""
        lowest, highest, total = self._over_weights(
            [self._number(float("inf")), self._number(float("-inf")), self._number(0)],
            lambda weight, lowest, highest, total: [weight.least(lowest), weight.most(highest), total + weight],
        )
        span = highest - lowest
        scale, minimum = (span / LEVELS).half(), lowest.half()
        least = self._error(scale, minimum)
        for shrinking in _SHRINKINGS:
            tried, begin = span * (shrinking / LEVELS), lowest + span * ((1 - shrinking) / 2)
            for _ in range(_REFITS):
                tried, begin = self._refit(tried, begin, total)
            error = self._error(tried, begin)
            better = error.below(least)
            least, scale, minimum = error.where(better, least), tried.where(better, scale), begin.where(better, minimum)
        return scale, minimum

    def write_codes(self, scale: _Lane, minimum: _Lane, target: Any) -> None:
        """The nearest ones, at the address ``target`` of bytes."""
        inverse = self._inverse(scale)
        with self._each_weight() as (weight, place):
            code = self._builder.fptosi(_code(weight, minimum, inverse).value, _Ints)
            address = self._builder.bitcast(self._builder.gep(target, [place]), _Bytes.as_pointer())
            self._builder.store(self._builder.trunc(code, _Bytes), address, align=1)

    def _refit(self, scale: _Lane, minimum: _Lane, total: _Lane) -> tuple[_Lane, _Lane]:
        """The scale and the minimum with the least squared error for the nearest codes of others."""
        inverse, nothing = self._inverse(scale), self._number(0)

        def add(weight: _Lane, codes: _Lane, squares: _Lane, products: _Lane) -> list[_Lane]:
            code = _code(weight, minimum, inverse)
            return [codes + code, squares + code * code, products + code * weight]

        codes, squares, products = self._over_weights([nothing] * 3, add)
        spread = squares * GROUP - codes * codes
        fitted = ((products * GROUP - codes * total) / spread).half().where(nothing.below(spread), 0)
        return fitted, ((total - fitted * codes) / GROUP).half()

    def _error(self, scale: _Lane, minimum: _Lane) -> _Lane:
        """The squared one of the nearest codes."""
        inverse = self._inverse(scale)

        def add(weight: _Lane, squares: _Lane) -> list[_Lane]:
            error = _code(weight, minimum, inverse) * scale + minimum - weight
            return [squares + error * error]

        return self._over_weights([self._number(0)], add)[0]

    def _over_weights(self, sums: list[_Lane], step: Callable[..., list[_Lane]]) -> list[_Lane]:
        """``sums`` after a ``step`` with every weight."""
        variables = [cgutils.alloca_once_value(self._builder, each.value) for each in sums]
        with self._each_weight() as (weight, _):
            now = step(weight, *(_Lane(self._builder, self._builder.load(variable)) for variable in variables))
            for each, variable in zip(now, variables, strict=True):
                self._builder.store(each.value, variable)
        return [_Lane(self._builder, self._builder.load(variable)) for variable in variables]

    def _each_weight(self) -> Any:
        return _EachWeight(self._builder, self._weights)

    def _inverse(self, scale: _Lane) -> _Lane:
        return (self._number(1) / scale).where(self._number(0).below(scale), 0)

    def _number(self, number: float) -> _Lane:
        return _Lane(self._builder, ir.Constant(_Floats, [ir.Constant(float32, float(number))] * LANES))


class _EachWeight:
    """A loop over a group's weights, and their places."""

    def __init__(self, builder: Any, weights: Any) -> None:
        end = constant(GROUP * LANES)
        self._builder, self._weights = builder, weights
        self._loop = cgutils.for_range_slice(builder, constant(0), end, constant(LANES))

    def __enter__(self) -> tuple[_Lane, Any]:
        place, _ = self._loop.__enter__()
        address = self._builder.gep(self._weights, [place])
        return _Lane(self._builder, load(self._builder, address, _Floats, 0)), place

    def __exit__(self, *details: Any) -> None:
        self._loop.__exit__(*details)


def _code(weight: _Lane, minimum: _Lane, inverse: _Lane) -> _Lane:
    """The nearest, zero where the scale is."""
    return ((weight - minimum) * inverse).nearest().most(0).least(LEVELS)


@intrinsic
def _fitting(_context, weights, codes, halves):
    need_contiguous(weights, codes, halves)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, target, numbers = (pointer(context, builder, signature.args[k], values[k]) for k in range(3))
        search = _Search(builder, source)
        scale, minimum = search.best()
        search.write_codes(scale, minimum, target)
        for k, each in enumerate((scale, minimum)):
            address = builder.bitcast(builder.gep(numbers, [constant(k * LANES)]), _Shorts.as_pointer())
            builder.store(each.half_bits(), address, align=2)
        return context.get_dummy_value()

    return types.void(weights, codes, halves), generate


_fit: Any = _fitting
