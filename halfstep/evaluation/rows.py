"""One row of the evidence: what samples score, each number with an interval; and the pictures of all rows."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halfstep.evaluation.cost import calls_of, SamplingSetup
from halfstep.evaluation.distance_intervals import (
    frechet_interval,
    kernel_interval,
    precision_recall_intervals,
    raw_frechet_interval,
)
from halfstep.evaluation.distances import inception_score
from halfstep.evaluation.drift import drift
from halfstep.evaluation.fidelity import fidelity, worst_pairs
from halfstep.evaluation.intervals import basic_bootstrap, Interval
from halfstep.evaluation.memorisation import memorisation
from halfstep.evaluation.sample_sets import SampleScorer, SampleSet
from halfstep.pipeline.walks import draws_noise

ROWS_A_FEATURE = 10
"""Samples a feature below which the interval of the true Fréchet distance means nothing."""
METRICS = ("frechet", "kernel", "inception", "precision-recall")


def row(
    who: str,
    name: str,
    way: SamplingSetup,
    seen: SampleSet,
    judge: SampleScorer,
    metrics: Collection[str],
    full: SampleSet | None = None,
) -> dict[str, Any]:
    """What these samples score; what only students have, and cost, is None until it is filled in.

    way   what drew them: a pipeline, its sampler, and how many steps
    full  the teacher's samples at full steps, of the same noise
    """
    _, sampler, steps = way
    return {
        "who": who,
        "name": name,
        "sampler": sampler,
        "steps": steps,
        "calls": calls_of(*way, judge.guidance),
        "distances": _distances(seen, judge, metrics),
        "ratio": None if full is None else judge.ratio(seen, full).to_json(),
        "fidelity": None if full is None or draws_noise(sampler) else _fidelity(full, seen),
        "split": None,
        "memorisation": None,
        "drift": None,
        "cost": None,
    }


def _distances(seen: SampleSet, judge: SampleScorer, metrics: Collection[str]) -> dict[str, Any]:
    real, few, fake = judge.real_features, judge.real_few, seen.features
    found: dict[str, Interval] = {"frechet_distance": raw_frechet_interval(real, fake)}
    if min(len(real), len(fake)) >= ROWS_A_FEATURE * real.shape[1]:
        truth = frechet_interval(real, fake)
        found["frechet_unbiased"] = replace(truth, value=(truth.low + truth.high) / 2)
    if "kernel" in metrics:
        found["kernel_distance"] = kernel_interval(few, fake)
    if "inception" in metrics and judge.features.head is not None:
        chances = judge.features.probabilities(fake)
        found["inception_score"] = basic_bootstrap(inception_score, chances)
    if "precision-recall" in metrics:
        found["precision"], found["recall"] = precision_recall_intervals(few, fake)
    return {name: value.to_json() for name, value in found.items()}


def _fidelity(full: SampleSet, seen: SampleSet) -> dict[str, Any]:
    return fidelity(full.images, seen.images, full.features, seen.features).to_json()


def drifted(full: SampleSet, seen: SampleSet) -> list[dict[str, object]] | None:
    """Of images large and many enough; points have no colours."""
    if seen.images.ndim != 4 or min(seen.images.shape[2:]) < 3 or len(seen) < 8:
        return None
    return [one.to_json() for one in drift(full.images, seen.images)]


def memorised(
    seen: SampleSet, held_out: Tensor | None, judge: SampleScorer
) -> dict[str, Any] | None:
    """By distances in feature space; None without data that was held out."""
    if held_out is None:
        return None
    return memorisation(seen.features, judge.real_features, held_out).to_json()


def pictures(images: list[tuple[str, Tensor]], shown: int) -> dict[str, NDArray[Any]]:
    """The same seeds down the columns, and the worst pairs of the student of the fewest steps."""
    if images[0][1].ndim != 4:
        return {}
    found = {
        "grid": np.stack([_bytes(x[:shown]) for _, x in images]),
        "grid_labels": np.array([label for label, _ in images]),
    }
    if len(images) > 1:
        (_, full), (label, last) = images[0], images[-1]
        worst = worst_pairs(full, last, count=min(6, len(full)))
        found["worst"] = np.stack([_bytes(full[worst]), _bytes(last[worst])], 1)
        found["worst_labels"] = np.array([f"{label}, seed {k}" for k in worst])
    return found


def _bytes(images: Tensor) -> NDArray[Any]:
    """[N, C, H, W] in [-1, 1] to uint8 [N, H, W, C]."""
    levels: NDArray[Any] = ((images + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    return levels.transpose(0, 2, 3, 1)
