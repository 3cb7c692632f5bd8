"""Copies of a network: each remembers by what it is built again, and which of its parameters are frozen."""

import copy
import sys

import pytest
import torch

from halfstep import build, Cosine, Dataset, Denoiser, distill, Pipeline, TrainingConfig, V
from halfstep.diffusion.denoiser import not_trained
from halfstep.methods import DenoiserOnly, GuidedDistillation, Progressive, Reparameterise, Shrink
from halfstep.models import build_like, recipe
from halfstep.models.compression.block_pruning import shallower
from halfstep.models.uvit.resize import resized
from halfstep.models.with_guidance import with_guidance
from halfstep.training import RunOptions
from tests.support.runs import rewritten

UVIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 4, "num_heads": 2}
UVIT |= {"out_chans": 1, "num_classes": 3}


def mine(**config):
    return build("uvit", config)


def images(n=12):
    pixels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)
    return Dataset(pixels, torch.arange(n) % 2)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Loads a pipeline whose file names a module that must not be imported."""
    (tmp_path / "evilmod.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    pipeline = Pipeline(
        Denoiser(mine(**UVIT), Cosine(), V()), (1, 8, 8), class_names=("a", "b"), null=2
    )
    pipeline.save(tmp_path / "p")

    def load(name="evilmod:f"):
        rewritten(tmp_path / "p" / "pipeline.json", lambda about: about["net"].update(build=name))
        return Pipeline.load(tmp_path / "p", net=mine)

    yield load
    assert "evilmod" not in sys.modules


def initial_student(method, null=None):
    return lambda net: method.initial_student(Denoiser(net, Cosine(), V())).net


COPIES = {
    "deepcopy": copy.deepcopy,
    "trainable_copy": lambda net: Denoiser(net, Cosine(), V()).trainable_copy().net,
    "twin of a frozen one": lambda net: Denoiser(net, Cosine(), V()).freeze().trainable_copy().net,
    "resized": lambda net: resized(net, (16, 12)),
    "built again": lambda net: build_like(net, recipe(net)[1]),
    "with guidance": with_guidance,
    "guided student": initial_student(GuidedDistillation(guidance_embed_dim=4)),
    "guided student of its own": initial_student(
        GuidedDistillation(guidance_embed_dim=4, student={"embed_dim": "8"})
    ),
    "shrunk": initial_student(Shrink(student={"embed_dim": "8"})),
    "halved": lambda net: first(Progressive(start=2, stop=1, updates=(1,)), net),
    "reparameterised": lambda net: first(Reparameterise(updates=1), net),
}
PRUNED = {
    "shallower": lambda net: shallower(net, (1,)),
    "shrunk by depth": initial_student(Shrink(depth=2, choose="even")),
}


def first(method, net):
    return next(iter(method.stages(DenoiserOnly(Denoiser(net, Cosine(), V()))))).student.net


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_built_again_by_what_was_given_and_not_by_a_files_name(loaded, tmp_path, copied):
    new = copied(loaded().denoiser.net)
    assert new.made_by is mine and recipe(new)[0] == "evilmod:f"
    shape = (1, *new.model.shape[1:])
    Pipeline(Denoiser(new, Cosine(), V()), shape, class_names=("a", "b"), null=2).save(
        tmp_path / "q"
    )


@pytest.mark.parametrize("copied", PRUNED.values(), ids=PRUNED)
def test_a_pruned_copy_is_too(loaded, copied):
    """Only of what calls itself a U-ViT are there pairs of blocks."""
    new = copied(loaded("uvit").denoiser.net)
    assert new.made_by is mine and recipe(new)[1]["depth"] == 2


def test_a_net_of_another_size_is_saved_and_distilled_without_a_files_name(loaded, tmp_path):
    wide = loaded().at_size(16, 16)
    wide.save(tmp_path / "wide")
    back = Pipeline.load(tmp_path / "wide", net=mine)
    assert back.shape == (1, 16, 16) and recipe(back.denoiser.net)[1]["img_size"] == 16
    few, job = TrainingConfig(batch_size=4, log_every=1), RunOptions(device="cpu")
    same, data = wide.at_size(8, 8), images()
    for out in ("r", "r"):  # the second time it is read
        distill(
            same, data, tmp_path / out, training=few, job=job,
            method=Progressive(start=2, stop=1, updates=(1,)),
        )  # fmt: skip
    assert "tests.test_copies:mine" in (tmp_path / "r" / "run.json").read_text()


def frozen(net):
    return {name.removeprefix("model.") for name in not_trained(net)}


@pytest.mark.parametrize("held", [False, True])
def test_another_size_keeps_what_is_frozen(held):
    net = build("uvit", UVIT)
    net.model.in_blocks[1].requires_grad_(False)
    net.model.pos_embed.requires_grad_(False)
    names = frozen(net)
    assert len(names) > 2 and frozen(net.model.resized(12)) == names
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), (1, 8, 8), class_names=("a", "b"), null=2)
    if held:
        pipeline.denoiser.freeze()
    assert frozen(resized(net, (16, 16))) == names
    wide = pipeline.at_size(16, 12).denoiser
    assert frozen(wide.net) == names == frozen(wide.trainable_copy().net)


def test_what_is_new_in_a_copy_is_as_it_was_built():
    """A table that its builder froze is no parameter of the old one."""

    def made(**config):
        new = build("uvit", {k: v for k, v in config.items() if k != "guidance_embed_dim"})
        if config.get("guidance_embed_dim"):
            new.table = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        return new

    net = made(**UVIT)
    net.made_by = made
    assert frozen(with_guidance(net, width=4)) == {"table"}
