"""Compare parameterisations, loss weights and terminal SNRs.

The ablation of Salimans & Ho 2022, Table 1, on handwritten digits: output x weight x sampler, then zero
against non-zero terminal SNR; each as a teacher, and, unless halfstep refuses it, as a 4-step and a 1-step
student. One seed. docs/results/parameterisations.md has the table of a full run.

    python examples/parameterisations.py --out runs/parameterisations
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

import halfstep
from halfstep import BetaTable, Cosine, Denoiser, Denoising, Pipeline, Progressive, TrainingConfig
from halfstep.diffusion.prediction import PARAMETERISATIONS
from halfstep.errors import ConfigError, NonFinite
from halfstep.evaluation import digits_features, SampleScorer
from halfstep.models import infer_config

OUTPUTS, WEIGHTS = ("x0-and-eps", "x0", "eps", "v"), ("snr", "truncated-snr", "snr+1", "constant")
# Stable Diffusion's table of betas ends at alpha^2 = 0.0047; cosine-cut ends at the same level.
STABLE = {"kind": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ENDS = {
    "cosine": Cosine(),
    "cosine-cut": Cosine(logsnr_min=-5.36),
    "table": BetaTable(**STABLE),
    "table-zero-snr": BetaTable(**STABLE, zero_snr=True),
}
ROWS = [("cosine", output, weight) for output in OUTPUTS for weight in WEIGHTS]
ROWS += [(end, "v", "truncated-snr") for end in list(ENDS)[1:]]
ROWS += [(end, "eps", "snr") for end in list(ENDS)[1:]]
COLUMNS = ("schedule", "output", "weight", "ddim", "ancestral", "4 steps", "1 step")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Repeat the ablation of Salimans & Ho 2022, Table 1, on handwritten digits."""

    out: Path = Path("runs/parameterisations")
    """Folder for the runs and results.json; the same command again continues the runs."""
    updates: int = 400
    """Updates of each teacher."""
    halving: int = 50
    """Updates of each halving from 8 steps to 4, 2, 1; twice that for the last two."""
    steps: int = 16
    """Sampler steps of the teachers."""
    n: int = 1000
    """Samples for each distance."""
    batch: int = 64
    """Images per update."""
    quick: bool = False
    """Use tiny numbers and a few rows, as a test."""


def main(options: Options) -> list[dict[str, object]]:
    """Compute and print the table, row by row."""
    rows, results, data = ROWS, [], halfstep.load_data("digits")
    if options.quick:
        options = Options(out=options.out, updates=2, halving=1, steps=2, n=64, batch=8)
        rows = [ROWS[4], ROWS[6], ROWS[9], ROWS[-1]]
    scorer = SampleScorer(digits_features(), data.batch(torch.arange(len(data))).x0, n=options.n)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        results.append(
            dict(zip(COLUMNS, (*row, *scores(row, data, scorer, options)), strict=False))
        )
        print(
            f"| {' | '.join(formatted(results[-1].get(name, '')) for name in COLUMNS)} |",
            flush=True,
        )
        text = json.dumps({"floor": scorer.floor, "rows": results}, indent=2)
        (options.out / "results.json").write_text(text + "\n")
    print(f"\nsampling floor {scorer.floor:.2f}; n = {options.n}; {options.out / 'results.json'}")
    return results


def scores(row, data, scorer, options):
    """Distances of a teacher with both samplers and of two students; a refusal ends them with its reason."""
    schedule, output, weight = row
    out, row_scores = options.out / "-".join(row), []
    training = TrainingConfig(
        batch_size=options.batch, learning_rate=2e-3, warmup=50, ema=0.98, save_every=10_000
    )
    try:
        method = Denoising(updates=options.updates, weighting=weight)
        teacher = blank(ENDS[schedule], PARAMETERISATIONS[output], data)
        teacher = halfstep.train(teacher, data, out / "teacher", method=method, training=training)
        row_scores.append(scorer.teacher(teacher, options.steps))
        row_scores.append(scorer.row(teacher, "ancestral", options.steps))
        method = Progressive(start=8, updates=(options.halving,), weighting=weight)
        training = replace(training, warmup=0, learning_rate=1e-3)
        if (
            method.plan(teacher)[0].name == "v-teacher"
        ):  # the ablation is of what the teacher puts out
            raise ConfigError(
                "the teacher predicts eps, which does not determine the data at t = 1"
            )
        last = halfstep.distill(teacher, data, out / "student", method=method, training=training)
        four = Pipeline.load(out / "student" / "stages" / "0004-steps")
        row_scores += [scorer.row(four, "ddim", 4), scorer.row(last, "ddim", 1)]
    except (ConfigError, NonFinite) as error:
        return *(each.frechet_distance for each in row_scores), reason(error)
    return tuple(each.frechet_distance for each in row_scores)


def blank(schedule, output, data):
    """A class-conditional U-ViT of 0.27 million parameters, untrained, always with the same weights."""
    torch.manual_seed(0)
    sides = infer_config("uvit", data.shape, outputs=output.outputs, num_classes=data.num_classes)
    size = {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4}
    denoiser = Denoiser(halfstep.build("uvit", {**size, **sides}), schedule, output)
    return Pipeline(denoiser, data.shape, class_names=data.names, clip=1.0)


def reason(error):
    """The error message up to the first colon or full stop."""
    return f"refused: {str(error).split(':')[0].split('.  ')[0]}"


def formatted(value):
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Options))
