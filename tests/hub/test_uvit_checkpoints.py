"""Published models: what each name stands for, and what a file of official weights becomes."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halfstep.batch import Cond
from halfstep.diffusion.guidance import Guided
from halfstep.errors import CheckpointError, ConfigError
from halfstep.hub.uvit import load_published, PUBLISHED
from halfstep.models import UViT
from halfstep.models.autoencoder.kl import KLCodec, load_codec
from halfstep.models.text_encoders import load_texts
from halfstep.pipeline import Pipeline
from tests.support.published import DISCRETE, level_by_hand, NAMES, RECIPES

KINDS = ["cifar10_uvit_small", "imagenet64_uvit_mid", "imagenet256_uvit_large"]
KINDS += ["imagenet512_uvit_huge"]


def tiny(name, **more):
    """The configuration of that name with a network of a few thousand weights, and 7 classes."""
    published = PUBLISHED[name]
    net = {**published.net, "img_size": 12, "patch_size": 3, "embed_dim": 24, "depth": 4}
    net |= {"num_heads": 3, **more}
    if not published.num_classes:
        return replace(published, net=net)
    rows = 7 + (published.null is not None)
    null = None if published.null is None else 7
    return replace(published, net={**net, "num_classes": rows}, num_classes=7, null=null)


def official(published, seed=0):
    """A U-ViT of these arguments with weights that leave nothing at 0, as it would be trained."""
    model = UViT(**published.net)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval().requires_grad_(False)


def saved(folder, published, seed=0, name="official.pth"):
    model = official(published, seed)
    torch.save(model.state_dict(), folder / name)
    return model, folder / name


def hollow(path, name):
    """A file of a published network's names and shapes that weighs a few kB: every entry one zero."""
    shapes = PUBLISHED[name].blank().get_submodule("model").state_dict()
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}, path)
    return path


def labels_for(published, x):
    return torch.tensor([3, 6, 0][: len(x)]) if published.num_classes else None


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A folder of a small untrained codec, which says that its own scale is 1."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4}
    KLCodec.fresh(config).save(folder)
    return folder


def told_by_hand(name, t):
    """What the network reads at t: the number of the level from 1, or 999 t."""
    return 1000 * t if name in DISCRETE else 999 * t


@pytest.mark.parametrize("name", KINDS)
def test_weights_read_as_the_official_code_reads_them(name, tmp_path):
    """eps and x0 of the pipeline against the network called by hand; no user types 999 or + 1."""
    published = tiny(name)
    model, file = saved(tmp_path, published)
    pipeline = published.pipeline(file)
    x = torch.randn(3, *published.shape, generator=torch.Generator().manual_seed(1))
    times = [0.001, 0.412, 0.999]
    y = labels_for(published, x)
    times_read = torch.tensor([told_by_hand(name, t) for t in times])
    cond = None if y is None else Cond(y)
    got = pipeline.denoiser(x, torch.tensor(times, dtype=torch.float64), cond)
    eps = model(x, times_read, y)
    torch.testing.assert_close(got.eps, eps, rtol=0, atol=1e-6)
    alpha = torch.tensor([level_by_hand(name, t) for t in times])[:, None, None, None]
    x0 = (x - (1 - alpha**2).sqrt() * eps) / alpha
    torch.testing.assert_close(got.x0, x0, rtol=2e-3, atol=2e-3)
    # The same network told a time that is off by one says something else: this test would see it.
    for wrong in (
        times_read - 1,
        times_read + 1,
        times_read * (999 / 1000),
        times_read * (1000 / 999),
    ):
        assert (model(x, wrong, y) - eps).abs().amax() > 1e-3
    assert pipeline.shape == published.shape and pipeline.clip is None
    assert pipeline.class_names == (tuple("0123456") if published.num_classes else ())
    assert (pipeline.sampler, pipeline.steps) == (published.sampler, published.steps)
    assert all(
        p.requires_grad for p in pipeline.denoiser.parameters()
    )  # whose user may freeze some


@pytest.mark.parametrize("name", ["imagenet256_uvit_large", "imagenet512_uvit_huge"])
def test_the_published_guidance_is_theirs_plus_one(name, tmp_path):
    published, s = tiny(name), RECIPES[name][8]
    model, file = saved(tmp_path, published)
    pipeline = published.pipeline(file)
    guided = Guided(pipeline.denoiser, published.guidance_scale, pipeline.null)
    x, y = torch.randn(2, *published.shape), torch.tensor([5, 2])
    got = guided(x, torch.tensor([0.25, 0.875], dtype=torch.float64), Cond(y)).eps
    times_read = torch.tensor([told_by_hand(name, t) for t in (0.25, 0.875)])
    cond, uncond = model(x, times_read, y), model(x, times_read, torch.full_like(y, 7))
    torch.testing.assert_close(got, cond + s * (cond - uncond), rtol=0, atol=1e-5)


def test_where_there_is_no_null_class_guidance_is_refused(tmp_path):
    published = tiny("imagenet64_uvit_mid")
    pipeline = published.pipeline(saved(tmp_path, published)[1])
    with pytest.raises(ConfigError, match="null class"):
        pipeline.sample(2, steps=2, sampler="ddim", guidance_scale=1.5)


@pytest.mark.parametrize("name", KINDS)
def test_the_published_sampler_is_the_default_and_survives_saving(name, tmp_path):
    published = replace(tiny(name), steps=7)
    pipeline = published.pipeline(saved(tmp_path, published)[1])
    x = pipeline.sample(2, seed=5)
    assert x.shape == (2, *published.shape) and bool(x.isfinite().all())
    torch.testing.assert_close(
        x, pipeline.sample(2, seed=5, sampler=published.sampler, steps=7), rtol=0, atol=0
    )
    assert (x - pipeline.sample(2, seed=5, sampler="ddim", steps=10)).abs().max() > 1e-3
    pipeline.save(tmp_path / "kept")
    again = Pipeline.load(tmp_path / "kept")
    torch.testing.assert_close(again.sample(2, seed=5), x, rtol=0, atol=0)


def test_a_whole_published_network_loads_by_its_name(tmp_path):
    pipeline = load_published(
        "cifar10_uvit_small", hollow(tmp_path / "w.pth", "cifar10_uvit_small")
    )
    weights = pipeline.denoiser.state_dict()
    assert sum(value.numel() for value in weights.values()) == 44_255_328
    assert all(not value.is_meta and bool((value == 0).all()) for value in weights.values())
    assert (pipeline.sampler, pipeline.steps, pipeline.shape) == (
        "euler-maruyama",
        1000,
        (3, 32, 32),
    )


@pytest.mark.parametrize("name", ["imagenet256_uvit_large", "imagenet512_uvit_huge"])
def test_latents_are_decoded_at_the_scale_of_the_name(name, codec, tmp_path):
    published = tiny(name)
    _, file = saved(tmp_path, published)
    bare, whole = published.pipeline(file), published.pipeline(file, codec=str(codec))
    latents = bare.sample(3, seed=1, steps=4)
    assert latents.shape == (3, 4, 12, 12) and bare.codec is None
    torch.testing.assert_close(whole.sample(3, seed=1, steps=4, latents=True), latents)
    images = whole.sample(3, seed=1, steps=4)
    assert images.shape == (3, 3, 24, 24)
    with torch.no_grad():
        by_hand = load_codec(codec).model.decode(latents / 0.18215).sample.clamp(-1, 1)
    torch.testing.assert_close(images, by_hand, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a small untrained CLIP text model, states 20 wide, with a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import models, pre_tokenizers, processors, Tokenizer

    folder = tmp_path_factory.mktemp("clip")
    words = ["<start>", "<end>", "a", "green", "train", "."]
    tokenizer = Tokenizer(models.WordLevel({w: k for k, w in enumerate(words)}, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=6, hidden_size=20, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=9, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


def test_a_text_model_reads_its_texts(clip, codec, tmp_path):
    """One batched guided call, by hand: cond + s (cond - the empty text), labels 1 to 1000."""
    published = tiny("mscoco_uvit_small", clip_dim=20, num_clip_token=7)
    model, file = saved(tmp_path, published)
    pipeline = published.pipeline(file, text=str(clip), codec=codec)
    assert (pipeline.class_names, pipeline.null) == ((), None)
    assert pipeline.codec.scale == 0.2301
    texts = load_texts(clip, tokens=7)
    states = texts.conditions(["a green train", "."]).encoder_hidden_states
    nothing = texts.conditions(["", ""]).encoder_hidden_states
    assert (states - nothing).abs().amax((1, 2)).min() > 0.1
    x = torch.randn(2, *published.shape, generator=torch.Generator().manual_seed(3))
    times = [0.001, 0.75]
    guided = Guided(pipeline.denoiser, published.guidance_scale, pipeline.unconditional)
    got = guided(
        x, torch.tensor(times, dtype=torch.float64), Cond(encoder_hidden_states=states)
    ).eps
    times_read = torch.tensor([1.0, 750.0])
    cond, uncond = (
        model(x, times_read, encoder_hidden_states=states),
        model(x, times_read, encoder_hidden_states=nothing),
    )
    torch.testing.assert_close(got, 2 * cond - uncond, rtol=0, atol=1e-5)
    drawn = pipeline.sample(2, steps=5, seed=2, prompts=["a train", "green"], guidance_scale=2.0)
    assert drawn.shape == (2, 3, 24, 24) and bool(drawn.isfinite().all())
    other = pipeline.sample(2, steps=5, seed=2, prompts=["a train", "."], guidance_scale=2.0)
    torch.testing.assert_close(drawn[0], other[0], rtol=0, atol=1e-5)
    assert (drawn[1] - other[1]).abs().max() > 1e-4


def test_an_encoder_of_another_width_is_refused(clip, tmp_path):
    published = tiny("mscoco_uvit_small_deep", clip_dim=28, num_clip_token=7)
    _, file = saved(tmp_path, published)
    with pytest.raises(ConfigError, match="width 20"):
        published.pipeline(file, text=clip)


# Files.


def same(pipeline, model):
    state = pipeline.denoiser.net.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)


def test_every_kind_of_file_is_read(tmp_path):
    published = tiny("cifar10_uvit_small")
    model, file = saved(tmp_path, published)
    same(published.pipeline(str(file)), model)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    same(published.pipeline(tmp_path / "w.safetensors"), model)
    torch.save(dict(model.named_parameters()), tmp_path / "parameters.pth")
    same(published.pipeline(tmp_path / "parameters.pth"), model)
    old = tmp_path / "old.pth"
    torch.save(model.state_dict(), old, _use_new_zipfile_serialization=False)
    same(published.pipeline(old), model)
    half = {name: value.half() for name, value in model.state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    weights = published.pipeline(tmp_path / "half.pth").denoiser.state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_what_is_loaded_is_not_the_file(tmp_path):
    """The file may be written over or deleted, and training the pipeline leaves it alone."""
    published = tiny("cifar10_uvit_small")
    model, file = saved(tmp_path, published)
    before, pipeline = file.read_bytes(), published.pipeline(file)
    for parameter in pipeline.denoiser.parameters():
        parameter.data.add_(1)
    assert file.read_bytes() == before
    file.write_bytes(b"\0" * len(before))
    held = pipeline.denoiser.net.model.state_dict()["pos_embed"]
    torch.testing.assert_close(held, model.pos_embed.data + 1, rtol=0, atol=0)


def test_of_a_training_folder_the_averaged_weights_are_taken(tmp_path):
    published = tiny("cifar10_uvit_small")
    folder = tmp_path / "500000.ckpt"
    folder.mkdir()
    _, raw = saved(folder, published, seed=1, name="nnet.pth")
    with pytest.raises(CheckpointError, match=r"has no nnet_ema.pth"):
        published.pipeline(folder)
    same(published.pipeline(raw), official(published, seed=1))  # alone, it is what there is
    averaged, file = saved(folder, published, seed=2, name="nnet_ema.pth")
    same(published.pipeline(folder), averaged)
    same(published.pipeline(file), averaged)
    with pytest.raises(CheckpointError, match=r"raw weights"):
        published.pipeline(raw)


class Bomb:
    """What a file must not do: run a function when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_nothing_in_a_file_is_executed(kind, tmp_path):
    published, mark = tiny("cifar10_uvit_small"), tmp_path / "mark"
    held = {"pos_embed": torch.zeros(2), "more": Bomb(mark)}
    if kind == "zip":
        torch.save(held, tmp_path / "w.pth")
    else:
        (tmp_path / "w.pth").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(CheckpointError, match="tensors alone"):
        published.pipeline(tmp_path / "w.pth")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\3\4 half a zip"])
def test_a_file_that_is_none_is_one_sentence(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}' cannot be read"):
        tiny("cifar10_uvit_small").pipeline(tmp_path / name)


@pytest.mark.parametrize(
    "held",
    [[torch.ones(2)], {"state_dict": {"a": torch.ones(2)}}, {1: torch.ones(2)}, torch.ones(2)],
)
def test_what_is_no_state_dict_is_refused(held, tmp_path):
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        tiny("cifar10_uvit_small").pipeline(tmp_path / "w.pth")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone.pth"):
        tiny("cifar10_uvit_small").pipeline(tmp_path / "gone.pth")


@pytest.mark.parametrize("name", NAMES)
def test_under_a_wrong_name_the_right_one_is_told(name, tmp_path):
    file = hollow(tmp_path / "w.pth", name)
    other = tiny("imagenet64_uvit_mid")
    with pytest.raises(CheckpointError, match=f"weights of {name}"):
        other.pipeline(file)


def test_weights_of_no_published_network_are_refused_by_their_tensors(tmp_path):
    _, file = saved(tmp_path, tiny("cifar10_uvit_small"))
    with pytest.raises(CheckpointError, match="lacks 96 tensors"):
        load_published("cifar10_uvit_small", file)
    held = official(tiny("cifar10_uvit_small")).state_dict()
    del held["mid_block.attn.proj.bias"]
    torch.save(held, file)
    with pytest.raises(CheckpointError, match=r"mid_block.attn.proj.bias"):
        tiny("cifar10_uvit_small").pipeline(file)


def test_a_wrong_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="imagenet256_uvit_huge"):
        load_published("imagenet256_uvit_hug", tmp_path / "w.pth")


def test_what_a_model_does_not_have_is_refused(tmp_path):
    published = tiny("cifar10_uvit_small")
    _, file = saved(tmp_path, published)
    with pytest.raises(ConfigError, match="leave codec out"):
        published.pipeline(file, codec=tmp_path)
    with pytest.raises(ConfigError, match="leave text out"):
        published.pipeline(file, text=tmp_path)
    with pytest.raises(ConfigError, match="folder of their encoder"):
        load_published("mscoco_uvit_small", file)
