"""Metrics of one row of a report, with intervals, and the pictures of all rows."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halfstep.diffusion.samplers import draws_noise
from halfstep.evaluation.metrics.bootstrap import basic_bootstrap, Interval
from halfstep.evaluation.metrics.cost import calls_of
from halfstep.evaluation.metrics.distance_bootstrap import (
    frechet_interval,
    kernel_interval,
    raw_frechet_interval,
)
from halfstep.evaluation.metrics.distances import inception_score
from halfstep.evaluation.metrics.drift import Drift, drift
from halfstep.evaluation.metrics.fidelity import fidelity, worst_pairs
from halfstep.evaluation.metrics.precision_recall_bootstrap import precision_recall_intervals
from halfstep.evaluation.report_data import Distances, Pictures, Row
from halfstep.evaluation.sample_sets import SampleScorer, SampleSet
from halfstep.evaluation.setups import Setup
from halfstep.pixels import as_bytes

ROWS_A_FEATURE = 10
"""Fewest samples per feature for a valid interval of the true Fréchet distance."""


def row(
    setup: Setup,
    samples: SampleSet,
    scorer: SampleScorer,
    metrics: Collection[str],
    full: SampleSet | None = None,
) -> Row:
    """The row of these samples, without cost and without the metrics of students alone.

    full  the teacher's samples at full steps, of the same noise
    """
    _, sampler, steps = setup.sampling
    errors = None
    if full is not None and not draws_noise(sampler):
        errors = fidelity(full.images, samples.images, full.features, samples.features)
    return Row(
        role=setup.role,
        name=setup.name,
        sampler=sampler,
        steps=steps,
        calls=calls_of(*setup.sampling, scorer.guidance_scale),
        distances=_distances(samples, scorer, metrics),
        ratio=None if full is None else scorer.ratio(samples, full),
        fidelity=errors,
    )


def _distances(samples: SampleSet, scorer: SampleScorer, metrics: Collection[str]) -> Distances:
    real, few, fake = scorer.real_features, scorer.real_few, samples.features
    strata = scorer.classes
    distances = Distances(frechet_distance=raw_frechet_interval(real, fake, strata=strata))
    if min(len(real), len(fake)) >= ROWS_A_FEATURE * real.shape[1]:
        truth = frechet_interval(real, fake, strata=strata)
        middle = max((truth.low + truth.high) / 2, 0.0)
        unbiased = not_negative(replace(truth, value=middle))
        distances = replace(distances, frechet_unbiased=unbiased)
    if "kernel" in metrics:
        kernel = not_negative(kernel_interval(few, fake, strata=strata))
        distances = replace(distances, kernel_distance=kernel)
    if "inception" in metrics and scorer.features.head is not None:
        probabilities = scorer.features.probabilities(fake)
        score = basic_bootstrap(inception_score, probabilities, strata=strata)
        distances = replace(distances, inception_score=score)
    if "precision-recall" in metrics:
        precision, recall = precision_recall_intervals(few, fake, neighbours=scorer.real_neighbours)
        distances = replace(distances, precision=precision, recall=recall)
    return distances


def not_negative(interval: Interval) -> Interval:
    """The interval without the part below 0, where the true squared distance cannot lie."""
    return replace(interval, low=max(interval.low, 0.0), high=max(interval.high, 0.0))


def drift_of(full: SampleSet, samples: SampleSet) -> tuple[Drift, ...] | None:
    """Drift of a student's images; None for points, and for images too few or too small."""
    if samples.images.ndim != 4 or min(samples.images.shape[2:]) < 3 or len(samples) < 8:
        return None
    return drift(full.images, samples.images)


def sheets(
    images: Sequence[tuple[str, Tensor]], shown: int, class_names: Sequence[str] = ()
) -> Pictures:
    """Pictures of a report: the same seeds in every column, and the worst pairs of the last student.

    class_names  of the samples, which take them in turn
    """
    if images[0][1].ndim != 4:
        return {}
    arrays = {
        "grid": np.stack([bytes_of(x[:shown]) for _, x in images]),
        "grid_labels": np.array([label for label, _ in images]),
    }
    names = (
        [class_names[k % len(class_names)] for k in range(len(images[0][1]))] if class_names else []
    )
    if names:
        arrays["grid_classes"] = np.array(names[:shown])
    if len(images) > 1:
        (_, full), (label, last) = images[0], images[-1]
        worst = worst_pairs(full, last, count=min(6, len(full)))
        arrays["worst"] = np.stack([bytes_of(full[worst]), bytes_of(last[worst])], 1)
        arrays["worst_labels"] = np.array(
            [", ".join([label, f"seed {k}", *names[k : k + 1]]) for k in worst]
        )
    return arrays


def bytes_of(images: Tensor) -> NDArray[np.uint8]:
    """Convert images [..., C, H, W] in [-1, 1] to uint8 [..., H, W, C]."""
    return np.asarray(as_bytes(images).movedim(-3, -1).contiguous().numpy())
