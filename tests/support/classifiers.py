"""Small classifiers, their data and their runs."""

from dataclasses import replace

import torch
from torch import nn

from halfstep.data import Dataset
from halfstep.methods.classifiers.knowledge import KnowledgeDistillation
from halfstep.methods.classifiers.recipes import hinton
from halfstep.models.classifiers.registry import build_classifier
from halfstep.training import TrainingConfig
from halfstep.training.classifiers.distillation import distill_classifier
from halfstep.training.stages import RunOptions


class Net(nn.Module):
    """Whatever a teacher could get wrong: dropout and batch statistics; parts of every shape."""

    def __init__(self, width=6, num_classes=4, seed=0, side=5):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.drop, self.hidden = nn.Dropout(0.5), nn.Linear(width, 2 * width)
        self.blocks = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU())
        self.head, self.idle = nn.Linear(2 * width, num_classes), nn.Linear(2, 2)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x)))
        h = self.blocks(self.drop(self.hidden(h.mean((2, 3)))))
        return self.head(h)


TRAINING = TrainingConfig(
    batch_size=10, learning_rate=3e-3, ema=0.9, save_every=3, log_every=4, seed=5
)


def pictures(n=75, flip=False, labels=True):
    """Not a multiple of the batch, nor of the block; every third has no label."""
    g = torch.Generator().manual_seed(2)
    values = torch.randint(0, 256, (n, 3, 5, 4), dtype=torch.uint8, generator=g)
    classes = torch.where(torch.arange(n) % 3 > 0, torch.arange(n) % 4, -1)
    return Dataset(values, classes if labels else None, tuple("abcd") if labels else (), flip)


def student():
    return build_classifier("tests.support.classifiers:Net", {"width": 4})


def teachers():
    return [Net(9, seed=1), Net(7, seed=2)]


def run(
    out,
    *terms,
    data=None,
    teacher=None,
    callback=None,
    cache=None,
    updates=14,
    student=student,
    **changes,
):
    return distill_classifier(
        teacher or teachers()[:1],
        student() if callable(student) and not isinstance(student, nn.Module) else student,
        data or pictures(),
        out,
        method=KnowledgeDistillation(terms=terms or hinton(), updates=updates),
        training=replace(TRAINING, **changes),
        job=RunOptions(device="cpu")
        if callback is None
        else RunOptions(device="cpu", callback=callback),
        cache=cache,
    )


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
