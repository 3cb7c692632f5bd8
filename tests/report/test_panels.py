"""Pictures with labels: every row and every point where it belongs."""

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.report.images.panels import EDGE, PANEL, same_seeds, scatter
from tests.support.denoisers import seeded


def opened(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_of_seeds_shows_every_row(channels, tmp_path):
    full = 2 * torch.rand(5, channels, 4, 6, generator=seeded()) - 1
    rows = [("8 steps", full, full), ("1 step", full, full)]
    same_seeds(tmp_path / "a.png", ("teacher, 64 steps", full), rows)
    same_seeds(
        tmp_path / "b.png", ("teacher, 64 steps", full), [*rows[:1], ("1 step", -full, full)]
    )
    a, b = opened(tmp_path / "a.png"), opened(tmp_path / "b.png")
    assert a.shape == b.shape
    changed = np.argwhere((a != b).any(2))
    height, width = a.shape[:2]
    assert len(changed) > 100  # the last row of the left half alone
    assert changed[:, 0].min() > height / 2 and changed[:, 1].max() < 0.62 * width


def test_clouds_are_side_by_side(tmp_path):
    left, right = torch.full((9, 2), -1.0), torch.full((9, 2), 1.0)
    scatter(tmp_path / "s.png", [("left", left), ("right", right)])
    picture = opened(tmp_path / "s.png")
    green = np.argwhere((picture[..., 1] - picture[..., 0]) > 40)
    height, width = picture.shape[:2]
    lower_left = (green[:, 1] < width / 2) & (green[:, 0] > height / 2)
    upper_right = (green[:, 1] > width / 2) & (green[:, 0] < height / 2)
    assert lower_left.any() and upper_right.any() and (lower_left | upper_right).all()


def test_a_point_lies_at_its_coordinates_and_none_beyond_the_edges(tmp_path):
    points = torch.tensor([[0.7, -0.35], [1.45, 0.0], [0.0, -9.0]])
    scatter(tmp_path / "s.png", [("", points)])
    picture = opened(tmp_path / "s.png")
    top, left = np.argwhere((picture == 0xCC).all(2)).min(0)  # the frame
    y, x = np.argwhere((picture[..., 1] - picture[..., 0]) > 20).mean(0)
    assert x - left == pytest.approx((0.7 + EDGE) / (2 * EDGE) * PANEL, abs=1)
    assert y - top == pytest.approx((0.35 + EDGE) / (2 * EDGE) * PANEL, abs=1)
