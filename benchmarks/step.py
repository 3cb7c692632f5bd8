"""What one update of a distillation costs over the network calls it cannot do without.

    python -m benchmarks.step [--net uvit|unet|all] [--stage halving|guided|guided-halving|all]
                              [--device cpu|cuda|auto] [--json]

The floor is what the teacher's bare network must do, and one forward and backward of the student's, on
tensors that are there already.  Of a halving, the teacher's are two forwards; of the first stage of a
guided distillation one of both branches in one batch; of its halvings ('guided-halving') two forwards
again, all networks taking the guidance scale.  Over the floor are measured the objective's loss and
backward ('update'), and the same with gradient clip, optimiser and average of the weights ('whole
update').  All three run in turn in one process; a ratio is taken within each turn, and their median and
quartiles are printed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from halfstep.batch import Batch, Cond
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
from halfstep.training.update import step

NETS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
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
"""name, config and batch of what is measured: the digits' U-ViT, and a small U-Net of diffusers."""

LIMITS = {"uvit": (1.03, 1.06), "unet": (1.05, 1.15)}
"""What an update and a whole update are held to on a CPU; 1.10 and 1.10 on a GPU.  The first guided stage
is held to 1.03 with either net."""
STAGES = ("halving", "guided", "guided-halving")
CLASSES, RANGE = 10, (1.0, 5.0)
"""Of the guided stages, whose null class comes after the classes."""


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
        optimiser = torch.optim.AdamW(self.student.parameters(), lr=1e-4, fused=True)
        self.state = State(self.student, optimiser, Average(self.student, self.settings.ema), None)

    def _tensors(self, shape: tuple[int, ...]) -> None:
        """The objective with its batch, and what the networks are called with in `floor`."""
        x0 = torch.randn(shape, device=self.device).clamp(-1, 1)
        t, label = 1000 * torch.rand(len(x0), device=self.device), torch.arange(len(x0)) % CLASSES
        said = None if self.stage == "halving" else Cond(label.to(self.device))
        self.data = Batch(x0, said)
        halve, calls = Halve(self.teacher, uniform(32)), 2
        self.objective: Any = halve
        self.asked: tuple[Any, ...] = (x0, t, None)
        if said is not None:
            scale = torch.linspace(*RANGE, len(x0), device=self.device)
            self.asked = (x0, t, Cond(said.label, guidance_scale=scale))
            self.objective = AnyScale(halve, RANGE)
        self.taught = [self.asked] * calls
        if self.stage == "guided":
            self.objective = MatchGuided(self.teacher, CLASSES, RANGE)
            both = said.cat(said.dropped(CLASSES))
            self.taught = [(torch.cat([x0, x0]), t.repeat(2), both)]

    def floor(self) -> None:
        cast = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with cast:
            with torch.no_grad():
                for asked in self.taught:
                    self.teacher.net(*asked)
            out = self.student.net(*self.asked)
        out.square().mean().backward()

    def update(self) -> None:
        draw = Draw.all(self.generator, len(self.data.x0))
        self.objective(self.student, self.data, draw).mean().backward()

    def whole_update(self) -> None:
        self.update()
        step(self.student, self.state, self.settings, rate=1e-4)  # the engine's own
        self.state.update += 1

    def seconds(self, work: Callable[[], None], repeats: int = 1) -> float:
        """Time of one `work`.  One CPU thread is timed by its own clock, which the neighbours on a
        shared machine do not move; anything else by the wall clock."""
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if alone else time.perf_counter
        self.student.zero_grad()
        self._wait()
        begin = clock()
        for _ in range(repeats):
            work()
            if work != self.whole_update:  # which leaves no gradients behind
                self.student.zero_grad()
        self._wait()
        return (clock() - begin) / repeats

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Milliseconds of the floor, and the ratios of both updates to it: median and quartiles."""
    works = bench.floor, bench.update, bench.whole_update
    gpu = bench.device.type == "cuda"
    for work in works:
        bench.seconds(work, 10 if gpu else 2)  # warm-up; with --compile the compilation
    turns = []
    for k in range(rounds):
        # There and back, so that a machine that gets slower or faster meanwhile favours none.
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
        "update": _spread(ratios["update"], limits[0]),
        "whole_update": _spread(ratios["whole_update"], limits[1]),
    }


def _spread(ratios: list[float], limit: float) -> dict[str, float]:
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"ratio": quartiles[1], "low": quartiles[0], "high": quartiles[2], "limit": limit}


def table(results: dict[str, Any]) -> str:
    """The results as a small table."""
    lines = [f"{'':<21}{'floor':>10}   {'':14}{'ratio':>7}   {'quartiles':<15}{'held to':>8}"]
    for (name, stage), result in _each(results):
        for key in ("update", "whole_update"):
            ms = f"{result['floor_ms']:>7.2f} ms"
            first = f"{name:<6}{stage:<15}{ms}" if key == "update" else " " * 31
            row = result[key]
            spread = f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(
                f"{first}   {key.replace('_', ' '):14}{row['ratio']:>7.3f}   {spread:<15}"
                f"{row['limit']:>8.2f}"
            )
    setting = "{device}, {dtype}, {threads} threads, torch {torch}, {rounds} rounds".format(
        **results
    )
    return "\n".join([setting + (", compiled" if results["compile"] else ""), *lines])


def _each(results: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for name, stages in results["nets"].items():
        for stage, result in stages.items():
            yield (name, stage), result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--rounds", type=int, default=20, help="turns that are measured")
    parser.add_argument("--net", choices=[*NETS, "all"], default="all")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile both networks")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--batch", type=int, default=0, help="images; 0 is each net's own")
    asked = parser.parse_args(arguments)

    if asked.threads:
        torch.set_num_threads(asked.threads)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if asked.device == "auto" else asked.device)
    dtype = torch.bfloat16 if asked.dtype == "bf16" else None
    names = list(NETS) if asked.net == "all" else [asked.net]
    stages = STAGES if asked.stage == "all" else [asked.stage]

    def measured(name: str, stage: str) -> dict[str, Any]:
        return measure(Bench(name, device, dtype, asked.compile, asked.batch, stage), asked.rounds)

    results = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": asked.dtype,
        "compile": asked.compile,
        "threads": torch.get_num_threads(),
        "rounds": asked.rounds,
        "torch": torch.__version__,
        "nets": {name: {stage: measured(name, stage) for stage in stages} for name in names},
    }
    print(json.dumps(results, indent=1) if asked.json else table(results))


if __name__ == "__main__":
    main()
