"""Protocols of a gate: it sees each stage's student, and may end the run there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from halfstep.data import Data
from halfstep.methods.base import Method
from halfstep.pipeline import Pipeline


@runtime_checkable
class IdentifiedGate(Protocol):
    """A gate of a run whose processes are to answer by the same rule.

    identity  what its answers depend on, which all processes of a run compare
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def __call__(self, student: Pipeline) -> bool:
        """Whether the run goes on after this student."""


class GateConfig(Protocol):
    """A gate as its options, such as `halfstep.QualityGate`: `distill` binds it to its run."""

    def bind(
        self,
        teacher: Pipeline,
        data: Data,
        out: Path | str,
        method: Method,
        *,
        device: str = "auto",
        tell: Callable[[str], object] = str,
        rehearse: bool = False,
    ) -> Callable[[Pipeline], bool] | None:
        """The gate of one run; None lets every student pass.

        tell      hears each decision in a sentence
        rehearse  nothing is trained: the gate only refuses what it cannot be bound to
        """
