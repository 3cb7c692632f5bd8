"""`halfstep distill shrink` and `halfstep distill plan`: which blocks are kept, and the plan's gate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from halfstep.cli.gating import full_steps, gate_for, looks_for, Quality, rehearsed_gate
from halfstep.cli.guided_gating import guided_gate, GuidedQuality
from halfstep.cli.options import Where
from halfstep.cli.progress import counting, say
from halfstep.data import Data
from halfstep.kinds import NotNegative
from halfstep.methods import GuidedDistillation, Plan, Shrink
from halfstep.nets.pruning import pairs_of
from halfstep.pipeline import Pipeline
from halfstep.training.parallel import pick_device
from halfstep.training.settling import settled


@dataclass(frozen=True, kw_only=True)
class PlanQuality(GuidedQuality):
    """When to stop halving.  The teacher is the large one."""

    tolerance: NotNegative = 2.0
    """Stop where a student's Fréchet distance is surely more than so many times that of the large teacher
    at full steps; with --guidance, of the guided teacher's samples to its own, at the worst scale; 0 is no
    gate."""


def with_pairs(
    console: Console, method: Shrink, teacher: Pipeline, data: Data, where: Where
) -> Shrink:
    """The method with the pairs of blocks that it keeps, scored on the data where it leaves that open."""
    if not method.unsettled:
        return method
    pairs = pairs_of(teacher.denoiser.net)
    teacher.to(pick_device(where.device))
    what = f"scoring {pairs} pairs of blocks"
    with counting(console, what) as progress:
        method = settled(method, teacher, data, where.out, progress=progress)
    kept = " ".join(map(str, method.keep))
    say(console, "keep", f"of {pairs} pairs of blocks, 0 the outermost: {kept}")
    return method


def plan_gate(
    options: Any, teacher: Pipeline, data: Data, load: Callable[[], Pipeline], console: Console
) -> Callable[[Pipeline], bool] | None:
    """The gate of a plan, which looks at the students that are halved, and not at the one that is shrunk."""
    quality: PlanQuality = options.quality
    method: Plan = options.method
    if not quality.tolerance or method.halving is None:
        return None
    after, where = method.after, options.where
    if isinstance(after, GuidedDistillation):
        return _of_students(
            guided_gate(replace(options, method=after), teacher, data, load, console)
        )
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


def said(method: Shrink) -> str:
    """What it does to the network, in a line."""
    depth = 2 * len(method.keep) or method.depth
    parts = [f"depth {depth}"] if depth else []
    parts += [f"{name} {value}" for name, value in method.student.items()]
    return f"shrink to {', '.join(parts)}"
