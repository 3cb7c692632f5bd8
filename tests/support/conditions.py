"""A network of labels, texts and named tensors, as diffusers' have them, and an encoder of such texts."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import defaults_of

TOKENS, WIDTH, POOLED = 4, 3, 2
SIZES = torch.tensor([8.0, 8.0, 0.0])


class Reading(nn.Module):
    """Adds a mean of each condition that it reads to its output, and keeps the last conditions."""

    reads = (
        "encoder_hidden_states", "pooled_projections", "encoder_attention_mask", "time_ids",
        "guidance_scale",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.weight, self.cond = nn.Parameter(torch.tensor(0.3)), None

    def forward(self, x, t, cond=None):
        self.cond = cond
        states, mask = cond.encoder_hidden_states, cond.added["encoder_attention_mask"]
        read = (states * mask[..., None]).mean((1, 2))
        read = read + cond.added["pooled_projections"].mean(1) + cond.added["time_ids"].mean(1) / 8
        return self.weight * x + read.reshape(-1, *[1] * (x.ndim - 1))


def reading():
    return Reading()


@dataclass
class Words:
    """States and a pooled text by the letters of a text, and a mask of its length."""

    turn: float = 1.0

    def on(self, device):
        return nullcontext()

    def release(self):
        pass

    def null(self):
        return self.conditions([""])

    def conditions(self, texts):
        states = torch.zeros(len(texts), TOKENS, WIDTH)
        mask = torch.zeros(len(texts), TOKENS, dtype=torch.int64)
        pooled = torch.zeros(len(texts), POOLED)
        for k, text in enumerate(texts):
            for place, letter in enumerate(f"<{text}"[:TOKENS]):
                states[k, place] = torch.sin(torch.arange(1.0, 1 + WIDTH) * ord(letter))
            mask[k, : len(text) + 1] = 1
            pooled[k] = self.turn * torch.cos(torch.arange(1.0, 1 + POOLED) * (1 + len(text)))
        named = {"pooled_projections": pooled, "encoder_attention_mask": mask}
        return Cond(encoder_hidden_states=states, added=named)


def named_pipeline(**changes):
    """A pipeline of points that reads texts with a pooled text, a mask, and sizes that are constant."""
    net = build("tests.support.conditions:reading", {})
    defaults = defaults_of(Words().conditions([""]))
    defaults["added"] = {**defaults["added"], "time_ids": SIZES}
    fields = {"texts": Words(), "steps": 2, **defaults, **changes}
    return Pipeline(Denoiser(net, Cosine(), V()).freeze(), (2,), **fields)
