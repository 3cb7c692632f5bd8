"""Networks: every backbone through the one call.  The U-ViT itself is in test_uvit*.py."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.progressive import Halve
from halfstep.models import Adapter, build, Classifier, infer_config, NETS, recipe
from halfstep.models.eval_mode import evaluating
from halfstep.rng import Draw
from tests.support.networks import data, ROWS, TINY, tiny

# Every backbone through the one call


backbones = pytest.mark.parametrize("name", TINY)
labels = pytest.mark.parametrize("num_classes", [None, 3], ids=["no labels", "labels"])


def test_every_net_is_tried():
    assert set(TINY) == set(NETS)


@backbones
@labels
def test_a_backbone_is_distilled_for_one_update(name, num_classes):
    """One update of the halving changes the student and nothing of the teacher."""
    torch.manual_seed(0)
    teacher = Denoiser(tiny(name, num_classes), Cosine(), V())
    with torch.no_grad():  # a DiT begins as zero, which any student matches
        for p in teacher.parameters():
            p.add_(0.02 * torch.randn_like(p))
    student, batch = teacher.trainable_copy(), data(name, num_classes)
    before = [p.clone() for p in teacher.freeze().parameters()]
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    draw = Draw.all(torch.Generator().manual_seed(0), ROWS)
    loss = Halve(teacher, uniform(4))(student, batch, draw)
    assert loss.shape == (ROWS,) and bool(loss.isfinite().all())
    loss.mean().backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)
    assert {key.split(".")[0] for key in teacher.net.state_dict()} == {"model"}


@backbones
@torch.no_grad()
def test_labels_and_times_are_heard_and_rows_do_not_mix(name):
    torch.manual_seed(0)
    net, batch = tiny(name, 3), data(name, 3)
    for p in net.parameters():
        p.add_(0.05 * torch.randn_like(p))
    t = torch.full((ROWS,), 300.0)
    out = net(batch.x0, t, batch.cond)
    changed = batch.cond.label.clone()
    changed[1] = (changed[1] + 1) % 3
    later = t.clone()
    later[2] = 700.0
    other = net(batch.x0, later, Cond(changed, batch.cond.encoder_hidden_states))
    difference = (out - other).flatten(1).abs().amax(1)
    assert difference[1] > 1e-4 and difference[2] > 1e-4
    assert difference[[0, 3]].max() < 1e-6


@torch.no_grad()
def test_dit_does_not_drop_labels_by_itself():
    net = tiny("dit", 3).train()
    for p in net.parameters():
        p.add_(0.1 * torch.randn_like(p))
    x, t, label = torch.randn(1, 3, 8, 8).expand(400, -1, -1, -1), torch.zeros(400), torch.ones(400)
    out = net(x, t, Cond(label.long()))
    assert (out - out[:1]).abs().max() < 1e-5
    assert (
        net.model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.shape[0]
        == 3
    )


@torch.no_grad()
def test_text_states_are_heard():
    net, batch = tiny("unet-condition", None), data("unet-condition", None)
    t = torch.full((ROWS,), 300.0)
    out, other = (
        net(batch.x0, t, batch.cond),
        net(batch.x0, t, Cond(None, -batch.cond.encoder_hidden_states)),
    )
    assert (out - other).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["unet", "dit", "unet-condition"])
@torch.no_grad()
def test_out_channels_follow_in_channels(name):
    batch, t = data(name, None), torch.zeros(ROWS)
    assert tiny(name, None)(batch.x0, t, batch.cond).shape == (ROWS, 3, 8, 8)
    twice = build(name, TINY[name] | {"out_channels": 6})
    assert twice(batch.x0, t, batch.cond).shape == (ROWS, 6, 8, 8)


@backbones
def test_conditions_that_a_net_does_not_read_are_refused(name):
    batch, t = data(name, 3), torch.zeros(ROWS)
    encoder_hidden_states = batch.cond.encoder_hidden_states
    with pytest.raises(ConfigError, match="takes no labels and got some"):
        tiny(name, None)(batch.x0, t, batch.cond)
    with pytest.raises(ConfigError, match="3 classes and got no labels"):
        tiny(name, 3)(batch.x0, t, Cond(None, encoder_hidden_states))
    with pytest.raises(ConfigError, match="reads no guidance"):
        tiny(name, 3)(batch.x0, t, Cond(batch.cond.label, encoder_hidden_states, torch.ones(ROWS)))
    if encoder_hidden_states is None:
        with pytest.raises(ConfigError, match="reads no encoder_hidden_states"):
            tiny(name, 3)(batch.x0, t, Cond(batch.cond.label, torch.ones(ROWS, 7, 12)))
    else:
        with pytest.raises(ConfigError, match="reads text states"):
            tiny(name, None)(batch.x0, t)


def test_importing_the_nets_imports_no_diffusers():
    """Nor does building one of our own that is no model of diffusers."""
    code = (
        "import sys; from halfstep.models import build, UViTNet; build('mlp', {}); "
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# build


@backbones
def test_a_recipe_rebuilds_the_net(name):
    net = tiny(name, 3)
    again = build(*json.loads(json.dumps(recipe(net))))
    again.load_state_dict(net.state_dict())
    assert recipe(again) == recipe(net)
    kind, config = recipe(net)
    assert kind == name
    assert {key: config[key] for key in TINY[name]} == TINY[name] and config["num_classes"] == 3


@pytest.mark.parametrize("name", ["uvit", "mlp"])
def test_a_recipe_of_our_own_nets_keeps_the_defaults_it_was_built_with(name):
    net = tiny(name, None)
    config = net.model.config
    config_of_net = recipe(net)[1]
    assert config_of_net == {key: config[key] for key in config if key in config_of_net}
    assert set(TINY[name]) < set(config_of_net)
    # What the first runs did not know is told where it is not what they were made with.
    assert {key for key in config if key not in config_of_net and key[0] != "_"} == (
        {"guidance_embed_dim", "output_heads", "t_end_embed_dim"}
        | ({"clip_dim", "num_clip_token", "attention"} if name == "uvit" else set())
    )
    if name == "uvit":
        other = build(name, TINY[name] | {"attention": "sdpa", "num_clip_token": 5})
        assert recipe(other)[1] == {**config_of_net, "attention": "sdpa", "num_clip_token": 5}


@pytest.mark.parametrize("name", ["uvit", "unet", "dit", "unet-condition"])
def test_fitting_is_what_the_data_decides(name):
    config = TINY[name] | infer_config(name, (3, 8, 8), outputs=2, num_classes=3)
    batch = data(name, 3)
    assert build(name, config)(batch.x0, torch.zeros(ROWS), batch.cond).shape == (ROWS, 6, 8, 8)


def test_fitting_refuses_data_of_another_kind():
    assert infer_config("mlp", (5,), outputs=2) == {"dim": 5, "out_dim": 10}
    assert infer_config("mine.nets:small", (3, 4, 6), num_classes=2) == {"num_classes": 2}
    assert infer_config("uvit", (3, 4, 6))["img_size"] == [4, 6]
    with pytest.raises(ConfigError, match="is for points"):
        infer_config("mlp", (3, 8, 8))
    with pytest.raises(ConfigError, match="is for images"):
        infer_config("unet", (2,))
    with pytest.raises(ConfigError, match="square"):
        infer_config("dit", (3, 4, 6))


@pytest.mark.parametrize(
    "name, config, says",
    [
        ("uvti", {}, "no net 'uvti': perhaps you meant 'uvit'"),
        ("uvit", {"embed_dimm": 8}, "'embed_dimm': perhaps you meant 'embed_dim'"),
        ("mlp", {"widt": 8}, "'widt': perhaps you meant 'width'"),
        ("unet", {"block_out_chanels": [8]}, "perhaps you meant 'block_out_channels'"),
        ("unet", {"num_class_embeds": 3, "num_classes": 4}, "num_class_embeds"),
        ("dit", {"num_layer": 2}, "perhaps you meant 'num_layers'"),
        ("dit", {"num_embeds_ada_norm": 2, "num_classes": 2}, "num_embeds_ada_norm"),
        ("unet-condition", {"sample_sise": 8}, "perhaps you meant 'sample_size'"),
        ("unet", TINY["unet"] | {"norm_num_groups": 3}, "'unet' cannot be built"),
        ("mlp", {"width": torch.zeros(1)}, "'width' .* is a Tensor, which JSON cannot hold"),
        ("no_such_package:net", {}, "no module 'no_such_package'"),
        ("tests.models.test_build:lineer", {}, "'lineer': perhaps you meant 'linear'"),
        (
            "tests.models.test_build:linear",
            {"wide": 3, "sied": 1},
            "'sied': perhaps you meant 'side'",
        ),
        ("tests.models.test_build:linear", {}, "needs wide in its config"),
        ("tests.models.test_build:no_net", {}, "returned int"),
    ],
)
def test_build_refuses(name, config, says):
    with pytest.raises(ConfigError, match=says):
        build(name, config)


class Linear(Adapter):
    """What a user writes."""

    def forward(self, x, t, cond=None):
        return self.model(x) + t[:, None]


def linear(wide, side=1.0):
    return Linear(nn.Linear(wide, wide))


def no_net():
    return 3


def small_uvit(depth):
    return build("uvit", TINY["uvit"] | {"depth": depth})


def test_a_users_function_is_a_net():
    net = build("tests.models.test_build:linear", {"wide": 3, "side": 2.0})
    assert net(torch.zeros(5, 3), torch.ones(5)).shape == (5, 3)
    assert recipe(net) == ("tests.models.test_build:linear", {"wide": 3, "side": 2.0})
    net = build(
        "tests.models.test_build:small_uvit", {"depth": 4}
    )  # the user's arguments, not the U-ViT's
    assert recipe(net) == ("tests.models.test_build:small_uvit", {"depth": 4})
    with pytest.raises(ConfigError, match="not made by"):
        recipe(nn.Linear(2, 2))


def test_a_twin_keeps_its_recipe():
    denoiser = Denoiser(tiny("mlp", None), Cosine(), V())
    assert recipe(denoiser.trainable_copy().net) == recipe(denoiser.net)


# The small ones


def test_the_mlp_learns_two_points():
    """Data of two points, one a class: pure noise is denoised to the point asked for."""
    torch.manual_seed(0)
    points = torch.tensor([[0.8, -0.3], [-0.5, 0.6]])
    net = build("mlp", {"dim": 2, "width": 32, "depth": 2, "num_classes": 2})
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(200):
        label, t = torch.randint(2, (128,)), torch.rand(128)
        x = (1 - t[:, None]) * points[label] + t[:, None] * torch.randn(128, 2)
        loss = (net(x, 1000 * t, Cond(label)) - points[label]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    label = torch.arange(64) % 2
    out = net(torch.randn(64, 2), torch.full((64,), 1000.0), Cond(label))
    assert (out - points[label]).abs().mean() < 0.05


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 9, 14), (5, 3, 64, 64)])
@torch.no_grad()
def test_classifier(shape):
    net = Classifier(channels=shape[1], num_classes=7, size=min(shape[2:]))
    assert 40_000 < sum(p.numel() for p in net.parameters()) < 200_000
    x = torch.randn(shape)
    logits, features = net(x), net.features(x)
    assert logits.shape == (5, 7) and features.shape == (5, 32)
    torch.testing.assert_close(net.head(features), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(net.features(x[2:3]), features[2:3], rtol=0, atol=1e-5)
    net.unit_features(x)
    torch.testing.assert_close(net(x), logits, rtol=0, atol=1e-5)
    assert net.features(x).var(0).mean().item() == pytest.approx(1, abs=1e-5)
    assert Classifier(**net.config).state_dict().keys() == net.state_dict().keys()


def test_classifier_refuses_other_images():
    with pytest.raises(ConfigError, match="channels=3"):
        Classifier(channels=1)(torch.zeros(5, 3, 8, 8))
    with pytest.raises(ConfigError, match="7 x 9 are too small"):
        Classifier(channels=3)(torch.zeros(5, 3, 7, 9))


def test_a_network_is_asked_in_eval_mode_and_left_in_the_modes_of_its_parts():
    net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout()))
    net[1].eval()
    with pytest.raises(KeyError), evaluating(net):
        assert not any(part.training for part in net.modules())
        raise KeyError
    assert [part.training for part in net.modules()] == [True, True, False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**30, [[1, float("-inf")]]])
def test_what_no_file_may_say_cannot_be_in_a_config(value):
    with pytest.raises(ConfigError, match="could not be saved: its option width"):
        build("mlp", {"dim": 2, "width": value})
