"""A pipeline in five lines: each of its parts is named."""

from dataclasses import replace

import pytest
import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.hub.bundled import bundled_teacher
from halfstep.models import build
from halfstep.pipeline import Pipeline
from tests.support.runs import forgetful, teacher


def lines(pipeline):
    """The text of each line, by its label."""
    first, *rest = repr(pipeline).splitlines()
    assert len(rest) == 4 and first.startswith("Pipeline: ")
    return {"network": first.removeprefix("Pipeline: ")} | {
        label: text for label, text in (line.strip().split(maxsplit=1) for line in rest)
    }


def test_a_teacher_of_images():
    assert lines(bundled_teacher()) == {
        "network": "uvit, 268,046 parameters",
        "schedule": "Cosine, the network predicts V",
        "samples": "[1, 8, 8], 10 classes, and none",
        "sampler": "ddim, any number of steps (64 by default)",
        "device": "cpu, float32",
    }


def test_a_student_of_points():
    student = teacher().on_grids((1.0, 0.5, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0))
    seen = lines(student)
    assert seen["samples"] == "[3], no conditions" and seen["sampler"] == "ddim, 4 or 2 steps"
    assert lines(teacher().on_grids((1.0, 0.0)))["sampler"] == "ddim, 1 step"
    inverted = replace(student, direction="invert")
    assert lines(inverted)["sampler"] == "ddim, 4 or 2 steps, from images to noise"


def test_conditions():
    net = build(
        "mlp", {"dim": 2, "width": 8, "depth": 1, "num_classes": 4, "guidance_embed_dim": 4}
    )
    about = Pipeline(Denoiser(net, BetaTable(), V()), (2,), class_names=("a", "b", "c"), null=3)
    assert lines(about)["schedule"] == "BetaTable, the network predicts V"
    assert lines(replace(about, guidance_range=(1.0, 2.5)))["samples"].endswith(
        "guidance scale 1 to 2.5"
    )
    assert lines(replace(about, guidance_range=(2.0, 2.0)))["samples"].endswith("guidance scale 2")
    assert lines(replace(about, class_names=()))["samples"] == "[2], a null class"
    assert lines(replace(about, empty=torch.zeros(2, 4)))["samples"].endswith("texts")


def test_a_network_of_one_s_own_in_another_precision():
    own = forgetful()
    assert lines(own)["network"].startswith("tests.support.runs:Forgetful, ")
    bare = torch.nn.Linear(3, 3).to(torch.bfloat16)
    pipeline = Pipeline(Denoiser(bare, Cosine(), V()), (3,))
    assert lines(pipeline)["network"] == "Linear, 12 parameters"
    assert lines(pipeline)["device"] == "cpu, bfloat16"
    with torch.no_grad():
        pipeline = Pipeline(Denoiser(torch.nn.Identity(), Cosine(), V()), (3,))
    assert lines(pipeline)["device"] == "cpu, no parameters"


@pytest.mark.parametrize("style", ["{!r}", "{!s}"])
def test_it_is_what_print_shows(style):
    assert style.format(teacher()).startswith("Pipeline: mlp, ")
