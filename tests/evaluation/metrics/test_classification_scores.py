"""Scores of a classifier: of the whole set whatever the batch, against the report's bug, by hand."""

import math

import pytest
import torch
from torch import nn

from halfstep.data import Dataset
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.classification import (
    answers,
    calibration_error,
    score_classifier,
    wilson,
)
from halfstep.schema import plain
from tests.support.denoisers import seeded
from tests.support.progress import Ledger


def data(n=550, num_classes=5, labels=None):
    x = 2 * torch.rand(n, 3, 4, 4, generator=seeded()) - 1
    labels = torch.randint(num_classes, (n,), generator=seeded(1)) if labels is None else labels
    return Dataset(x, labels, tuple(map(str, range(num_classes))))


def net(num_classes=5, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, num_classes))


def as_the_report_does(classifier, dataset, batch=64):
    """Its test_step: a metric that is made anew for every batch, so that the last one's value is printed."""
    with torch.no_grad():
        for rows in torch.arange(len(dataset)).split(batch):
            images = dataset.batch(rows)
            right = (classifier(images.x0).argmax(1) == images.cond.label).sum()
            value = float(right / len(rows))
    return value


def test_the_reports_metric_is_that_of_the_last_38_images():
    dataset, classifier = data(), net().eval()
    assert len(dataset) == 8 * 64 + 38
    reported = as_the_report_does(classifier, dataset)
    assert 38 * reported == pytest.approx(round(38 * reported), abs=1e-4)  # k / 38
    result = score_classifier(classifier, dataset, batch=64).accuracy.value
    assert 550 * result == pytest.approx(round(550 * result), abs=1e-9)  # k / 550
    assert 38 * result != pytest.approx(round(38 * result), abs=1e-4)
    logits, labels = answers(classifier, dataset)
    assert reported == pytest.approx((logits.argmax(1) == labels)[-38:].double().mean().item())
    assert result == (logits.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("batch", [1, 7, 64, 549, 550, 9999])
def test_no_score_depends_on_the_batch(batch):
    dataset = data()
    other = net(seed=1)
    scores = score_classifier(net(), dataset, teacher=other, batch=batch)
    expected = score_classifier(net(), dataset, teacher=other)
    assert scores.accuracy == expected.accuracy and scores.agreement == expected.agreement
    assert scores.nll == pytest.approx(expected.nll, rel=1e-6)
    assert scores.calibration == pytest.approx(expected.calibration, abs=1e-6)
    ledger, both = Ledger(), Ledger()
    answers(net(), dataset, batch=batch, progress=ledger)
    score_classifier(net(), dataset, teacher=other, batch=batch, progress=both)
    assert both.steps == 2 * ledger.steps == 2 * -(-550 // batch)


def test_the_numbers_are_scikit_learns():
    from sklearn.metrics import log_loss

    dataset, classifier = data(), net()
    classifier.train()
    logits, labels = answers(classifier, dataset, batch=13)
    assert classifier.training and classifier[1].training  # left as it was
    scores = score_classifier(classifier, dataset, teacher=net(seed=1))
    assert scores.nll == pytest.approx(log_loss(labels, logits.softmax(1)), rel=1e-9)
    teacher_logits = answers(net(seed=1), dataset)[0]
    assert (
        scores.agreement.value
        == (logits.argmax(1) == teacher_logits.argmax(1)).double().mean().item()
    )
    assert scores.rows == 550
    assert set(plain(scores)) == {"accuracy", "nll", "calibration", "rows", "agreement"}


def test_rows_without_a_label_count_for_agreement_alone():
    labels = torch.randint(5, (550,), generator=seeded(1))
    partly = labels.clone()
    partly[::3] = -1
    whole, some = (
        score_classifier(net(), data(labels=some_labels), teacher=net(seed=2))
        for some_labels in (labels, partly)
    )
    assert some.rows == 366 and some.agreement == whole.agreement
    rows = partly >= 0
    logits, _ = answers(net(), data())
    assert some.accuracy.value == (logits.argmax(1) == labels)[rows].double().mean().item()
    assert score_classifier(net(), data()).agreement is None
    for dataset in (Dataset(data().values), data(labels=torch.full((550,), -1))):
        with pytest.raises(DataError, match="accuracy needs labels"):
            score_classifier(net(), dataset)


# Wilson's interval.


@pytest.mark.parametrize("hits, low, high", [(28, 58, 85), (27, 55, 83), (32, 70, 93)])
def test_the_reports_intervals(hits, low, high):
    """Section 0 of the specification: 74 %, 71 % and 84 % of 38 images."""
    result = wilson(hits, 38)
    assert result.value == hits / 38
    assert (round(100 * result.low), round(100 * result.high)) == (low, high)


@pytest.mark.parametrize("hits, rows", [(0, 5), (5, 5), (1, 38), (402, 550)])
def test_wilsons_ends_solve_its_equation(hits, rows):
    result, z = wilson(hits, rows), 1.959963984540054
    for end in (result.low, result.high):
        deviation = z * math.sqrt(end * (1 - end) / rows)
        assert abs(hits / rows - end) == pytest.approx(deviation, abs=1e-12)
    assert 0 <= result.low <= result.value <= result.high <= 1
    wider = wilson(hits, rows, level=0.99)
    assert wider.high - wider.low > result.high - result.low


def test_shares_that_cannot_be():
    for hits, rows, level in ((3, 2, 0.95), (-1, 2, 0.95), (0, 0, 0.95), (1, 2, 1.0)):
        with pytest.raises(ConfigError, match="share"):
            wilson(hits, rows, level=level)


# Calibration.


def test_calibration_by_hand():
    """Of four bins two are used: (0.5, 0.75] with .75, wrong, and .6, right; (0.75, 1] with .9, right."""
    sure = torch.tensor([0.75, 0.6, 0.9], dtype=torch.float64)
    probabilities = torch.stack([sure, 1 - sure], 1)
    labels = torch.tensor([1, 0, 0])
    expected = (2 / 3) * abs(0.5 - (0.75 + 0.6) / 2) + (1 / 3) * 0.1
    assert calibration_error(probabilities, labels, bins=4) == pytest.approx(expected, abs=1e-12)
    whole = abs(2 / 3 - (0.75 + 0.6 + 0.9) / 3)
    assert calibration_error(probabilities, labels, bins=1) == pytest.approx(whole, abs=1e-12)


def test_a_calibrated_classifier_has_almost_no_error():
    generator = seeded(3)
    sure = 0.5 + torch.rand(60_000, generator=generator, dtype=torch.float64) / 2
    right = torch.rand(60_000, generator=generator, dtype=torch.float64) < sure
    probabilities = torch.stack([sure, 1 - sure], 1)
    assert calibration_error(probabilities, (~right).long()) < 0.012
    assert calibration_error(probabilities, right.long()) > 0.4
    ends = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert calibration_error(ends, torch.tensor([0, 0])) == pytest.approx(0.25)
