"""diffusers' configs: `dict(model.config)` builds the model, and what halfstep does not run is a sentence."""

import pytest
import torch

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Eps, V, X0, X0AndEps
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.errors import ConfigError
from halfstep.models import build, infer_config, recipe
from halfstep.models.with_guidance import with_guidance
from tests.support.networks import TINY

KINDS = {
    "unet": "UNet2DModel",
    "unet-condition": "UNet2DConditionModel",
    "dit": "DiTTransformer2DModel",
}
kinds = pytest.mark.parametrize("name", KINDS)
TEXT = {"cross_attention_dim": 12}
ROWS = 2


def theirs(name, **options):
    import diffusers

    torch.manual_seed(0)
    plain = {key: value for key, value in TINY[name].items()}
    return getattr(diffusers, KINDS[name])(
        **{"in_channels": 3, "out_channels": 3, **plain, **options}
    )


def condition(name, **more):
    encoder_hidden_states = torch.randn(ROWS, 5, 12) if name == "unet-condition" else None
    return Cond(encoder_hidden_states=encoder_hidden_states, **more)


@kinds
@pytest.mark.parametrize("private", [True, False], ids=["as it is", "without private keys"])
@torch.no_grad()
def test_the_config_of_a_model_builds_it(name, private):
    """The same weights answer the same, and the recipe builds it once more."""
    model = theirs(name, **({"num_embeds_ada_norm": 0} if name == "dit" else {})).eval()
    config = dict(model.config) if private else {
        key: value for key, value in model.config.items() if key[0] != "_"
    }  # fmt: skip
    net = build(name, config).eval()
    net.model.load_state_dict(model.state_dict())
    x, t, cond = torch.randn(ROWS, 3, 8, 8), torch.full((ROWS,), 300.0), condition(name)
    label = {"class_labels": torch.zeros(ROWS, dtype=torch.int64)} if name == "dit" else {}
    text = (
        {}
        if cond.encoder_hidden_states is None
        else {"encoder_hidden_states": cond.encoder_hidden_states}
    )
    assert torch.equal(net(x, t, cond), model(x, t, **label, **text).sample)
    again = build(*recipe(net))
    assert recipe(again) == recipe(net) and not any(key[0] == "_" for key in recipe(net)[1])


@pytest.mark.parametrize(
    "name, options, num_classes",
    [
        ("unet", {"num_class_embeds": 4}, 4),
        ("unet-condition", {"num_class_embeds": 4}, 4),
        ("dit", {"num_embeds_ada_norm": 3}, 4),
        ("dit", {}, 1001),
        ("dit", {"num_embeds_ada_norm": 0}, None),
        ("unet", {}, None),
    ],
)
def test_classes_of_a_config_are_those_of_the_net(name, options, num_classes):
    net = build(name, dict(theirs(name, **options).config))
    assert net.num_classes == num_classes
    label = None if num_classes is None else torch.tensor([0, num_classes - 1])
    assert (
        net(torch.randn(ROWS, 3, 8, 8), torch.zeros(ROWS), condition(name, label=label)).shape[1]
        == 3
    )


@kinds
def test_a_scale_is_added_to_a_config(name):
    config = dict(theirs(name, **({"num_embeds_ada_norm": 3} if name == "dit" else {})).config)
    net = build(name, {**config, "guidance_embed_dim": 8})
    label = torch.tensor([0, 1]) if name == "dit" else None
    cond = condition(name, label=label, guidance_scale=torch.ones(ROWS))
    assert net(torch.randn(ROWS, 3, 8, 8), torch.zeros(ROWS), cond).shape == (ROWS, 3, 8, 8)
    assert recipe(with_guidance(build(name, config), width=8))[1]["guidance_embed_dim"] == 8


def test_a_scale_that_a_config_has_is_read():
    """An LCM's network is built with time_cond_proj_dim: it takes its guidance scale as an input."""
    model = theirs("unet-condition", time_cond_proj_dim=8)
    net = build("unet-condition", dict(model.config))
    x, t = torch.randn(ROWS, 3, 8, 8), torch.zeros(ROWS)
    with pytest.raises(ConfigError, match="guidance"):
        net(x, t, condition("unet-condition"))
    assert net(x, t, condition("unet-condition", guidance_scale=torch.ones(ROWS))).shape == x.shape
    assert (
        recipe(build("unet-condition", dict(model.config) | {"guidance_embed_dim": 8}))[1][
            "guidance_embed_dim"
        ]
        == 8
    )


def test_a_config_of_a_model_that_another_class_saved_builds_it():
    """diffusers keeps what a class does not know; where it says nothing it is left out."""
    import diffusers

    saved = {
        **TINY["dit"],
        "num_embeds_ada_norm": 3,
        "cross_attention_dim": None,
        "norm_num_groups": 3,
    }
    model = diffusers.DiTTransformer2DModel.from_config({**saved, "double_self_attention": False})
    assert "cross_attention_dim" in model.config
    assert build("dit", dict(model.config)).num_classes == 4
    with pytest.raises(ConfigError, match="guidence"):
        build("dit", dict(model.config) | {"guidence": 8})


@pytest.mark.parametrize(
    "name, options, word",
    [
        ("unet-condition", {"addition_embed_type": "text_image"}, "text_image"),
        ("unet-condition", {"addition_embed_type": "image"}, "image"),
        ("unet-condition", {"addition_embed_type": "image_hint"}, "hint"),
        ("unet-condition", {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}, "image_proj"),
        ("unet-condition", {"encoder_hid_dim_type": "text_image_proj"}, "image"),
        ("unet-condition", {"encoder_hid_dim_type": "ip_image_proj"}, "image"),
        ("unet-condition", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet-condition", {"class_embed_type": "projection"}, "vector"),
        ("unet-condition", {"class_embed_type": "simple_projection"}, "vector"),
        ("unet-condition", {"class_embed_type": "nothing known"}, "class_embed_type"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet", {"class_embed_type": "identity"}, "class_embed_type"),
        ("unet", {"time_embedding_type": "learned", "num_train_timesteps": 9}, "learned"),
        ("unet", {"num_classes": 0}, "num_classes"),
        ("dit", {"num_classes": -1}, "num_classes"),
        ("unet-condition", {"time_cond_proj_dim": 3}, "guidance_embed_dim"),
        ("unet", {"_class_name": "UNet2DConditionModel"}, "unet-condition"),
        ("dit", {"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ("unet", {"outputs": 2, "out_channels": 3}, "outputs"),
        # whatever diffusers, torch and Python raise
        ("dit", {"norm_type": "layer_norm"}, "cannot be built"),
        ("dit", {"patch_size": 0}, "patch_size"),
        ("unet", {"block_out_channels": [-8, 16]}, "block_out_channels"),
        ("unet", {"down_block_types": ["NoBlock", "DownBlock2D"]}, "cannot be built"),
        ("unet-condition", {"attention_head_dim": 0}, "attention_head_dim"),
        ("mlp", {"width": -1}, "width"),
    ],
)  # fmt: skip
def test_networks_that_need_more_are_refused_when_they_are_built(name, options, word):
    with pytest.raises(ConfigError, match=word):
        build(name, TINY[name] | options)


@pytest.mark.parametrize(
    "name, word",
    [
        ("UNet2DModel", "unet"),
        ("DiTTransformer2DModel", "dit"),
        ("AuraFlowTransformer2DModel", "inputs"),
        ("AutoencoderTiny", "inputs"),
        ("DDIMScheduler", "no net"),
        ("diffusers:UNet2DModel", "unet"),
        ("diffusers:PixArtTransformer2DModel", "not called as"),
        ("tests.models.test_diffusers_config:plain_unet", "unet"),
    ],
)
def test_classes_of_diffusers_are_no_nets(name, word):
    with pytest.raises(ConfigError, match=word):
        build(name, {})


def plain_unet():
    return theirs("unet")


def test_a_bare_model_of_diffusers_is_refused_when_it_is_asked():
    denoiser = Denoiser(theirs("unet"), Cosine(), V())
    with pytest.raises(ConfigError, match="UNet2DOutput"):
        denoiser(torch.randn(ROWS, 3, 8, 8), torch.full((ROWS,), 0.5))


# --- what comes out -----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    "reads", [Eps(), V(), X0(), X0AndEps()], ids=lambda reads: type(reads).__name__
)
def test_learned_variances_are_never_read(name, reads):
    net = build(name, TINY[name] | {"out_channels": 6})
    with pytest.raises(ConfigError, match="variances"):
        Denoiser(net, BetaTable(), reads)


@kinds
def test_x0_and_eps_are_read_where_the_config_says_so(name):
    config = TINY[name] | infer_config(name, (3, 8, 8), outputs=2)
    net = build(*recipe(build(name, config)))
    x, t = torch.randn(ROWS, 3, 8, 8), torch.full((ROWS,), 0.5)
    assert Denoiser(net, Cosine(), X0AndEps())(x, t, condition(name)).x0.shape == x.shape
    with pytest.raises(ConfigError, match="parameterisation"):
        Denoiser(net, Cosine(), Eps())


@kinds
@pytest.mark.parametrize("channels", [(4, 3), (9, 3), (3, 9), (2, 1)])
def test_a_network_that_reads_more_than_x_is_refused(name, channels):
    """Inpainting's reads a mask and an image besides: one channel out would be broadcast over two."""
    reads, puts_out = channels
    net = build(name, TINY[name] | {"in_channels": reads, "out_channels": puts_out})
    with pytest.raises(ConfigError, match="channels"):
        Denoiser(net, Cosine(), V())


@pytest.mark.parametrize("out", [(2, 1, 8, 8), (2, 6, 8, 8), (2, 3, 8, 1), (2, 3, 8), (3, 8, 8)])
@pytest.mark.parametrize("reads", [V(), X0AndEps()], ids=lambda reads: type(reads).__name__)
def test_an_output_of_another_shape_is_refused(out, reads):
    """Of any network: torch would broadcast it, or cut it in the wrong halves."""

    class Net(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return torch.zeros(out)

    denoiser = Denoiser(Net(), Cosine(), reads)
    if out == (2, 6, 8, 8) and isinstance(reads, X0AndEps):
        denoiser(torch.randn(2, 3, 8, 8), torch.full((2,), 0.5))
        return
    with pytest.raises(ConfigError, match="shape"):
        denoiser(torch.randn(2, 3, 8, 8), torch.full((2,), 0.5))


@pytest.mark.parametrize("shape", [(ROWS, 5, 8), (ROWS, 12), (ROWS, 5, 13)])
def test_text_states_of_another_width_are_refused(shape):
    with pytest.raises(ConfigError, match="text states"):
        build("unet-condition", TINY["unet-condition"])(
            torch.randn(ROWS, 3, 8, 8),
            torch.zeros(ROWS),
            Cond(encoder_hidden_states=torch.randn(shape)),
        )
