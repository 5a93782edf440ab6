"""From a model folder's safetensors straight into a kernels' format (``codes``).

Where the format has no product of several tokens, a model that is not large keeps its float32, which reads prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.formats import Format, Rows
from ...support.errors import UserError
from ...support.memory import trim_memory
from ...support.progress import Progress, Report
from ..precision import holds_codes_only
from .codes import Places, count_missing, empty_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEAST_BYTES = 2  # of a weight in such a file


def read_folder_codes(folder: Path, name: str, precision: str, report: Report) -> PreTrainedModel | None:
    """The model in ``folder`` with matrices in the formats of ``precision`` (``stored``), the others in float32.

    None where floats are to be kept (``holds_codes_only``), no compiled step runs its family, or its tensors have other
    names than the model's.

    Raises:
        UserError: the files are damaged, or do not hold all of it.
    """
    most = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / _LEAST_BYTES
    if not holds_codes_only(precision, most):
        return None
    if (model := empty_model(folder)) is None or not holds_codes_only(precision, model.num_parameters()):
        return None
    with ExitStack() as files:
        try:
            tensors = list(_tensors(folder, files))
        except Exception as error:  # a damaged header fails in its reader's own way
            raise _damaged(folder) from error
        wanted = {path for path, _ in model.named_parameters(remove_duplicate=False)}
        if not {tensor.name for tensor in tensors} <= wanted:
            return None
        places = Places(model, precision)
        for done, tensor in enumerate(tensors):
            report(Progress(f"Reading {name}", done, len(tensors), "tensors"))
            try:
                places.put(tensor.name, tensor)
            except UserError:
                raise
            except Exception as error:  # of a shape that is not the model's
                raise _damaged(folder) from error
    trim_memory()
    if missing := count_missing(model):
        raise UserError(f"The weights of '{name}' lack {missing} tensors: fetch them again.")
    return model


def _damaged(folder: Path) -> UserError:
    return UserError(f"The weights in {folder} are damaged or do not match its config.json: fetch them again.")


def _tensors(folder: Path, files: ExitStack) -> Iterator[_Tensor]:
    """What the folder's files hold, which stay open as long as ``files``."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        file: Any = files.enter_context(safe_open(path, framework="pt"))
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield _Tensor(name, file.get_slice(name))


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a file that is open."""

    name: str
    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.get_shape())

    def values(self, rows: slice) -> np.ndarray:
        return self.stored[rows].float().numpy()

    def codes(self, form: Format, rows: slice) -> Rows | None:
        return None

    def in_order(self, rows: np.ndarray) -> np.ndarray:
        return rows
