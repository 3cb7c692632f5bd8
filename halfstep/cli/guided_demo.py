"""`halfstep demo --guided`: one student for every guidance scale, held against the guided teacher."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from halfstep import files, storage
from halfstep.cli.distill import Distill
from halfstep.cli.judging import made_by, written
from halfstep.cli.options import parse
from halfstep.cli.progress import Bars, counting, say
from halfstep.cli.runs import describe, updates_on
from halfstep.cli.tables import print_guided
from halfstep.config.fields import flat
from halfstep.data import Data, load
from halfstep.errors import ConfigError
from halfstep.evaluation import Candidates, digits_features, Evaluation
from halfstep.evaluation.guided import SCALES
from halfstep.evaluation.scorer import scorer_for
from halfstep.hub.bundled import bundled_cost, bundled_students, bundled_teacher
from halfstep.methods.base import updates_after
from halfstep.methods.guided import GuidedOptions
from halfstep.pipeline import Pipeline
from halfstep.training import distill
from halfstep.training.asked import environment
from halfstep.training.jobs import RunOptions
from halfstep.training.parallel import pick_device
from halfstep.training.run_folder import RunFolder

PRESET = "digits-guided"


@dataclass(frozen=True)
class Made:
    """Students for every guidance scale, the most steps first, and what is known of how they were made."""

    students: list[Pipeline]
    preset: Any
    metrics: Path
    cost: Mapping[str, object] | None


def guided_demo(
    console: Console, out: Path, *, n: int, seed: int, device: str, quick: bool, from_scratch: bool
) -> int:
    """Sample students and guided teacher at every scale, compare them, write the pages and the numbers."""
    data, teacher = load("digits"), bundled_teacher()
    if seed and not from_scratch:
        raise ConfigError(
            "--seed is of training, and these students come with halfstep: add --from-scratch, or leave "
            "it out"
        )
    preset = _preset(out, seed, quick and from_scratch)
    say(console, "teacher", f"{describe(teacher)}; guided, so two calls a step")
    say(console, "data", f"{len(data):,} handwritten digits of 8 x 8")
    say(console, "plan", preset.method.build().summary())
    if from_scratch:
        made = _distilled(console, teacher, data, preset, out, device)
    else:
        made = Made(bundled_students(), preset, out, bundled_cost(PRESET))
        say(console, "students", "those that come with halfstep; --from-scratch distils them")
    counts = tuple(len(one.times[0]) - 1 for one in made.students)
    asked = Evaluation(
        samples=n // 10 if quick else n,
        counts=counts,
        baselines=("dpmpp-2m",),
        metrics=("frechet", "inception"),
        guidance=SCALES,
        split_samples=0,
        cost_rounds=2,
    )
    for pipeline in (teacher, *made.students):
        pipeline.to(pick_device(device))
    files.make_folder(out)
    found = _judged(console, teacher, made, data, asked, out, device)
    storage.write_json(out / "results.json", results(found))
    print_guided(console, found["guided"])
    say(console, "verdict", found["verdict"])
    for label, name in (
        ("slider", "slider.html"),
        ("report", "report.html"),
        ("numbers", "results.json"),
    ):
        say(console, label, out / name)
    return 0


def results(found: dict[str, Any]) -> dict[str, Any]:
    """The evidence in plain numbers: `guided` has a row for every guidance scale and number of steps."""
    rows, floors = found["guided"]["rows"], dict[float, float]()
    for row in rows:
        if row["who"] == "teacher":
            floors[row["guidance"]] = row["distance"]["value"]
    guided = [
        {
            "guidance": row["guidance"],
            "steps": row["steps"],
            "calls": row["calls"],
            "frechet_to_guided_teacher": row["distance"]["value"],
            "floor": floors[row["guidance"]],
            "times_floor": row["times_floor"]["value"],
            "rmse_to_guided_teacher": row["rmse"]["value"],
            "frechet_to_data": row["to_data"],
            "inception_score": row["inception_score"],
        }
        for row in rows
        if row["who"] == "student"
    ]
    return {
        "guided": guided,
        "reference": found["guided"]["reference"],
        "samples": found["measure"]["samples"],
        "features": found["measure"]["features"],
        "cost": found["run"]["cost"],
    }


def _preset(out: Path, seed: int, quick: bool) -> Any:
    """presets/digits-guided.toml; a tenth of its updates for a quick look."""
    preset: Any = parse(
        Distill[GuidedOptions],
        ["--preset", PRESET, "--teacher", ".", "--out", str(out / "distill")],
        prog="halfstep distill guided",
    )
    method, training = preset.method, replace(preset.training, seed=seed)
    if quick:
        fewer = tuple(max(1, k // 10) for k in method.halving_updates)
        method = replace(method, updates=max(1, method.updates // 10), halving_updates=fewer)
        training = replace(training, warmup=training.warmup // 10)
    return replace(preset, method=method, training=training)


def _distilled(
    console: Console, teacher: Pipeline, data: Data, preset: Any, out: Path, device: str
) -> Made:
    """Students of 8 steps and fewer, distilled here into OUT/distill."""
    method, training, students = preset.method.build(), preset.training, list[Pipeline]()
    plan = method.plan(teacher)

    def keep(student: Pipeline) -> bool:
        if student.times and len(student.times[0]) - 1 <= 8:
            students.append(student)
        return True

    say(console, "updates", updates_on(sum(stage.updates for stage in plan), training, device))
    with Bars(console, ahead=lambda stage: updates_after(plan, stage.name)) as bars:
        job = RunOptions(device=device, watch=bars, gate=keep)
        distill(teacher, data, out / "distill", method=method, training=training, job=job)
    return Made(students, preset, out / "distill", RunFolder(out / "distill").cost)


def _judged(
    console: Console,
    teacher: Pipeline,
    made: Made,
    data: Data,
    asked: Evaluation,
    out: Path,
    device: str,
) -> dict[str, Any]:
    """The evidence, in OUT/report.json, report.html and slider.html."""
    subject = Candidates(teacher, made.students, data)
    judge = scorer_for(digits_features(), data, asked)
    with counting(console, f"judging, {asked.samples:,} samples a row") as progress:
        return written(
            out,
            subject,
            judge,
            asked,
            made=made_by(environment(str(pick_device(device))), sys.argv),
            run={
                "folder": out.name,
                "config": {
                    key: str(value) if isinstance(value, Path) else value
                    for key, value in flat(made.preset).items()
                },
                "gate": None,
                "cost": {"teacher": bundled_cost("digits-teacher"), "halvings": made.cost},
            },
            metrics=made.metrics,
            progress=progress,
        )
