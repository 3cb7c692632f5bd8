"""Measure what a LoRA costs in quality, and what distilling without data costs, on handwritten digits.

The bundled teacher is halved from 32 steps to 1 at equal updates: all weights, or adapters of rank 64 (full
rank: every layer has a side of at most 64), 16 and 4; on data, or on walks from noise. One seed.
docs/results/lora.md has the table of a full run.

    python examples/lora.py --out runs/lora
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import halfstep
from halfstep import Progressive, TrainingConfig
from halfstep.evaluation import digits_features, SampleScorer
from halfstep.hub import bundled_teacher
from halfstep.models.lora import Lora

COUNTS = (8, 4, 2, 1)
"""Steps of the students that are scored."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Halve the bundled digits teacher by adapters, and without data."""

    out: Path = Path("runs/lora")
    """Folder for the runs and results.json; the same command again continues the runs."""
    ranks: tuple[int, ...] = (0, 64, 16, 4)
    """Ranks of the adapters; 0 trains all weights."""
    data: tuple[str, ...] = ("digits", "none", "none:student")
    """Where the noisy images come from."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    """Learning rates of AdamW for all weights, and for an adapter."""
    updates: tuple[int, ...] = (550, 650, 750, 600, 350)
    """Updates of each halving."""
    batch: int = 64
    """Images per update."""
    n: int = 2000
    """Samples for each distance."""
    seed: int = 0
    """Seed of training."""


def main(options: Options) -> list[dict[str, object]]:
    """Compute and print the table, row by row."""
    teacher, data = bundled_teacher(), halfstep.load_data("digits")
    scorer = SampleScorer(digits_features(), data.batch(torch.arange(len(data))).x0, n=options.n)
    reference = scorer.teacher(teacher, 64).frechet_distance
    results = []
    print("| noisy images from | rank | 8 | 4 | 2 | 1 |\n|---|---|---:|---:|---:|---:|")
    for source in options.data:
        for rank in options.ranks:
            run = options.out / f"{source.replace(':', '-')}-{rank or 'all'}"
            distil(teacher, data if source == "digits" else source, run, rank, options)
            stages = [halfstep.Pipeline.load(run / "stages" / f"{n:04d}-steps") for n in COUNTS]
            ratios = [
                scorer.row(student, "ddim", n).frechet_distance / reference
                for student, n in zip(stages, COUNTS, strict=True)
            ]
            results.append(
                {"data": source, "rank": rank, **dict(zip(map(str, COUNTS), ratios, strict=True))}
            )
            cells = " | ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"| {source} | {rank or 'all weights'} | {cells} |", flush=True)
            text = json.dumps(
                {"teacher": reference, "floor": scorer.floor, "rows": results}, indent=2
            )
            (options.out / "results.json").write_text(text + "\n")
    return results


def distil(teacher, data, out, rank, options):
    """Halve the teacher to one step, all weights or an adapter of this rank."""
    rate = options.learning_rates[1 if rank else 0]
    training = TrainingConfig(
        batch_size=options.batch, learning_rate=rate, warmup=40, betas=(0.9, 0.99), ema=0.98,
        save_every=10_000, seed=options.seed,
    )  # fmt: skip
    method = Progressive(start=2 ** len(options.updates), updates=options.updates)
    lora = Lora(rank=rank) if rank else None
    halfstep.distill(teacher, data, out, method=method, training=training, lora=lora)


if __name__ == "__main__":
    main(tyro.cli(Options))
