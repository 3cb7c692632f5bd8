"""A comparison of methods with round numbers, as if it had been measured."""

import numpy as np

from halfstep.evaluation.method_data import (
    ComparedMethod,
    ComparedRun,
    MethodComparison,
    MethodMean,
    MethodRow,
    ReferenceWalk,
)
from halfstep.evaluation.method_verdicts import verdict_at
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.drift import Drift
from halfstep.evaluation.metrics.seed_spread import SharedDistances
from halfstep.evaluation.report_data import Measurement, Provenance, TrainingCost
from halfstep.report.words.methods import summarised

MEASURE = Measurement(
    features="digits", preprocessing="as they are", digest="d" * 64, data="f" * 64, samples=2000,
    real=1797, real_few=1797, seed=0, guidance_scale=1.0, floor=0.03, left_out=(), machine="a machine",
)  # fmt: skip
TRAINING = {
    "optimiser": "adamw", "learning_rate": 3e-4, "learning_rate_schedule": "linear", "ema": 0.0,
    "weight_decay": 0.0,
}  # fmt: skip
MADE = Provenance(
    command="halfstep compare --out out", halfstep="0.2.0", torch="2.13.0", commit=None,
    machine="a machine", date="2026-11-30",
)  # fmt: skip


def around(value, width=0.01):
    return Interval(value, value - width, value + width)


def shared(distances, noise=0.0, resamples=200):
    """Distances whose resamples differ by so much, each sampler by its own."""
    values = np.array(distances, float)
    apart = np.random.default_rng(0).normal(size=(resamples, len(values))) * noise * values
    return SharedDistances(values, apart - apart.mean(0))


def comparison(distances, *, target=0.10, noise=0.001, alarm=None, images=False):
    """Of {method: {steps: [a distance for each seed]}}; the teacher's is 0.1."""
    methods = list(distances)
    counts = sorted({count for by in distances.values() for count in by}, reverse=True)
    rows, means, verdicts = [], [], []
    for count in counts:
        values, numbers = [0.1, target], {}
        for name in methods:
            seeds = distances[name].get(count, [])
            numbers[name] = list(range(len(values), len(values) + len(seeds)))
            values += seeds
        every = shared(values, noise)
        for name in methods:
            at = []
            for seed, k in enumerate(numbers[name]):
                drift = (
                    Drift("contrast", around(0.02 + 0.01 * seed), 0.03, alarm if seed else None),
                )
                at.append(MethodRow(
                    method=name, seed=seed, steps=count, calls=count, distance=around(values[k]),
                    ratio=every.ratio([k], [0]), target_ratio=every.ratio([k], [1]),
                    rmse=around(values[k] / 10), teacher_rmse=around(values[k] / 5), drift=drift,
                ))  # fmt: skip
            rows += at
            if at:
                ks = numbers[name]
                means.append(MethodMean(
                    method=name, steps=count, calls=count, seeds=len(at), distance=every.mean(ks),
                    ratio=every.ratio(ks, [0]), target_ratio=every.ratio(ks, [1]),
                    spread=every.spread(ks), rmse=every.mean(ks) / 10, rmse_spread=None,
                    teacher_rmse=every.mean(ks) / 5,
                ))  # fmt: skip
        there = [mean for mean in means if mean.steps == count]
        verdicts.append(
            verdict_at(count, there, every, {m.method: numbers[m.method] for m in there})
        )
    pictures = {}
    if images:
        pictures = {
            "grid": np.zeros((3, 4, 8, 8, 1), np.uint8),
            "grid_labels": np.array(["teacher, 64 steps", "target", "a, 4 steps"]),
        }
    same = target == 0.1
    runs = max(len(seeds) for by in distances.values() for seeds in by.values())
    return summarised(MethodComparison(
        provenance=MADE, measure=MEASURE, budget=1000, batch=8, training=TRAINING,
        counts=tuple(counts), seeds=runs,
        teacher=ReferenceWalk(sampler="ddim", steps=64, calls=64, distance=around(0.1)),
        target=ReferenceWalk(
            sampler="dpmpp-2m", steps=16, calls=16, distance=around(target),
            ratio=None if same else around(target / 0.1), rmse=None if same else around(0.04),
        ),
        methods=tuple(
            ComparedMethod(
                name=name, command="distill progressive", options={"start": 16, "updates": [1, 2]},
                planned=990, learns=("ddim", 16),
            ) for name in methods
        ),
        runs=tuple(
            ComparedRun(
                method=name, seed=seed, folder=f"runs/{name}-seed{seed}",
                cost=TrainingCost(seconds=3600.0 * (1 + seed), forwards=990.0, updates=100.0),
            ) for name in methods for seed in range(runs)
        ),
        rows=tuple(rows), means=tuple(means), verdicts=tuple(verdicts), pictures=pictures,
    ))  # fmt: skip
