"""Guided distillation where it passed in silence: scales, clips, masks, pairs, kinds of options."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep import distill, Pipeline
from halfstep.batch import Cond
from halfstep.data import load
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import draws_noise, PREFIX, SCHEDULER, supported_schedulers
from halfstep.diffusion.schedules import Cosine, VPLinear
from halfstep.errors import ConfigError, DataError
from halfstep.hub.bundled import bundled_students, bundled_teacher
from halfstep.methods import GuidedDistillation, Progressive
from halfstep.methods.diffusion.guided import GuidedOptions
from halfstep.models import build
from halfstep.pipeline.samplers import NAMES, TOLD
from halfstep.training.stages import RunOptions
from tests.support.denoisers import STOCHASTIC
from tests.support.runs import refused, teacher as points_teacher

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 8, "in_chans": 1}


def teacher(clip=None):
    net = build("uvit", {**SMALL, "num_classes": 11})
    class_names = tuple(map(str, range(10)))
    return Pipeline(
        Denoiser(net, Cosine(), V()), (1, 8, 8), class_names=class_names, null=10, clip=clip
    )


# --- scales -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("pipeline", [bundled_teacher(), bundled_students()[-1]], ids=["out", "in"])
def test_scales_that_are_not_finite(pipeline, scale):
    with pytest.raises(ConfigError, match="guidance_scale is a finite number"):
        pipeline.sample(1, steps=1, guidance_scale=scale)


NETS = {
    "uvit": {**SMALL, "num_classes": 11},
    "unet": dict(
        sample_size=8, in_channels=1, block_out_channels=[8], down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"], layers_per_block=1, norm_num_groups=4, num_classes=11,
    ),
    "mlp": dict(dim=2, num_classes=11),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(), (1,), (3,), (8, 1)])
@pytest.mark.parametrize("name", NETS)
def test_one_scale_a_sample(name, shape):
    net = build(name, {**NETS[name], "guidance_embed_dim": 8})
    x = torch.zeros(8, *((2,) if name == "mlp" else (1, 8, 8)))
    cond = Cond(torch.zeros(8, dtype=torch.int64), guidance_scale=torch.ones(shape))
    with pytest.raises(ConfigError, match=r"expected shape \[8\]"):
        net(x, torch.ones(8), cond)


def test_what_samples_are_made_of_is_finite():
    pipeline, x = teacher(), torch.full((1, 1, 8, 8), math.nan)
    with pytest.raises(ConfigError, match="nan"):
        pipeline.sample(1, steps=1, noise=x)
    with pytest.raises(DataError, match="nan"):
        pipeline.sample(1, steps=2, images=x, strength=0.5)
    with pytest.raises(ConfigError, match="labels from 0 to 10"):
        pipeline.sample(2, steps=1, labels=[1.5, 2])


# --- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"guidance_range": 1},
            r"guidance_range is a list of 2, a number each, got 1: write for example \(1.0, 5.0\)",
        ),
        ({"guidance_range": (1, 2, 3)}, "a list of 2, a number each, got"),
        ({"guidance_range": ("1", "2")}, "a list of 2, a number each, got"),
        ({"halving_updates": 100}, "halving_updates is a list, a whole number each, got 100"),
        ({"updates": 1.5}, "updates is a whole number, got 1.5: write for example 1$"),
        ({"student": {"guidance_embed_dim": "0"}}, "option of the method"),
        ({"start": 4, "stop": 4, "target_clip": 1.0}, "target_clip is for halvings"),
    ],
)
def test_options_of_another_kind(options, message):
    with pytest.raises(ConfigError, match=message):
        GuidedOptions(**{"guidance_range": (1, 3), **options})


def test_a_side_that_is_a_word():
    with pytest.raises(ConfigError, match="embed_dim"):
        build("uvit", {**SMALL, "embed_dim": "eight"})


@pytest.mark.parametrize(
    ("clip", "target_clip", "message"),
    [
        (None, 1.0, "clips nothing: write target_clip=0"),
        (1.0, 0.2, "clips to 1: write target_clip=1"),
    ],
)
@pytest.mark.parametrize("kind", ["guided", "plain"])
def test_targets_are_clipped_where_the_sampler_clips(clip, target_clip, message, kind, tmp_path):
    halving = {"start": 4, "stop": 2, "target_clip": target_clip}
    method = (
        Progressive(**halving, updates=(1,))
        if kind == "plain"
        else GuidedDistillation(
            guidance_range=(1, 2), updates=1, halving=Progressive(updates=(1,), **halving)
        )
    )
    with pytest.raises(ConfigError, match=message):
        distill(
            teacher(clip), "digits", tmp_path / "r", method=method, job=RunOptions(device="cpu")
        )
    assert not (tmp_path / "r").exists()


# --- pairs --------------------------------------------------------------------------------------------


def test_walks_that_draw_noise_are_no_pairs():
    """What is said of every sampler is what it does: two seeds from one noise end apart, or as one."""
    points = points_teacher()
    # On the cosine Euler-Maruyama is refused: the SDE's drift has no bound there.
    net = points.denoiser.net
    model = replace(points, denoiser=Denoiser(net, VPLinear(), V(), time=points.denoiser.time))
    noise = torch.randn(4, 3)
    of_any = [name for name in NAMES if name not in (SCHEDULER, *TOLD)]
    names = [*of_any, *(f"{PREFIX}{one}" for one in supported_schedulers())]
    drawing = set()
    for name in names:
        ends = [model.sample(4, steps=24, sampler=name, noise=noise, seed=k) for k in (1, 2)]
        assert draws_noise(name) != torch.equal(*ends), name
        drawing |= {name} if draws_noise(name) else set()
    assert {"ancestral", "stochastic", "euler-maruyama"} < drawing < set(names)
    assert drawing >= {f"{PREFIX}{one}" for one in STOCHASTIC}


def test_a_stochastic_student_is_sampled_in_one_step_and_has_no_paired_error(cli, tmp_path):
    teacher().save(tmp_path / "t")
    words = ["--teacher", "t", "--data", "digits", "--start", 8, "--stop", 1, "--updates", 1]
    status, _, err = cli(
        "distill", "stochastic", *words, "--batch-size", 4, "--tolerance", 0, "--out", "st"
    )
    assert status == 0, err
    status, _, err = cli("sample", "st", "--steps", 1, "--n", 2, "--out", "x.png")
    assert status == 0, err
    quick = ["--samples", 24, "--full", 4, "--split-samples", 0, "--cost-rounds", 0, "--baselines"]
    status, _, err = cli("evaluate", "st", *quick, "ddim", "--metrics", "frechet")
    assert status == 0, err
    rows = json.loads((tmp_path / "st" / "report.json").read_text())["rows"]
    assert {row["role"]: row["fidelity"] is None for row in rows if row["steps"] == 2} == {
        "student": True, "baseline": False
    }  # fmt: skip


# --- the command line ---------------------------------------------------------------------------------


def test_noise_is_decoded_at_the_scale_that_it_was_encoded_at(cli, tmp_path):
    teacher().save(tmp_path / "t")
    words = [
        "t",
        "--images",
        "digits",
        "--n",
        2,
        "--steps",
        4,
        "--guidance-scale",
        3,
        "--out",
        "q.safetensors",
    ]
    status, out, err = cli("encode", *words)
    assert status == 0, err
    printed = " ".join(out.split())
    assert (
        "halfstep sample t --noise q.safetensors --guidance-scale 3 --steps 4 --out back.png"
        in printed
    )
    status, out, _ = cli("sample", "t", "--noise", "q.safetensors", "--steps", 4, "--out", "b.png")
    assert status == 0 and "encoded at guidance 3 and is decoded at 1" in " ".join(out.split())
    status, out, _ = cli(
        "sample",
        "t",
        "--noise",
        "q.safetensors",
        "--guidance-scale",
        3,
        "--steps",
        4,
        "--out",
        "c.png",
    )
    assert status == 0 and "note" not in out


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((20, 40), 255), "40 x 20 and its picture 20 x 40"),
        (np.full((40, 20), 128), "is gray"),
    ],
)
def test_masks_that_lie_elsewhere_or_are_gray(mask, message, cli, tmp_path):
    teacher().save(tmp_path / "t")
    Image.fromarray(np.zeros((40, 20), np.uint8)).save(tmp_path / "tall.png")
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "mask.png")
    words = ["t", "--images", "tall.png", "--mask", "mask.png", "--labels", 3, "--steps", 2]
    assert refused(cli("sample", *words, "--n", 1, "--out", "x.png"), message)
    ok = np.zeros((40, 20), np.uint8)
    ok[:20] = 255
    Image.fromarray(ok).save(tmp_path / "mask.png")
    assert cli("sample", *words, "--n", 1, "--out", "x.png")[0] == 0


def test_an_encoder_is_exported_whole(cli, tmp_path):
    teacher().save(tmp_path / "t")
    words = ["--teacher", "t", "--data", "digits", "--start", 4, "--stop", 2, "--updates", 1]
    assert cli("distill", "encoder", *words, "--batch-size", 4, "--out", "en")[0] == 0
    status, _, err = cli("export", "en/stages/0002-steps", "--out", "alone")
    assert status == 0, err
    assert "encode(images)" in (tmp_path / "alone" / "README.md").read_text()
    assert Pipeline.load(tmp_path / "alone").direction == "invert"
    x = load("digits").batch(torch.arange(2))
    assert Pipeline.load(tmp_path / "alone").encode(x.x0, labels=[0, 1]).shape == (2, 1, 8, 8)
