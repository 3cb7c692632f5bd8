"""`halfstep demo --guided`: one student for every guidance scale, held against the guided teacher."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from halfstep import files, storage
from halfstep.cli.commands.distill import Distill
from halfstep.cli.console.progress import Bars, counting, say
from halfstep.cli.console.run_lines import describe, updates_on
from halfstep.cli.console.tables import print_guided
from halfstep.cli.parse import parse
from halfstep.config.fields import flat
from halfstep.data import Data, load
from halfstep.errors import ConfigError
from halfstep.evaluation import Candidates, digits_features, Evaluation
from halfstep.evaluation.guided_comparison import SCALES
from halfstep.evaluation.report_data import Report, RunSummary, TrainingCost, TrainingCosts
from halfstep.evaluation.scorer import scorer_for
from halfstep.hub.bundled import bundled_cost, bundled_students, bundled_teacher
from halfstep.methods.base import updates_after
from halfstep.methods.diffusion.guided import GuidedOptions
from halfstep.pipeline import Pipeline
from halfstep.schema import plain
from halfstep.training import distill
from halfstep.training.api import RunOptions
from halfstep.training.distributed import pick_device
from halfstep.training.run_identity import environment
from halfstep.workflows.report import (
    provenance,
    report_on,
    save,
    training_cost,
    updates_of,
)

PRESET = "digits-guided"


@dataclass(frozen=True)
class Made:
    """Students for every guidance scale, the most steps first, and what is known of how they were made."""

    students: list[Pipeline]
    preset: Any
    metrics: Path
    cost: TrainingCost | None


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
        made = Made(bundled_students(), preset, out, TrainingCost(**bundled_cost(PRESET)))
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
    assert found.guided is not None
    print_guided(console, found.guided)
    say(console, "verdict", found.verdict)
    for label, name in (
        ("slider", "slider.html"),
        ("report", "report.html"),
        ("numbers", "results.json"),
    ):
        say(console, label, out / name)
    return 0


def results(report: Report) -> dict[str, Any]:
    """The report in plain numbers: `guided` has a row for every guidance scale and number of steps."""
    assert report.guided is not None
    rows = report.guided.rows
    floors = {row.guidance: row.distance.value for row in rows if row.role == "teacher"}
    guided = [
        {
            "guidance": row.guidance,
            "steps": row.steps,
            "calls": row.calls,
            "frechet_to_guided_teacher": row.distance.value,
            "floor": floors[row.guidance],
            "times_floor": row.floor_ratio.value,
            "rmse_to_guided_teacher": row.rmse.value,
            "frechet_to_data": row.data_distance,
            "inception_score": row.inception_score,
        }
        for row in rows
        if row.floor_ratio and row.rmse
    ]
    return {
        "guided": guided,
        "reference": plain(report.guided.reference),
        "samples": report.measure.samples,
        "features": report.measure.features,
        "cost": plain(report.run.cost),
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
    return Made(students, preset, out / "distill", training_cost(out / "distill"))


def _judged(
    console: Console,
    teacher: Pipeline,
    made: Made,
    data: Data,
    asked: Evaluation,
    out: Path,
    device: str,
) -> Report:
    """The report, in OUT/report.json, report.html and slider.html."""
    candidates = Candidates(teacher, made.students, data)
    scorer, saved = scorer_for(digits_features(), data, asked), flat(made.preset)
    teachers_cost = TrainingCost(**bundled_cost("digits-teacher"))
    with counting(console, f"judging, {asked.samples:,} samples a row") as progress:
        report = report_on(
            candidates,
            scorer,
            asked,
            provenance=provenance(environment(str(pick_device(device))), sys.argv),
            run=RunSummary(
                folder=out.name,
                config={k: str(v) if isinstance(v, Path) else v for k, v in saved.items()},
                cost=TrainingCosts(teachers_cost, made.cost),
            ),
            training=updates_of(made.metrics),
            progress=progress,
        )
    save(report, out)
    return report
