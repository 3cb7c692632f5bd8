"""Is the CNN needed? Compare U-ViT, U-ViT without long skips or without the last convolution, and a U-Net.

The question of Bao et al. 2023 (section 3.1, Figure 2), on handwritten digits and with three seeds each:
as a teacher of 64 DDIM steps, and as a student of 4. The U-Net is that of diffusers, with a width at which
it costs as much as the U-ViT. docs/results/uvit-ablation.md has the table of a full run.

    python examples/uvit_ablation.py --out runs/uvit-ablation
"""

import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch
import tyro
from matplotlib.figure import Figure

import halfstep
from halfstep import Cosine, Denoiser, Denoising, Pipeline, Progressive, TrainingConfig, V
from halfstep.evaluation import cache_folder, data_features, SampleScorer
from halfstep.evaluation.features.registry import features
from halfstep.evaluation.metrics.cost import multiply_adds
from halfstep.models import infer_config
from halfstep.report.images.png import DDIM, STUDENT, TEACHER

FULL = "U-ViT"
VARIANTS = {
    FULL: {},
    "no long skips": {"skip": False},
    "no final convolution": {"conv": False},
    "U-Net": None,
}
SCORES = ("teacher", "student")
HEADS = ("network", "multiply-adds", "parameters", "teacher, 64 steps", "student, 4 steps")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare U-ViT, U-ViT without some parts and a U-Net, as teachers and as students."""

    out: Path = Path("runs/uvit-ablation")
    """Folder for the runs, results.json and the picture; the same command again continues the runs."""
    data: str = "digits"
    """digits, or fashion-mnist:FOLDER (padded to 32 x 32; for a GPU)."""
    features: str = ""
    """Features of the distance; by default digits for digits, else efficientnet-lite0."""
    seeds: int = 3
    """Number of runs of each network."""
    updates: int = 2000
    """Updates of each teacher."""
    halving: int = 250
    """Updates of each halving from 32 steps to 16, 8, 4."""
    rate: float = 1e-3
    """Learning rate of all trainings."""
    batch: int = 128
    """Images per update."""
    width: int = 64
    """Width of the U-ViT's tokens."""
    depth: int = 4
    """Blocks of the U-ViT, without the middle one."""
    steps: int = 64
    """DDIM steps of the teachers."""
    n: int = 2000
    """Samples for each distance."""
    quick: bool = False
    """Use tiny numbers and one seed, as a test."""


def main(options: Options) -> list[dict[str, object]]:
    """Train, distil and evaluate every network, seed by seed; print the table and the comparisons."""
    if options.quick:
        tiny = {"seeds": 1, "updates": 2, "halving": 1, "batch": 8, "width": 16, "depth": 2}
        options = replace(options, **tiny, steps=2, n=64)
    size = 32 if options.data.startswith("fashion-mnist") else None
    data = halfstep.load_data(options.data, size=size)
    extractor = features(options.features or ("efficientnet-lite0" if size else "digits"))
    real_features = data_features(extractor, data, cache=cache_folder())
    scorer = SampleScorer(
        extractor, data.batch(torch.arange(len(data))).x0, real_features, n=options.n
    )
    rows = [new_row(name, data, options) for name in VARIANTS]
    for seed, row in product(range(options.seeds), rows):
        for score, distance in zip(SCORES, scores(row, seed, data, scorer, options), strict=True):
            row[score].append(distance)
        print(
            f"seed {seed}: {row['network']} {' '.join(f'{row[s][-1]:.3f}' for s in SCORES)}",
            flush=True,
        )
        text = json.dumps({"floor": scorer.floor, "n": options.n, "rows": rows}, indent=2)
        (options.out / "results.json").write_text(text + "\n")
    print(f"\n{table(rows)}\n\nsampling floor {scorer.floor:.3f}; n = {options.n}")
    if options.seeds > 1:
        print(verdict(rows))
    draw(rows, scorer.floor, options.out / "uvit-ablation.png")
    return rows


def new_row(name, data, options):
    """A row with the network's cost, before training. Refuses a network that cannot be built."""
    options.out.mkdir(parents=True, exist_ok=True)
    net, config = network(name, data, options)
    pipeline = blank(net, config, 0, data)
    size = sum(p.numel() for p in pipeline.denoiser.parameters())
    costs = {"network": name, "net": net, "config": config, "parameters": size}
    return {**costs, "multiply_adds": multiply_adds(pipeline), **{score: [] for score in SCORES}}


def network(name, data, options):
    """The name and config of a variant's network."""
    patch = max(2, data.shape[-1] // 8)
    size = {"patch_size": patch, "embed_dim": options.width, "depth": options.depth, "num_heads": 4}
    if VARIANTS[name] is not None:
        return "uvit", {**size, **VARIANTS[name]}
    return "unet", matching_unet(
        multiply_adds(blank("uvit", size, 0, data)), patch.bit_length(), data
    )


def matching_unet(cost, levels, data):
    """Config of the U-Net nearest to `cost` multiply-adds, about twice as wide below as at the top.

    Its lowest resolution is that of the U-ViT's tokens; its only attention is there, with four heads.
    """
    configs, all_costs = [], []
    for top in range(8, 257, 4):
        costs = []
        for below in range(2 * top - 4, 2 * top + 5, 4):
            configs.append(unet(top, below, levels))
            costs.append(multiply_adds(blank("unet", configs[-1], 0, data)))
        all_costs += costs
        if min(costs) > cost:
            break
    return min(zip(all_costs, configs, strict=True), key=lambda pair: abs(pair[0] - cost))[1]


def unet(top, below, levels):
    """Config of diffusers' U-Net with one residual block in each level (two on the way up)."""
    plain = levels - 1
    return {
        "block_out_channels": [top, *[below] * plain],
        "down_block_types": [*["DownBlock2D"] * plain, "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", *["UpBlock2D"] * plain],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": below // 4,
    }


def blank(net, config, seed, data):
    """An untrained class-conditional network that predicts v."""
    torch.manual_seed(seed)
    sides = infer_config(net, data.shape, outputs=V.outputs, num_classes=data.num_classes)
    denoiser = Denoiser(halfstep.build(net, {**config, **sides}), Cosine(), V())
    return Pipeline(denoiser, data.shape, class_names=data.names, clip=1.0)


def scores(row, seed, data, scorer, options):
    """Fréchet distances of the teacher at full steps and of the student at 4."""
    out = options.out / row["network"].lower().replace(" ", "-") / f"seed-{seed}"
    training = TrainingConfig(
        batch_size=options.batch, learning_rate=options.rate, warmup=50, ema=0.995, seed=seed
    )
    teacher = blank(row["net"], row["config"], seed, data)
    method = Denoising(updates=options.updates)
    teacher = halfstep.train(teacher, data, out / "teacher", method=method, training=training)
    method = Progressive(start=32, stop=4, updates=(options.halving,))
    training = replace(training, warmup=25, betas=(0.9, 0.99), ema=0.98)
    student = halfstep.distill(teacher, data, out / "student", method=method, training=training)
    setups = (teacher, options.steps), (student, 4)
    return [scorer.distance(scorer.sample(pipeline, "ddim", steps)) for pipeline, steps in setups]


def table(rows):
    """Mean and standard deviation over the seeds, in Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        size = f"{row['multiply_adds'] / 1e6:.2f} M | {row['parameters'] / 1e6:.3f} M"
        lines.append(
            f"| {row['network']} | {size} | {' | '.join(spread(row[s]) for s in SCORES)} |"
        )
    return "\n".join(lines)


def spread(values):
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def verdict(rows):
    """Compare each network with the full U-ViT: different only if no seeds overlap.

    With three seeds each, equal networks differ so by chance once in ten times.
    """
    lines = []
    for row, score in product(rows[1:], SCORES):
        ours, other = rows[0][score], row[score]
        if max(other) < min(ours):
            difference = "better with every seed"
        elif min(other) > max(ours):
            difference = "worse with every seed"
        else:
            difference = "within the spread over seeds"
        ratio = fmean(other) / fmean(ours)
        lines.append(
            f"{row['network']}, {score}: {ratio:.2f} of the {FULL}'s distance, {difference}"
        )
    return "\n".join(lines)


def draw(rows, floor, path):
    """Draw a point for each seed and a bar at their mean."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, score, title, colour in zip(
        axes, SCORES, HEADS[-2:], (TEACHER, STUDENT), strict=True
    ):
        for k, row in enumerate(rows):
            axis.plot(row[score], [k] * len(row[score]), "o", color=colour, alpha=0.6, ms=6, mew=0)
            axis.plot(fmean(row[score]), k, "|", color=colour, ms=22, mew=2)
        axis.axvline(floor, color=DDIM, lw=1, ls=":", label="perfect samples")
        axis.set_xlim(left=0)
        axis.set_yticks(range(len(rows)), [row["network"] for row in rows])
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("Fréchet distance")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=9, loc="outside lower right")
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main(tyro.cli(Options))
