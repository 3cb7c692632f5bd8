"""Protocols of a gate: it is called with each stage's student, and may end the run there."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from halfstep.config import JsonObject
from halfstep.data import Data
from halfstep.methods.base import Method
from halfstep.pipeline import Pipeline


@runtime_checkable
class IdentifiedGate(Protocol):
    """A gate whose rule all processes of a run must have in common.

    identity  what its decisions depend on, which the processes compare
    """

    @property
    def identity(self) -> JsonObject: ...

    def __call__(self, student: Pipeline) -> bool:
        """Whether the run goes on after this student."""


class GateConfig(Protocol):
    """The options of a gate, such as `halfstep.QualityGate`: `distill` binds it to its run."""

    def bind(
        self,
        teacher: Pipeline,
        data: Data,
        out: Path | str,
        method: Method,
        *,
        device: str = "auto",
        tell: Callable[[str], object] = str,
        dry_run: bool = False,
    ) -> Callable[[Pipeline], bool] | None:
        """The gate of one run; None lets every student pass.

        tell      called with each decision in a sentence
        dry_run  nothing is trained: the gate only refuses what it cannot be bound to
        """
