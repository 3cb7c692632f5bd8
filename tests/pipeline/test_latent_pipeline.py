"""Pipelines of latents and of texts: codec, prompts, nothing said, another size, samplers as published."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import constant
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.samplers.presets import SAMPLER_PRESETS
from halfstep.diffusion.schedules import Cosine, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly
from halfstep.methods.diffusion.denoising import Denoise, Denoising
from halfstep.models import build
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw

TOKENS, WIDTH = 5, 6
NET = dict(img_size=[4, 6], patch_size=2, in_chans=3, embed_dim=16, depth=2, num_heads=2)
TEXT = NET | dict(clip_dim=WIDTH, num_clip_token=TOKENS)
CODEC = dict(
    in_channels=1, out_channels=1, latent_channels=3, block_out_channels=[4, 8], norm_num_groups=2,
    layers_per_block=1, down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
)  # fmt: skip


@dataclass
class Letters:
    """An encoder of texts that anyone can follow: a state a letter, turned by `turn`."""

    turn: float = 1.0
    tokens = TOKENS
    width = WIDTH

    def encode(self, texts):
        states = torch.zeros(len(texts), self.tokens, self.width)
        for row, text in zip(states, texts, strict=True):
            row += torch.linspace(-1, 1, self.width) * self.turn
            for place, letter in enumerate(text[: self.tokens]):
                row[place] += torch.sin(torch.arange(self.width) * ord(letter))
        return states

    def on(self, device):
        return nullcontext()

    def release(self):
        pass

    def null(self):
        return self.conditions([""])

    def conditions(self, texts):
        return Cond(encoder_hidden_states=self.encode(texts))


def texts_pipeline(**changes):
    torch.manual_seed(0)
    denoiser = Denoiser(build("uvit", TEXT), Cosine(), V()).freeze()
    empty = Letters().encode([""])[0]
    return Pipeline(denoiser, (3, 4, 6), empty=empty, texts=Letters(), steps=3, **changes)


def latents_pipeline(**changes):
    torch.manual_seed(0)
    denoiser = Denoiser(build("uvit", NET), Cosine(), V()).freeze()
    codec = KLCodec.fresh(CODEC, scale=0.7).requires_grad_(False).eval()
    return Pipeline(denoiser, (3, 4, 6), codec=codec, steps=2, **changes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- nothing said ----------------------------------------------------------------------------------


def test_nothing_said_replaces_labels_or_texts_and_leaves_the_rest():
    cond = Cond(torch.tensor([3, 1, 2]), torch.randn(3, TOKENS, WIDTH), torch.rand(3))
    silent = cond.dropped(9)
    assert silent.label.tolist() == [9, 9, 9]
    assert (
        silent.encoder_hidden_states is cond.encoder_hidden_states
        and silent.guidance_scale is cond.guidance_scale
    )
    empty = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    mute = cond.dropped(empty)
    assert mute.label is cond.label and mute.encoder_hidden_states.dtype == torch.float32
    assert torch.equal(mute.encoder_hidden_states, empty.float().expand(3, -1, -1))
    where = torch.tensor([True, False, True])
    assert cond.dropped(9, where).label.tolist() == [9, 1, 9]
    some = cond.dropped(empty, where).encoder_hidden_states
    assert torch.equal(some[1], cond.encoder_hidden_states[1]) and torch.equal(
        some[0], empty.float()
    )


@pytest.mark.parametrize(
    ("cond", "nothing", "name"),
    [
        (Cond(), 3, "label"),
        (Cond(label=torch.tensor([0])), torch.zeros(2, 2), "encoder_hidden_states"),
    ],
)
def test_what_was_not_said_cannot_be_left_out(cond, nothing, name):
    with pytest.raises(ConfigError, match=f"no {name} to leave out"):
        cond.dropped(nothing)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_guidance_by_texts_is_the_mix_of_two_single_calls(scale):
    pipe = texts_pipeline()
    x, t = torch.randn(2, 3, 4, 6), torch.tensor([0.3, 1.0])
    encoder_hidden_states = Letters().encode(["sun", "moon"])
    guided = Guided(pipe.denoiser, scale, pipe.empty)(
        x, t, Cond(encoder_hidden_states=encoder_hidden_states)
    )
    conditional = pipe.denoiser(x, t, Cond(encoder_hidden_states=encoder_hidden_states))
    silent = pipe.denoiser(x, t, Cond(encoder_hidden_states=pipe.empty.expand(2, -1, -1)))
    assert not torch.allclose(conditional.x0, silent.x0)
    torch.testing.assert_close(guided.x0, silent.x0 + scale * (conditional.x0 - silent.x0))
    with pytest.raises(ConfigError, match=r"guidance needs texts"):
        Guided(pipe.denoiser, 2.0, pipe.empty)(x, t, Cond(label=torch.tensor([0, 1])))


class Listens(torch.nn.Module):
    """Remembers what it was told."""

    schedule = Cosine()

    def forward(self, x, t, cond):
        self.cond = cond
        return Denoiser(lambda x, t, cond: x, Cosine(), V()).parameterisation.decode(
            x, x, self.schedule.at(t[:, None])
        )


def test_training_drops_that_share_of_the_texts():
    n, empty = 4000, torch.full((2, 3), 7.0)
    encoder_hidden_states = torch.randn(n, 2, 3)
    student = Listens()
    objective = Denoise(Cosine(), constant, drop=0.2, null=empty)
    objective(
        student,
        Batch(torch.randn(n, 1), Cond(encoder_hidden_states=encoder_hidden_states)),
        Draw.all(generator(), n),
    )
    silent = (student.cond.encoder_hidden_states == empty).all((1, 2))
    assert abs(silent.float().mean().item() - 0.2) < 0.03
    assert torch.equal(student.cond.encoder_hidden_states[~silent], encoder_hidden_states[~silent])


def test_dropping_texts_needs_the_empty_one():
    pipe = texts_pipeline()
    [stage] = Denoising(drop_labels=0.1).stages(DenoiserOnly(pipe.denoiser, pipe.unconditional))
    assert stage.objective.null is pipe.empty
    with pytest.raises(ConfigError, match="null class, or texts"):
        Denoising(drop_labels=0.1).check(DenoiserOnly(pipe.denoiser))


# -- texts -----------------------------------------------------------------------------------------


def test_prompts_are_their_states_and_the_empty_text_is_the_default():
    pipe = texts_pipeline()
    words = ["sun", "moon", "sea"]
    by_words = pipe.sample(3, prompts=words, batch=2)
    by_states = pipe.sample(3, encoder_hidden_states=Letters().encode(words))
    silent = pipe.sample(3)
    assert torch.allclose(by_words, by_states, atol=1e-6)
    assert not torch.allclose(by_words, silent, atol=1e-5)
    assert torch.allclose(silent, pipe.sample(3, prompts=[""] * 3), atol=1e-6)
    guided = pipe.sample(3, prompts=words, guidance_scale=3.0)
    assert not torch.allclose(guided, by_words, atol=1e-5)
    assert torch.allclose(
        pipe.sample(3, guidance_scale=3.0), silent, atol=1e-6
    )  # nothing to push from


def test_what_texts_cannot_be():
    pipe = texts_pipeline()
    refused = partial(pytest.raises, ConfigError)
    with refused(match="need 3 prompts"):
        pipe.sample(3, prompts=["one"])
    with refused(match=r"encoder_hidden_states of shape \[1, 5, 6\]"):
        pipe.sample(1, encoder_hidden_states=torch.zeros(1, 5, 7))
    with refused(match="in two ways"):
        pipe.sample(1, prompts=["a"], encoder_hidden_states=torch.zeros(1, 5, 6))
    with refused(match="--text FOLDER"):
        Pipeline(pipe.denoiser, pipe.shape, empty=pipe.empty).sample(1, prompts=["a"])
    with refused(match="reads no texts"):
        latents_pipeline().sample(1, prompts=["a"])


def test_an_encoder_that_it_was_not_trained_with_is_refused(tmp_path):
    pipe = texts_pipeline()
    pipe.save(tmp_path)
    again = Pipeline.load(tmp_path)
    assert torch.equal(again.empty, pipe.empty) and again.texts is None
    assert again.steps == 3
    mine = again.with_texts(Letters()).sample(2, prompts=["a", "b"], seed=4)
    assert torch.equal(mine, pipe.sample(2, prompts=["a", "b"], seed=4))
    with pytest.raises(ConfigError, match="empty text"):
        again.with_texts(Letters(turn=1.1))
    with pytest.raises(ConfigError, match="reads no texts"):
        latents_pipeline().with_texts(Letters())


# -- latents ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_samples_are_decoded_and_latents_are_there_for_who_asks(tmp_path):
    pipe = latents_pipeline()
    latents = pipe.sample(5, seed=3, latents=True, batch=2)
    images = pipe.sample(5, seed=3, batch=2)
    assert latents.shape == (5, 3, 4, 6) and images.shape == (5, 1, 8, 12)
    assert torch.allclose(images, pipe.codec.decode(latents), atol=1e-6)
    assert images.abs().max() <= 1 and images.std() > 0
    pipe.save(tmp_path / "p")
    again = Pipeline.load(tmp_path / "p")
    assert again.codec.scale == 0.7 and again.steps == 2
    assert torch.equal(again.sample(5, seed=3, batch=2), images)
    student = replace(again, times=(uniform(1),))
    assert student.codec is again.codec and student.sample(2).shape == (2, 1, 8, 12)


def test_no_samples_have_the_shape_of_samples():
    pipe = latents_pipeline()
    assert pipe.sample(0).shape == (0, 1, 8, 12)
    assert pipe.sample(0, latents=True).shape == (0, 3, 4, 6)


def test_a_codec_that_is_missing_is_an_error(tmp_path):
    latents_pipeline().save(tmp_path)
    (tmp_path / "codec.safetensors").unlink()
    with pytest.raises(Exception, match=r"codec\.safetensors"):
        Pipeline.load(tmp_path)


def test_only_what_is_unusual_is_described():
    plain = Pipeline(Denoiser(build("mlp", {"dim": 2}), Cosine(), V()), (2,))
    assert {"sampler", "steps", "codec"}.isdisjoint(plain.describe())
    description = latents_pipeline(sampler="heun").describe()
    assert (description["sampler"], description["steps"]) == ("heun", 2)
    assert description["codec"] == {"scale": 0.7, "factor": 2}


# -- another size ----------------------------------------------------------------------------------


@torch.no_grad()
def test_another_size_is_in_pixels_and_can_be_saved(tmp_path):
    pipe = latents_pipeline()
    wide = pipe.at_size(16, 20)
    assert wide.shape == (3, 8, 10) and pipe.shape == (3, 4, 6)
    images = wide.sample(2, seed=1)
    assert images.shape == (2, 1, 16, 20)
    wide.save(tmp_path)
    assert torch.equal(Pipeline.load(tmp_path).sample(2, seed=1), images)
    same = pipe.at_size(8, 12)
    assert torch.equal(same.sample(2, seed=1), pipe.sample(2, seed=1))
    assert same.denoiser is not pipe.denoiser


@pytest.mark.parametrize("size", [(15, 20), (16, 21)])
def test_a_size_that_the_codec_cannot_make_is_refused(size):
    with pytest.raises(ConfigError, match="multiples of 2"):
        latents_pipeline().at_size(*size)


def test_a_student_and_a_network_without_sizes_are_refused():
    pipe = latents_pipeline()
    with pytest.raises(ConfigError, match="for a teacher"):
        replace(pipe, times=(uniform(2),)).at_size(16, 16)
    points = Pipeline(Denoiser(build("mlp", {"dim": 2}), Cosine(), V()), (2,))
    with pytest.raises(ConfigError, match="for a teacher"):
        points.at_size(8, 8)
    dit = build(
        "dit",
        dict(
            sample_size=4, in_channels=3, patch_size=2, num_layers=1, num_attention_heads=2,
            attention_head_dim=4,
        ),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="another image size"):
        Pipeline(Denoiser(dit, Cosine(), V()), (3, 4, 4)).at_size(8, 8)


# -- samplers as published -------------------------------------------------------------------------


def published(name, steps):
    torch.manual_seed(0)
    net = build("uvit", NET)
    denoiser = Denoiser(net, VPLinear(), Eps(), time=NetTime("t", 999.0)).freeze()
    return Pipeline(denoiser, (3, 4, 6), sampler=name, steps=steps)


@pytest.mark.parametrize("name", ["dpmpp-3s", "dpm-fast", "euler-maruyama"])
@torch.no_grad()
def test_a_teachers_own_sampler_walks_on_its_own_grid(name):
    steps = 8 if name == "euler-maruyama" else 4  # in fewer its x is far too spread out
    pipe = published(name, steps)
    schedule = pipe.denoiser.schedule
    assert len(pipe.grid(sampler=name)) == steps + 1
    assert pipe.grid(3, name) == SAMPLER_PRESETS[name].grid(3, schedule)
    x = pipe.sample(3, seed=2)
    assert x.isfinite().all() and not torch.allclose(x, pipe.sample(3, seed=2, sampler="ddim"))
    assert torch.equal(x[1:], pipe.sample(2, seed=2, first=1))  # noise too is the image's own
    if name != "euler-maruyama":
        from halfstep.rng import sample_noise

        times = SAMPLER_PRESETS[name].grid(4, schedule)
        step = SAMPLER_PRESETS[name].step(4, schedule, lambda like, step: like)
        noise = sample_noise(2, range(3), pipe.shape)
        assert torch.allclose(x, sample(pipe.denoiser, noise, times, step), atol=1e-5)
    student = replace(pipe, times=(uniform(2),), sampler="ddim")
    assert torch.equal(student.sample(2), student.sample(2, sampler="ddim"))
    with pytest.raises(ConfigError, match=f"'{name}' has a grid"):
        student.sample(2, sampler=name)


def test_a_sampler_that_is_none_is_refused_with_all_names():
    with pytest.raises(ConfigError, match="dpmpp-3s"):
        published("ddim", 2).sample(1, sampler="dpmpp3s")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_a_network_of_another_precision_can_be_sampled(dtype):
    pipe = published("ddim", 4)
    full = pipe.sample(3, seed=1)
    pipe.denoiser.to(dtype)
    other = pipe.sample(3, seed=1)
    assert other.dtype == torch.float32
    close = {torch.bfloat16: 0.1, torch.float64: 1e-4}[dtype]
    assert (other - full).abs().max() < close * full.abs().max()
    # Times are not rounded: 999 t is told apart where bfloat16 has one number for both.
    x, times = torch.zeros(2, 3, 4, 6), torch.tensor([0.9000, 0.9010], dtype=torch.float64)
    times_read = []
    pipe.denoiser.net.register_forward_pre_hook(lambda net, given: times_read.append(given[1]))
    pipe.denoiser(x, times)
    assert times_read[0][1] - times_read[0][0] == pytest.approx(0.999, abs=1e-3)
