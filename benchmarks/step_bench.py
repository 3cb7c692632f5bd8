"""One update of a method, and its floor: the network calls that the update makes, on the same tensors."""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn, Tensor

from benchmarks.timing import seconds
from halfstep.batch import Batch, Cond
from halfstep.config import NetConfig
from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import (
    CachedWalks,
    FlowMap,
    GuidedDistillation,
    MultistepConsistency,
    ParallelDecoding,
    Progressive,
)
from halfstep.methods.base import Method
from halfstep.methods.stages import Stage
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw
from halfstep.training import TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.distributed import Processes
from halfstep.training.ema import Average
from halfstep.training.kept_walks import WalkKeeper
from halfstep.training.optimiser import Optimiser
from halfstep.training.progress import ProgressCallback
from halfstep.training.signals import StopRequest
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

CLASSES, RANGE = 10, (1.0, 5.0)
"""Classes and guidance scales of the guided stages; the null class comes after the classes."""
HALVING = Progressive(start=32, stop=16)
GUIDED = GuidedDistillation(guidance_range=RANGE, halving=HALVING)
BENCHED: dict[str, tuple[Method, int]] = {
    "progressive": (HALVING, 0),
    "guided": (GUIDED, 0),
    "guided-halving": (GUIDED, 1),
    "multistep-consistency": (MultistepConsistency(start=32), 0),
    "cached-walks": (CachedWalks(start=8, solver="ddim", noises=32), 0),
    "flow-map": (FlowMap(start=32), 0),
    "parallel-decoding": (ParallelDecoding(start=32), 0),
    "parallel-decoding-noise": (ParallelDecoding(start=32, points="noise"), 0),
}
"""Each method with the number of its stage that is measured."""
SEED = 0


@dataclass
class Call:
    """A forward of a network, on the tensors that it had; with a gradient a backward follows."""

    net: nn.Module
    args: tuple[Any, ...]
    options: dict[str, Any]
    backward: bool

    @property
    def forwards(self) -> int:
        """Its cost for all of its rows: a forward 1, forward and backward 3."""
        return len(self.args[0]) * (3 if self.backward else 1)

    def __call__(self) -> Tensor:
        with nullcontext() if self.backward else torch.no_grad():
            out: Tensor = self.net(*self.args, **self.options)
        return out


@dataclass
class Bench:
    """A method's teacher, student and batch, and the three things that are timed."""

    name: str
    device: torch.device
    dtype: torch.dtype | None = None
    compile: bool = False
    batch: int = 0
    """Images in a batch; 0 is the net's own number."""
    method: str = "progressive"
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        shape = NETS[self.name][2]
        shape = self.batch or shape[0], *shape[1:]
        torch.manual_seed(SEED)
        self.generator = torch.Generator(self.device)
        self.settings = TrainingConfig(ema=0.98, max_grad_norm=1.0, batch_size=shape[0])
        self.stage = self._stage(shape)
        self.student, self.objective = self.stage.student, self.stage.objective
        if self.compile:
            for net in self._networks():
                net.compile()
        optimiser = Optimiser(self.student, replace(self.settings, learning_rate=1e-4), fused=True)
        self.state = State(self.student, optimiser, Average(self.student, self.settings.ema), None)
        self.calls = self._recorded()

    def _stage(self, shape: tuple[int, ...]) -> Stage:
        """The stage that is measured, with the walks that it reads; and its batch."""
        net, config, _ = NETS[self.name]
        method, number = BENCHED[self.method]
        guided = self.method.startswith("guided")
        made = build(net, config | ({"num_classes": CLASSES + 1} if guided else {}))
        teacher = Denoiser(made, Cosine(), V(), autocast=self.dtype).to(self.device)
        names = tuple(map(str, range(CLASSES))) if guided else ()
        null = CLASSES if guided else None
        pipeline = Pipeline(teacher, shape[1:], class_names=names, null=null)
        stages = method.stages(pipeline)
        stage = [next(stages) for _ in range(number + 1)][-1]
        x0 = torch.randn(shape).clamp(-1, 1)
        label = torch.arange(len(x0)) % CLASSES if guided else None
        cond = None if label is None else Cond(label.to(self.device))
        self.data = Batch(x0.to(self.device), cond)
        with tempfile.TemporaryDirectory() as folder:  # the walks are read into memory
            data = Dataset(x0, label, names)
            keeper = WalkKeeper(
                Path(folder) / "walks", data, self.settings, Processes(self.device.type)
            )
            keeper.prepare(stage, ProgressCallback(), StopRequest())
        return stage

    def _networks(self) -> list[nn.Module]:
        """The network of the student, and those that its objective asks, such as the teacher's."""
        owners = [self.student, *self.objective.inner.networks]
        return list(dict.fromkeys(getattr(owner, "net", owner) for owner in owners))

    def _recorded(self) -> list[Call]:
        """The network calls of an update, in order."""
        calls = list[Call]()

        def keep(net: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            calls.append(Call(net, args, options, torch.is_grad_enabled()))

        hooks = [net.register_forward_pre_hook(keep, with_kwargs=True) for net in self._networks()]
        self.update()
        for hook in hooks:
            hook.remove()
        self.student.zero_grad()
        return calls

    @property
    def once(self) -> int:
        """The part of the stage's declared cost that is no update's, such as walks."""
        return self.objective.cost(0, 1)

    @property
    def forwards(self) -> float:
        """The cost of the floor for one sample, in forwards."""
        return sum(call.forwards for call in self.calls) / len(self.data.x0)

    def floor(self) -> None:
        cast = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with cast:
            outs = [call() for call in self.calls]
        losses = [out.square().mean() for out in outs if out.requires_grad]
        torch.stack(losses).sum().backward()

    def update(self) -> None:
        self.generator.manual_seed(SEED)  # so that every update makes the calls of the floor
        size = len(self.data.x0)
        draw = Draw(self.generator, size, slice(0, size), (SEED, 0, 0))
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
