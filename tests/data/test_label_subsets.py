"""Labels for some, believed labels of a teacher, and which rows and views a batch is of."""

import dataclasses

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.data import confident_rows, Dataset
from halfstep.data.label_subsets import some_of_each
from halfstep.errors import ConfigError, DataError
from halfstep.training.checks.data import read_by
from tests.support.denoisers import seeded
from tests.support.runs import teacher

LABELS = torch.tensor([2, 0, 1, -1, 2, 2, 0, 1, 1, 0, -1, 2])


def data(labels=LABELS, **options):
    values = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)
    return Dataset(values, labels, **options)


def test_a_batch_knows_its_rows():
    rows = torch.tensor([4, 4, 0])
    batch = data().batch(rows)
    assert torch.equal(batch.ids, rows) and batch.views.tolist() == [0, 0, 0]
    part = batch[1:]
    assert part.ids.tolist() == [4, 0] and part.views.tolist() == [0, 0]
    assert part.cond.label.tolist() == [2, 2] and part.to("cpu").ids.tolist() == [4, 0]
    plain = Batch(torch.zeros(3, 2))
    assert plain[1:].ids is None and plain.to("cpu").views is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_so_many_of_each_class_and_those_of_fewer_are_among_them(count):
    rows = some_of_each(LABELS, count, seed=4)
    assert LABELS[rows].bincount().tolist() == [count] * 3 and torch.equal(rows, rows.sort().values)
    assert set(some_of_each(LABELS, 1, seed=4).tolist()) <= set(rows.tolist())
    drawn = {tuple(some_of_each(LABELS, count, seed=k).tolist()) for k in range(20)}
    assert len(drawn) > (1 if count < 3 else 0)


def test_the_rest_stay_without_a_label_or_go():
    partly, alone = data().labelled(2, seed=1), data().labelled(2, seed=1, keep_others=False)
    assert len(partly) == 12 and partly.unlabelled == 6 and partly.num_classes == 3
    assert len(alone) == 6 and alone.unlabelled == 0
    rows = (partly.labels >= 0).nonzero()[:, 0]
    assert torch.equal(partly.labels[rows], LABELS[rows])
    assert torch.equal(alone.values, partly.values[rows]) and alone.names == ("0", "1", "2")
    assert partly.fingerprint() != data().fingerprint()
    none = data(torch.full((3,), -1))
    assert none.num_classes == 0 and none.unlabelled == 3
    assert Dataset(torch.zeros(4, 2)).unlabelled == 4


def test_labels_that_there_are_not():
    with pytest.raises(DataError, match="3 labelled samples"):
        data().labelled(4)
    with pytest.raises(DataError, match="no labels"):
        Dataset(torch.zeros(3, 2)).labelled(1)
    with pytest.raises(DataError, match="no labels"):
        data(torch.full((3,), -1)).labelled(1)
    with pytest.raises(ConfigError, match="teach nothing"):
        data().labelled(0)


def test_two_parts_share_nothing():
    first, second = data().apart(0.3)
    assert len(second) == 4 and len(first) == 8
    together = torch.cat([first.values, second.values])[:, 0, 0, 0]
    assert together.sort().values.tolist() == list(range(12))
    for part in (first, second):
        assert torch.equal(part.labels, LABELS[part.values[:, 0, 0, 0].long()])
    assert torch.equal(data().apart(0.3)[1].values, second.values)
    assert not torch.equal(data().apart(0.3, seed=1)[1].values, second.values)
    for share in (0.01, 1.0):
        with pytest.raises(DataError, match="empty"):
            data().apart(share)
    twice = data().only(torch.tensor([5, 5, 0]))
    assert twice.values[:, 0, 0, 0].tolist() == [5, 5, 0] and twice.num_classes == 3


def test_a_diffusion_of_classes_refuses_samples_without_one():
    pipeline = dataclasses.replace(teacher(), class_names=("a", "b", "c"))
    points = Dataset(torch.zeros(4, 3), torch.tensor([0, 1, -1, 2]))
    with pytest.raises(ConfigError, match=r"no label \(-1\)"):
        read_by(pipeline, points)
    assert read_by(teacher(), points).labels is None


# Believed labels.

SURE = torch.tensor(
    [
        [0.9, 0.1, 0.0],
        [0.2, 0.7, 0.1],
        [0.5, 0.3, 0.2],
        [0.8, 0.1, 0.1],
        [0.1, 0.6, 0.3],
        [0.99, 0.01, 0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize(
    "options, rows",
    [
        ({}, [5, 0, 3, 2, 1, 4]),
        ({"threshold": 0.6}, [5, 0, 3, 1, 4]),
        ({"threshold": 0.7}, [5, 0, 3, 1]),
        ({"per_class": 2}, [5, 0, 1, 4]),
        ({"per_class": 1, "threshold": 0.75}, [5]),
        ({"per_class": 5, "repeat": True}, [5, 0, 3, 2, 5, 1, 4, 1, 4, 1]),
        ({"per_class": 2, "repeat": True, "threshold": 0.7}, [5, 0, 1, 1]),
    ],
)
def test_confident_rows(options, rows):
    assert confident_rows(SURE, **options).tolist() == rows


def test_ties_keep_their_order_and_everything_is_found():
    equal = torch.full((4, 2), 0.5)
    assert confident_rows(equal).tolist() == [0, 1, 2, 3]
    many = torch.randn(500, 7, generator=seeded()).softmax(1)
    rows = confident_rows(many)
    assert rows.sort().values.tolist() == list(range(500))
    assert many[rows].argmax(1).diff().min() >= 0
    balanced = confident_rows(many, per_class=90, repeat=True)
    assert many[balanced].argmax(1).bincount().tolist() == [90] * 7


@pytest.mark.parametrize(
    "options", [{"threshold": 1.5}, {"threshold": -0.1}, {"per_class": 0}, {"per_class": -3}]
)
def test_what_cannot_be_believed(options):
    with pytest.raises(ConfigError, match="threshold"):
        confident_rows(SURE, **options)


def test_repeating_needs_a_number():
    with pytest.raises(ConfigError, match="give per_class, too"):
        confident_rows(SURE, repeat=True)


def test_labels_reach_the_objective_as_they_are():
    batch = data().batch(torch.tensor([3, 0]))
    assert batch.cond == Cond(label=batch.cond.label) and batch.cond.label.tolist() == [-1, 2]
