"""Teachers of classifiers: the mean of probabilities, always in eval; what parts of networks put out."""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from halfstep.batch import Batch, Cond
from halfstep.errors import ConfigError
from halfstep.methods import losses
from halfstep.methods.classifiers.feature_terms import AttentionTransfer, FeatureMatch, Relational
from halfstep.methods.classifiers.knowledge import KnowledgeDistillation
from halfstep.methods.classifiers.terms import HardLabels
from halfstep.models.classifiers.ensemble import mean_of, ROWS, Teachers
from halfstep.models.hooks import FeatureExtractor, forward_with_features, shapes, unwrap
from halfstep.rng import Draw
from tests.support.classifiers import Net
from tests.support.denoisers import seeded


class Plain(nn.Module):
    """Nothing random, and no statistics of a batch."""

    def __init__(self, width=6, num_classes=4):
        super().__init__()
        torch.manual_seed(3)
        self.hidden, self.head = nn.Linear(60, width), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


def images(n, seed=0):
    return torch.randn(n, 3, 5, 4, generator=seeded(seed))


# One teacher, or several.


def test_two_teachers_are_fact_23():
    t = torch.tensor([[4, 1, 0, -1, -2], [-1, 4, 0, 0, 0]], dtype=torch.float64)
    logits = mean_of([t[:1], t[1:]])
    assert logits.softmax(-1)[0, 0].item() == pytest.approx(0.467288143648, abs=1e-7)
    torch.testing.assert_close(logits[0].exp().double(), t.softmax(-1).mean(0), rtol=0, atol=1e-7)


def test_the_mean_of_divergences_is_that_to_the_mean_and_a_constant():
    """F23c, for two students: the difference is the same."""
    torch.manual_seed(0)
    t, students = torch.randn(3, 7, 5), torch.randn(2, 7, 5)
    gap = []
    for s in students:
        each = [losses.soft_targets(student=s, teacher=one, temperature=1.0) for one in t]
        mean = losses.soft_targets(student=s, teacher=mean_of(list(t)), temperature=1.0)
        gap.append(torch.stack(each).mean() - mean)
    torch.testing.assert_close(gap[0], gap[1])


def test_extreme_teachers_are_finite():
    t = torch.tensor([[2000.0, 0, -2000]])
    logits = mean_of([t, -t])
    assert logits.isfinite().all()
    torch.testing.assert_close(
        logits, torch.tensor([[-math.log(2), -2000.0, -math.log(2)]]), atol=1, rtol=0
    )


def test_one_teachers_logits_are_its_own():
    net = Net().eval()
    x = images(9)
    torch.testing.assert_close(Teachers(net)(x), net(x))


def test_several_are_their_mean():
    nets = [Net(seed=k).eval() for k in range(3)]
    x = images(9)
    mean = torch.stack([net(x).softmax(1) for net in nets]).mean(0)
    torch.testing.assert_close(Teachers(*nets)(x).softmax(1), mean)


def test_always_in_eval_and_never_differentiated():
    net = Net()
    teacher = Teachers(net).train()
    assert not any(part.training for part in teacher.modules())
    net.train()  # by somebody else
    nn.Sequential(teacher).train().requires_grad_(True)
    before = net.norm.running_mean.clone()
    x = images(70).requires_grad_(True)
    logits = teacher(x)
    assert torch.equal(logits, teacher(x)) and not logits.requires_grad
    assert torch.equal(net.norm.running_mean, before)


def test_a_row_has_its_logits_whoever_is_beside_it():
    teacher = Teachers(Net(), Net(seed=1))
    x = images(2 * ROWS + 5)
    teacher.is_reproducible(x[:ROWS])
    whole = teacher(x)
    for rows in (
        torch.arange(1),
        torch.arange(63),
        torch.arange(ROWS),
        torch.randperm(len(x), generator=seeded()),
    ):
        assert torch.equal(teacher(x[rows]), whole[rows])


def test_the_digest_is_of_kinds_and_weights():
    digest = Teachers(Net()).digest
    assert digest == Teachers(Net()).digest
    assert digest != Teachers(Net(seed=1)).digest != Teachers(Net(), Net(seed=1)).digest
    a, b = Net(), Net(seed=1)
    assert Teachers(a, b).digest != Teachers(b, a).digest
    moved = Net()
    moved.norm.running_mean += 1e-3
    assert Teachers(moved).digest != digest
    other = Net()
    other.blocks[1] = nn.GELU()
    assert Teachers(other).digest != digest


@pytest.mark.parametrize(
    "nets, message",
    [
        ([], "there is no teacher: give one"),
        ([Net(), Net(num_classes=5)], "4 and 5 classes"),
        ([nn.Flatten(2)], "it must return logits"),
    ],
)
def test_teachers_that_cannot_be(nets, message):
    with pytest.raises(ConfigError, match=message):
        Teachers(*nets)(images(3))


def test_a_teacher_is_given_once():
    net = Net()
    with pytest.raises(ConfigError, match="twice"):
        Teachers(net, net)


# What parts put out.


def test_watching_sees_and_leaves_nothing_behind():
    net, x = Net().eval(), images(3)
    logits, features = forward_with_features(net, ["conv", "blocks.0"], x)
    torch.testing.assert_close(logits, net(x))
    torch.testing.assert_close(features["conv"], net.conv(x))
    assert features["blocks.0"].shape == (3, 12)
    assert not any(part._forward_hooks for part in net.modules())


def test_a_part_that_runs_twice_has_the_last_word():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(2, 2)

        def forward(self, x):
            return self.part(self.part(x))

    net, x = Twice(), torch.randn(3, 2)
    out, features = forward_with_features(net, ["part"], x)
    assert torch.equal(features["part"], out)


def test_a_checkpointed_part_is_seen_once_and_has_its_gradient():
    class Checkpointed(Net):
        def forward(self, x):
            h = torch.relu(self.norm(self.conv(x)))
            h = checkpoint(self.hidden, h.mean((2, 3)), use_reentrant=False)
            return self.head(self.blocks(h))

    net, x = Checkpointed(), images(3)
    _, features = forward_with_features(net, ["hidden"], x)
    before = features["hidden"]
    features["hidden"].sum().backward()
    assert features["hidden"] is before and net.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "pair, message",
    [
        (("conw", "conv"), "the student has no part 'conw': perhaps you meant 'conv'"),
        (
            ("conv", "cnv"),
            "the teacher has no part 'cnv': perhaps you meant 'conv'; it has conv, norm",
        ),
        (("idle", "conv"), "the part 'idle' did not run"),
        (
            ("conv", "hidden"),
            "sides may not",
        ),
    ],
)
def test_parts_that_cannot_be_compared(pair, message):
    method = KnowledgeDistillation(terms=(FeatureMatch(pairs=(pair,)),))
    with pytest.raises(ConfigError, match=message):
        next(method.stages(Teachers(Net(9, seed=1)), Net(), example=images(1)))


def test_several_teachers_have_no_features():
    method = KnowledgeDistillation(terms=(FeatureMatch(pairs=(("conv", "conv"),)),))
    with pytest.raises(ConfigError, match="no features in common"):
        next(method.stages(Teachers(Net(seed=1), Net(seed=2)), Net(), example=images(1)))


def test_kept_answers_have_no_features():
    method = KnowledgeDistillation(terms=(FeatureMatch(pairs=(("conv", "conv"),)),))
    with pytest.raises(ConfigError, match="logits only"):
        next(
            method.stages(
                Teachers(Net(seed=1)), Net(), example=images(1), answers=lambda batch: None
            )
        )


def staged(*terms, width=9):
    student, teacher = Net(), Teachers(Net(width, seed=1))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    [stage] = KnowledgeDistillation(terms=terms).stages(teacher, student, example=images(1))
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    return student, teacher, stage


def test_features_are_projected_compared_and_trained():
    match = FeatureMatch(pairs=(("conv", "conv"), ("hidden", "hidden")), normalise=False)
    student, teacher, stage = staged(match)
    learner = stage.student
    assert isinstance(learner, FeatureExtractor) and unwrap(learner) is student
    assert {k: type(v) for k, v in learner.projectors.items()} == {
        "features-0": nn.Conv2d, "features-1": nn.Linear,
    }  # fmt: skip
    assert not {k for k in student.state_dict() if "projector" in k}
    x = images(7)
    learner.eval()
    values = stage.objective(learner, Batch(x), Draw.all(seeded(), 7))
    _, mine = forward_with_features(student, ["conv", "hidden"], x)
    _, theirs = forward_with_features(teacher.nets[0], ["conv", "hidden"], x)
    by_hand = torch.stack([
        (learner.projectors[f"features-{k}"](mine[name]) - theirs[name]).square().flatten(1).mean(1)
        for k, name in enumerate(("conv", "hidden"))
    ]).mean(0)  # fmt: skip
    torch.testing.assert_close(values, by_hand)
    values.sum().backward()
    for part in (student.conv, *learner.projectors.values()):
        assert part.weight.grad.abs().sum() > 0
    assert all(value.grad is None for value in teacher.parameters())


def test_equal_widths_need_no_projector_unless_asked():
    pairs = (("hidden", "hidden"),)
    assert not staged(FeatureMatch(pairs=pairs), width=6)[2].student.projectors
    assert (
        len(staged(FeatureMatch(pairs=pairs, projector="always"), width=6)[2].student.projectors)
        == 1
    )
    assert not staged(AttentionTransfer(pairs=(("conv", "conv"),)))[2].student.projectors


def test_attention_and_relations_of_features():
    terms = (
        AttentionTransfer(pairs=(("conv", "conv"),), form="paper"),
        Relational(pairs=(("hidden", "hidden"),), weight=25.0),
        Relational(pairs=(("hidden", "hidden"),), of="angle", name="angle", weight=50.0),
    )
    student, teacher, stage = staged(*terms)
    x = images(7)
    student.eval()
    _, mine = forward_with_features(student, ["conv", "hidden"], x)
    _, theirs = forward_with_features(teacher.nets[0], ["conv", "hidden"], x)
    actual = stage.objective(stage.student, Batch(x, Cond(torch.zeros(7, dtype=torch.int64))), None)
    h = dict(student=mine["hidden"], teacher=theirs["hidden"])
    by_hand = (
        losses.attention_transfer(student=mine["conv"], teacher=theirs["conv"], form="paper")
        + 25 * losses.relational_distance(**h) + 50 * losses.relational_angle(**h)
    )  # fmt: skip
    torch.testing.assert_close(actual.mean(), by_hand)
    assert stage.objective.measure(stage.student, Batch(x), None)["terms"].keys() == {
        "attention", "relational", "angle",
    }  # fmt: skip


def test_no_features_no_wrapper():
    student, _, stage = staged(HardLabels())
    assert stage.student is student is unwrap(student)


def test_looking_at_shapes_leaves_no_trace():
    net = Net().train()
    net.drop.eval()
    before = net.norm.running_mean.clone()
    assert shapes(net, ["conv", "hidden"], images(1)) == {"conv": (1, 6, 5, 4), "hidden": (1, 12)}
    assert torch.equal(net.norm.running_mean, before)
    assert net.training and net.norm.training and not net.drop.training
