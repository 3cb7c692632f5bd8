"""The configurations of published U-ViTs are the official ones."""

import pytest
import torch

from halfstep.hub.uvit import PUBLISHED
from tests.support.published import DISCRETE, LATENT, level_by_hand, NAMES, NETWORKS, RECIPES, TEXT

# What the names stand for.


def test_the_names_are_the_official_ones():
    assert list(PUBLISHED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_are_the_published_ones(name):
    published, expected = PUBLISHED[name], NETWORKS[name]
    model = published.blank().get_submodule("model")
    assert all(p.is_meta for p in model.parameters())
    tensors = model.state_dict()
    net = {"num_classes": -1, "conv": True, "use_checkpoint": False, **published.net}
    actual = [
        *[
            net[k]
            for k in ("in_chans", "img_size", "patch_size", "embed_dim", "depth", "num_heads")
        ],
        *[net[k] for k in ("num_classes", "conv", "use_checkpoint")],
        tensors["pos_embed"].shape[1],
        sum(value.numel() for value in tensors.values()),
        len(tensors),
    ]
    assert actual == list(expected)
    assert published.shape == (expected[0], expected[1], expected[1])
    assert [net.get("clip_dim"), net.get("num_clip_token")] == (
        [768, 77] if name in TEXT else [None, None]
    )
    assert not {"mlp_time_embed", "qkv_bias", "qk_scale", "mlp_ratio", "skip"} & net.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_recipes_are_the_published_ones(name):
    published, training = PUBLISHED[name], PUBLISHED[name].training
    rate, betas, warmup, batch, thousands, drop, sampler, steps, s, fid = RECIPES[name]
    assert [training.learning_rate, training.betas, training.warmup] == [rate, betas, warmup]
    assert [training.batch_size, published.method.updates] == [batch, 1000 * thousands]
    assert [published.sampler, published.steps, published.fid] == [sampler, steps, fid]
    assert published.guidance_scale == pytest.approx(1 + s)
    assert [published.method.drop_labels, published.method.weighting] == [drop, "snr"]
    assert published.method.levels == (1000 if name in DISCRETE else 0)
    assert [training.weight_decay, training.max_grad_norm, training.ema] == [0.03, 0, 0.9999]
    assert [training.optimiser, training.precision] == ["adamw", "fp16"]
    rates = [training.rate_at(k, published.method.updates) for k in (0, 1, warmup, 10 * warmup)]
    assert rates == pytest.approx([0, rate / warmup, rate, rate])


@pytest.mark.parametrize("name", NAMES)
def test_labels_latents_and_sizes_are_the_published_ones(name):
    published = PUBLISHED[name]
    rows = NETWORKS[name][6]
    assert published.num_classes == (1000 if rows > 0 else 0)
    assert published.null == (1000 if rows == 1001 else None)
    scale = {True: 0.23010, False: 0.18215}[name in TEXT] if name in LATENT else None
    assert published.scale == scale
    assert published.size == NETWORKS[name][1] * (8 if name in LATENT else 1)
    digits = "".join(filter(str.isdigit, name.split("_")[0].replace("cifar10", "32")))
    assert published.size == int(digits or 256)
    assert published.flip == (name not in TEXT)


@pytest.mark.parametrize("name", NAMES)
def test_the_forward_processes_are_the_published_ones(name):
    times = torch.tensor([0.001, 0.002, 0.37, 0.5, 0.999, 1.0], dtype=torch.float64)
    level = PUBLISHED[name].schedule.at(times)
    alpha = torch.tensor([level_by_hand(name, float(t)) for t in times], dtype=torch.float64)
    torch.testing.assert_close(level.alpha, alpha, rtol=1e-9, atol=0)
    torch.testing.assert_close(level.sigma**2, 1 - alpha**2, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_labels_of_the_times_are_the_published_ones(name):
    published = PUBLISHED[name]
    first, second, last = published.time(
        torch.tensor([0.001, 0.98002, 1.0], dtype=torch.float64), published.schedule
    ).tolist()
    wanted = (1.0, 980.02, 1000.0) if name in DISCRETE else (0.999, 979.03998, 999.0)
    assert (first, second, last) == pytest.approx(wanted, abs=1e-9)
