"""`halfstep distill shrink` and `halfstep distill plan`: which blocks are kept, and the plan's gate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from halfstep.cli.gating import full_steps, gate_for, looks_for, Quality, rehearsed_gate
from halfstep.cli.guided_gating import guided_gate, GuidedQuality
from halfstep.cli.progress import counting
from halfstep.data import Data
from halfstep.kinds import NotNegative
from halfstep.methods import GuidedDistillation, Method
from halfstep.pipeline import Pipeline
from halfstep.training.denoisers import resolve
from halfstep.training.parallel import pick_device
from halfstep.workflows.options import Where


@dataclass(frozen=True, kw_only=True)
class PlanQuality(GuidedQuality):
    """When to stop halving.  The teacher is the large one."""

    tolerance: NotNegative = 2.0
    """Stop where a student's Fréchet distance is surely more than so many times that of the large teacher
    at full steps; with --guidance, of the guided teacher's samples to its own, at the worst scale; 0 is no
    gate."""


def resolved(
    console: Console, method: Method, teacher: Pipeline, data: Data, where: Where
) -> Method:
    """The method with the options decided that it leaves to the data."""
    if not method.needs_data:
        return method
    teacher.to(pick_device(where.device))
    with counting(console, "scoring blocks on the data") as progress:
        return resolve(method, teacher, data, where.out, progress=progress)


def plan_gate(
    options: Any,
    method: Any,
    teacher: Pipeline,
    data: Data,
    load: Callable[[], Pipeline],
    console: Console,
) -> Any:
    """The gate of a guided distillation, or of a chain: it looks at the students that are halved."""
    if method.__class__ is GuidedDistillation:
        return guided_gate(options, method, teacher, data, load, console)
    quality: PlanQuality = options.quality
    after, where = method.then, options.where
    if after.__class__ is GuidedDistillation:
        return _of_students(guided_gate(options, after, teacher, data, load, console))
    if not quality.tolerance:
        return None
    asked = Quality(
        tolerance=quality.tolerance,
        until=quality.until,
        full=quality.full,
        features=quality.gate_features,
        samples=quality.samples,
        noise=quality.noise,
    )
    full = full_steps(asked, after, teacher, auto=False)
    if where.dry_run:
        return _of_students(rehearsed_gate(asked, full, options.source, data, where.out))
    looks = looks_for(asked, full, after.grid, options.source, data, load, console, where.device)
    return _of_students(gate_for(asked, looks, where.out))


@dataclass(frozen=True)
class OfStudents:
    """A gate that lets pass whoever has neither a grid nor a scale of its own: the shrunk teacher."""

    gate: Any

    @property
    def best(self) -> Any:
        return self.gate.best

    @property
    def about(self) -> Any:
        """What its ratio is measured with, which all processes of a run compare."""
        return self.gate.about

    def read(self) -> None:
        self.gate.read()

    def __call__(self, student: Pipeline) -> bool:
        waved = not student.times and student.guidance is None
        return waved or bool(self.gate(student))


def _of_students(gate: Any) -> OfStudents | None:
    return None if gate is None else OfStudents(gate)
