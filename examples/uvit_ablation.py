"""Is the CNN needed?  U-ViT without its long skips, without its last convolution, and a U-Net instead.

The question of Bao et al. 2023 (section 3.1, Figure 2), on handwritten digits and with three seeds each:
as a teacher of 64 DDIM steps, and as a student of 4.  The U-Net is diffusers', as wide as makes it cost
what the U-ViT costs.  docs/results/uvit-ablation.md has the table of a full run.

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
    """U-ViT without its parts, and a U-Net instead of it, as a teacher and as a student."""

    out: Path = Path("runs/uvit-ablation")
    """Folder for the runs, results.json and the picture; the same command again goes on where it stopped."""
    data: str = "digits"
    """digits, or fashion-mnist:FOLDER (padded to 32 x 32; for a GPU)."""
    features: str = ""
    """What the distance looks through; by default digits for digits, else efficientnet-lite0."""
    seeds: int = 3
    """Runs of each network."""
    updates: int = 2000
    """Updates of each teacher."""
    halving: int = 250
    """Updates of each halving: 32 steps to 16, 8, 4."""
    rate: float = 1e-3
    """Learning rate of all of them."""
    batch: int = 128
    """Images an update."""
    width: int = 64
    """Of the U-ViT's tokens."""
    depth: int = 4
    """Of the U-ViT: its blocks beside the middle one."""
    steps: int = 64
    """DDIM steps of a teacher."""
    n: int = 2000
    """Samples a distance."""
    quick: bool = False
    """Tiny numbers, one seed: to see that it runs."""


def main(options: Options) -> list[dict[str, object]]:
    """Train, distil and judge every network, seed by seed; the table, and what can be read off it."""
    if options.quick:
        tiny = {"seeds": 1, "updates": 2, "halving": 1, "batch": 8, "width": 16, "depth": 2}
        options = replace(options, **tiny, steps=2, n=64)
    size = 32 if options.data.startswith("fashion-mnist") else None
    data = halfstep.load_data(options.data, size=size)
    seen = features(options.features or ("efficientnet-lite0" if size else "digits"))
    known = data_features(seen, data, cache=cache_folder())
    judge = SampleScorer(seen, data.batch(torch.arange(len(data))).x0, known, n=options.n)
    rows = [described(name, data, options) for name in VARIANTS]
    for seed, row in product(range(options.seeds), rows):
        for score, found in zip(SCORES, scores(row, seed, data, judge, options), strict=True):
            row[score].append(found)
        print(
            f"seed {seed}: {row['network']} {' '.join(f'{row[s][-1]:.3f}' for s in SCORES)}",
            flush=True,
        )
        text = json.dumps({"floor": judge.floor, "n": options.n, "rows": rows}, indent=2)
        (options.out / "results.json").write_text(text + "\n")
    print(f"\n{table(rows)}\n\nsampling floor {judge.floor:.3f}; n = {options.n}")
    if options.seeds > 1:
        print(verdict(rows))
    drawn(rows, judge.floor, options.out / "uvit-ablation.png")
    return rows


def described(name, data, options):
    """A row before anything is trained: what the network costs.  Refuses what cannot be built."""
    options.out.mkdir(parents=True, exist_ok=True)
    net, config = network(name, data, options)
    pipeline = blank(net, config, 0, data)
    size = sum(p.numel() for p in pipeline.denoiser.parameters())
    made = {"network": name, "net": net, "config": config, "parameters": size}
    return {**made, "multiply_adds": multiply_adds(pipeline), **{score: [] for score in SCORES}}


def network(name, data, options):
    """The name and config of a variant's network."""
    patch = max(2, data.shape[-1] // 8)
    size = {"patch_size": patch, "embed_dim": options.width, "depth": options.depth, "num_heads": 4}
    if VARIANTS[name] is not None:
        return "uvit", {**size, **VARIANTS[name]}
    return "unet", equal(multiply_adds(blank("uvit", size, 0, data)), patch.bit_length(), data)


def equal(cost, levels, data):
    """The U-Net nearest to so many multiply-adds, of those twice as wide below as at the top or nearly so.

    Its lowest resolution is that of the U-ViT's tokens, and has the attention, in four heads.
    """
    configs, found = [], []
    for top in range(8, 257, 4):
        costs = []
        for below in range(2 * top - 4, 2 * top + 5, 4):
            configs.append(unet(top, below, levels))
            costs.append(multiply_adds(blank("unet", configs[-1], 0, data)))
        found += costs
        if min(costs) > cost:
            break
    return min(zip(found, configs, strict=True), key=lambda pair: abs(pair[0] - cost))[1]


def unet(top, below, levels):
    """diffusers' U-Net with a residual block a level (two on the way up)."""
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


def scores(row, seed, data, judge, options):
    """The Frechet distances of the teacher at its many steps and of the student at 4."""
    out = options.out / row["network"].lower().replace(" ", "-") / f"seed-{seed}"
    how = TrainingConfig(
        batch_size=options.batch, learning_rate=options.rate, warmup=50, ema=0.995, seed=seed
    )
    teacher = blank(row["net"], row["config"], seed, data)
    method = Denoising(updates=options.updates)
    teacher = halfstep.train(teacher, data, out / "teacher", method=method, training=how)
    method = Progressive(start=32, stop=4, updates=(options.halving,))
    how = replace(how, warmup=25, betas=(0.9, 0.99), ema=0.98)
    student = halfstep.distill(teacher, data, out / "student", method=method, training=how)
    ways = (teacher, options.steps), (student, 4)
    return [judge.distance(judge.sample(pipeline, "ddim", steps)) for pipeline, steps in ways]


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
    """Each network against the whole U-ViT: apart only if all seeds of one are below all seeds of the other.

    Of networks that do not differ, three seeds a side fall so by chance once in ten.
    """
    lines = []
    for row, score in product(rows[1:], SCORES):
        ours, other = rows[0][score], row[score]
        if max(other) < min(ours):
            said = "better with every seed"
        elif min(other) > max(ours):
            said = "worse with every seed"
        else:
            said = "within the spread over seeds"
        ratio = fmean(other) / fmean(ours)
        lines.append(f"{row['network']}, {score}: {ratio:.2f} of the {FULL}'s distance, {said}")
    return "\n".join(lines)


def drawn(rows, floor, path):
    """A point a seed, a bar at their mean."""
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
    said = axes[0].get_legend_handles_labels()
    figure.legend(*said, frameon=False, fontsize=9, loc="outside lower right")
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main(tyro.cli(Options))
