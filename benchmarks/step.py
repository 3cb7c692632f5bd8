"""The cost of an update of a distillation, over that of its network calls alone.

    python -m benchmarks.step [--net uvit|unet|all] [--stage halving|guided|guided-halving|all]
                              [--device cpu|cuda|auto] [--json]

The floor is the necessary calls of the teacher's network, and one forward and backward of the student's, on
existing tensors.  A halving needs two forwards of the teacher; the first stage of a guided distillation one
of both branches in one batch; its halvings ('guided-halving') two forwards again, all networks taking the
guidance scale.  Measured against the floor are the objective's loss and backward ('update'), and the same
with gradient clip, optimiser and average of the weights ('whole update').  All three run in turn in one
process; a ratio is taken within each turn, and their median and quartiles are printed.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.timing import options_parser, prepare, Results, seconds, spread
from halfstep.batch import Batch, Cond
from halfstep.config import NetConfig
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.methods.diffusion.guided import AnyScale, MatchGuided
from halfstep.methods.diffusion.progressive import Halve
from halfstep.models import build
from halfstep.models.with_guidance import with_guidance
from halfstep.rng import Draw
from halfstep.training import TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.ema import Average
from halfstep.training.optimiser import Optimiser
from halfstep.training.update import step

NETS: dict[str, tuple[str, NetConfig, tuple[int, ...]]] = {
    "uvit": (
        "uvit",
        dict(img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4),
        (128, 1, 8, 8),
    ),
    "unet": (
        "unet",
        dict(
            sample_size=32,
            in_channels=3,
            block_out_channels=[32, 64],
            down_block_types=["DownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "UpBlock2D"],
            layers_per_block=1,
            norm_num_groups=8,
        ),
        (8, 3, 32, 32),
    ),
}
"""Name, config and shape of a batch: the digits' U-ViT, and a small U-Net of diffusers."""

LIMITS = {"uvit": (1.03, 1.06), "unet": (1.05, 1.15)}
"""Largest ratios of an update and of a whole update on a CPU; 1.10 and 1.10 on a GPU.  For the first guided
stage 1.03 with either net."""
STAGES = ("halving", "guided", "guided-halving")
CLASSES, RANGE = 10, (1.0, 5.0)
"""Classes and guidance scales of the guided stages; the null class comes after the classes."""


@dataclass
class Bench:
    """A teacher, a student and a batch, and the three things that are timed."""

    name: str
    device: torch.device
    dtype: torch.dtype | None = None
    compile: bool = False
    batch: int = 0
    """Images in a batch; 0 is the net's own number."""
    stage: str = "halving"
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        net, config, shape = NETS[self.name]
        shape = self.batch or shape[0], *shape[1:]
        torch.manual_seed(0)
        self.generator = torch.Generator(self.device).manual_seed(0)
        made = build(
            net, config if self.stage == "halving" else config | {"num_classes": CLASSES + 1}
        )
        teacher = Denoiser(made, Cosine(), V(), autocast=self.dtype).to(self.device)
        self.student, self.teacher = teacher.trainable_copy(), teacher.freeze()
        if self.stage != "halving":
            self.student.net = with_guidance(self.student.net)
        if self.stage == "guided-halving":
            self.teacher = self.student.trainable_copy().freeze()
        if self.compile:
            self.student.net.compile()
            self.teacher.net.compile()
        self._tensors(shape)
        self.settings = TrainingConfig(ema=0.98, max_grad_norm=1.0)
        optimiser = Optimiser(self.student, replace(self.settings, learning_rate=1e-4), fused=True)
        self.state = State(self.student, optimiser, Average(self.student, self.settings.ema), None)

    def _tensors(self, shape: tuple[int, ...]) -> None:
        """The objective with its batch, and the inputs of the networks in `floor`."""
        x0 = torch.randn(shape, device=self.device).clamp(-1, 1)
        t, label = 1000 * torch.rand(len(x0), device=self.device), torch.arange(len(x0)) % CLASSES
        cond = None if self.stage == "halving" else Cond(label.to(self.device))
        self.data = Batch(x0, cond)
        halve, calls = Halve(self.teacher, uniform(32)), 2
        self.objective: Any = halve
        self.inputs: tuple[Any, ...] = (x0, t, None)
        if cond is not None:
            scale = torch.linspace(*RANGE, len(x0), device=self.device)
            self.inputs = (x0, t, Cond(cond.label, guidance_scale=scale))
            self.objective = AnyScale(halve, RANGE)
        self.teacher_inputs = [self.inputs] * calls
        if self.stage == "guided":
            self.objective = MatchGuided(self.teacher, CLASSES, RANGE)
            both = cond.cat(cond.dropped(CLASSES))
            self.teacher_inputs = [(torch.cat([x0, x0]), t.repeat(2), both)]

    def floor(self) -> None:
        cast = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with cast:
            with torch.no_grad():
                for inputs in self.teacher_inputs:
                    self.teacher.net(*inputs)
            out = self.student.net(*self.inputs)
        out.square().mean().backward()

    def update(self) -> None:
        draw = Draw.all(self.generator, len(self.data.x0))
        self.objective(self.student, self.data, draw).mean().backward()

    def whole_update(self) -> None:
        self.update()
        step(self.student, self.state, self.settings, rate=1e-4)  # the engine's own
        self.state.update += 1

    def seconds(self, work: Callable[[], None], repeats: int = 1) -> float:
        """Seconds of one `work`, which begins without gradients."""

        def work_alone() -> None:
            work()
            if work != self.whole_update:  # which leaves no gradients behind
                self.student.zero_grad()

        self.student.zero_grad()
        return seconds(work_alone, self.device, repeats)


def measure(bench: Bench, rounds: int) -> Results:
    """Milliseconds of the floor, and the ratios of both updates to it: median and quartiles."""
    works = bench.floor, bench.update, bench.whole_update
    gpu = bench.device.type == "cuda"
    for work in works:
        bench.seconds(work, 10 if gpu else 2)  # warm-up; with --compile the compilation
    turns = []
    for k in range(rounds):
        # In both orders, so that a machine that becomes slower or faster favours none.
        order = works if k % 2 else works[::-1]
        turn = {work.__name__: 0.0 for work in works}
        for work in (*order, *order[::-1]):
            turn[work.__name__] += bench.seconds(work, 20 if gpu else 1) / 2
        turns.append(turn)
    ratios = {name: [turn[name] / turn["floor"] for turn in turns] for name in turns[0]}
    limits = (1.10, 1.10) if gpu else LIMITS[bench.name]
    if bench.stage == "guided" and not gpu:
        limits = 1.03, limits[1]
    return {
        "floor_ms": 1000 * statistics.median(turn["floor"] for turn in turns),
        "update": {**spread(ratios["update"]), "limit": limits[0]},
        "whole_update": {**spread(ratios["whole_update"]), "limit": limits[1]},
    }


def table(results: Results) -> str:
    """The results as a small table."""
    lines = [f"{'':<21}{'floor':>10}   {'':14}{'ratio':>7}   {'quartiles':<15}{'held to':>8}"]
    for (name, stage), result in _each(results):
        for key in ("update", "whole_update"):
            ms = f"{result['floor_ms']:>7.2f} ms"
            first = f"{name:<6}{stage:<15}{ms}" if key == "update" else " " * 31
            row = result[key]
            quartiles = f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(
                f"{first}   {key.replace('_', ' '):14}{row['ratio']:>7.3f}   {quartiles:<15}"
                f"{row['limit']:>8.2f}"
            )
    setting = "{device}, {dtype}, {threads} threads, torch {torch}, {rounds} rounds".format(
        **results
    )
    return "\n".join([setting + (", compiled" if results["compile"] else ""), *lines])


def _each(results: Results) -> Iterator[tuple[tuple[str, str], Results]]:
    for name, stages in results["nets"].items():
        for stage, result in stages.items():
            yield (name, stage), result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser("step", __doc__, rounds=20)
    parser.add_argument("--net", choices=[*NETS, "all"], default="all")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile both networks")
    parser.add_argument("--batch", type=int, default=0, help="images; 0 is each net's own")
    options = parser.parse_args(arguments)

    device, setting = prepare(options)
    dtype = torch.bfloat16 if options.dtype == "bf16" else None
    names = list(NETS) if options.net == "all" else [options.net]
    stages = STAGES if options.stage == "all" else [options.stage]

    def measured(name: str, stage: str) -> Results:
        bench = Bench(name, device, dtype, options.compile, options.batch, stage)
        return measure(bench, options.rounds)

    results = {
        **setting,
        "dtype": options.dtype,
        "compile": options.compile,
        "rounds": options.rounds,
        "nets": {name: {stage: measured(name, stage) for stage in stages} for name in names},
    }
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
