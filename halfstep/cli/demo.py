"""`halfstep demo`: the main job on real data, from end to end, with pictures and scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from halfstep import storage
from halfstep.cli.distill import ahead, Distill, plan
from halfstep.cli.options import parse
from halfstep.cli.progress import Bars, counting, say, span, terminal
from halfstep.cli.runs import describe, updates_on
from halfstep.cli.train import fresh_pipeline, TrainDenoiser
from halfstep.data import load
from halfstep.evaluation import digits_features, Judge
from halfstep.evaluation.evaluate import total_steps
from halfstep.methods import Progressive
from halfstep.pipeline import Pipeline
from halfstep.report.pictures import DDIM, quality_curve, same_seeds, SOLVER, STUDENT
from halfstep.training import distill, train
from halfstep.training.jobs import Job
from halfstep.training.parallel import pick_device
from halfstep.training.run import read_metrics

FULL = 64
COUNTS = (8, 4, 2, 1)
SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Distil a teacher of handwritten digits from 32 steps to 1, score every student, draw them."""

    out: Path = Path("runs/demo")
    """Folder for the run, results.json and the pictures."""
    quick: bool = False
    """A tenth of the updates: a look at the machinery, not at the quality."""
    from_scratch: bool = False
    """Train the teacher first, instead of taking the one that comes with halfstep."""
    seed: int = 0
    """Of training; the scores always use the same noise."""
    n: int = 2000
    """Samples per score."""
    device: str = "auto"
    """auto, or one by name."""


def demo(argv: Sequence[str]) -> int:
    """Run it; print the table and where the pictures are."""
    console = terminal()
    options = parse(Demo, argv, prog="halfstep demo")
    data = load("digits")
    teacher = _from_scratch(options, console) if options.from_scratch else shipped_teacher()
    run, students = options.out / "distill", list[Pipeline]()
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
    say(console, "plan", plan(method))
    say(console, "updates", updates_on(sum(method.updates), training, options.device))
    with Bars(console, ahead=lambda stage: ahead(method, stage)) as bars:
        job = Job(device=options.device, watch=bars, gate=keep)
        distill(teacher, data, run, method=method, training=training, job=job)
    results = _judge(options, teacher.to(pick_device(options.device)), students, data, console)
    results["cost"] = _cost(options, run)
    storage.write_json(options.out / "results.json", results)
    _draw(options.out, teacher, students, results)
    _print(console, results)
    for label, name in (
        ("pictures", "samples.png"),
        ("", "quality.png"),
        ("numbers", "results.json"),
    ):
        say(console, label, options.out / name)
    return 0


def shipped_teacher() -> Pipeline:
    """The teacher of digits that comes with halfstep (presets/digits.toml made it)."""
    with as_file(files("halfstep") / "assets" / "digits-teacher") as folder:
        return Pipeline.load(folder)


def _from_scratch(options: Demo, console: Console) -> Pipeline:
    """The teacher of presets/digits.toml, trained into OUT/teacher."""
    out = options.out / "teacher"
    preset = parse(TrainDenoiser, ["--preset", "digits", "--out", str(out)], prog="halfstep train")
    method = preset.method
    if options.quick:
        method = replace(method, updates=max(1, method.updates // 10))
    data = load("digits")
    training = replace(preset.training, seed=options.seed)
    fresh = fresh_pipeline(preset.network, data, method.drop_labels > 0, training.seed)
    with Bars(console) as bars:
        job = Job(device=options.device, watch=bars)
        return train(fresh, data, out, method=method, training=training, job=job)


def _judge(
    options: Demo, teacher: Pipeline, students: Sequence[Pipeline], data: Any, console: Console
) -> dict[str, Any]:
    """Teacher at full steps, undistilled teacher and students at equal network calls."""
    ways = [(s, k) for s in ("ddim", "dpmpp-2m") for k in COUNTS]
    judged = [s for s in students if len(s.times[0]) - 1 in COUNTS]
    total = total_steps(
        [("ddim", FULL), *ways, *(("ddim", len(s.times[0]) - 1) for s in judged)], options.n
    )
    real = data.batch(torch.arange(len(data))).x0
    with counting(console, f"scoring {options.n:,} samples a row", total) as advance:
        judge = Judge(digits_features(), real, n=options.n, progress=advance)
        full = judge.teacher(teacher, FULL)
        baselines = [judge.row(teacher, sampler, steps) for sampler, steps in ways]
        rows = [judge.row(student, "ddim", len(student.times[0]) - 1) for student in judged]
    return {
        "teacher": full.to_json(),
        "baselines": [row.to_json() for row in baselines],
        "students": [row.to_json() for row in rows],
        "sampling_floor": judge.floor,
        "samples": options.n,
        "features": judge.features.name,
    }


def _cost(options: Demo, run: Path) -> dict[str, Any]:
    """Seconds and forwards (a forward 1, forward and backward 3) of the teacher and of all halvings."""

    def of(lines: list[dict[str, Any]]) -> dict[str, Any]:
        done = [line for line in lines if "forwards" in line]
        return {key: sum(line[key] for line in done) for key in ("seconds", "forwards", "updates")}

    if options.from_scratch:
        teacher = of(read_metrics(options.out / "teacher"))
    else:
        with as_file(files("halfstep") / "assets" / "digits-teacher" / "cost.json") as path:
            teacher = storage.read_json(path)
    return {"teacher": teacher, "halvings": of(read_metrics(run))}


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
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("", "calls", "Fréchet", "- teacher", "/ teacher", "less floor", "rmse", "ms"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)

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
    names = {"ddim": "  teacher, DDIM", "dpmpp-2m": "  teacher, DPM++"}
    for row in results["students"]:
        add("student", row, "bold green")
        for other in results["baselines"]:
            if other["calls"] == row["calls"]:
                add(names[other["sampler"]], other, "dim")
    console.print(table)
    say(
        console, "floor", f"{floor:.3f} is what {results['samples']:,} perfect samples would score;"
    )
    say(console, "", "'less floor' is the ratio with it taken from student and teacher")
    for name, cost in results["cost"].items():
        say(console, name, f"{cost['forwards']:,} forwards, {span(cost['seconds'])} of training")
