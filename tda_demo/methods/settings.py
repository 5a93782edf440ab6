"""Settings: dataclass fields that carry their range and one line of explanation."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

from ..support.errors import UserError

_MOST_QUOTED = 60  # characters of what was given that an error repeats


class Named(Protocol):
    """A dataclass of settings, with a name to be called by in errors."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@dataclass(frozen=True)
class Range:
    """A closed interval; its ends may be infinite, what lies in it may not, nor be a whole number beyond any float."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and abs(value) <= sys.float_info.max  # false for NaN too

    def __str__(self) -> str:
        return f"{self.low:g} or more" if self.high == float("inf") else f"from {self.low:g} to {self.high:.10g}"


def setting(default: Any, explanation: str, within: Range | None = None) -> Any:
    """A dataclass field; numbers, and the numbers of a tuple, must lie ``within`` the range."""
    return dataclasses.field(default=default, metadata={"explanation": explanation, "within": within})


def told_in(kind: type[Named], name: str) -> Any:
    """The metadata of the setting ``name`` of ``kind``, for a method that inherits it with another default."""
    return kind.__dataclass_fields__[name].metadata


def ordered_fields(kind: type[Named] | Named) -> tuple[dataclasses.Field[Any], ...]:
    """The settings, a method's own before those it has in common with others."""
    return tuple(sorted(dataclasses.fields(kind), key=lambda field: field.kw_only is True))


def check(instance: Named) -> None:
    """Raises UserError for the first setting that is out of its range, not a number, or none of its choices."""
    types = get_type_hints(type(instance))
    for field in ordered_fields(instance):
        if get_origin(types[field.name]) is Literal:
            _choice(field.name, getattr(instance, field.name), types[field.name])
            continue
        within: Range | None = field.metadata["within"]
        value = getattr(instance, field.name)
        values = value if isinstance(value, tuple) else (value,)
        if within is not None and any(number not in within for number in values):
            raise UserError(f"{field.name} is {_show(value)}; it must be a number {within}.")


def parse(kind: type[Named], assignments: Iterable[str]) -> dict[str, Any]:
    """``["cett=0.2", "exempt=0,29"]`` to keyword arguments of ``kind``, each of its field's type.

    Raises:
        UserError: an assignment is not ``name=value``, or names no setting, or its value is not of the setting's type.
    """
    types = get_type_hints(kind)
    fields = ordered_fields(kind)
    known = [field.name for field in fields]
    parsed = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            example = f"{known[0]}={fields[0].default}"
            raise UserError(f"'{_clip(assignment)}' is not a setting; write name=value, for example {example}.")
        if name not in known:
            raise UserError(f"'{kind.name}' has no setting '{_clip(name)}'; it has: {', '.join(known)}.")
        parsed[name] = _value(name, text, types[name])
    return parsed


def _value(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return _choice(name, text, kind)
    try:
        if get_origin(kind) is tuple:
            return tuple(get_args(kind)[0](part) for part in text.split(",") if part.strip())
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UserError(f"{name}={_clip(text)}: '{_clip(text)}' is not {_NOUNS[kind]}.") from None


def _choice(name: str, value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise UserError(f"{name} is {_clip(str(value))}; it must be {' or '.join(get_args(kind))}.")
    return value


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_NOUNS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    tuple[float, ...]: "a list of numbers such as 1,0.5,0",
    tuple[int, ...]: "a list of whole numbers such as 0,29",
}


def _show(value: Any) -> str:
    """A value, or a tuple of them, as an error quotes it: whole numbers may be larger than any float."""
    parts = [f"{part:g}" if isinstance(part, float) else _digits(part) for part in _each(value)]
    return _clip(",".join(parts))


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _digits(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return "a number of thousands of digits"


def _clip(text: str) -> str:
    """``text``, cut where a message would be flooded by it."""
    return text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}…"
