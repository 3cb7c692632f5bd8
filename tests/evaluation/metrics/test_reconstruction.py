"""Encode, then decode: the error of what comes back, its rows, its page."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.reconstruction import (
    encoders,
    Originals,
    reconstructed,
    reconstructions,
    sentence,
    spread,
)
from halfstep.evaluation.report_data import (
    EncoderReport,
    EncoderRow,
    Provenance,
    Reconstruction,
    RunSummary,
)
from halfstep.pipeline import Pipeline
from halfstep.report.page import render
from tests.support.denoisers import seeded
from tests.support.progress import Ledger

pytestmark = pytest.mark.usefixtures("float64")


class Exact(nn.Module):
    """The v of Gaussian data of spread 1/2."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, cond=None):
        level = Cosine().at(t.double().reshape(-1, *[1] * (x.ndim - 1)))
        spread = 0.25 * level.alpha**2 + level.sigma**2
        return (level.alpha * level.sigma * (1 - 0.25) / spread * x.double()).to(x.dtype)


def gaussian(shape=(3,), **rest):
    net = Denoiser(Exact(), Cosine(), V(), time=NetTime(scale=1.0)).freeze()
    return Pipeline(net, shape, **rest)


def encoder(steps, **rest):
    return gaussian(times=(uniform(steps),), direction="invert", **rest)


@pytest.mark.parametrize("steps, error, within", [(16, 0.824, 5e-4), (1024, 0.997, 5e-4)])
def test_on_a_gaussian(steps, error, within):
    """distillation-checks.md 44: x comes back as 0.824 x at 16 steps, as 0.997 x at 1024."""
    x = 0.5 * torch.randn(5, 3, generator=seeded())
    [row], [(name, back)] = reconstructions(gaussian(), [], Originals(x), full=steps)
    torch.testing.assert_close(back.double(), error * x, rtol=0, atol=within * 2)
    rms = float(x.square().mean().sqrt())
    assert row.full.value == pytest.approx((1 - error) * rms, abs=within * rms)
    assert row.same == row.full and row.full.low <= row.full.value <= row.full.high
    assert name == row.name == f"teacher, {steps} steps" and row.role == "teacher"


def test_the_rows():
    """The teacher in as many steps before each student; all decoded at full and at equal steps."""
    x, ledger = 0.5 * torch.randn(7, 3, generator=seeded()), Ledger()
    teacher, students = gaussian(), [encoder(4), encoder(8)]
    rows, pictures = reconstructions(
        teacher, students, Originals(x), full=16, batch=3, progress=ledger
    )
    assert [(r.role, r.steps) for r in rows] == [
        ("teacher", 16), ("baseline", 8), ("student", 8), ("baseline", 4), ("student", 4),
    ]  # fmt: skip
    alone = Ledger()
    reconstructed(encoder(4), teacher, Originals(x), steps=4, back=16, batch=3, progress=alone)
    assert alone.steps == 3 * (4 + 16)
    both = [(16, 16), *2 * [(8, 16), (8, 8)], *2 * [(4, 16), (4, 4)]]  # up, and down
    assert ledger.steps == 3 * sum(map(sum, both))
    assert [name for name, _ in pictures] == [r.name for r in rows]
    for row in rows:  # students with the teacher's weights are the teacher in as many steps
        up = teacher.encode(x, steps=row.steps)
        for back, interval in ((16, row.full), (row.steps, row.same)):
            off = teacher.sample(7, steps=back, noise=up) - x
            assert interval.value == pytest.approx(float(off.square().mean().sqrt()), rel=1e-5)
    assert rows[1].full == rows[2].full and rows[3].same == rows[4].same
    assert rows[1].full != rows[1].same
    verdict = sentence(rows)
    assert verdict.startswith(
        "Encoded in 4 steps and decoded in the teacher's 16, images come back"
    )
    first, plain = (str(rows[k].full).split(" (")[0] for k in (0, 3))
    assert f" of {rows[4].full}; encoded in the teacher's 16 they" in verdict
    assert verdict.endswith(f"within {first}, in its 4 within {plain}.")
    assert "in 16 steps, images" in sentence(rows[:1])


def test_one_step_and_a_teacher_with_its_own_steps():
    x = torch.randn(2, 3, generator=seeded())
    named = [name for name, *_ in encoders(gaussian(), [encoder(1)], 2)]
    assert named == ["teacher, 2 steps", "teacher, 1 step", "student, 1 step"]
    teacher = gaussian(times=(uniform(2),))
    assert [w[:2] for w in encoders(teacher, [encoder(2), encoder(1)], 2)][1:] == [
        ("student, 2 steps", "student"),
        ("student, 1 step", "student"),
    ]
    with pytest.raises(ConfigError, match="cannot encode"):
        encoders(gaussian(), [gaussian(times=(uniform(2),))], 4)
    with pytest.raises(ConfigError, match="encode with its teacher"):
        reconstructions(teacher, [], Originals(x), full=2)


def test_labels_and_guidance_go_both_ways():
    """Every row is told its own class, and a network that reads its scale gets the least that it takes."""
    conditions = []

    class Spy(Exact):
        def forward(self, x, t, cond=None):
            conditions.append((cond.label.tolist(), cond.guidance_scale.tolist()))
            return super().forward(x, t)

    net = Denoiser(Spy(), Cosine(), V(), time=NetTime(scale=1.0)).freeze()
    both = Pipeline(net, (3,), class_names=("a", "b", "c"), guidance_range=(1.5, 4.0))
    x = torch.randn(3, 3, generator=seeded())
    reconstructed(both, both, Originals(x, [2, 0, 2]), steps=2, back=3)
    assert conditions == [([2, 0, 2], [1.5] * 3)] * 5


def test_what_the_teacher_reads():
    x, cond = torch.zeros(2, 3), Cond(label=torch.tensor([1, 0]))
    assert Originals.of(x, cond, gaussian()).labels is None
    teacher = gaussian(class_names=("a", "b"))
    assert Originals.of(x, cond, teacher).labels == [1, 0]
    with pytest.raises(DataError, match="no labels"):
        Originals.of(x, None, teacher)
    assert Originals.of(x, None, gaussian(empty=torch.zeros(2, 4))).texts is None  # the empty text


@pytest.mark.parametrize("count, n", [(10, 4), (5, 9), (7, 7), (1797, 512)])
def test_spread(count, n):
    rows = spread(count, n).tolist()
    assert len(rows) == min(count, n) and rows[0] == 0 and rows[-1] >= count - 1 - count / len(rows)
    assert sorted(set(rows)) == rows and rows[-1] < count


# --- the page -----------------------------------------------------------------------------------------


def report(held_out=True):
    value = Interval(0.0271828, 0.026, 0.028)
    ways = [("teacher, 64 steps", "teacher", 64), ("student, 8 steps", "student", 8)]
    rows = tuple(EncoderRow(name, role, steps, value, None) for name, role, steps in ways)
    return EncoderReport(
        provenance=Provenance(
            command="halfstep distill encoder <&>",
            halfstep=None,
            torch=None,
            commit=None,
            machine="",
        ),
        run=RunSummary(folder="enc", config={"start": 32}),
        reconstruction=Reconstruction(
            data="abc", images=1512, held_out=held_out, full=64, rows=rows
        ),
        verdict="Encoded in 8 steps, images come back within 0.027 (0.026 to 0.028).",
    )


def test_the_page():
    pictures = {
        "grid": np.zeros((3, 4, 8, 8, 1), np.uint8),
        "grid_labels": np.array(["a", "b", "c"]),
    }
    page = render(replace(report(), pictures=pictures))
    assert "Encode, then decode" in page and "1,512 images that were held out" in page
    assert "0.0272<small>0.0260 to 0.0280</small>" in page
    assert page.count("data:image/png") == 12 + 8  # the differences of two rows to the first
    assert "Encoded in 8 steps" in page and "&lt;&amp;&gt;" in page
    assert "Fréchet" not in page and "Quality against" not in page
    assert page == render(replace(report(), pictures=pictures))
    assert "that were held out" not in render(report(held_out=False))


def test_nothing_infinite_on_the_page():
    whole = report()
    row = replace(whole.reconstruction.rows[0], full=Interval(math.inf, 0.0, 0.0))
    broken = replace(whole, reconstruction=replace(whole.reconstruction, rows=(row,)))
    with pytest.raises(DataError, match="reconstruction"):
        render(broken)
