"""The quality gate on the command line: what `distill progressive` asks after every halving."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from halfstep.batch import batches
from halfstep.cli.judging import shown_images
from halfstep.cli.progress import counting, first_process, say
from halfstep.data import Data, Latents
from halfstep.errors import ConfigError
from halfstep.evaluation.features import Features
from halfstep.evaluation.gate import fewest_steps, Gate, Measure, refuse_strict
from halfstep.evaluation.intervals import Interval
from halfstep.evaluation.sample_sets import NONE, SampleScorer, SampleSet
from halfstep.evaluation.scorer import captions_of, features_for, refuse_samples, scorer_for
from halfstep.evaluation.setups import Evaluation, SampleCount
from halfstep.evaluation.statistics import fingerprint
from halfstep.kinds import at_least, Count, hold_to_kinds, NotNegative, Seed
from halfstep.methods import Progressive
from halfstep.pipeline import Pipeline
from halfstep.progress import expected
from halfstep.timegrids import grid, Steps
from halfstep.training.parallel import pick_device
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.options import Source


@dataclass(frozen=True, kw_only=True)
class Quality:
    """When to stop halving."""

    tolerance: NotNegative = 1.10
    """Stop where a student's Fréchet distance is surely more than so many times its teacher's at full
    steps; 0 is no gate."""
    until: Count | None = None
    """Never stop before a student of so many steps: 1 goes all the way and only reports."""
    full: Annotated[Steps, at_least(0)] = 0
    """Full steps of the teacher; 0 is twice --start, and 64 with --start auto, which begins at the fewest
    steps that are as good."""
    features: str = "auto"
    """auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE or
    package.module:function."""
    samples: SampleCount = 2000
    """Samples of the gate's first look; it takes up to eight times as many where it cannot tell."""
    noise: Seed = 0
    """Seed of their noise."""

    def __post_init__(self) -> None:
        hold_to_kinds(self)
        refuse_strict(self.tolerance)


MOST = 8
"""The gate's last look, in first looks."""


@dataclass
class Looks:
    """Samples of teacher and students, as many as the gate asks for; the teacher is loaded when needed."""

    judge: SampleScorer
    load: Callable[[], Pipeline]
    full: int
    console: Console
    device: str
    grid: str = "uniform"
    """Where the teacher's steps lie when it is asked for fewer, as the halving will have them."""
    data: str = ""
    """Fingerprint of the real data."""
    _seen: dict[int, SampleSet] = field(default_factory=dict)
    """By steps; the teacher's at full steps under 0."""

    def student(self, pipeline: Pipeline, n: int) -> Interval:
        """Its distance over the teacher's at full steps."""
        steps = min(len(times) - 1 for times in pipeline.times)
        return self._ratio(lambda: pipeline, steps, steps, n)

    def teacher_at(self, steps: int, n: int) -> Interval:
        """The teacher's own distance at fewer steps over that at full steps."""

        def coarse() -> Pipeline:
            teacher = self.load()
            return replace(teacher, times=(grid(self.grid, steps, teacher.denoiser.schedule),))

        return self._ratio(coarse, -steps, steps, n)

    def _ratio(self, load: Callable[[], Pipeline], key: int, steps: int, n: int) -> Interval:
        wanted = {0: (self.load, self.full), key: (load, steps)}
        seen = {k: self._seen.get(k, NONE) for k in wanted}
        missing = {k: batches(range(len(seen[k]), n), self.judge.batch) for k in wanted}
        with counting(self.console, f"judging {steps} steps, {n:,} samples") as bar:
            progress = expected(bar, sum(wanted[k][1] * len(missing[k]) for k in wanted))
            for k in [k for k in wanted if missing[k]]:
                make, count = wanted[k]
                pipeline = make().to(pick_device(self.device))
                way = pipeline, pipeline.made_for, count
                seen[k] = self.judge.extend(seen[k], *way, n=n, progress=progress)
        self._seen = seen  # no other is asked for again
        return self.judge.ratio(seen[key].first(n), seen[0].first(n))


def full_steps(quality: Quality, method: Progressive, teacher: Pipeline, *, auto: bool) -> int:
    """Full steps of the teacher; refuses what cannot be before anything is trained.

    auto  whether they are where `--start auto` begins to look
    """
    own = [len(times) - 1 for times in teacher.times]
    full = quality.full or (max(own) if own else Evaluation.full if auto else 2 * method.start)
    teacher.grid(full)  # one that is a student itself takes its own steps alone
    if not auto and full < method.start:
        raise ConfigError(
            f"full steps are the teacher's best, got --full {full} below --start {method.start}: write "
            f"--full {method.start} or more"
        )
    if auto and len(method.updates) > 1:
        raise ConfigError(
            f"--start auto finds out how many halvings there are, and --updates has "
            f"{len(method.updates)} numbers: give one for all"
        )
    if auto and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "--start auto is found by one process: begin the run with one, or give --start a number"
        )
    if auto and method.times:
        raise ConfigError(
            "--start auto chooses among grids, and times is one: leave one of them out"
        )
    if auto:
        replace(method, start=full, updates=(0,))  # refuses what cannot be halved down to stop
    return full


def looks_for(
    quality: Quality,
    full: int,
    kind: str,
    source: Source,
    data: Data,
    load: Callable[[], Pipeline],
    console: Console,
    device: str,
) -> Looks:
    """The looks that the options ask for, at a teacher's grid of that kind."""
    features = _features(quality, source, data)
    asked = Evaluation(samples=quality.samples, noise=quality.noise)
    teacher = load().to(pick_device(device)) if isinstance(data, Latents) else None
    judge = scorer_for(
        features,
        data if teacher is None else shown_images(console, data, teacher),
        asked,
        captions=None if teacher is None else captions_of(data, teacher),
        looks=MOST,
    )
    return Looks(judge, load, full, console, device, kind, fingerprint(data))


def rehearsed_gate(quality: Quality, full: int, source: Source, data: Data, out: Path) -> Gate:
    """The gate of a run, which looks at nobody: what the run would refuse of it is refused."""
    features = _features(quality, source, data)
    if not isinstance(data, Latents):
        refuse_samples(quality.samples * MOST, data.shape)
    asked = _about(quality, features, full, fingerprint(data))
    return _gate(quality, asked, out, measure=_never, tell=str)


def _never(student: object, samples: int) -> Interval:
    raise AssertionError("a rehearsal looks at no student")


def _features(quality: Quality, source: Source, data: Data) -> Features:
    try:
        return features_for(quality.features, data)
    except ConfigError as error:
        raise ConfigError(f"{error}; or --tolerance 0, which halves without a gate") from None


def gate_for(quality: Quality, looks: Looks, out: Path) -> Gate:
    """The gate of a run; its decisions lie in OUT/gate.json."""
    about = _about(quality, looks.judge.features, looks.full, looks.data)
    tell = partial(say, looks.console, "gate")
    return _gate(quality, about, out, measure=looks.student, tell=tell)


def _about(quality: Quality, features: Features, full: int, data: str) -> dict[str, Any]:
    """What a ratio is measured with."""
    return {
        "features": features.name,
        "digest": features.digest,
        "preprocessing": features.preprocessing,
        "data": data,
        "samples": quality.samples,
        "full": full,
        "noise": quality.noise,
    }


def _gate(
    quality: Quality,
    about: dict[str, Any],
    out: Path,
    *,
    measure: Measure,
    tell: Callable[[str], object],
) -> Gate:
    return Gate(
        measure,
        quality.tolerance,
        file=out / "gate.json",
        writes=first_process(),
        about=about,
        until=quality.until,
        samples=quality.samples,
        most=MOST * quality.samples,
        tell=tell,
    )


def start_of(out: Path, method: Progressive, looks: Looks) -> Progressive:
    """`--start auto`: the method from the fewest steps that cost the teacher nothing yet.

    A run that was begun keeps the start that it was begun with.
    """
    if (run := RunFolder(out)).exists:
        before = run.about
        if before["command"] == "distill progressive":
            return replace(method, start=before["options"]["start"])
        return method  # another's folder, which the run itself will refuse
    samples, full = looks.judge.n, looks.full
    steps = fewest_steps(
        looks.teacher_at, full, stop=method.stop, samples=samples, most=MOST * samples
    )
    what = "fewer would cost quality" if steps == full else f"they are as good as {full}"
    say(looks.console, "start", f"{steps} steps: {what}")
    return replace(method, start=steps)


def auto_start(args: list[str]) -> bool:
    """Whether `--start auto` is among the arguments; it is taken out."""
    for k, word in enumerate(args):
        if word == "--start=auto" or args[k : k + 2] == ["--start", "auto"]:
            del args[k : k + (1 if "=" in word else 2)]
            return True
    return False
