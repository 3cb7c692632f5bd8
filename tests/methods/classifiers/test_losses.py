"""Losses: the checked facts by their ids, and the identities between them."""

from math import log

import pytest
import torch
from torch.nn import functional as F

from halfstep.methods.losses import (
    centred,
    decoupled,
    dist,
    hard_labels,
    hinton_mixture,
    jensen_shannon,
    logit_half_sum,
    logit_match,
    relational_angle,
    relational_distance,
    report_mixture,
    soft_cross_entropy,
    soft_targets,
    standardised,
    tang,
)


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


TEACHER = double([4, 1, 0, -1, -2], [0, 3, 1, 0, -1], [2, 2, -1, 0, 1])
STUDENT = double([1, 2, 0.5, 0, -1], [1, 1, 1, 0, 0], [3, 0, 0, 1, -2])
LABELS = torch.tensor([0, 1, 0])
ALL = {"student": STUDENT, "teacher": TEACHER}
ROW = {"student": STUDENT[:1], "teacher": TEACHER[:1]}
KNOWN = {**ALL, "labels": LABELS}
REPORT = {"temperature": 5, "soft_weight": 0.9, "hard_weight": 0.1}
EXTREME = {"student": double([1000, 0, 0]), "teacher": double([1, 0, 0])}
ONLY_TARGET = {"target_weight": 1, "others_weight": 0}
ONLY_OTHERS = {"target_weight": 0, "others_weight": 1}


def gradient(loss, student=STUDENT, **options):
    """The loss's gradient by the student's logits."""
    student = student.clone().requires_grad_()
    loss(student=student, **options).backward()
    return student.grad


def over_limit(T):  # noqa: N803
    limit = logit_match(student=centred(STUDENT), teacher=centred(TEACHER)) / 2
    return soft_targets(**ALL, temperature=T) - limit


def mixed_target():
    """F15: one target of .7 teacher and .3 label, as logits."""
    target = 0.7 * TEACHER.softmax(-1) + 0.3 * F.one_hot(LABELS, 5).double()
    return soft_cross_entropy(student=STUDENT, teacher=target.log(), temperature=1)


# reference/knowledge-distillation-checks.json, by id: what is held to it, and its value.
FACTS = {
    "F04": (lambda: soft_cross_entropy(**ROW, temperature=5), 1.5778240204132168),
    "F05": (lambda: soft_targets(**ROW, temperature=5) / 25, 0.06512512494202698),
    "F06": (lambda: soft_targets(**ROW, temperature=5), 1.6281281235506744),
    "F08": (
        lambda: report_mixture(**ROW, labels=LABELS[:1], **REPORT),
        1.5774854123346747,
    ),
    "F08b": (lambda: report_mixture(**KNOWN, **REPORT), 1.5485001281869542),
    "F10": (lambda: soft_targets(**ALL, temperature=5), 1.258489584764417),
    "F10 sum": (
        lambda: soft_targets(**ALL, temperature=5, reduction="none").sum(),
        3.7754687542932515,
    ),
    "F11": (lambda: logit_match(**ALL), 2.283333333333333),
    "F11b": (lambda: logit_half_sum(**ALL), 5.708333333333333),
    "F12": (
        lambda: logit_match(student=centred(STUDENT), teacher=centred(TEACHER)) / 2,
        1.1133333333333335,
    ),
    "F12b 10": (lambda: over_limit(10), 0.08033558634362237),
    "F12b 100": (lambda: over_limit(100), 0.008426883305385324),
    "F12b 1000": (lambda: over_limit(1000), 0.0008450835487681108),
    # The file has 8.452586e-05 here, which is the plain sum's rounding; this is from 50 digits.
    "F12b 10000": (lambda: over_limit(10_000), 8.45308508687846733e-05),
    "F14 0": (lambda: tang(**KNOWN, hard_share=0), 2.283333333333333),
    "F14 .5": (lambda: tang(**KNOWN, hard_share=0.5), 1.6598046564313513),
    "F14 1": (lambda: tang(**KNOWN, hard_share=1), 1.0362759795293692),
    "F15": (mixed_target, 1.5233781718123218),
    "F15 hinton": (
        lambda: (
            0.7 * soft_cross_entropy(**ALL, temperature=1)
            + 0.3 * hard_labels(student=STUDENT, labels=LABELS)
        ),
        1.5233781718123218,
    ),
    "F16 target": (lambda: decoupled(**KNOWN, **ONLY_TARGET) / 16, 0.05504245574611286),
    "F16 others": (lambda: decoupled(**KNOWN, **ONLY_OTHERS) / 16, 0.03426102447925177),
    "F16b": (lambda: decoupled(**KNOWN), 5.266090425282033),
    "F17 inter": (lambda: dist(**ALL, intra_weight=0), 0.6359731420764503),
    "F17 intra": (lambda: dist(**ALL, inter_weight=0), 0.888940517518646),
    "F18": (
        lambda: soft_targets(
            student=standardised(STUDENT), teacher=standardised(TEACHER), temperature=2
        ),
        0.3883908924481995,
    ),
    "F18c": (lambda: soft_targets(**ALL, temperature=2), 1.2871159806415569),
    "F18c moved": (
        lambda: soft_targets(student=3 * STUDENT + 7, teacher=TEACHER, temperature=2),
        4.0920298963804,
    ),
    "F20 distance": (lambda: relational_distance(**ALL), 0.06085109002871282),
    "F20 angle": (lambda: relational_angle(**ALL), 0.030373549798916835),
    "F21": (lambda: soft_cross_entropy(**ALL, temperature=1), 1.7321362542193015),
    "F22": (
        lambda: soft_targets(
            student=double([0, 2000, 0]), teacher=double([2000, 0, 0]), temperature=1
        ),
        2000.0,
    ),
    "F22c target": (
        lambda: decoupled(**EXTREME, labels=LABELS[:1], temperature=1, **ONLY_TARGET),
        422.9077874050047,
    ),
    "F22c others": (
        lambda: decoupled(**EXTREME, labels=LABELS[:1], temperature=1, **ONLY_OTHERS),
        0.0,
    ),
    "F24": (lambda: jensen_shannon(**ALL), 0.20818638360140546),
    # What Keras 3.15.1 gets wrong (F32): a constant added to all logits changes nothing.
    "F32b": (
        lambda: soft_targets(student=STUDENT[:1] + 3, teacher=TEACHER[:1], temperature=5),
        1.6281281235506806,
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_fact(name):
    measured, value = FACTS[name]
    assert float(measured()) == pytest.approx(value, abs=1e-10, rel=0)


def test_f07_cross_entropy_is_kl_and_the_teachers_entropy():
    p = (TEACHER / 5).softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    soft = soft_cross_entropy(**ALL, temperature=5, reduction="none")
    kl = soft_targets(**ALL, temperature=5, reduction="none") / 25
    torch.testing.assert_close(soft - kl, entropy, rtol=0, atol=1e-12)
    assert float(entropy[0]) == pytest.approx(1.5126988954711897, abs=1e-10)  # F03


def test_f09_the_report_is_hinton_with_a_soft_weight_over_t2():
    hinton = {"temperature": 5, "soft_weight": 0.9 / 25, "hard_weight": 0.1}
    of_report = gradient(report_mixture, teacher=TEACHER, labels=LABELS, **REPORT)
    of_hinton = gradient(hinton_mixture, teacher=TEACHER, labels=LABELS, **hinton)
    torch.testing.assert_close(of_report, of_hinton, rtol=0, atol=1e-15)
    # Weights that do not sum to 1 are divided by their sum in the report's form alone.
    double_report = {**REPORT, "soft_weight": 1.8, "hard_weight": 0.2}
    assert report_mixture(**KNOWN, **double_report) == report_mixture(**KNOWN, **REPORT)
    double_hinton = {**hinton, "soft_weight": 1.8 / 25, "hard_weight": 0.2}
    assert hinton_mixture(**KNOWN, **double_hinton) == 2 * hinton_mixture(**KNOWN, **hinton)
    assert hinton["soft_weight"] / (0.9 / 25 + 0.1) == pytest.approx(0.2647058823529412)  # F09b


def test_f13_gradient_and_its_size():
    grad = gradient(soft_cross_entropy, STUDENT[:1], teacher=TEACHER[:1], temperature=5)
    fact = [
        -0.03165038986452373,
        0.011776104424932043,
        0.005517663104193105,
        0.007893758868782186,
        0.006462863022527188,
    ]
    torch.testing.assert_close(grad, double(fact), rtol=0, atol=1e-9)  # by differences, its tol
    for loss, ratio in ((soft_targets, 0.957030817112676), (soft_cross_entropy, 0.2392577042165)):
        ten, five = (
            gradient(loss, teacher=TEACHER, temperature=temperature).abs().sum()
            for temperature in (10, 5)
        )
        assert float(ten / five) == pytest.approx(ratio, abs=1e-5)  # F13b


def test_f12_the_limit_holds_for_gradients_and_in_float32():
    """The plain sum gives 2.50 for 1.113 at T = 10,000 in float32."""
    limit = gradient(logit_match, centred(STUDENT), teacher=centred(TEACHER)) / 2
    far = gradient(soft_targets, teacher=TEACHER, temperature=1e6)
    torch.testing.assert_close(far, limit, rtol=0, atol=1e-6)
    for temperature, atol in ((100, 1e-5), (10_000, 1e-3)):
        options = {"temperature": temperature}
        small = soft_targets(student=STUDENT.float(), teacher=TEACHER.float(), **options)
        whole = soft_targets(**ALL, **options)
        assert float(small) == pytest.approx(float(whole), abs=atol)


def test_f16c_kl_is_target_and_the_rest_of_the_others():
    p_target = (TEACHER / 4).softmax(-1).gather(1, LABELS[:, None])[:, 0]
    target, others = (
        decoupled(**KNOWN, **only, reduction="none") for only in (ONLY_TARGET, ONLY_OTHERS)
    )
    whole = soft_targets(**ALL, temperature=4, reduction="none")
    torch.testing.assert_close(target + (1 - p_target) * others, whole, rtol=0, atol=1e-13)


def test_f17b_correlation_does_not_see_a_positive_affine_map_of_probabilities():
    p = STUDENT.softmax(-1)
    moved = (0.5 * p + 0.1).log()  # sums to 1 again
    for form in ("paper", "code"):
        options = {"teacher": TEACHER, "intra_weight": 0, "form": form}
        plain, mapped = dist(student=STUDENT, **options), dist(student=moved, **options)
        assert float(plain) == pytest.approx(float(mapped), abs=1e-12 if form == "paper" else 1e-6)


def test_f18b_standardised_logits_forget_scale_and_shift():
    moved = standardised(3 * STUDENT + 7)
    torch.testing.assert_close(moved, standardised(STUDENT), rtol=0, atol=1e-6)
    z = standardised(STUDENT, eps=1e-12)
    torch.testing.assert_close(z.mean(-1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.std(-1), torch.ones(3).double(), rtol=0, atol=1e-11)


def test_f23c_teachers_collapse_to_the_mean_of_their_probabilities():
    teachers = double([4, 1, 0, -1, -2]), double([-1, 4, 0, 0, 0])
    mean = sum(t.softmax(-1) for t in teachers).log() - log(2)
    for student in (STUDENT[:1], STUDENT[2:]):
        apart = sum(soft_targets(student=student, teacher=t, temperature=1) for t in teachers) / 2
        gap = apart - soft_targets(student=student, teacher=mean, temperature=1)
        assert float(gap) == pytest.approx(0.5585991745061738, abs=1e-10)


def test_f24b_jensen_shannon_is_symmetric_and_bounded():
    forward, back = jensen_shannon(**ALL), jensen_shannon(student=TEACHER, teacher=STUDENT)
    assert float(forward) == pytest.approx(float(back), abs=1e-12)
    far = jensen_shannon(student=double([2000, 0]), teacher=double([0, 2000]))
    assert float(far) == pytest.approx(log(2), abs=1e-12)


def test_f31_label_smoothing_is_best_at_its_own_gap():
    gap = log((1 - 0.1 + 0.02) / 0.02)
    assert gap == pytest.approx(3.828641396489095, abs=1e-12)
    best = double([gap, 0, 0, 0, 0])
    grad = gradient(hard_labels, best, labels=LABELS[:1], smoothing=0.1)
    assert float(grad.abs().max()) < 1e-15


def test_identical_logits_cost_nothing():
    same = {"student": STUDENT, "teacher": STUDENT.clone()}
    for loss in (logit_match, logit_half_sum, dist, relational_distance, jensen_shannon):
        assert float(loss(**same)) == pytest.approx(0, abs=1e-15)
    assert soft_targets(**same, temperature=3) == 0
    assert decoupled(**same, labels=LABELS) == 0
    assert relational_angle(**same) == 0


def test_dist_in_the_code_form_is_the_authors():
    """eps in the product of the norms (F17 differs by 2.5e-6), and T^2."""
    assert float(dist(**ALL, inter_weight=0, form="code")) == pytest.approx(0.8889429763, abs=1e-10)
    code, paper = (dist(**ALL, temperature=3, form=form) for form in ("code", "paper"))
    assert float(code / paper) == pytest.approx(9, rel=1e-5)
