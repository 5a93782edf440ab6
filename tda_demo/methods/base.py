"""The contract of a method: WHICH neurons fire. A method is one file and one dataclass of settings.

Bound to a model it becomes a policy: a sequence-level one (``policy.SequencePolicy``) looks at the activations of the
prompt, which runs dense, and answers with one active set per layer for the whole generation; a token-level one
(``token.TokenPolicy``) answers anew at every token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..support.progress import Report, silent
from .patching import patch_model
from .policy import Policy
from .settings import check

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class Dial:
    """The one setting that trades quality for bytes: monotone from ``dense``, which is exact, to ``sparsest``."""

    setting: str
    dense: float
    sparsest: float


@dataclass(frozen=True)
class Method(ABC):
    """Settings of a method. ``with method(model):`` patches on entry and restores on exit, after an exception too."""

    name: ClassVar[str]
    dial: ClassVar[Dial]
    leaves_out: ClassVar[str] = "of the MLP neurons"  # what the sparsity of a race under it is a share of
    is_control: ClassVar[bool] = False  # chooses blindly: what every other method has to beat

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        check(self)

    @abstractmethod
    def bind(self, lm: LoadedModel, report: Report = silent) -> Policy:
        """The policy for ``lm``; may calibrate on first use, telling ``report``.

        Raises:
            UserError: a setting is out of its range or does not fit the model.
        """

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    @contextmanager
    def __call__(self, lm: LoadedModel) -> Iterator[LoadedModel]:
        """Within the context a prompt (a call on an empty cache) runs dense and chooses the neurons of later calls."""
        with patch_model(lm, self.bind(lm)):
            yield lm
