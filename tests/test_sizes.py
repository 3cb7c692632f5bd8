"""Sizes that no network, batch or sample can have are refused before anything is made, in one sentence."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep import capacity
from halfstep.data import load
from halfstep.data.latents.image_stream import stream
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.guidance import ClassifierGuided, Guided
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import ancestral
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import (
    checked,
    fast,
    karras,
    MOST,
    trailing,
    uniform,
    uniform_landing,
    uniform_logsnr,
)
from halfstep.errors import ConfigError
from halfstep.evaluation import digits_features, Evaluation
from halfstep.evaluation.gate import Gate
from halfstep.evaluation.scorer import scorer_for
from halfstep.methods import Denoising, GuidedDistillation, Progressive, Shrink
from halfstep.methods.diffusion.chain import ChainOptions
from halfstep.methods.diffusion.guided import GuidedOptions
from halfstep.models import build
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.models.classifiers.registry import build_classifier
from halfstep.models.compression.magnitude_pruning import check_share
from halfstep.models.limits import refuse_sizes
from halfstep.models.uvit.model import UViT
from halfstep.pipeline import Pipeline
from halfstep.training import train, TrainingConfig
from halfstep.training.stages import RunOptions
from halfstep.workflows.train_codec import CodecOptions, fresh_codec
from tests.support.runs import halve, points

UVIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2}
BLOCKS = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "block_out_channels": [8],
    "norm_num_groups": 4,
    **BLOCKS,
}
DIT = {
    "sample_size": 8, "patch_size": 2, "in_channels": 1, "num_layers": 1, "num_attention_heads": 2,
    "attention_head_dim": 4,
}  # fmt: skip
TEXT = {**UNET, "cross_attention_dim": 4, "mid_block_type": None}
NETS = {"mlp": {"dim": 2, "width": 8, "depth": 1}, "uvit": UVIT, "unet": UNET, "dit": DIT}
NETS |= {"unet-condition": TEXT}
SIZES = [
    *(("mlp", name, value) for name in ("dim", "width", "depth") for value in (0, -1, 2**40)),
    *(("mlp", name, value) for name in ("out_dim", "num_classes") for value in (0, -2)),
    *(("mlp", "width", value) for value in (float("nan"), float("inf"), 6.5, "8", [8], 10**400, -0.0)),
    *(("mlp", "guidance_embed_dim", value) for value in (-4, 3, 2**20)),
    *(("uvit", name, 0) for name in UVIT),
    *(("uvit", name, -2) for name in UVIT),
    *(("uvit", "mlp_ratio", value) for value in (0.0, -1, float("nan"), float("inf"))),
    *(("uvit", name, 10**9) for name in ("depth", "embed_dim", "in_chans", "num_classes")),
    *(("uvit", "num_classes", -2), ("uvit", "out_chans", 0), ("uvit", "qk_scale", float("nan"))),
    *(("dit", name, value) for name in (*DIT, "out_channels") for value in (0, -1)),
    *(("dit", "num_layers", 10**9), ("dit", "attention_head_dim", 10**9), ("dit", "num_classes", 0)),
    *(("unet", name, 0) for name in ("sample_size", "in_channels", "norm_num_groups")),
    *(("unet", name, -4) for name in ("sample_size", "in_channels", "norm_num_groups")),
    *(("unet", "block_out_channels", value) for value in ([0], [-8], [8, 0], [10**9], [])),
    *(("unet", "layers_per_block", value) for value in (0, -1, 10**9)),
    *(("unet", "dropout", value) for value in (-0.5, float("nan"))),
    *(("unet-condition", name, 0) for name in ("cross_attention_dim", "layers_per_block", "in_channels")),
    *(("unet-condition", "attention_head_dim", value) for value in (0, -8)),
]  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_networks_themselves_can_be_built(name):
    build(name, NETS[name])


@pytest.mark.parametrize(("name", "option", "value"), SIZES)
def test_no_network_has_such_a_size(name, option, value):
    with pytest.raises(ConfigError, match=f"{option}|weights of|guidance|image") as caught:
        build(name, {**NETS[name], option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cnn", {"width": 0}), ("cnn", {"depth": 0}), ("cnn", {"depth": -1}), ("cnn", {"depth": 10**9}),
        ("cnn", {"width": 10**9}), ("cnn", {"width": 6.5}), ("cnn", {"width": float("nan")}),
        ("features", {"size": 0}), ("features", {"num_classes": 0}), ("features", {"channels": 0}),
        ("toy-student", {"width": 0}), ("toy-student", {"size": [0, 8]}), ("toy-student", {"size": 10**9}),
        ("toy-teacher", {"size": -1}), ("shallow", {"num_classes": 1}), ("efficientnet-lite0", {"side": 0}),
    ],
)  # fmt: skip
def test_no_classifier_has_such_a_size(name, config):
    with pytest.raises(ConfigError, match="|".join([*config, "weights of", "classes"])):
        build_classifier(name, config)


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": (0,)}, {"layers_per_block": 0}, {"latent_channels": -1},
        {"norm_num_groups": 0}, {"in_channels": 0}, {"block_out_channels": (2**40,)},
        {"norm_num_groups": float("nan")}, {"layers_per_block": 10**6},
    ],
)  # fmt: skip
def test_no_codec_has_such_a_size(config):
    small = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    with pytest.raises(ConfigError, match="|".join([*config, "weights of", "classes"])):
        KLCodec.fresh({**small, **config})
    with pytest.raises(ConfigError, match="factor"):
        fresh_codec(CodecOptions(factor=3), load("digits"), "digits", 0)


def test_a_network_is_built_twice_and_drawn_once():
    """Its first time is without memory: weights are those of the seed alone."""
    torch.manual_seed(3)
    weights = [p.clone() for p in build("uvit", UVIT).parameters()]
    torch.manual_seed(3)
    again = list(UViT(**UVIT).parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))


def small(**more):
    torch.manual_seed(0)
    denoiser = Denoiser(build("mlp", NETS["mlp"]), Cosine(), V())
    return Pipeline(**{"denoiser": denoiser, "shape": (2,), **more})


@pytest.mark.parametrize("clip", [0, -1.0, float("nan"), float("inf"), "1"])
def test_no_pipeline_clips_so(clip):
    with pytest.raises(ConfigError, match="clip"):
        small(clip=clip)


@pytest.mark.parametrize(
    "time",
    [
        *(
            {"scale": value}
            for value in (0, 0.0, float("nan"), float("inf"), 1e308, 1e-300, "1000")
        ),
        *({"offset": value} for value in (float("nan"), float("-inf"), 1e308, -1e9)),
        {"of": "alpha"},
    ],
)
def test_no_network_is_told_of_the_time_so(time):
    with pytest.raises(ConfigError, match=next(iter(time)).replace("of", "of|offset")):
        NetTime(**time)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        *(({"n": n}, "n ") for n in (10**12, 2**63, 10**400)),
        *(({"n": n}, "^n ") for n in (-1, 1.5, float("nan"))),
        *(({"first": first}, "first") for first in (2**63, 10**30, -1, float("nan"))),
        *(({"seed": seed}, "seed") for seed in (2**64, -1, float("nan"), 0.5)),
        *(({"batch": batch}, "batch") for batch in (0, -1, float("inf"))),
        *(({"steps": steps}, "step") for steps in (10**9, 0, -1, MOST + 1)),
        *(({"variance": value}, "variance") for value in (float("nan"), -0.1, 1.1, float("inf"))),
        *(
            ({"guidance_scale": value}, "guidance_scale")
            for value in (float("nan"), float("inf"), 10**400)
        ),
        *(({"strength": value}, "strength") for value in (float("nan"), 0, 1.5, float("-inf"))),
    ],
)
def test_no_samples_are_drawn_so(sample, message):
    with pytest.raises(ConfigError, match=message):
        small().sample(**{"n": 2, **sample})


def test_the_last_samples_that_have_a_number():
    pipeline = small()
    last = pipeline.sample(2, steps=1, first=2**63 - 2, seed=2**64 - 1)
    torch.testing.assert_close(
        last[1:], pipeline.sample(1, steps=1, first=2**63 - 1, seed=2**64 - 1)
    )


def test_no_image_has_such_a_size():
    net = Denoiser(build("uvit", UVIT), Cosine(), V())
    for size in ((2**40, 8), (0, 8), (-8, -8)):
        with pytest.raises(ConfigError, match=r"size|height"):
            Pipeline(net, (1, 8, 8)).at_size(*size)


@pytest.mark.parametrize(
    ("made", "option"),
    [
        (lambda: Denoising(updates=10**15), "updates"),
        (lambda: Progressive(start=2**40), "start"),
        (lambda: Progressive(start=4, updates=(10**15,)), "updates"),
        (lambda: GuidedDistillation(guidance_embed_dim=2**40), "features"),
        (lambda: GuidedOptions(halving_updates=(10**10,)), "halving_updates"),
        (
            lambda: ChainOptions(depth=2, guided_updates=10**10, guidance_range=(1, 2)),
            "guided_updates",
        ),
        (lambda: Shrink(depth=2, updates=10**18), "updates"),
        (lambda: Evaluation(samples=10**12), "samples"),
        (lambda: Evaluation(full=10**9), "full"),
        (lambda: Evaluation(split_samples=10**12), "split_samples"),
        (lambda: Evaluation(shown=10**9), "shown"),
        (lambda: Evaluation(cost_rounds=10**9), "cost_rounds"),
        (lambda: uniform(10**9), "steps"),
    ],
)
def test_what_would_never_end_is_not_begun(made, option):
    with pytest.raises(ConfigError, match=option):
        made()


def test_a_batch_that_no_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "memory", lambda: 2**20)
    with pytest.raises(ConfigError, match="batch"):
        halve(tmp_path / "r", batch_size=87382)  # 87,382 x 3 floats
    assert not (tmp_path / "r").exists()
    halve(tmp_path / "s", batch_size=87381, method=Progressive(start=2, stop=1, updates=(1,)))


def test_memory_is_counted(monkeypatch):
    monkeypatch.setattr(capacity, "memory", lambda: 4 * 5 * 7)
    capacity.refuse_too_large("what fits", (5, 7), "")
    for shape, size in (((6, 7), 4), ((5, 7), 5), ((2**40, 2**40), 1), ((10**400,), 1)):
        with pytest.raises(ConfigError, match="GiB or more"):
            capacity.refuse_too_large("what does not", shape, "", size=size)


def test_more_samples_than_memory_holds(monkeypatch):
    monkeypatch.setattr(capacity, "memory", lambda: 10**6)
    with pytest.raises(ConfigError, match="samples"):
        scorer_for(digits_features(), load("digits"), Evaluation(samples=10**5))


@pytest.mark.parametrize("config", [{"dim": 3}, {"out_dim": 5}, {"out_dim": 1}])
def test_a_network_for_other_data_is_refused_before_its_run(tmp_path, config):
    net = build("mlp", {**NETS["mlp"], **config})
    with pytest.raises(ConfigError, match="does not take"):
        train(
            Pipeline(Denoiser(net, Cosine(), V()), (2,)), "two-moons", tmp_path / "r",
            method=Denoising(updates=1), training=TrainingConfig(batch_size=4), job=RunOptions(device="cpu"),
        )  # fmt: skip
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("device", ["meta", "0", "", "cpu:x", "quantum"])
def test_no_device_is_called_so(tmp_path, device):
    with pytest.raises(ConfigError, match="device"):
        halve(tmp_path / "r", data=points(), job=RunOptions(device=device))


@pytest.mark.parametrize("name", [":", "a:", ":b", "a:b:c", "..a:b", "a b:c", "a:b c", "a/b:c"])
def test_names_that_are_no_functions(name):
    with pytest.raises(ConfigError, match="names no function"):
        build(name, {})


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_images_that_no_memory_holds_are_not_read(channels, tmp_path, monkeypatch):
    for k in range(3):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{k}.png")
    most = math.isqrt(2**20 // (3 * (channels or 3)))  # uint8, all of them
    monkeypatch.setattr(capacity, "memory", lambda: 2**20)
    assert load(str(tmp_path), size=most, channels=channels).shape[-1] == most
    monkeypatch.setattr(capacity, "memory", lambda: 3 * 4 * 4 * (channels or 3) - 1)
    with pytest.raises(ConfigError, match="3 images"):
        load(str(tmp_path), channels=channels)
    monkeypatch.setattr("halfstep.data.sources.decoding.read", None)
    monkeypatch.setattr(capacity, "memory", lambda: 2**20)
    with pytest.raises(ConfigError, match="3 images"):
        load(str(tmp_path), size=most + 1, channels=channels)
    images = stream(str(tmp_path), size=most, channels=channels)  # a batch is of float32
    with pytest.raises(ConfigError, match="2 images"):
        next(images.batches(range(2), 2))


NO_NUMBERS = [float("nan"), float("inf"), 10**400, "1"]
GRIDS = [
    *(("start", lambda v: uniform(4, start=v)), ("end", lambda v: uniform(4, end=v))),
    *(("steps", uniform), ("levels", lambda v: trailing(4, levels=v))),
    *(("end", lambda v: uniform_landing(4, end=v)), ("end", lambda v: fast(4, Cosine(), end=v))),
    ("rho", lambda v: karras(4, Cosine(), rho=v)),
    ("start", lambda v: uniform_logsnr(4, Cosine(), start=v)),
    ("time grid", lambda v: checked((1.0, v, 0.0))),
    ("times|time grid", lambda v: Progressive(start=2, stop=1, times=(1.0, v, 0.0))),
]
OTHERS = [
    ("variance", lambda v: ancestral(None, variance=v)),
    ("scale", lambda v: Guided(None, v, 0)),
    (
        "scale",
        lambda v: Guided(None, torch.tensor([1.0, float(v) if v != 10**400 else torch.inf]), 0),
    ),
    ("scale", lambda v: ClassifierGuided(None, None, v)),
    ("tolerance", lambda v: Gate(None, v)),
    ("until", lambda v: Gate(None, 1.1, until=v)),
    ("samples", lambda v: Gate(None, 1.1, samples=v)),
    ("share", lambda v: load("digits").apart(v)),
    ("labels_per_class", lambda v: load("digits").labelled(v)),
    ("pruning", check_share),
    ("scale", lambda v: KLCodec.fresh({"norm_num_groups": 32}, scale=v)),
    ("guidance_range", lambda v: small(guidance_range=(1.0, v))),
    ("steps", lambda v: small(steps=v)),
    ("shape", lambda v: small(shape=(v,)) if v != "1" else small(shape="1")),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(value)[:6])
@pytest.mark.parametrize(("name", "function"), [*GRIDS, *OTHERS])
def test_arguments_of_functions_are_numbers(name, function, value):
    if function is OTHERS[2][1] and value == "1":
        pytest.skip("a tensor holds no words")
    with pytest.raises(ConfigError, match=name):
        function(value)


@pytest.mark.parametrize("value", [0, -1, math.nan, [4, 0], (4, [2, -8]), [[4, math.inf]]])
def test_a_size_within_a_list_is_a_size(value):
    refuse_sizes("unet", {"block_out_channels": [8, 16]})
    with pytest.raises(ConfigError, match="block_out_channels"):
        refuse_sizes("unet", {"block_out_channels": value})
