"""Arrays of numpy: layouts, types, and damaged files."""

import re

import numpy as np
import pytest
import torch

from halfstep.data import load
from halfstep.errors import ConfigError, DataError
from tests.support.pictures import npy, pixels, RNG
from tests.support.refusals import refused


@pytest.mark.parametrize("channels", [1, 3])
def test_either_order_of_channels(tmp_path, channels):
    first = pixels(5, channels, 4, 6)
    for array in (first, np.moveaxis(first, 1, -1)):
        for option in (None, channels):
            data = load(npy(tmp_path, array), channels=option)
            assert torch.equal(data.values, torch.from_numpy(first)) and data.labels is None


def test_which_axis_is_channels_can_be_told(tmp_path):
    array = pixels(5, 3, 3, 1)  # gray 3x3 with channels last, or RGB 3x1 with channels first
    with refused(DataError, "a.npy", "channels first or channels last"):
        load(npy(tmp_path, array))
    gray, colour = (load(npy(tmp_path, array), channels=c).values for c in (1, 3))
    assert torch.equal(gray, torch.from_numpy(array).permute(0, 3, 1, 2))
    assert torch.equal(colour, torch.from_numpy(array))


def test_as_many_images_as_pixels_or_channels(tmp_path):
    for shape in ((3, 3, 4, 6), (4, 3, 4, 4), (6, 3, 4, 6)):
        array = pixels(*shape)
        assert torch.equal(load(npy(tmp_path, array)).values, torch.from_numpy(array))


def test_gray_without_an_axis_of_channels(tmp_path):
    array = pixels(5, 4, 6)
    assert torch.equal(load(npy(tmp_path, array)).values[:, 0], torch.from_numpy(array))
    floats = RNG.uniform(-1, 1, (5, 4, 6)).astype(np.float32)
    assert load(npy(tmp_path, floats)).shape == (4, 6)  # a sequence, unless channels say otherwise
    assert load(npy(tmp_path, floats), channels=1).shape == (1, 4, 6)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2"])
@pytest.mark.parametrize("shape", [(5, 2), (5, 4, 6), (5, 3, 4, 6), (5, 4, 8, 6), (5, 2, 3, 4, 6)])
def test_floats_of_any_shape(tmp_path, dtype, shape):
    array = RNG.uniform(-1, 1, shape).astype(dtype)
    data = load(npy(tmp_path, np.asfortranarray(array)))
    assert torch.equal(data.values, torch.from_numpy(array.astype(np.float32)))


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("arr_0", "labels")])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path, keys, compressed):
    array, labels = pixels(5, 4, 6, 3), np.array([2, 0, 1, 1, 0], np.uint8)
    store = np.savez_compressed if compressed else np.savez
    store(tmp_path / "a.npz", **{keys[0]: array, keys[1]: labels, "names": np.array(["a"])})
    data = load(str(tmp_path / "a.npz"))
    assert torch.equal(data.values, torch.from_numpy(array).permute(0, 3, 1, 2))
    assert data.labels.tolist() == [2, 0, 1, 1, 0] and data.num_classes == 3


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((5, 4, 6, 3), np.int64), "int64"),
        (np.zeros((5, 4, 6, 3), bool), "bool"),
        (np.zeros((5, 4, 6, 4), np.uint8), "[N, 1 or 3, H, W]"),
        (np.zeros((5, 2), np.uint8), "[N, 1 or 3, H, W]"),
        (np.zeros((5, 3, 6, 3), np.uint8), "channels first or channels last"),
        (np.zeros((0, 4, 6, 3), np.uint8), "no samples"),
        (np.zeros(5, np.float32), "no samples"),
        (np.full((5, 4, 6, 3), 200.0), "200"),
        (np.full((5, 2), np.nan), "nan"),
        (np.linspace(0, 1, 360).reshape(5, 4, 6, 3), "2 * x - 1"),
        (np.array([{"a": 1}], dtype=object), "cannot read"),
    ],
)
def test_arrays_that_cannot_be(tmp_path, array, words):
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        load(npy(tmp_path, array))
    assert "a.npy" in str(caught.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(pictures=pixels(5, 4, 6, 3)), "holds the keys pictures"),
        (dict(images=pixels(5, 4, 6, 3), x=pixels(5, 4, 6, 3)), "expected one of images, x, arr_0"),
        (dict(arr_0=pixels(5, 4, 6, 3), arr_1=np.arange(5)), "images=..., labels=..."),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(4)), "5 samples but 4 labels"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5) - 2), "got -2"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5) + 1), "class 0 has no samples"),
        (dict(x=pixels(5, 4, 6, 3), y=np.array([0, 1, 3, 7, 0])), "class 2 has no samples"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5.0)), "float64"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5)[:, None]), "[5, 1]"),
        (dict(x=pixels(5, 4, 6, 3), y=np.array(list("abcde"), object)), "cannot read"),
    ],
)
def test_npz_that_cannot_be(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        load(str(tmp_path / "a.npz"))
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_damaged_arrays(tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    (np.save if kind == "npy" else np.savez)(whole, pixels(5, 4, 6, 3))
    for raw in (whole.read_bytes()[:-40], b"text", b""):
        (tmp_path / f"a.{kind}").write_bytes(raw)
        with refused(DataError, "cannot read", f"a.{kind}"):
            load(str(tmp_path / f"a.{kind}"))


def test_arrays_have_their_own_size(tmp_path):
    spec = npy(tmp_path, pixels(5, 6, 6, 3))
    assert load(spec, size=6, channels=3).shape == (3, 6, 6)
    with refused(ConfigError, "6x6", "size 8"):
        load(spec, size=8)
    with refused(ConfigError, "4x6", "size 4"):
        load(npy(tmp_path, pixels(5, 4, 6, 3)), size=4)
    with refused(ConfigError, "no split 'test'"):
        load(spec, split="test")
    (tmp_path / "a.zip").write_bytes(b"")
    with refused(DataError, "a.zip", "not a data set"):
        load(str(tmp_path / "a.zip"))
