"""Augmentation: each step by hand, views that are functions of (seed, row, view), slices, refusals."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from halfstep.data import augment, Augmentation, Dataset
from halfstep.errors import ConfigError, DataError
from halfstep.rng import Draw
from tests.support.denoisers import seeded

N = 1500  # more than one block


def data(shape=(1, 9, 7), *, num_classes=3, n=N, **options):
    values = torch.randint(1, 256, (n, *shape), generator=seeded(), dtype=torch.uint8)
    how = Augmentation(**options) if options else None
    return Dataset(values, torch.arange(n) % num_classes, augmentation=how)


def drawn(of, rows, seed=0):
    return of.training_batch(rows, Draw.all(seeded(seed), len(rows)))


ROWS = torch.tensor([3, 1499, 3, 0, 1024, 1023, 7])
EVERY = [("flip",), ("crop",), ("zoom",), ("report",), ("mixup",), ("mixup", "flip", "crop")]


@pytest.mark.parametrize("steps", EVERY, ids="-".join)
@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 8, 8)])
def test_a_view_is_a_function_of_seed_row_and_view(steps, shape):
    of = data(shape, steps=steps, views=4, seed=5)
    views = torch.tensor([1, 2, 3, 0, 2, 3, 1])
    together = of.viewed(ROWS, views)
    assert torch.equal(together.ids, ROWS) and torch.equal(together.views, views)
    assert together.x0.shape == (7, *shape) and together.x0.dtype == torch.float32
    assert together.x0.abs().max() <= 1
    for k in range(7):  # alone, and in another order
        alone = of.viewed(ROWS[k : k + 1], views[k : k + 1])
        assert torch.equal(alone.x0[0], together.x0[k])
    order = torch.randperm(7, generator=seeded(1))
    assert torch.equal(of.viewed(ROWS[order], views[order]).x0, together.x0[order])
    again = data(shape, steps=steps, views=9, seed=5)  # however many views there are
    assert torch.equal(again.viewed(ROWS, views).x0, together.x0)
    more = torch.arange(60), torch.arange(60) % 4
    other = data(shape, steps=steps, views=4, seed=6)
    assert not torch.equal(other.viewed(*more).x0, of.viewed(*more).x0)


@pytest.mark.parametrize("steps", EVERY, ids="-".join)
def test_the_first_view_is_the_image_as_it_lies(steps):
    of, plain = data(steps=steps, views=3), data()
    views = of.viewed(ROWS, torch.zeros_like(ROWS))
    assert torch.equal(views.x0, plain.batch(ROWS).x0)
    assert torch.equal(views.cond.label, plain.batch(ROWS).cond.label)
    assert of.views == 3 and plain.views == 1


def test_training_draws_all_views_alike():
    of = data(steps=("flip",), views=3)
    views = torch.cat([drawn(of, torch.arange(600), seed).views for seed in range(5)])
    counts = views.bincount(minlength=3)
    assert len(counts) == 3 and (counts - 1000).abs().max() < 130  # five standard deviations
    batch = drawn(of, ROWS)
    assert torch.equal(of.viewed(ROWS, batch.views).x0, batch.x0)


@pytest.mark.parametrize("steps", EVERY, ids="-".join)
@pytest.mark.parametrize("views", [0, 4])
def test_two_slices_get_what_one_gets(steps, views):
    of = data(steps=steps, views=views)
    whole = of.training_batch(ROWS, Draw.all(seeded(2), 7))
    parts = [of.training_batch(ROWS[s], Draw(seeded(2), 7, s)) for s in (slice(0, 3), slice(3, 7))]
    assert torch.equal(torch.cat([part.x0 for part in parts]), whole.x0)
    before = seeded(2)
    after = [Draw(g, 7, s) for g, s in ((seeded(2), slice(0, 3)), (seeded(2), slice(3, 7)))]
    for draw, rows in zip(after, (ROWS[:3], ROWS[3:]), strict=True):
        of.training_batch(rows, draw)
    assert torch.equal(after[0].generator.get_state(), after[1].generator.get_state())
    assert not torch.equal(after[0].generator.get_state(), before.get_state())


def test_without_views_every_draw_is_another_and_has_no_name():
    of = data(steps=("crop",))
    first, second = drawn(of, ROWS, 0), drawn(of, ROWS, 1)
    assert first.views is None and of.views is None and torch.equal(first.ids, ROWS)
    assert not torch.equal(first.x0, second.x0)
    with pytest.raises(DataError, match="number of views"):
        of.viewed(ROWS, torch.zeros_like(ROWS))


def test_the_globals_of_torch_are_left_as_they_were():
    before = torch.get_rng_state()
    drawn(data(steps=("mixup", "flip", "crop", "zoom")), ROWS)
    data(steps=("crop",), views=3).viewed(ROWS, torch.full_like(ROWS, 2))
    assert torch.equal(torch.get_rng_state(), before)


# Each step, by hand.


def views_of(of, row, views):
    return of.viewed(torch.full((views - 1,), row), torch.arange(1, views)).x0


def test_no_two_blocks_of_rows_nor_views_are_drawn_alike():
    of, plain = data(steps=("flip",), views=3), data()

    def mirrored(first, view):
        rows = torch.arange(first, first + 100)
        views = of.viewed(rows, torch.full_like(rows, view)).x0
        return (views != plain.batch(rows).x0).flatten(1).any(1)

    draws = [mirrored(first, view) for first in (0, augment.BLOCK) for view in (1, 2)]
    for one, other in itertools.combinations(draws, 2):
        assert 20 < (one != other).sum() < 80


def test_flip_mirrors_half():
    of, plain = data(steps=("flip",), views=2), data()
    rows = torch.arange(N)
    x, views = plain.batch(rows).x0, of.viewed(rows, torch.ones_like(rows)).x0
    mirrored = (views == x.flip(-1)).flatten(1).all(1)
    unchanged = (views == x).flatten(1).all(1)
    assert (mirrored ^ unchanged).all()
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / N**0.5


@pytest.mark.parametrize(("shape", "frame"), [((1, 8, 8), 1), ((3, 12, 17), 3)])
def test_crop_is_one_of_all_the_places_in_the_frame(shape, frame):
    of, plain = data(shape, n=40, steps=("crop",), views=60), data(shape, n=40)
    height, width = shape[1:]
    x = F.pad(plain.batch(torch.tensor([5])).x0[0], [frame] * 4, value=-1)
    views, places = views_of(of, 5, 60), set()
    for image in views:
        matches = [
            (i, j)
            for i, j in itertools.product(range(2 * frame + 1), repeat=2)
            if torch.equal(x[:, i : i + height, j : j + width], image)
        ]
        assert len(matches) == 1
        places.add(matches[0])
    assert len(places) > 0.5 * min(59, (2 * frame + 1) ** 2)


def test_report_enlarges_by_230_to_224_and_crops():
    of, plain = data((3, 224, 112), n=3, steps=("report",), views=6), data((3, 224, 112), n=3)
    x = plain.batch(torch.tensor([1])).x0
    large = F.pad(
        F.interpolate(x, (230, 115), mode="bilinear", antialias=True), [57, 58, 0, 0], value=-1
    )[0]
    assert large.shape == (3, 230, 230)
    for image in views_of(of, 1, 6):
        drawn = [
            (i, j)
            for i in range(7)
            for j in range(230 - 112 + 1)
            if torch.equal(large[:, i : i + 224, j : j + 112], image)
        ]
        assert drawn


def test_zoom_shows_half_or_more_of_the_image():
    side = 64
    ramp = torch.arange(side).float().div(side - 1).mul(2).sub(1)
    image = torch.stack(
        [ramp.expand(side, -1), ramp[:, None].expand(-1, side), ramp.expand(side, -1)]
    )
    values = image[None].repeat(4, 1, 1, 1)
    of = Dataset(values, augmentation=Augmentation(steps=("zoom",), views=80))
    views = views_of(of, 2, 80)
    wide = (views[:, 0].amax((1, 2)) - views[:, 0].amin((1, 2))) / 2
    high = (views[:, 1].amax((1, 2)) - views[:, 1].amin((1, 2))) / 2
    area, ratio = wide * high, wide / high
    assert area.min() > 0.42 and area.max() > 0.85 and area.min() < 0.65
    assert ratio.min() > 0.7 and ratio.max() < 1.43 and ratio.std() > 0.05


def test_mixup_is_a_convex_combination_and_has_no_label():
    of, plain = data(n=60, steps=("mixup",), views=5), data(n=60)
    images = plain.batch(torch.arange(60)).x0
    x, shares = images[7], []
    for image in views_of(of, 7, 5):
        fits = []
        for other in images:
            way = x - other
            share = ((image - other) * way).sum() / way.square().sum().clamp(min=1e-9)
            left = (share * x + (1 - share) * other - image).abs().max()
            fits.append((float(left), float(share)))
        best = min(fits)
        assert best[0] < 1e-5 and -1e-5 <= best[1] <= 1
        shares.append(best[1])
    assert np.std(shares) > 0.05
    views = of.viewed(torch.tensor([7, 7, 8]), torch.tensor([0, 1, 4]))
    assert views.cond.label.tolist() == [7 % 3, -1, -1]
    assert (drawn(data(n=60, steps=("mixup",)), torch.arange(5)).cond.label == -1).all()


def test_shares_of_mixup_are_uniform():
    drawn = augment._parameters(("mixup",), (4, 4), 3, 4000)[0]
    for values in drawn.values():
        assert values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.025


# Refusals.


@pytest.mark.parametrize(
    "options, words",
    [
        ({"steps": ("flipp",)}, "perhaps you meant 'flip'"),
        ({"steps": ()}, "names each step once"),
        ({"steps": ("flip", "flip")}, "names each step once"),
        ({"steps": ("flip", "mixup")}, "mixup first"),
        ({"steps": ("flip",), "views": 1}, "the image itself"),
        ({"steps": ("flip",), "views": -2}, "views"),
    ],
)
def test_augmentations_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        Augmentation(**options)


def test_kornia_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ConfigError, match=r"halfstep\[augment\]"):
        Augmentation(steps=("flip",))


def test_only_images_are_augmented_and_flip_is_a_step():
    how = Augmentation(steps=("flip",))
    for options in (
        {"values": torch.zeros(4, 2)},
        {"values": torch.zeros(4, 1, 8, 8), "flip": True},
    ):
        with pytest.raises(DataError, match="write flip=False"):
            Dataset(**options, augmentation=how)
    of = data(steps=("flip",), views=3)
    for view in (3, -1):
        with pytest.raises(DataError, match="there are 3"):
            of.viewed(ROWS, torch.full_like(ROWS, view))


def test_mirror_images_are_two_views():
    plain = data()
    of = dataclasses.replace(plain, flip=True)
    batch = drawn(of, torch.arange(64))
    assert of.views == 2 and set(batch.views.tolist()) == {0, 1}
    assert torch.equal(of.viewed(batch.ids, batch.views).x0, batch.x0)
    x = plain.batch(torch.arange(64)).x0
    want = torch.where(batch.views[:, None, None, None] > 0, x.flip(-1), x)
    assert torch.equal(batch.x0, want)


@pytest.mark.gpu
def test_views_are_the_same_on_a_gpu():
    of = data((3, 8, 8), steps=("mixup", "flip", "crop"), views=4)
    views = torch.tensor([1, 2, 3, 0, 2, 3, 1])
    on_cpu, on_gpu = of.viewed(ROWS, views), of.to("cuda").viewed(ROWS.cuda(), views.cuda())
    assert on_gpu.x0.is_cuda
    torch.testing.assert_close(on_gpu.x0.cpu(), on_cpu.x0, rtol=0, atol=1e-6)
