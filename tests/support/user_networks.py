"""Networks of a user, built by functions of this module, and short trainings of them."""

from dataclasses import dataclass

import torch
from torch import nn

from halfstep import (
    build,
    Cosine,
    Dataset,
    Denoiser,
    distill_classifier,
    KnowledgeDistillation,
    Pipeline,
    Progressive,
    train_classifier,
    TrainingConfig,
    V,
)
from halfstep.methods.classifiers.supervised import Classification
from halfstep.methods.stages import Objective
from halfstep.models.classifiers.registry import build_classifier

HERE = "tests.support.user_networks"
FEW = TrainingConfig(batch_size=16, log_every=1)


class Named(nn.Sequential):
    """With an attribute that others take for a network."""

    net = model = module = "resnet18"


def plain(num_classes=3, norm=False, tied=False):
    first = nn.Linear(64, 16)
    parts = [nn.Flatten(), first, *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU()]
    parts += [nn.Linear(16, 16), nn.Linear(16, 16)] if tied else []
    if tied:
        parts[-1].weight = parts[-2].weight
    return Named(*parts, nn.Linear(16, num_classes))


def normed(num_classes=3):
    return plain(num_classes, norm=True)


def lazy(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


class Points(nn.Module):
    """A denoiser's network with a batch norm and dropout."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 16), nn.Linear(16, 2)
        self.norm, self.drop = nn.BatchNorm1d(16, momentum=momentum), nn.Dropout(0.5)

    def forward(self, x, t, cond=None):
        h = self.norm(self.enter(torch.cat([x, t[:, None] / 1000], 1)))
        return self.leave(self.drop(torch.relu(h)))


def points_net(momentum=0.1):
    return Points(momentum)


def images(n=60):
    pixels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)
    return Dataset(pixels, torch.arange(n) % 3)


def points(n=100):
    return Dataset(torch.rand(n, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def classifier(function="plain", **config):
    return build_classifier(f"{HERE}:{function}", {"num_classes": 3, **config})


def pipeline(net="mlp", **config):
    net = build("mlp", {"width": 8}) if net == "mlp" else build(f"{HERE}:{net}", config)
    return Pipeline(Denoiser(net, Cosine(), V()), shape=(2,))


HALVE = Progressive(start=4, stop=1, updates=(2, 2))


def classify(net, out, training=FEW, updates=2, data=None):
    method = Classification(updates=updates)
    return train_classifier(net, data or images(), out, method=method, training=training)


def learn(student, out, training=FEW, **options):
    method = KnowledgeDistillation(updates=2, **options)
    return distill_classifier(
        classifier(), student, images(), out, method=method, training=training
    )


class WithSettings(nn.Module):
    """A layer of every kind whose settings no tensor tells."""

    def __init__(self, pool, p=0.5):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.batch, self.act, self.drop = nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.Dropout(p)
        self.pool, self.attention = nn.AvgPool2d(pool), nn.MultiheadAttention(4, 2, dropout=p)
        self.head = nn.Linear(64, 3)
        self.head.register_forward_pre_hook(note_inputs)

    def forward(self, x):
        h = self.drop(self.act(self.batch(self.norm(self.conv(x)))))
        h = self.pool(h).flatten(2).permute(2, 0, 1)
        return self.head(self.attention(h, h, h)[0].permute(1, 2, 0).flatten(1))


def note_inputs(part, inputs):
    """A hook of the builder's own, which is there again once it is loaded."""


def with_settings(num_classes=3, pool=(2, 2)):
    return WithSettings(pool)


# A user's own


@dataclass(frozen=True)
class Towards(Objective):
    goal: float

    def __call__(self, student, batch, draw):
        return (student(batch.x0, draw.uniform(), batch.cond).x0 - self.goal).square().mean(1)
