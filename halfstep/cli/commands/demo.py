"""`halfstep demo`: the main job on real data, from end to end, with pictures and scores."""

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from rich.console import Console

from halfstep import files, storage
from halfstep.cli.commands.demo_guided import guided_demo
from halfstep.cli.commands.distill import Distill
from halfstep.cli.console.columns import Columns, print_wide
from halfstep.cli.console.progress import Bars, counting, say, span, terminal
from halfstep.cli.console.run_lines import describe, updates_on
from halfstep.cli.parse import parse
from halfstep.config.fields import flat
from halfstep.config.validate import Seed
from halfstep.data import load
from halfstep.evaluation import Candidates, digits_features, Evaluation, SampleScorer
from halfstep.evaluation.report_data import Report, RunSummary, TrainingCost, TrainingCosts
from halfstep.evaluation.report_rows import teacher_rows, TeacherRows
from halfstep.evaluation.scorer import scorer_for
from halfstep.evaluation.setups import MOST
from halfstep.hub.bundled import bundled_cost, bundled_teacher
from halfstep.methods import Progressive
from halfstep.methods.base import teacher_times, updates_after
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress
from halfstep.report.images.png import DDIM, quality_curve, same_seeds, SOLVER, STUDENT
from halfstep.schema import plain
from halfstep.training import distill, train
from halfstep.training.api import RunOptions
from halfstep.training.distributed import pick_device
from halfstep.training.run_identity import environment
from halfstep.workflows.background import background
from halfstep.workflows.new_pipeline import fresh_pipeline
from halfstep.workflows.report import (
    provenance,
    report_on,
    save,
    training_cost,
    updates_of,
)
from halfstep.workflows.train_denoiser import TrainDenoiserConfig

FULL = 64
COUNTS = (8, 4, 2, 1)
SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Distil a teacher of handwritten digits from 32 steps to 1, score every student, draw them."""

    guided: bool = False
    """Instead: one student for every guidance scale, with a page where its slider can be moved."""
    out: Path | None = None
    """Folder for the run, results.json and the pictures: runs/demo, or runs/demo-guided."""
    quick: bool = False
    """A tenth of the updates, and with --guided of the samples: a look at the machinery, not at the
    quality."""
    from_scratch: bool = False
    """Train the teacher first, instead of taking the one that comes with halfstep; with --guided distil
    the student, instead of taking that one."""
    seed: Seed = 0
    """Of training; the scores always use the same noise."""
    n: Annotated[int, Ge(8), Le(MOST)] | None = None
    """Samples per score: 2,000 by default, with --guided 1,000, each 128 calls of the guided teacher."""
    device: str = "auto"
    """auto, or one by name."""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.out or Path("runs/demo-guided" if self.guided else "runs/demo")

    @property
    def samples(self) -> int:
        """How many are scored."""
        default = 1000 if self.guided else 2000
        return default if self.n is None else self.n


def main(argv: Sequence[str]) -> int:
    """Run it; print the table and where the pictures are."""
    console = terminal()
    options = parse(Demo, argv, prog="halfstep demo")
    files.check_writable(options.folder, "choose another --out")
    if options.guided:
        return guided_demo(
            console,
            options.folder,
            n=options.samples,
            seed=options.seed,
            device=options.device,
            quick=options.quick,
            from_scratch=options.from_scratch,
        )
    data = load("digits")
    teacher = _from_scratch(options, console) if options.from_scratch else bundled_teacher()
    run, students = options.folder / "distill", list[Pipeline]()
    preset: Any = parse(
        Distill[Progressive],
        ["--preset", "digits-progressive", "--teacher", ".", "--out", str(run)],
        prog="halfstep distill progressive",
    )
    method, training = preset.method, replace(preset.training, seed=options.seed)
    if options.quick:
        method = replace(method, updates=tuple(max(1, k // 10) for k in method.updates))
        training = replace(training, warmup=training.warmup // 10)

    def keep(student: Pipeline) -> bool:
        students.append(student)
        return True

    say(console, "teacher", describe(teacher))
    say(console, "data", f"{len(data):,} handwritten digits of 8 x 8")
    say(console, "plan", method.summary())
    say(console, "updates", updates_on(sum(method.updates), training, options.device))
    teacher.to(pick_device(options.device))
    asked = Evaluation(
        samples=options.samples, full=FULL, counts=COUNTS, shown=SHOWN, cost_rounds=2
    )
    judge = scorer_for(digits_features(), data, asked)

    def judge_teacher(progress: Progress) -> TeacherRows:
        return teacher_rows(teacher, COUNTS, judge, asked, progress=progress)

    plan = method.plan(teacher)
    with background(judge_teacher) as judged:
        with Bars(console, ahead=lambda stage: updates_after(plan, stage.name)) as bars:
            job = RunOptions(device=options.device, watch=bars, gate=keep)
            distill(teacher, data, run, method=method, training=training, job=job)
        subject = Candidates(teacher, students, data, teacher_times(plan))
        found = _judged(options, subject, judge, asked, judged, preset, run, console)
    results = _results(found)
    storage.write_json(options.folder / "results.json", results)
    _draw(options.folder, teacher, students, results)
    _print(console, results)
    say(console, "verdict", found.verdict)
    for label, name in (
        ("report", "report.html"),
        ("pictures", "samples.png"),
        ("", "quality.png"),
        ("numbers", "results.json"),
    ):
        say(console, label, options.folder / name)
    return 0


def _from_scratch(options: Demo, console: Console) -> Pipeline:
    """The teacher of presets/digits.toml, trained into OUT/teacher."""
    out = options.folder / "teacher"
    preset = parse(
        TrainDenoiserConfig, ["--preset", "digits", "--out", str(out)], prog="halfstep train"
    )
    method = preset.method
    if options.quick:
        method = replace(method, updates=max(1, method.updates // 10))
    data = load("digits")
    training = replace(preset.training, seed=options.seed)
    fresh = fresh_pipeline(preset.network, data, method.drop_labels > 0, training.seed)
    with Bars(console) as bars:
        job = RunOptions(device=options.device, watch=bars)
        return train(fresh, data, out, method=method, training=training, job=job)


def _judged(
    options: Demo,
    candidates: Candidates,
    scorer: SampleScorer,
    config: Evaluation,
    judged: Future[TeacherRows],
    preset: Any,
    run: Path,
    console: Console,
) -> Report:
    """The report, in OUT/report.json and report.html."""
    of_teacher = judged.result()  # long done: it took a part of the training's time
    saved = flat(preset) | {"seed": options.seed}
    with counting(console, f"judging, {options.samples:,} samples a row") as progress:
        report = report_on(
            candidates,
            scorer,
            config,
            provenance=provenance(environment(str(pick_device(options.device))), sys.argv),
            run=RunSummary(
                folder=options.folder.name,
                config={k: str(v) if isinstance(v, Path) else v for k, v in saved.items()},
                cost=_cost(options, run),
            ),
            training=updates_of(run),
            of_teacher=of_teacher,
            progress=progress,
        )
    save(report, options.folder)
    return report


def _results(report: Report) -> dict[str, Any]:
    """The report in plain numbers: teacher, baselines, students."""
    rows: dict[str, list[dict[str, Any]]] = {"teacher": [], "baseline": [], "student": []}
    for row in report.rows:
        assert row.cost is not None
        rows[row.role].append(
            {
                "sampler": row.sampler,
                "steps": row.steps,
                "calls": row.calls,
                "frechet_distance": row.distances.frechet_distance.value,
                "rmse_to_teacher": row.fidelity.rmse.value if row.fidelity else 0.0,
                "seconds_per_sample": row.cost.seconds_per_sample[64],
            }
        )
    return {
        "teacher": rows["teacher"][0],
        "baselines": rows["baseline"],
        "students": rows["student"],
        "sampling_floor": report.measure.floor,
        "samples": report.measure.samples,
        "features": report.measure.features,
        "cost": plain(report.run.cost),
    }


def _cost(options: Demo, run: Path) -> TrainingCosts:
    """Seconds and forwards (a forward 1, forward and backward 3) of the teacher and of all halvings."""
    teacher = (
        training_cost(options.folder / "teacher")
        if options.from_scratch
        else TrainingCost(**bundled_cost("digits-teacher"))
    )
    return TrainingCosts(teacher, training_cost(run))


def _draw(
    out: Path, teacher: Pipeline, students: Sequence[Pipeline], results: dict[str, Any]
) -> None:
    rows = []
    for student in students:
        steps = len(student.times[0]) - 1
        if steps in COUNTS:
            label = f"{steps} step{'s' if steps > 1 else ''}"
            rows.append((label, student.sample(SHOWN), teacher.sample(SHOWN, steps=steps)))
    same_seeds(
        out / "samples.png", (f"teacher, {FULL} steps", teacher.sample(SHOWN, steps=FULL)), rows
    )

    def curve(name: str, found: list[dict[str, Any]], colour: str) -> tuple[Any, ...]:
        return name, [r["calls"] for r in found], [r["frechet_distance"] for r in found], colour

    by = {s: [r for r in results["baselines"] if r["sampler"] == s] for s in ("ddim", "dpmpp-2m")}
    quality_curve(
        out / "quality.png",
        [
            curve("student", results["students"], STUDENT),
            curve("teacher, DPM-Solver++(2M)", by["dpmpp-2m"], SOLVER),
            curve("teacher, DDIM", by["ddim"], DDIM),
        ],
        full=(f"teacher, {FULL} steps", results["teacher"]["frechet_distance"]),
        floor=results["sampling_floor"],
    )


def _print(console: Console, results: dict[str, Any]) -> None:
    full, floor = results["teacher"]["frechet_distance"], results["sampling_floor"]
    table = Columns("", "calls", "Fréchet", "- teacher", "/ teacher", "less floor", "rmse", "ms")

    def add(name: str, row: dict[str, Any], style: str = "") -> None:
        distance = row["frechet_distance"]
        numbers = (
            f"{distance:.3f}",
            f"{distance - full:+.3f}",
            f"{distance / full:.3f}",
            f"{(distance - floor) / (full - floor):.3f}" if full > floor else "-",
            f"{row['rmse_to_teacher']:.3f}",
            f"{1000 * row['seconds_per_sample']:.2f}",
        )
        table.add_row(name, str(row["calls"]), *numbers, style=style)

    add(f"teacher, {FULL} steps", results["teacher"])
    names = {"ddim": "DDIM", "heun": "Heun", "dpmpp-2m": "DPM++"}
    fewer = [row["calls"] for row in results["students"][1:]] + [0]
    for row, below in zip(results["students"], fewer, strict=True):
        add("student", row, "bold green")
        for other in results["baselines"]:
            if below < other["calls"] <= row["calls"]:
                add(f"  teacher, {names[other['sampler']]}", other, "dim")
    print_wide(console, table)
    say(
        console, "floor", f"{floor:.3f} is what {results['samples']:,} perfect samples would score;"
    )
    say(console, "", "'less floor' is the ratio with it taken from student and teacher")
    for name, cost in results["cost"].items():
        say(console, name, f"{cost['forwards']:,} forwards, {span(cost['seconds'])} of training")
