"""Data sets in memory: batches, flips, fingerprints, and values and labels that are refused."""

import pytest
import torch

from halfstep.data import Dataset
from halfstep.errors import DataError
from tests.support.pictures import images, pixels
from tests.support.refusals import refused


def test_bytes_become_minus_one_to_one():
    data = Dataset(torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1))
    x0 = data.batch(torch.arange(256)).x0
    assert x0.dtype == torch.float32 and x0.shape == (256, 1, 1, 1)
    assert x0[0].item() == -1 and x0[255].item() == 1
    exact = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    torch.testing.assert_close(x0.flatten().double(), exact, rtol=0, atol=1e-7)


def test_a_batch_holds_its_rows_in_their_order():
    data = images(labels=[0, 1, 2, 1, 0])
    batch = data.batch(torch.tensor([4, 0, 4]))
    expected = data.values[[4, 0, 4]].double() / 127.5 - 1
    torch.testing.assert_close(batch.x0.double(), expected, rtol=0, atol=1e-7)
    assert batch.cond.label.tolist() == [0, 0, 0]
    assert data.batch(torch.tensor([2])).cond.label.tolist() == [2]
    assert images().batch(torch.tensor([2])).cond is None
    assert (len(data), data.shape, data.num_classes, images().num_classes) == (5, (3, 4, 6), 3, 0)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (6, 3, 4, 6), (3, 3, 3, 3), (1, 1, 1, 2)])
def test_flips_mirror_exactly_the_marked_rows(shape):
    data = Dataset(torch.from_numpy(pixels(*shape)), flip=True)
    all_rows, flips = torch.arange(shape[0]), torch.arange(shape[0]) % 2 == 0
    plain, flipped = data.batch(all_rows).x0, data.batch(all_rows, flips).x0
    for k in range(shape[0]):
        mirrored = torch.stack(plain[k].unbind(-1)[::-1], -1)
        assert torch.equal(flipped[k], mirrored if flips[k] else plain[k])


def test_floats_pass_through_untouched():
    values = torch.linspace(-1, 1, 42).reshape(7, 3, 2)
    data = Dataset(values, torch.tensor([0, 0, 1, 1, 2, 2, 2]), names=("a", "b", "c", "d"))
    assert torch.equal(data.batch(torch.tensor([6, 1])).x0, values[[6, 1]])
    assert (data.shape, data.num_classes) == ((3, 2), 4)
    data.batch(torch.tensor([0])).x0.zero_()  # a batch is a copy
    assert data.values[0, 0, 0] == -1


def test_moving_keeps_everything():
    data = images(labels=[0, 1, 2, 1, 0], names=("a", "b", "c"), flip=True)
    moved = data.to("cpu")
    assert torch.equal(moved.values, data.values) and torch.equal(moved.labels, data.labels)
    assert (moved.names, moved.flip) == (data.names, True)


def test_fingerprint_sees_content_only():
    data = images(labels=[0, 1, 2, 1, 0])
    same = Dataset(data.values.clone(), data.labels.clone(), names=("a", "b", "c"), flip=True)
    assert data.fingerprint() == same.fingerprint() and len(data.fingerprint()) == 64
    strided = Dataset(data.values.transpose(2, 3).contiguous().transpose(2, 3), data.labels)
    assert strided.fingerprint() == data.fingerprint()
    value, label = data.values.clone(), data.labels.clone()
    value[4, 2, 3, 5] ^= 1
    label[4] = 1
    others = [
        Dataset(value, data.labels),
        Dataset(data.values, label),
        Dataset(data.values),
        Dataset(data.values.reshape(5, 3, 6, 4), data.labels),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize(
    "values, words",
    [
        (torch.zeros(0, 3, 4, 6, dtype=torch.uint8), "no samples"),
        (torch.zeros(5), "no samples"),
        (torch.zeros(5, 4, 6, 3, dtype=torch.uint8), "[N, 1 or 3, H, W]"),
        (torch.zeros(5, 4, 6, dtype=torch.uint8), "[N, 1 or 3, H, W]"),
        (torch.zeros(5, 2, dtype=torch.float64), "torch.float64"),
        (torch.full((5, 2), 1.001), "1.001"),
        (torch.full((5, 2), -1.001), "-1.001"),
        (torch.tensor([[0.0], [torch.nan]]), "nan"),
        (torch.tensor([[0.0], [torch.inf]]), "inf"),
    ],
)
def test_values_that_cannot_be(values, words):
    with refused(DataError, words):
        Dataset(values)


@pytest.mark.parametrize(
    "labels, names, words",
    [
        ([0, 1, 2, 3], (), "5 samples but 4 labels"),
        ([0, 1, 2, -2, 0], (), "got -2"),
        ([0, 1, 2, 3, 0], ("a", "b", "c"), "label 3"),
        ([0.0, 1.0, 2.0, 3.0, 0.0], (), "float"),
        ([[0], [1], [2], [1], [0]], (), "[5, 1]"),
        (None, ("a",), "without labels"),
    ],
)
def test_labels_that_cannot_be(labels, names, words):
    with refused(DataError, words):
        images(labels=labels, names=names)


def test_flips_that_cannot_be():
    points = torch.zeros(5, 2)
    with refused(DataError, "only images"):
        Dataset(points, flip=True)
    all_rows = torch.arange(5)
    for data, flips in [
        (Dataset(points), torch.ones(5, dtype=torch.bool)),
        (images(), torch.ones(4, dtype=torch.bool)),
        (images(), torch.ones(5)),
    ]:
        with refused(DataError, "flips are bool [5]"):
            data.batch(all_rows, flips)
