"""Metrics of the quality gate: compare a student with its teacher by the data, or by the guided teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.config import JsonObject
from halfstep.config.validate import NotNegative, Validated
from halfstep.data import Data, Latents
from halfstep.errors import ConfigError
from halfstep.evaluation.features.cache import fingerprint
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.gate_meter import (
    AgainstData,
    AgainstTeacher,
    Meter,
    Showing,
    silent,
    TeacherComparison,
    TeacherSource,
)
from halfstep.evaluation.guided_comparison import table_scales
from halfstep.evaluation.sample_cache import identity, Samples
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.evaluation.scorer import (
    captions_of,
    classes_in_turn,
    real_images,
    real_labels,
    scorer_for,
)
from halfstep.evaluation.setups import Evaluation
from halfstep.files import cache_folder
from halfstep.pipeline import Pipeline

HIGHEST = 3.0
"""The highest guidance scale of the gate by default."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a metric.

    teacher         the teacher, to be described
    source          loads the teacher when it must be sampled
    guidance_range  range of guidance scales that the students take as an input, or None
    grid            name of the time grid of a network that has none
    full_steps      the teacher's full steps
    """

    teacher: Pipeline
    source: TeacherSource
    data: Data
    features: Features
    guidance_range: tuple[float, float] | None
    grid: str
    full_steps: int
    samples: int
    seed: int
    showing: Showing = silent

    def meter(self, comparisons: Sequence[TeacherComparison]) -> Meter:
        """A meter that takes the largest ratio of these comparisons."""
        return Meter(
            comparisons, self.source, self.full_steps, self.grid, self.samples, self.showing
        )

    @property
    def captions(self) -> Callable[[Tensor], Cond] | None:
        """The function from sample numbers to captions, for latents with texts."""
        return captions_of(self.data, self.teacher)


@dataclass(frozen=True)
class DataRatio:
    """The student's Fréchet distance from the data over its teacher's at full steps."""

    def about(self, inputs: Inputs) -> JsonObject:
        """Its part of `about` in RUN/gate.json.

        Args:
            inputs: teacher, data and options of the gate.
        """
        return {"data": fingerprint(inputs.data)}

    def meter(self, inputs: Inputs) -> Meter:
        """A meter with this metric.

        Args:
            inputs: teacher, data and options of the gate.
        """
        real: Data | Tensor = inputs.data
        if isinstance(real, Latents):
            with inputs.showing("decoding latents") as progress:
                real = real_images(real, inputs.teacher, progress=progress)
        config = Evaluation(samples=inputs.samples, seed=inputs.seed)
        scorer = scorer_for(
            inputs.features, real, config, inputs.captions,
            teacher=inputs.teacher, labels=real_labels(inputs.data),
        )  # fmt: skip
        return inputs.meter([AgainstData(scorer, inputs.source, inputs.full_steps)])


@dataclass(frozen=True, kw_only=True)
class GuidedTeacherRatio(Validated):
    """The student's Fréchet distance to its guided teacher over the teacher's to itself, at the worst scale.

    All distances are to samples of the teacher from other noise.

    Args:
        guidance_scales: scales to compare at; by default both ends of the students' range, at most 3.

    Raises:
        ConfigError: a scale below 0, or in `chosen` outside of the students' range.
    """

    guidance_scales: tuple[NotNegative, ...] = ()

    def chosen(self, guidance_range: tuple[float, float]) -> tuple[float, ...]:
        """The scales for students with this range.

        Args:
            guidance_range: lowest and highest scale.

        Raises:
            ConfigError: a scale outside it.
        """
        low, high = guidance_range
        return table_scales(
            guidance_range, self.guidance_scales or (low, max(low, min(high, HIGHEST)))
        )

    def about(self, inputs: Inputs) -> JsonObject:
        """Its part of `about` in RUN/gate.json.

        Args:
            inputs: teacher, data and options of the gate.
        """
        return {"guidance_scales": list(self.chosen(_range(inputs)))}

    def meter(self, inputs: Inputs, *, cache: Path | None = None) -> Meter:
        """A meter with this metric, which caches the teacher's samples on disk.

        Args:
            inputs: teacher, data and options of the gate.
            cache: the cache folder, by default `cache_folder()`.
        """
        empty = torch.empty(0)
        scorer = SampleScorer(
            inputs.features, empty, empty[:, None], inputs.samples, inputs.seed, captions=inputs.captions,
            classes=classes_in_turn(inputs.teacher, inputs.captions),
        )  # fmt: skip
        name, cache = identity(inputs.teacher), cache or cache_folder()

        def samples(scale: float, seed: int) -> Samples:
            # Images of the gate's noise are cached as well: `halfstep evaluate` compares pairs of them.
            images = seed == scorer.seed
            at, steps = scorer.at(scale, seed), inputs.full_steps
            return Samples(inputs.source, name, "ddim", steps, at, images, cache)

        def against(scale: float) -> AgainstTeacher:
            seed = scorer.seed
            return AgainstTeacher(
                scorer.at(scale, seed), samples(scale, seed + 1), samples(scale, seed)
            )

        return inputs.meter([against(scale) for scale in self.chosen(_range(inputs))])


def _range(inputs: Inputs) -> tuple[float, float]:
    if inputs.guidance_range is None:
        raise ConfigError(
            "these students take no guidance scale as an input: leave --guidance-scales out, or the "
            "metric of the gate"
        )
    return inputs.guidance_range
