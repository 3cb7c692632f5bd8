"""Tiny runs that the engine's tests share: points, a small network, a teacher, a folder's bytes."""

import dataclasses
import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from halfstep import storage
from halfstep.batch import Batch
from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import Method, Objective, Progressive, StagePlan
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.schema import CHECKSUM
from halfstep.training import distill, ProgressCallback, TrainingConfig
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import RunOptions

TRAINING = TrainingConfig(
    batch_size=6, learning_rate=3e-3, ema=0.9, save_every=3, log_every=4, seed=5
)


def points(n=40):
    """n points of 3 coordinates in [-1, 1]."""
    values = torch.rand(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Dataset((2 * values - 1).float())


def rewritten(path, change):
    """Change a json of ours and give it the checksum of what it says now; returns that.

    change  is handed what it says, to be changed in place
    """
    about = {key: value for key, value in json.loads(path.read_text()).items() if key != CHECKSUM}
    change(about)
    storage.write_json(path, about)
    return about


class Doubled(Dataset):
    """The same points in float64, for what has to agree to more than seven digits."""

    def batch(self, rows, flips=None):
        plain = super().batch(rows, flips)
        return Batch(plain.x0.double(), plain.cond)


class Forgetful(nn.Module):
    """Whatever a resumed run could get wrong: dropout, buffers that move, tied and idle weights."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 3)
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.first = self.second = nn.Linear(width, width)
        self.sometimes = nn.Linear(width, 3)

    def forward(self, x, t, cond=None):
        h = self.drop(torch.relu(self.norm(self.enter(torch.cat([x, t[:, None] / 1000], 1)))))
        out = self.leave(self.second(torch.tanh(self.first(h))))
        # Some updates give these weights a gradient and others none, as stochastic depth does.
        return out + self.sometimes(h) if not self.training or torch.rand(()) < 0.5 else out


def teacher(width=8, seed=0, net="mlp"):
    """A pipeline around a small network with weights of that seed."""
    torch.manual_seed(seed)
    config = {"dim": 3, "width": width, "depth": 1} if net == "mlp" else {"width": width}
    return Pipeline(Denoiser(build(net, config), Cosine(), V()), (3,))


def doubled():
    """The points in float64."""
    return Doubled(points().values)


def double_teacher():
    """The teacher in float64."""
    pipeline = teacher()
    pipeline.denoiser.double()
    return pipeline


def losses(out):
    """The losses of a run's metrics.jsonl."""
    return [line["loss"] for line in RunFolder(out).metrics if "loss" in line]


def forgetful(width=8):
    return teacher(width, net="tests.support.runs:Forgetful")


def own(objective, *, updates=8, stages=1):
    """A method of the user's own: every stage learns this objective."""
    objective = Scripted(objective)

    @dataclass(frozen=True)
    class Own(Method):
        def plan(self, teacher):
            return [StagePlan(f"stage-{k}", updates) for k in range(stages)]

        def stages(self, teacher):
            denoiser = teacher.denoiser
            for stage in self.plan(teacher):
                student = denoiser.trainable_copy()
                denoiser.freeze()
                yield stage.stage(student, objective)
                denoiser = student

    return Own()


SCRIPTS = {}
"""Of each `Scripted` its function and its calls.

Kept apart from it, for a run is told by what its objective holds: in these tests a command that failed is
given again with another function, and goes on.
"""


class Scripted(Objective):
    """A function of (guess [B, 3], calls before this one) as an objective."""

    def __init__(self, loss):
        SCRIPTS[id(self)] = [loss, 0]

    def __call__(self, student, batch, draw):
        t = 0.25 + draw.uniform() / 2
        guess = student(draw.normal(batch.x0), t, batch.cond).x0
        loss, calls = SCRIPTS[id(self)]
        SCRIPTS[id(self)][1] += 1
        return loss(guess - batch.x0, calls)


def squares(error, call):
    return error.square().mean(1)


class Crash(BaseException):
    """The process is gone: nothing that could save anything catches this."""


class At(ProgressCallback):
    """Calls `act` once the update of this number of a stage is done (and not yet saved)."""

    def __init__(self, stage, update, act):
        self.where, self.act, self.stage = (stage, update), act, ""
        self.notes = []

    def begin(self, stage, update):
        self.stage = stage.name

    def step(self, update, rate):
        if (self.stage, update) == self.where:
            self.act()

    def note(self, text):
        self.notes.append(text)


def crash():
    raise Crash


def halve(
    out,
    *,
    method=None,
    training=TRAINING,
    pipeline=None,
    data=None,
    job=None,
    lora=None,
    width=8,
    **changes,
):
    """Distil the tiny teacher from 8 steps to 2 into `out`; `changes` are options of `training`."""
    return distill(
        pipeline or teacher(width),
        data or points(),
        out,
        method=method or Progressive(start=8, stop=2, updates=(7,)),
        training=dataclasses.replace(training, **changes),
        lora=lora,
        job=job or RunOptions(device="cpu"),
    )


def job(**options):
    return RunOptions(**{"device": "cpu", **options})


def bits(out):
    """All weights of the finished stages: their paths and bytes."""
    paths = sorted((out / "stages").rglob("*.safetensors"))
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def everything(out):
    """Every file of a folder: its path and bytes."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def refused(got, words):
    """One sentence that says this, and status 2, of what was typed."""
    status, _, err = got
    assert status == 2 and err.startswith("halfstep: ") and err.count("\n") == 1, err
    assert words in err, err
    return True


def weights_of(pipeline):
    return {name: p.detach().clone() for name, p in pipeline.denoiser.named_parameters()}


def furthest(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)


class Explodes(torch.autograd.Function):
    """Itself, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.inf


def halted(out, stage, update, **options):
    """A run that crashes after this update, before anything of it is saved."""
    with pytest.raises(Crash):
        halve(out, job=job(callback=At(stage, update, crash)), **options)


MACHINE = ("seconds", "time", "samples_per_second", "memory")
"""Numbers of metrics.jsonl that no run has twice."""


def logged_lines(out):
    """The lines of metrics.jsonl without the numbers of the machine."""
    return [{k: v for k, v in line.items() if k not in MACHINE} for line in RunFolder(out).metrics]
