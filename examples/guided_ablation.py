"""Compare one student for a range of guidance scales with students trained for one scale each.

The ablation of Meng et al. 2023, on handwritten digits: the same teacher, the same updates for every
student, each compared with the guided teacher at its scale. The student for the range costs one
training, the others one each.

    python examples/guided_ablation.py --out runs/guided-ablation
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

import halfstep
from halfstep import GuidedDistillation, Pipeline, Progressive, TrainingConfig
from halfstep.evaluation import cache_folder, digits_features, SampleScorer
from halfstep.evaluation.guided_comparison import GuidedCandidates, GuidedEvaluation
from halfstep.hub import bundled_teacher


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare one student for every scale with one student for each scale."""

    out: Path = Path("runs/guided-ablation")
    """Folder for the runs and results.json; the same command again continues the runs."""
    scales: tuple[float, ...] = (1.0, 2.0, 3.0)
    """Guidance scales; the range goes from the lowest to the highest."""
    updates: int = 1000
    """Updates of the first stage."""
    halving_updates: tuple[int, ...] = (100, 150, 200, 250, 250, 250)
    """Updates of each halving, from 64 steps to 1."""
    n: int = 2000
    """Samples for each distance."""
    quick: bool = False
    """Use tiny numbers, as a test."""


def main(options: Options) -> list[dict[str, float]]:
    """Train and evaluate all students; a row for every scale and number of steps."""
    if options.quick:
        options = replace(options, scales=(1.0, 3.0), updates=2, halving_updates=(1,), n=32)
    data, teacher = halfstep.load_data("digits"), bundled_teacher()
    scorer = SampleScorer(digits_features(), data.batch(torch.arange(len(data))).x0, n=options.n)
    low, high = min(options.scales), max(options.scales)
    ranged = _students(options, teacher, (low, high))
    rows = []
    for scale in options.scales:
        single = _students(options, teacher, (scale, scale))
        for_range = _distances(teacher, ranged, scorer, scale)
        for_one = _distances(teacher, single, scorer, scale)
        rows += [
            {
                "guidance_scale": scale,
                "steps": steps,
                "range": for_range[steps],
                "one": for_one[steps],
            }
            for steps in for_one
        ]
    print(_table(rows))
    (options.out / "results.json").write_text(json.dumps(rows, indent=1))
    return rows


def _students(
    options: Options, teacher: Pipeline, guidance_range: tuple[float, float]
) -> list[Pipeline]:
    """Distil students for these scales; return those of 8 steps and fewer."""
    out = options.out / f"{guidance_range[0]:g}-{guidance_range[1]:g}"
    method = GuidedDistillation(
        guidance_range=guidance_range,
        updates=options.updates,
        halving=Progressive(start=64, updates=options.halving_updates, target_clip=1.0),
    )
    training = TrainingConfig(
        batch_size=64,
        learning_rate=2e-3,
        optimiser="muon",
        warmup=40,
        betas=(0.9, 0.99),
        max_grad_norm=1.0,
        ema=0.98,
    )
    halfstep.distill(teacher, "digits", out, method=method, training=training)
    return [Pipeline.load(out / "stages" / f"{steps:04d}-steps") for steps in (8, 4, 2, 1)]


def _distances(
    teacher: Pipeline, students: list[Pipeline], scorer: SampleScorer, scale: float
) -> dict[int, float]:
    """Fréchet distance to the guided teacher over the teacher's own, by steps."""
    candidates = GuidedCandidates(teacher, students, cache=cache_folder())
    rows = GuidedEvaluation(candidates, scorer, [scale]).table().rows
    return {row.steps: row.floor_ratio.value for row in rows if row.role == "student"}


def _table(rows: list[dict[str, float]]) -> str:
    lines = [
        "| guidance | steps | one student for the range | one for this scale |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append("| {guidance_scale:g} | {steps} | {range:.2f} | {one:.2f} |".format(**row))
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
