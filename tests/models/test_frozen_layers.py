"""Layers that a user froze stay frozen, and keep their statistics, through training and copies."""

import copy

import pytest
import torch
from torch import nn

from halfstep import (
    build,
    distill,
    distill_classifier,
    KnowledgeDistillation,
    Pipeline,
    Reparameterise,
    train,
    TrainingConfig,
)
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, Denoising
from halfstep.models.compression.block_pruning import shallower
from halfstep.models.compression.unet_transfer import transfer_weights
from halfstep.models.eval_mode import to_train
from halfstep.models.with_guidance import with_guidance
from tests.support.user_networks import (
    classifier,
    classify,
    FEW,
    HALVE,
    images,
    learn,
    pipeline,
    points,
)

# Frozen


@pytest.mark.parametrize("way", [classify, learn])
def test_a_classifiers_frozen_layers_stay(tmp_path, way):
    """Statistics and weight decay, too; the rest learns."""
    net = classifier("normed")
    net[1].requires_grad_(False), net[2].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after = way(
        net, tmp_path / "r", TrainingConfig(batch_size=16, weight_decay=0.1, ema=0.5)
    ).state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith(("1.", "2.")), name


def a_layer(p):
    return next(m for m in p.denoiser.net.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("loaded", [False, True])
def test_a_teachers_frozen_layers_stay_from_stage_to_stage(tmp_path, loaded):
    teacher = pipeline()
    if loaded:
        teacher.save(tmp_path / "t")
        teacher = Pipeline.load(tmp_path / "t")
    a_layer(teacher).requires_grad_(False)
    pattern = [p.requires_grad for p in teacher.denoiser.parameters()]
    before = copy.deepcopy(teacher.denoiser.net.state_dict())
    for _ in range(2):  # the second time it is read
        student = distill(teacher, points(), tmp_path / "r", method=HALVE, training=FEW)
        assert [p.requires_grad for p in teacher.denoiser.parameters()] == pattern
        after = student.denoiser.net.state_dict()
        same = [torch.equal(before[name], after[name]) for name in before]
        frozen = [not grad for grad in pattern]
        assert same == frozen and any(frozen) and not all(frozen)
    a_layer(teacher).requires_grad_(True)
    with pytest.raises(ConfigError, match="frozen"):  # another run
        distill(teacher, points(), tmp_path / "r", method=HALVE, training=FEW)
    a_layer(teacher).requires_grad_(False)
    trained = train(teacher, points(), tmp_path / "d", method=Denoising(updates=2), training=FEW)
    assert torch.equal(a_layer(trained).weight, a_layer(teacher).weight)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_is_frozen_as_a_whole(tmp_path, freeze):
    """By `freeze` it is an evaluated teacher, whose students learn; by hand it cannot be trained."""
    teacher = pipeline()
    if freeze:
        teacher.denoiser.freeze()
        student = distill(teacher, points(), tmp_path / "r", method=HALVE, training=FEW)
        assert all(p.requires_grad for p in student.denoiser.parameters())
        return
    teacher.denoiser.requires_grad_(False)
    for way in (
        lambda out: distill(teacher, points(), out, method=HALVE, training=FEW),
        lambda out: train(teacher, points(), out, method=Denoising(updates=2), training=FEW),
        lambda out: classify(classifier().requires_grad_(False), out),
        lambda out: learn(classifier().requires_grad_(False), out),
    ):
        with pytest.raises(ConfigError, match="frozen"):
            way(tmp_path / "r")
        assert not (tmp_path / "r").exists()


def test_freezing_before_the_copy_keeps_what_was_frozen_before():
    teacher = pipeline().denoiser
    name = next(iter(dict(teacher.net.named_parameters())))
    teacher.net.get_parameter(name).requires_grad_(False)
    copy = teacher.freeze().freeze().trainable_copy()
    assert [n for n, p in copy.net.named_parameters() if not p.requires_grad] == [name]
    assert not any(p.requires_grad for p in teacher.parameters())
    assert [n for n, p in copy.trainable_copy().net.named_parameters() if not p.requires_grad] == [
        name
    ]
    student = next(Reparameterise(updates=1).stages(DenoiserOnly(teacher))).student
    assert [n for n, p in student.net.named_parameters() if not p.requires_grad] == [name]


UVIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 4, "num_heads": 2}


def test_smaller_and_guided_copies_keep_it_too():
    net = build("uvit", {**UVIT, "num_classes": 3})
    net.model.in_blocks[1].requires_grad_(False)
    smaller = shallower(net, (1,))
    names = {n for n, p in smaller.named_parameters() if not p.requires_grad}
    assert names and all("in_blocks.0." in name for name in names)
    guided = with_guidance(net, width=4)
    frozen = {n for n, p in guided.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in net.named_parameters() if not p.requires_grad}


def test_a_smaller_unet_keeps_it_where_weights_are_taken_over():
    config = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4}
    config |= {"block_out_channels": [8, 8], "attention_head_dim": 4}
    config |= {
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
    }
    old, new = (build("unet", {**config, "layers_per_block": n}) for n in (2, 1))
    old.model.conv_in.requires_grad_(False)
    transfer_weights(new, old)
    names = {n for n, p in new.named_parameters() if not p.requires_grad}
    assert names == {"model.conv_in.weight", "model.conv_in.bias"}


def test_statistics_of_a_frozen_layer_without_weights_stay_with_what_is_around_them():
    inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False), nn.Dropout())
    net = nn.Sequential(inner, nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3))
    inner[0].requires_grad_(False)
    to_train(net)
    assert [m.training for m in (inner[1], inner[2], net[1], net)] == [False, True, True, True]


def test_teaching_freezes_no_teacher(tmp_path):
    teacher = classifier()
    method = KnowledgeDistillation(updates=1)
    distill_classifier(teacher, classifier(), images(), tmp_path / "a", method=method, training=FEW)
    classify(teacher, tmp_path / "b")
