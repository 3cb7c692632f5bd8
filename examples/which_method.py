"""Distil two moons by every method for as many forwards, and draw what each of them learns from.

    python examples/which_method.py --out runs/which-method

prints the distance of each student's points from the end of the teacher's ODE, and draws which-method.png:
the same trajectory four times, with the steps whose end a student's one step is taught.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

import halfstep
from halfstep import Cosine, Denoiser, Denoising, Pipeline, RunFolder, TrainingConfig, V
from halfstep.methods import METHODS
from halfstep.methods.base import Method
from halfstep.report.images.png import STUDENT, TEACHER
from halfstep.rng import sample_noise

COUNTS = (8, 4, 2, 1)
FINE, ODE = 16, 512
"""Steps of the trajectory that the methods learn, and of DDIM for the end of the teacher's ODE."""
POINTS = 2000
NAMES = (
    "progressive",
    "multistep-consistency",
    "flow-map",
    "parallel-decoding",
    "cached-walks",
)
OPTIONS = {"cached-walks": {"solver": "ddim"}}
"""All methods learn the same DDIM steps of the teacher."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Distil two moons by every method for as many forwards, and draw what each of them learns from."""

    out: Path = Path("runs/which-method")
    """Folder for the runs and which-method.png; the same command again continues the runs."""
    updates: int = 2000
    """Updates of the teacher."""
    budget: int = 2_000_000
    """Forwards of each method, the teacher's trajectories included."""
    methods: tuple[str, ...] = NAMES
    """Methods by name."""
    seed: int = 0
    """Seed of training; the points are always the same."""
    noise: int = 51
    """Number of the noise whose trajectory is drawn."""


def trained_teacher(options: Options) -> Pipeline:
    """A teacher of two moons."""
    torch.manual_seed(0)
    blank = Pipeline(Denoiser(halfstep.build("mlp", {"width": 64}), Cosine(), V()), shape=(2,))
    training = TrainingConfig(batch_size=256, learning_rate=2e-3, ema=0.99)
    method, folder = Denoising(updates=options.updates), options.out / "teacher"
    return halfstep.train(blank, "two-moons", folder, method=method, training=training)


def distilled(teacher: Pipeline, name: str, options: Options) -> RunFolder:
    """The run of a method, within the budget."""
    method: Method = METHODS[name](start=FINE, **OPTIONS.get(name, {}))
    training = TrainingConfig(batch_size=128, learning_rate=2e-3, ema=0.98, seed=options.seed)
    method = method.with_budget(teacher, options.budget, training.batch_size, name=name)
    folder = options.out / f"{name}-{options.seed}"
    halfstep.distill(teacher, "two-moons", folder, method=method, training=training)
    return RunFolder.open(folder)


def distances(teacher: Pipeline, runs: dict[str, RunFolder]) -> dict[str, list[float]]:
    """The distance of each student's points from the ends of the teacher's ODE, root mean square."""
    ends = teacher.sample(POINTS, seed=1, steps=ODE)

    def distance(pipeline: Pipeline, steps: int) -> float:
        apart = pipeline.sample(POINTS, seed=1, steps=steps) - ends
        return float(apart.square().sum(1).mean().sqrt())

    found = {
        f"teacher, {FINE} steps": [distance(teacher, FINE)] * len(COUNTS),
        "teacher, DDIM": [distance(teacher, steps) for steps in COUNTS],
    }
    for name, run in runs.items():
        found[name] = [distance(run.student(steps), steps) for steps in COUNTS]
    return found


def main(options: Options) -> dict[str, list[float]]:
    """Train and distil, print the distances and draw the targets; returns the distances by method."""
    teacher = trained_teacher(options)
    runs = {name: distilled(teacher, name, options) for name in options.methods}
    found = distances(teacher, runs)
    print(f"{'steps':<24}" + "".join(f"{steps:>8}" for steps in COUNTS))
    for name, row in found.items():
        print(f"{name:<24}" + "".join(f"{value:8.3f}" for value in row))
    path = trajectory(teacher, options.noise)
    figure = Figure(figsize=(9.6, 8.2), layout="constrained")
    for axis, (title, steps, learnt) in zip(figure.subplots(2, 2).flat, TARGETS, strict=True):
        draw(axis, path, title, steps, learnt)
    figure.legend(
        handles=_legend(), loc="outside lower center", ncols=2, frameon=False, fontsize=10
    )
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "which-method.png", dpi=140)
    print(options.out / "which-method.png")
    return found


# -- the picture ---------------------------------------------------------------------------------------

Arrow = tuple[int, int, str]
"""From a point of the trajectory to another; who predicts it."""
TARGETS: Sequence[tuple[str, Sequence[Arrow], tuple[int, int]]] = (
    ("progressive distillation: teacher, teacher", [(0, 4, "t"), (4, 8, "t")], (0, 8)),
    ("multistep consistency: teacher, student", [(0, 4, "t"), (4, 16, "s")], (0, 16)),
    ("flow map: student, student", [(0, 8, "s"), (8, 16, "s")], (0, 16)),
    (
        "parallel decoding: teacher, at the student's points",
        [(0, 4, "t"), (4, 8, "t"), (8, 12, "t"), (12, 16, "t")],
        (0, 16),
    ),
)
"""Title, the arrows of the target, and the step that learns to land where they land."""


def trajectory(teacher: Pipeline, number: int) -> Tensor:
    """The points of the teacher's DDIM steps from one noise: float [FINE + 1, 2]."""
    noise, times = sample_noise(0, [number], (2,)), teacher.grid(FINE)
    ends = [halfstep.sample(teacher.denoiser, noise, times[: k + 1]) for k in range(1, FINE + 1)]
    return torch.cat([noise, *ends])


def draw(
    axis: Axes, path: Tensor, title: str, steps: Sequence[Arrow], learnt: tuple[int, int]
) -> None:
    """The trajectory, the arrows of a target, and the one that learns them."""
    data = halfstep.load_data("two-moons").values[:3000]
    axis.scatter(*data.T, s=6, color="#e3e3e3", linewidths=0)
    axis.plot(*path.T, color="#a8a8a8", lw=1)
    axis.plot(*path[::4].T, "o", color="#a8a8a8", ms=5)
    axis.plot(*path[0], "o", mfc="white", mec=TEACHER, ms=8)
    for start, end, who in steps:
        _arrow(axis, path[start], path[end], TEACHER if who == "t" else STUDENT, 0.3)
    _arrow(axis, path[learnt[0]], path[learnt[1]], STUDENT, -0.3, style="dashed")
    middle, reach = (
        (path.amax(0) + path.amin(0)) / 2,
        0.75 * float((path.amax(0) - path.amin(0)).max()),
    )
    for limits, value in ((axis.set_xlim, middle[0]), (axis.set_ylim, middle[1])):
        limits(float(value) - reach, float(value) + reach)
    axis.set_title(title, fontsize=11)
    axis.set_aspect("equal")
    axis.axis("off")


def _legend() -> list[Line2D]:
    """What the lines stand for."""
    return [
        Line2D(
            [], [], color="#a8a8a8", lw=1, marker="o", label="the teacher's trajectory, from noise"
        ),
        Line2D([], [], color=TEACHER, lw=1.6, label="a step of the teacher"),
        Line2D([], [], color=STUDENT, lw=1.6, label="of the student, without gradient"),
        Line2D([], [], color=STUDENT, lw=1.6, ls="dashed", label="the step that is learnt"),
    ]


def _arrow(
    axis: Axes, start: Tensor, end: Tensor, colour: str, bend: float, *, style: str = "solid"
) -> None:
    arrow = {
        "arrowstyle": "-|>", "color": colour, "lw": 1.6, "linestyle": style,
        "connectionstyle": f"arc3,rad={bend}", "shrinkA": 2, "shrinkB": 2,
    }  # fmt: skip
    axis.annotate("", end.tolist(), start.tolist(), arrowprops=arrow, zorder=4)


if __name__ == "__main__":
    main(tyro.cli(Options))
