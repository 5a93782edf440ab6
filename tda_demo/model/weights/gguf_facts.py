"""What a GGUF file says beside its tensors that transformers' reader passes over: it is applied here, or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...support.errors import UserError

_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ENDINGS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


@dataclass(frozen=True)
class GgufFacts:
    """``rope`` says how rotary positions are scaled, "" where they are not; ``endings`` are the ids that end a text."""

    rope: str
    endings: tuple[int, ...]


def read_facts(gguf: Path, name: str) -> GgufFacts:
    """The facts of the file ``gguf``, called ``name``.

    Raises:
        UserError: it is not a whole GGUF file.
    """
    from .gguf_reader import QuickReader

    try:
        reader = QuickReader(gguf)
        values = {key: _value(reader.fields[key]) for key in reader.fields if ".rope." in key or key in _ENDINGS}
        factors = [tensor.data for tensor in reader.tensors if tensor.name in _ROPE_TENSORS]
        scaled = any((factor != 1).any() for factor in factors)
    except Exception as error:  # a damaged file fails anywhere in the reader, with any exception
        raise UserError(
            f"'{name}' cannot be read as a GGUF model; it may be damaged or cut short: download it again."
        ) from error
    endings = tuple(values[key] for key in _ENDINGS if isinstance(values.get(key), int))
    return GgufFacts(_scaling(values) or ("a factor a frequency" if scaled else ""), endings)


def _scaling(values: dict[str, Any]) -> str:
    """What the metadata ``values`` say of scaled rotary positions; "" where they say none, or a factor of 1."""
    by_end = {key.split(".rope.", 1)[1]: value for key, value in values.items() if ".rope." in key}
    kind = by_end.get("scaling.type")
    factor = by_end.get("scaling.factor", by_end.get("scale_linear", 1.0))
    if kind in (None, "none", "linear"):
        return "" if factor in (0.0, 1.0) or kind == "none" else "linear"
    return str(kind)


def _value(field: Any) -> Any:
    return field.contents()


def check_facts(facts: GgufFacts, name: str) -> None:
    """Refuses what would be computed wrongly.

    Raises:
        UserError: rotary positions are scaled.
    """
    if facts.rope:
        raise UserError(
            f"'{name}' scales its rotary positions ({facts.rope}), which is not read from GGUF: give the model's "
            "safetensors, as a folder or a hub id, where it is."
        )


def add_endings(folder: Path, facts: GgufFacts) -> None:
    """Has the model in ``folder`` end at every one of the file's ending tokens."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    told = config.get("eos_token_id")
    known = told if isinstance(told, list) else [told]
    endings = [token for token in dict.fromkeys([*known, *facts.endings]) if isinstance(token, int)]
    if endings and endings != known:
        path.write_text(json.dumps({**config, "eos_token_id": endings}, indent=2), encoding="utf-8")
