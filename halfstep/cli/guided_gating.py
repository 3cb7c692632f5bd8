"""The quality gate of `distill guided`: a student against its guided teacher, at the worst scale."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from torch import Tensor

from halfstep.cli.gating import MOST
from halfstep.cli.progress import counting, first_process, say
from halfstep.data import Data, Latents
from halfstep.errors import ConfigError
from halfstep.evaluation.distance_intervals import raw_frechet_ratio
from halfstep.evaluation.gate import Gate, refuse_strict
from halfstep.evaluation.guided import table_scales
from halfstep.evaluation.intervals import Interval
from halfstep.evaluation.sample_cache import chunks, identity, Samples
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.evaluation.scorer import captions_of, features_for, refuse_samples
from halfstep.evaluation.setups import Evaluation, SampleCount
from halfstep.evaluation.statistics import cache_folder
from halfstep.kinds import at_least, Count, hold_to_kinds, NotNegative, Seed
from halfstep.methods import GuidedDistillation
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress
from halfstep.timegrids import grid, Steps
from halfstep.training.parallel import pick_device

HIGHEST = 3.0
"""The highest scale that the gate looks at by default: images of higher ones are seldom asked for."""


@dataclass(frozen=True, kw_only=True)
class GuidedQuality:
    """When to stop halving.  `Quality` has options of the same names as the method's."""

    tolerance: NotNegative = 2.0
    """Stop where a student is surely more than so many times as far (Fréchet distance) from its guided
    teacher's samples as the teacher's own of other noise, at the worst scale; 0 is no gate."""
    until: Count | None = None
    """Never stop before a student of so many steps: 1 goes all the way and only reports."""
    full: Annotated[Steps, at_least(0)] = 0
    """Full steps of the guided teacher; 0 is --start, and 64 at least."""
    scales: tuple[NotNegative, ...] = ()
    """Guidance scales that the gate looks at; the ends of --guidance by default, the upper one 3 at
    most."""
    gate_features: str = "auto"
    """What they are seen through: auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER,
    inception:FILE or package.module:function."""
    samples: SampleCount = 2000
    """Samples of the gate's first look; it takes up to eight times as many where it cannot tell."""
    noise: Seed = 0
    """Seed of their noise."""

    def __post_init__(self) -> None:
        hold_to_kinds(self)
        refuse_strict(self.tolerance)


@dataclass
class GuidedLooks:
    """Samples of guided teacher and students, as many as the gate asks for, at every scale."""

    judge: SampleScorer
    """Of features and noise; no data is compared with."""
    load: Callable[[], Pipeline]
    who: str | None
    full: int
    scales: tuple[float, ...]
    console: Console
    device: str
    grid: str = "uniform"
    """Where the steps of the first stage, which has none of its own, lie."""
    cache: Path | None = None
    _teacher: Pipeline | None = None
    _kept: dict[tuple[float, int, int], Tensor] = field(default_factory=dict)
    """Features of the teacher's samples by scale, seed and how many."""

    def student(self, pipeline: Pipeline, n: int) -> Interval:
        """Its distance over the teacher's own at the scale where that is largest, each end by itself."""
        if not pipeline.times:
            times = grid(self.grid, self.full, pipeline.denoiser.schedule)
            pipeline = replace(pipeline, times=(times,))
        steps, judge = len(pipeline.times[0]) - 1, self.judge
        wanted = [
            (scale, seed, count)
            for scale in self.scales
            for seed, count in ((judge.seed + 1, judge.n), (judge.seed, n))
        ]
        missing = {key: self._of_teacher(*key[:2]) for key in wanted if key not in self._kept}
        way = pipeline, pipeline.own_sampler, steps
        with counting(self.console, f"judging {steps} steps, {n:,} samples") as bar:
            total = sum(samples.work(chunks(key[-1])) for key, samples in missing.items())
            progress = expected(bar, total + judge.steps([way for _ in self.scales], range(n)))
            for key, samples in missing.items():
                self._kept[key] = samples.features(key[-1], progress=progress)
            self._teacher = None  # its memory is the training's
            pipeline = pipeline.to(pick_device(self.device))
            found = [self._ratio(pipeline, steps, scale, n, progress) for scale in self.scales]
        return Interval(*(max(getattr(one, k) for one in found) for k in ("value", "low", "high")))

    def _ratio(
        self, student: Pipeline, steps: int, scale: float, n: int, progress: Progress
    ) -> Interval:
        seed, strata = self.judge.seed, max(len(student.classes), 1)
        at = self.judge.at(scale, seed)
        seen = at.sample(student, student.own_sampler, steps, n=n, progress=progress)
        reference, own = self._kept[scale, seed + 1, self.judge.n], self._kept[scale, seed, n]
        return raw_frechet_ratio(reference, seen.features, own, block=self.judge.n, strata=strata)

    def _of_teacher(self, scale: float, seed: int) -> Samples:
        at = self.judge.at(scale, seed)
        # Images of the gate's noise are what `halfstep evaluate` compares pairs of.
        wanted = seed == self.judge.seed
        return Samples(self._loaded, self.who, "ddim", self.full, at, wanted, self.cache)

    def _loaded(self) -> Pipeline:
        if self._teacher is None:
            self._teacher = self.load().to(pick_device(self.device))
        return self._teacher


def guided_gate(
    options: Any,
    method: GuidedDistillation,
    teacher: Pipeline,
    data: Data,
    load: Callable[[], Pipeline],
    console: Console,
) -> Gate | None:
    """The gate that the options of `distill guided` ask for; what cannot be is refused."""
    quality: GuidedQuality = options.quality
    halving = method.halving
    if not quality.tolerance or halving is None or teacher.unconditional is None:
        return None  # without a null class the method itself refuses the teacher
    full = quality.full or max(halving.start, Evaluation.full)
    if full < halving.start:
        raise ConfigError(
            f"full steps are the teacher's best, got --full {full} below --start {halving.start}: write "
            f"--full {halving.start} or more"
        )
    low, high = method.guidance
    ends = (low, max(low, min(high, HIGHEST)))
    scales = table_scales(method.guidance, quality.scales or ends)
    try:
        features = features_for(quality.gate_features, data)
    except ConfigError as error:
        sentence = str(error).replace("--features", "--gate-features")
        raise ConfigError(f"{sentence}; or --tolerance 0, which halves without a gate") from None
    captions = captions_of(data, teacher) if isinstance(data, Latents) else None
    factor = 1 if teacher.codec is None else teacher.codec.factor
    refuse_samples(
        MOST * quality.samples, (teacher.shape[0], *(factor * side for side in teacher.shape[1:]))
    )
    judge = SampleScorer(
        features,
        torch.empty(0),
        torch.empty(0, 1),
        quality.samples,
        quality.noise,
        captions=captions,
    )
    where = options.where
    teacher.to(pick_device(where.device))  # whose kind is a part of what its samples are kept by
    looks = GuidedLooks(
        judge, load, identity(teacher), full, scales, console, where.device, halving.grid,
        cache=cache_folder(),
    )  # fmt: skip
    about = {
        "features": features.name,
        "digest": features.digest,
        "preprocessing": features.preprocessing,
        "samples": quality.samples,
        "full": full,
        "noise": quality.noise,
        "guidance": list(scales),
    }
    return Gate(
        looks.student,
        quality.tolerance,
        file=where.out / "gate.json",
        writes=first_process(),
        about=about,
        until=quality.until,
        samples=quality.samples,
        most=MOST * quality.samples,
        tell=lambda text: say(console, "gate", text),
        full=full,
    )
