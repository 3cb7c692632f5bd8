"""`halfstep distill METHOD`: one verb for every method there is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from rich.console import Console

from halfstep.cli.find import find_pipeline
from halfstep.cli.options import Flat, parse, save_config, Source, Where
from halfstep.cli.plan import print_plan
from halfstep.cli.progress import loading
from halfstep.cli.train import job_of
from halfstep.methods import METHODS
from halfstep.pipeline import Pipeline
from halfstep.training import distill as distil_pipeline, Training
from halfstep.training.parallel import pick_device

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher."""

    teacher: Path
    """A teacher's folder, or the run that made it."""
    net: str | None = None
    """package.module:function, if the teacher's network is one of your own."""


@dataclass(frozen=True, kw_only=True)
class Distill(Generic[M]):
    """Make a student that needs fewer steps."""

    where: Annotated[Where, Flat]
    source: Annotated[Source, Flat]
    teacher: Annotated[Teacher, Flat]
    method: Annotated[M, Flat]
    training: Annotated[Training, Flat] = field(default_factory=Training)


def distill(name: str, argv: Sequence[str]) -> int:
    """Distil with the named method; say where the students are."""
    console = Console()
    kind: Any = Distill[METHODS[name]]  # type: ignore[valid-type]
    options = parse(kind, argv, prog=f"halfstep distill {name}")
    where, training = options.where, options.training
    teacher = find_pipeline(options.teacher.teacher, net=options.teacher.net)
    data = loading(console, options.source)
    if where.dry_run:
        teacher.to(pick_device(where.device))
        return print_plan(
            console, options.method.stages(teacher.denoiser), data, training, where.device
        )
    student: Pipeline = distil_pipeline(
        teacher,
        data,
        where.out,
        method=options.method,
        training=training,
        job=job_of(where, console),
    )
    save_config(where.out, options)
    steps = [len(times) - 1 for times in student.times]
    console.print(f"students  {where.out / 'stages'}")
    if steps:
        console.print(f"look      halfstep sample {where.out} --steps {steps[0]} --out samples")
    return 0
