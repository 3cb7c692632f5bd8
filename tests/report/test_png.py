"""Pictures: exact pixels, exact sizes, files that open."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.errors import ConfigError, DataError
from halfstep.pictures import tile, to_uint8
from halfstep.report.images.png import (
    quality_curve,
    save_grid,
    save_images,
    save_over,
)
from tests.support.denoisers import seeded


def test_pixels_are_rounded_and_clipped():
    values = torch.tensor([-1.0, 1.0, 0.0, -5.0, 5.0, 2 / 255 - 1, 2.9 / 255 - 1, 3.1 / 255 - 1])
    actual = to_uint8(values.reshape(1, 1, 2, 4))
    assert actual.shape == (1, 2, 4, 1) and actual.dtype == np.uint8
    assert actual.flatten().tolist() == [0, 255, 128, 0, 255, 1, 1, 2]


def test_every_byte_comes_back():
    pixels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 4, 64)
    assert torch.equal(torch.from_numpy(to_uint8(pixels / 127.5 - 1))[..., 0], pixels.byte()[0])


def test_channels_go_last():
    images = torch.zeros(5, 3, 4, 6)
    images[2, 1, 3, 5] = 1
    actual = to_uint8(images)
    assert actual.shape == (5, 4, 6, 3)
    assert actual[2, 3, 5].tolist() == [128, 255, 128]


@pytest.mark.parametrize("shape", [(5, 2, 4, 6), (5, 4, 4, 6), (3, 4, 6), (5, 2), (1, 5, 3, 4, 6)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(ConfigError, match="pictures need"):
        to_uint8(torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pixels_that_are_no_numbers_are_not_painted_black(bad):
    images = torch.zeros(2, 1, 3, 4)
    images[1, 0, 2, 3] = bad
    with pytest.raises(DataError, match="nan or infinite"):
        to_uint8(images)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_an_image(channels, tmp_path):
    images = 2 * torch.rand(3, channels, 4, 6, generator=seeded()) - 1
    paths = save_images(images, tmp_path / "deep" / "er", first=9)
    assert [p.name for p in paths] == ["000009.png", "000010.png", "000011.png"]
    for path, pixels in zip(paths, to_uint8(images), strict=True):
        with Image.open(path) as picture:
            assert picture.mode == ("L" if channels == 1 else "RGB") and picture.size == (6, 4)
            assert np.array_equal(np.asarray(picture).reshape(4, 6, channels), pixels)


def test_tiles_lie_on_white_with_gaps():
    images = torch.stack([torch.full((1, 2, 3), value) for value in (-1.0, 0.0, 1.0)])
    sheet = tile(images, columns=2, gap=1)
    assert sheet.shape == (5, 7, 1)
    expected = np.full((5, 7), 255)
    expected[:2, :3], expected[:2, 4:] = 0, 128
    assert np.array_equal(sheet[..., 0], expected)


@pytest.mark.parametrize(
    "n, columns, size", [(1, 1, (4, 6)), (5, 5, (4, 34)), (5, 1, (24, 6)), (5, 4, (9, 27))]
)
def test_the_size_of_a_sheet(n, columns, size):
    assert tile(torch.zeros(n, 3, 4, 6), columns=columns).shape == (*size, 3)


@pytest.mark.parametrize("n, columns", [(0, 1), (3, 0), (3, -1)])
def test_a_sheet_of_nothing_is_refused(n, columns):
    with pytest.raises(ConfigError, match="a sheet needs"):
        tile(torch.zeros(n, 1, 4, 6), columns=columns)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_magnified_without_smoothing(channels, tmp_path):
    images = 2 * torch.rand(10, channels, 4, 6, generator=seeded()) - 1
    save_grid(images, tmp_path / "grid.png", scale=3)
    with Image.open(tmp_path / "grid.png") as picture:
        actual = np.asarray(picture).reshape(picture.height, picture.width, channels)
    small = tile(images, columns=3)  # the root of 10, rounded
    assert np.array_equal(actual, small.repeat(3, 0).repeat(3, 1))


def test_each_picture_stands_over_its_own(tmp_path):
    """Three pairs in rows of two: above, below, above and below; a white one where there is none."""
    above = torch.linspace(-1, 0, 3).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    below = torch.linspace(0.2, 0.8, 3).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    save_over(above, below, tmp_path / "pairs.png", columns=2, scale=1)
    with Image.open(tmp_path / "pairs.png") as picture:
        actual = np.asarray(picture)[::3, ::3].tolist()
    a, b = (to_uint8(x)[:, 0, 0, 0].tolist() for x in (above, below))
    assert actual == [a[:2], b[:2], [a[2], 255], [b[2], 255]]


def opened(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_curve_is_drawn_in_its_colour(tmp_path):
    quality_curve(
        tmp_path / "q.png",
        [("student", [8, 4, 2, 1], [0.31, 0.32, 0.33, 0.35], "#ff0000")],
        full=("teacher", 0.3),
        floor=0.1,
    )
    picture = opened(tmp_path / "q.png")
    assert ((picture == [255, 0, 0]).all(2)).sum() > 100
