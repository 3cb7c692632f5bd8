"""Objectives as weighted terms: the arithmetic of every recipe, schedules of weights, rows without labels."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from halfstep.batch import Batch, Cond
from halfstep.errors import ConfigError, DataError
from halfstep.methods import losses
from halfstep.methods.classifiers.feature_terms import AttentionTransfer, FeatureMatch, Relational
from halfstep.methods.classifiers.knowledge import Distil, KnowledgeDistillation
from halfstep.methods.classifiers.recipes import (
    decoupled,
    deit_hard,
    dist,
    features,
    hinton,
    keras,
    logits,
    patient_teacher,
    recipe,
    RECIPES,
    report,
    standardised,
    tang,
)
from halfstep.methods.classifiers.terms import (
    Decoupled,
    Dist,
    HardDistillation,
    HardLabels,
    JensenShannon,
    LogitMatch,
    SoftTargets,
    Term,
)
from halfstep.methods.classifiers.weight_schedules import Linear, parsed, warmup, weight_at
from halfstep.models.classifiers.ensemble import Teachers

T = torch.tensor([[4, 1, 0, -1, -2], [0, 3, 1, 0, -1], [2, 2, -1, 0, 1]], dtype=torch.float64)
S = torch.tensor([[1, 2, 0.5, 0, -1], [1, 1, 1, 0, 0], [3, 0, 0, 1, -2]], dtype=torch.float64)
Y = torch.tensor([0, 1, 0])
"""The logits of knowledge-distillation-checks.json."""


class Says(nn.Module):
    """A classifier with the same logits for every input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x):
        return self.logits[x[:, 0].long() % len(self.logits)]


def loss(terms, student=S, teacher=T, labels=Y, done=0.0):
    """[B] values of the objective, and the gradient of their mean in the student's logits."""
    net = Says(student)
    x = torch.arange(len(student), dtype=torch.float64)[:, None]
    method = KnowledgeDistillation(terms=terms)
    [stage] = method.stages(Teachers(Says(teacher)), net)
    objective = stage.objective.at(done)
    values = objective(net, Batch(x, None if labels is None else Cond(labels)), None)
    assert values.shape == (len(student),)
    [gradient] = torch.autograd.grad(values.mean(), net.logits)
    return values.detach(), gradient


def close(a, b, tol=1e-10):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float64),
        torch.as_tensor(b, dtype=torch.float64),
        rtol=0,
        atol=tol,
    )


# The arithmetic of the recipes, on the vectors of the reference.


def test_report_is_facts_8():
    values, _ = loss(report())
    close(values[0], 1.5774854123346747, 1e-9)
    close(values.mean(), 1.5485001281869542, 1e-9)


def test_report_normalises_its_weights():
    close(loss(report(soft_weight=9, hard_weight=1))[0], loss(report())[0])
    assert [term.weight for term in report(soft_weight=3, hard_weight=1)] == [0.75, 0.25]


@pytest.mark.parametrize("temperature", [1.0, 2.5, 5.0])
def test_report_has_hintons_gradient_with_its_soft_weight_over_t2(temperature):
    """F09: exactly, for any weights; the values differ by the teacher's entropy."""
    a, b = 0.9, 0.1
    values, slope = loss(report(temperature=temperature, soft_weight=a, hard_weight=b))
    same = hinton(
        temperature=temperature, soft_weight=a / temperature**2 / (a + b), hard_weight=b / (a + b)
    )
    others, other_slope = loss(same)
    close(slope, other_slope, 1e-15)
    p = (T / temperature).softmax(1)
    close(values - others, -a / (a + b) * (p * p.log()).sum(1))


def test_the_reports_nine_tenths_are_a_quarter_in_hintons_units():
    soft, hard = report()
    close(soft.weight / 25 / (soft.weight / 25 + hard.weight), 0.2647058823529412, 1e-15)


def test_hinton_adds_its_weights_as_they_are():
    values, _ = loss(hinton(temperature=5.0, soft_weight=2.0, hard_weight=3.0))
    close(values[0], 2 * 1.6281281235506744 + 3 * F.cross_entropy(S[:1], Y[:1]).item(), 1e-9)
    by_hand = losses.hinton_mixture(
        student=S, teacher=T, labels=Y, temperature=5.0, soft_weight=2.0, hard_weight=3.0
    )
    close(values.mean(), by_hand)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7, 1.0])
def test_keras_alpha_weighs_the_hard_term(alpha):
    keras_loss = loss(keras(temperature=3.0, alpha=alpha))
    hinton_loss = loss(hinton(temperature=3.0, soft_weight=1 - alpha, hard_weight=alpha))
    by_hand = alpha * F.cross_entropy(S, Y, reduction="none") + (1 - alpha) * 9 * F.kl_div(
        (S / 3).log_softmax(1), (T / 3).softmax(1), reduction="none"
    ).sum(1)
    for one, other in zip(keras_loss, hinton_loss, strict=True):
        close(one, other, 0)
    close(keras_loss[0], by_hand)


def test_deit_is_half_and_half():
    values, _ = loss(deit_hard())
    close(
        values,
        (
            F.cross_entropy(S, Y, reduction="none")
            + F.cross_entropy(S, T.argmax(1), reduction="none")
        )
        / 2,
    )


def test_the_patient_teacher_asks_for_no_labels():
    values, _ = loss(patient_teacher(), labels=None)
    by_hand = 4 * F.kl_div((S / 2).log_softmax(1), (T / 2).softmax(1), reduction="none").sum(1)
    close(values, by_hand)


def test_logits_and_tang():
    close(loss(logits())[0].mean(), 2.28333333333333333)
    for share, value in (
        (0.0, 2.283333333333333),
        (0.5, 1.6598046564313513),
        (1.0, 1.0362759795293692),
    ):
        close(loss(tang(hard_share=share))[0].mean(), value, 1e-9)
    close(loss((LogitMatch(form="half-sum"),))[0].mean(), 5.708333333333333)


def test_decoupled_is_warmed_up_and_then_whole():
    terms = decoupled(hard_weight=0.0)
    close(loss(terms, done=0.0)[0], torch.zeros(3))
    close(loss(terms, done=0.05)[0].mean(), 5.266090425282033 / 2, 1e-9)
    close(loss(terms, done=0.1)[0].mean(), 5.266090425282033, 1e-9)
    close(loss(terms, done=0.9)[0].mean(), 5.266090425282033, 1e-9)


def test_dist_standardised_and_jensen_shannon():
    close(
        loss(dist(dist_weight=1.0, hard_weight=0.0))[0].mean(),
        0.6359731420764503 + 0.888940517518646,
        5e-6,
    )
    close(loss(standardised(soft_weight=1.0, hard_weight=0.0))[0].mean(), 0.3883908924481995, 1e-9)
    close(loss((JensenShannon(),))[0].mean(), 0.208186383601, 1e-9)


def test_dist_weighs_rows_and_classes_each_by_its_own():
    """By hand: one less the correlation of student and teacher, in each row and in each class."""
    p, q = S.softmax(1), T.softmax(1)

    def apart(a, b):
        return torch.stack(
            [1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)]
        ).mean()

    rows, classes = apart(p, q), apart(p.T, q.T)
    assert abs(rows - classes) > 0.1
    close(loss((Dist(rows_weight=2.0, classes_weight=0.0),))[0].mean(), 2 * rows, 1e-5)
    close(loss((Dist(rows_weight=0.0, classes_weight=3.0),))[0].mean(), 3 * classes, 1e-5)
    close(
        loss((Dist(rows_weight=2.0, classes_weight=3.0),))[0].mean(), 2 * rows + 3 * classes, 1e-5
    )


def test_hard_labels_are_smoothed_as_asked():
    plain, _ = loss((HardLabels(),))
    values, _ = loss((HardLabels(smoothing=0.2),))
    close(values, F.cross_entropy(S, Y, label_smoothing=0.2, reduction="none"))
    assert (values - plain).abs().min() > 0.01


def test_jensen_shannon_leans_towards_the_teacher_as_asked():
    """By hand: both divergences from the mixture, each by its share."""
    p, q, share = S.softmax(1), T.softmax(1), 0.3
    mixture = share * q + (1 - share) * p
    by_hand = share * torch.xlogy(q, q / mixture) + (1 - share) * torch.xlogy(p, p / mixture)
    close(loss((JensenShannon(teacher_share=share),))[0].mean(), by_hand.sum(1).mean())


def test_relations_without_pairs_are_of_logits():
    by_hand = losses.relational_distance(student=S, teacher=T)
    close(loss((Relational(),))[0].mean(), by_hand)
    by_hand = losses.relational_angle(student=S, teacher=T)
    close(loss((Relational(of="angle"),))[0].mean(), by_hand)


# Rows without a label.


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if name not in ("features", "decoupled", "dist")]
)
def test_a_row_without_a_label_loses_its_hard_term_alone(name):
    terms = recipe(name, {})
    some = torch.tensor([0, -1, 0])
    values, gradient = loss(terms, labels=some)
    whole, _ = loss(terms)
    soft = tuple(term for term in terms if term.uses_teacher)
    alone, soft_slope = loss(soft)
    close(values[[0, 2]], whole[[0, 2]])
    close(values[1], alone[1])
    close(gradient[1], soft_slope[1])


def test_decoupled_leaves_such_a_row_its_whole_divergence():
    values, _ = loss((Decoupled(),), labels=torch.tensor([0, -1, 0]))
    whole, _ = loss((SoftTargets(temperature=4.0),))
    apart, _ = loss((Decoupled(),))
    close(values, torch.stack([apart[0], whole[1], apart[2]]))


def test_what_needs_labels_refuses_data_that_has_none():
    with pytest.raises(DataError, match="needs labels"):
        loss(hinton(), labels=None)


# Weights that change.


def test_a_linear_weight():
    falling = Linear(0.01, 0.0)
    assert [falling.at(done) for done in (0.0, 0.5, 1.0)] == [0.01, 0.005, 0.0]
    rising = warmup(2.0, 0.2)
    assert [rising.at(done) for done in (0.0, 0.1, 0.2, 0.7)] == [0.0, 1.0, 2.0, 2.0]
    assert weight_at(0.3, 0.9) == 0.3


@pytest.mark.parametrize(
    "text, weight",
    [("0.9", 0.9), ("0.01..0", Linear(0.01, 0.0)), ("0..1@0.2", Linear(0.0, 1.0, 0.2))],
)
def test_a_weight_in_words(text, weight):
    assert parsed(text) == weight


@pytest.mark.parametrize("text", ["", "..", "1..", "a", "1@0.2", "1..2@x", "0..1@0.2@3"])
def test_what_is_no_weight_is_refused(text):
    with pytest.raises(ConfigError, match="not a weight"):
        parsed(text)


def test_the_objective_weighs_by_the_share_that_is_done():
    terms = (SoftTargets(weight=Linear(1.0, 0.0)), HardLabels(weight=Linear(0.0, 3.0, 0.5)))
    soft, hard = loss((SoftTargets(),))[0], loss((HardLabels(),))[0]
    for done, a, b in ((0.0, 1.0, 0.0), (0.25, 0.75, 1.5), (1.0, 0.0, 3.0)):
        close(loss(terms, done=done)[0], a * soft + b * hard)


def test_what_is_logged_has_every_terms_name():
    terms = (*hinton(), SoftTargets(temperature=1.0, weight=Linear(0, 1)))
    net, teacher = Says(S), Teachers(Says(T))
    [stage] = KnowledgeDistillation(terms=terms).stages(teacher, net)
    batch = Batch(torch.arange(3.0)[:, None], Cond(torch.tensor([0, 1, -1])))
    numbers = stage.objective.at(0.5).measure(net, batch, None)
    assert numbers["weights"] == {"soft": 0.9, "hard": 0.1, "soft2": 0.5}
    assert numbers["terms"].keys() == numbers["weights"].keys()
    close(numbers["terms"]["hard"], F.cross_entropy(S[:2], Y[:2]))
    assert numbers["agreement"] == pytest.approx(1 / 3)
    json.dumps(numbers)


# What cannot be.


@pytest.mark.parametrize("weight", [float("nan"), -0.1, float("inf"), Linear(0.1, -1), 10**400])
def test_weights_that_cannot_be(weight):
    with pytest.raises(ConfigError, match="weight"):
        SoftTargets(weight=weight)


@pytest.mark.parametrize("ends", [(float("nan"), 1), (1, float("inf")), (0, 10**400)])
def test_ends_of_a_weight_that_cannot_be(ends):
    with pytest.raises(ConfigError, match=r"start|stop"):
        Linear(*ends)


@pytest.mark.parametrize("over", [0.0, 1.1, -1, float("nan")])
def test_a_share_that_cannot_be(over):
    with pytest.raises(ConfigError, match="over"):
        Linear(0, 1, over)


@pytest.mark.parametrize(
    "terms", [(), hinton(soft_weight=0, hard_weight=0), (SoftTargets(weight=Linear(0, 0)),)]
)
def test_an_objective_of_nothing(terms):
    with pytest.raises(ConfigError, match="are 0"):
        KnowledgeDistillation(terms=terms)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_cannot_be(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        SoftTargets(temperature=temperature)


def test_a_teacher_without_a_weight_is_noted():
    [left_out, loaded] = KnowledgeDistillation(terms=hinton(soft_weight=0.0)).notes()
    assert left_out == "the term 'soft' has the weight 0 and is left out"
    assert "uses the teacher" in loaded
    assert not list(KnowledgeDistillation().notes())
    assert not list(
        KnowledgeDistillation(terms=(HardLabels(), SoftTargets(weight=Linear(0, 1)))).notes()
    )


@pytest.mark.parametrize(
    "name, config, words",
    [
        ("hintn", {}, "'hintn'"),
        (
            "hinton",
            {"temperaturex": 2},
            "'temperaturex'",
        ),
        ("hinton", {"alpha": 0.1}, "'alpha'"),
        ("hinton", {"temperature": "hot"}, "'hot'"),
        ("hinton", {"soft_weight": "some"}, "'some' is not a weight"),
        (
            "report",
            {"soft_weight": 0, "hard_weight": 0},
            "above 0",
        ),
        ("keras", {"alpha": 1.5}, "'keras'"),
        ("tang", {"hard_share": -1}, "hard_share lies in"),
        ("features", {}, "no pairs"),
        (
            "features",
            {"pairs": ["hidden"]},
            "pairs name a part",
        ),
        ("nowhere:terms", {}, "cannot be imported"),
        (
            "tests.methods.classifiers.test_terms:nothing",
            {},
            "returned None",
        ),
    ],
)
def test_recipes_that_cannot_be(name, config, words):
    with pytest.raises(ConfigError, match=words):
        recipe(name, config)


def nothing():
    return None


def soft_recipe(temperature=1.0):
    return [SoftTargets(temperature=temperature)]


def test_a_recipe_of_ones_own():
    assert recipe("tests.methods.classifiers.test_terms:soft_recipe", {"temperature": 3.0}) == (
        SoftTargets(temperature=3.0),
    )


def test_options_of_recipes():
    assert recipe("hinton", {"soft_weight": "0..1@0.2"})[0].weight == Linear(0.0, 1.0, 0.2)
    pairs = recipe("features", {"pairs": [["a", "b"]]})[-1].pairs
    assert pairs == (("a", "b"),)


def test_terms_are_described_as_json():
    method = KnowledgeDistillation(
        terms=(*features(pairs=(("a", "b"),)), HardDistillation(weight=Linear(1, 0)))
    )
    described = json.loads(json.dumps(method.describe()))
    assert described["terms"] == ["soft", "hard", "features", "teacher-label"]
    assert (
        described["term soft"]["loss"] == "SoftTargets"
        and described["term soft"]["temperature"] == 4.0
    )
    assert described["term teacher-label"]["weight"] == {"start": 1, "stop": 0, "over": 1.0}


@pytest.mark.parametrize("term", [FeatureMatch, AttentionTransfer])
def test_features_need_pairs(term):
    with pytest.raises(ConfigError, match="no pairs"):
        term(pairs=())


def test_a_teacher_of_other_classes():
    with pytest.raises(ConfigError, match="same classes"):
        loss(hinton(), teacher=T[:, :4])


def test_a_student_that_shares_its_teachers_weights():
    net = Says(S)
    with pytest.raises(ConfigError, match="shares weights"):
        next(KnowledgeDistillation().stages(Teachers(net), net))


def test_what_an_update_costs():
    one, two = Teachers(Says(T)), Teachers(Says(T), Says(S))
    assert Distil(one, hinton()).forwards == 4 and Distil(two, hinton()).forwards == 5
    assert Distil(one, (HardLabels(),)).forwards == 3
    assert Distil(two, hinton(), lambda batch: T).forwards == 3


def test_the_teacher_is_not_asked_in_vain():
    class Refuses(nn.Module):
        def forward(self, x):
            raise AssertionError

    net = Says(S)
    [stage] = KnowledgeDistillation(terms=(HardLabels(),)).stages(Teachers(Refuses()), net)
    stage.objective(net, Batch(torch.arange(3.0)[:, None], Cond(Y)), None)


def test_every_term_has_a_sentence_and_a_name():
    def kinds(kind):
        for each in kind.__subclasses__():
            yield each
            yield from kinds(each)

    classes = [
        kind for kind in kinds(Term) if kind.called and kind.__module__.startswith("halfstep")
    ]
    assert len(classes) >= 10
    assert len({kind.called for kind in classes}) == len(classes)
    assert all(kind.__doc__ for kind in classes)
