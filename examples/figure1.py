"""Draw Figure 1 of Salimans & Ho 2022 from a real run: two moons, 64 steps distilled into one.

All paths start from the same noise. Left: the teacher in 64 DDIM steps and in 4. Right: the student in 4
steps, and in the 1 step that was distilled from them.

    python examples/figure1.py --out runs/figure1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import halfstep
from halfstep import Cosine, Denoiser, Denoising, Pipeline, Progressive, TrainingConfig, V
from halfstep.diffusion.samplers import ddim, ModelFn, ModelOutput, Step, TimePoint
from halfstep.report.images.png import DDIM, STUDENT, TEACHER
from halfstep.rng import sample_noise


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw Figure 1 of Salimans & Ho 2022 from a real run on two moons."""

    out: Path = Path("runs/figure1")
    """Folder for the runs and figure1.png; the same command again continues the runs."""
    updates: int = 2000
    """Updates of the teacher."""
    halving: int = 300
    """Updates of each halving from 64 steps to 1; twice that for the last two."""
    seed: int = 0
    """Seed of the noise."""
    points: int = 9
    """Number of paths."""


def recording(step: Step, path: list[Tensor]) -> Step:
    """A step that appends each x to `path`."""

    def record(
        x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn
    ) -> Tensor:
        path.append(step(x, history, to, model_fn))
        return path[-1]

    return record


def ddim_path(pipeline: Pipeline, noise: Tensor, steps: int) -> Tensor:
    """The points of DDIM sampling, noise first: float [steps + 1, B, 2]."""
    path = [noise]
    halfstep.sample(pipeline.denoiser, noise, pipeline.grid(steps), recording(ddim, path))
    return torch.stack(path)


def train_models(options: Options) -> tuple[Pipeline, Pipeline, Pipeline]:
    """Train a teacher of two moons; return it, its four-step student and its one-step student."""
    torch.manual_seed(0)
    blank = Pipeline(Denoiser(halfstep.build("mlp", {"width": 128}), Cosine(), V()), shape=(2,))
    training = TrainingConfig(batch_size=512, learning_rate=2e-3, ema=0.99)
    method = Denoising(updates=options.updates)
    folder = options.out / "teacher"
    teacher = halfstep.train(blank, "two-moons", folder, method=method, training=training)
    training = TrainingConfig(batch_size=512, learning_rate=1e-3)
    halving = Progressive(start=64, updates=(options.halving,))
    folder = options.out / "student"
    last = halfstep.distill(teacher, "two-moons", folder, method=halving, training=training)
    return teacher, Pipeline.load(folder / "stages" / "0004-steps"), last


def main(options: Options) -> Path:
    """Train and distil the models, and draw the figure; returns its path."""
    teacher, student, last = train_models(options)
    noise = sample_noise(options.seed, range(options.points), (2,))
    fine = ddim_path(teacher, noise, 64)
    coarse, four, one = (ddim_path(p, noise, n) for p, n in ((teacher, 4), (student, 4), (last, 1)))
    for name, path in (("4 DDIM steps", coarse), ("4 distilled", four), ("1 distilled", one)):
        distance = float((path[-1] - fine[-1]).square().sum(1).mean().sqrt())
        print(f"{name:<13} end {distance:.3f} from the 64 steps (root mean square)")
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, title in ((left, "the teacher"), (right, "the student")):
        backdrop(axis, fine)
        axis.set_title(title, fontsize=11)
    steps(left, coarse, DDIM, "4 DDIM steps")
    steps(right, four, TEACHER, "4 steps, distilled from 64")
    arrows(right, one)
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0))
    figure.savefig(options.out / "figure1.png", dpi=140)
    print(options.out / "figure1.png")
    return options.out / "figure1.png"


def backdrop(axis: Axes, fine: Tensor) -> None:
    """Draw the data, the fine paths and their noise."""
    data = halfstep.load_data("two-moons").values[:3000]
    axis.scatter(*data.T, s=3, color="#e3e3e3", linewidths=0)
    axis.plot(*fine.unbind(-1), color="#a8a8a8", lw=1.2, label=_labels("64 DDIM steps", fine))
    axis.plot(*fine[0].T, "o", mfc="white", mec=TEACHER, ms=7, zorder=5, label="noise")
    axis.set_aspect("equal")
    axis.axis("off")


def steps(axis: Axes, path: Tensor, colour: str, label: str) -> None:
    style = {"color": colour, "lw": 1.3, "ms": 4, "marker": "o"}
    axis.plot(*path.unbind(-1), label=_labels(label, path), **style)


def arrows(axis: Axes, path: Tensor) -> None:
    style = {"arrowstyle": "-|>", "color": STUDENT, "lw": 1.8, "shrinkA": 4, "shrinkB": 0}
    for start, end in path.unbind(1):
        axis.annotate("", end, start, arrowprops=style, zorder=4)
    axis.plot([], [], color=STUDENT, lw=1.8, label="1 step, distilled from those")


def _labels(label: str, path: Tensor) -> list[str]:
    """A label for each sample's line; the legend shows only the first."""
    return [label, *["_"] * (path.shape[1] - 1)]


if __name__ == "__main__":
    main(tyro.cli(Options))
