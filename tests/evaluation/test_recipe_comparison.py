"""Verdicts on recipes: how often they are wrong where the truth is known, and what is read back."""

import json
from dataclasses import replace

import pytest
import torch

from halfstep.errors import CheckpointError, ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.crossed_mean import CrossedMean
from halfstep.evaluation.recipe_comparison import (
    all_gains,
    compared,
    gain_level,
    read_comparison,
    save_comparison,
    verdict_of,
)
from tests.support.recipes import comparison

IMAGES = 300


def students(generator, seeds, shifts, spread=0.1):
    """Whether images are answered rightly by students of equal networks, each better by its shift.

    An image has a difficulty for all students, a difference by student, and one by seed; so has a seed.
    """

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    difficulty = noise(IMAGES)
    return {
        name: difficulty + spread * noise(seeds, 1) + 0.2 * noise(IMAGES) + 0.6 * noise(seeds, IMAGES)
        > -1.5 - shift
        for name, shift in shifts.items()
    }  # fmt: skip


def verdicts(seeds, shifts, runs, **options):
    """The verdicts of many comparisons."""
    generator = torch.Generator().manual_seed(11)
    pairs = [(name, "plain") for name in shifts if name != "plain"]
    return [
        {g.student: g.verdict for g in all_gains(pairs, students(generator, seeds, shifts), **options)}
        for _ in range(runs)
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("recipes", [1, 4])
def test_without_an_effect_a_verdict_is_rare(seeds, recipes):
    """At most 5 % of comparisons say anything at all, whatever the number of recipes."""
    shifts = dict.fromkeys(["plain", *map(str, range(recipes))], 0.0)
    decided = [set(each.values()) - {"cannot tell"} for each in verdicts(seeds, shifts, 400)]
    assert sum(map(bool, decided)) / 400 <= 0.05


def test_a_true_effect_is_found_and_only_it():
    shifts = {"plain": 0.0, "better": 0.9, "equal": 0.0, "worse": -0.9}
    found = verdicts(5, shifts, 60)
    assert sum(each["better"] == "helps" for each in found) >= 57
    assert sum(each["worse"] == "does not" for each in found) >= 57
    assert sum(each["equal"] != "cannot tell" for each in found) <= 3


def test_a_gain_below_the_margin_does_not_help():
    """With many seeds a gain of nothing is surely below 5 points; one of 12 points is not."""
    shifts = {"plain": 0.0, "equal": 0.0, "better": 1.2}
    found = verdicts(8, shifts, 30, margin=0.05)
    assert sum(each["equal"] == "does not" for each in found) >= 28
    assert sum(each["better"] == "helps" for each in found) >= 28


def test_without_the_correction_four_recipes_would_be_wrong_too_often():
    assert gain_level(1) == pytest.approx(0.95)
    assert gain_level(4) == pytest.approx(0.9875)
    one = torch.zeros(3, 4)
    gains = all_gains([("a", "p"), ("b", "p")], {"a": one, "b": one, "p": one})
    assert [g.verdict for g in gains] == ["cannot tell", "cannot tell"]


@pytest.mark.parametrize(
    ("value", "spread", "margin", "verdict"),
    [
        (0.05, 0.01, 0.0, "helps"),
        (-0.05, 0.01, 0.0, "does not"),
        (0.01, 0.01, 0.0, "cannot tell"),
        (-0.01, 0.01, 0.0, "cannot tell"),
        (0.0, 0.001, 0.01, "does not"),
        (0.02, 0.001, 0.01, "helps"),
        (0.005, 0.01, 0.01, "cannot tell"),
        (0.005, 0.001, 0.01, "does not"),  # surely a gain, and surely too small to matter
        (0.008, 0.002, 0.01, "helps"),
    ],
)
def test_verdicts_by_hand(value, spread, margin, verdict):
    """Half the interval of 3 seeds is 2.484 spreads."""
    mean = CrossedMean(value, 3, spread, 0.0, 0.0)
    assert mean.half_width(3, 0.95) == pytest.approx(2.484 * spread, rel=1e-3)
    assert verdict_of(mean, 0.95, margin) == verdict
    assert verdict_of(replace(mean, seeds=1, seed_spread=None), 0.95, margin) == "cannot tell"


def test_a_gain_counts_images_and_seeds():
    plain = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    other = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    gain = compared("other", "plain", {"plain": plain, "other": other}, level=0.95, margin=0.0)
    assert gain.differences == pytest.approx((0.2, 0.2))
    assert (gain.alone, gain.control_alone) == pytest.approx((0.3, 0.1))
    assert gain.interval.value == pytest.approx(0.2)
    assert gain.verdict == "cannot tell"
    assert gain.interval.low < 0 < gain.interval.high


def test_seeds_that_would_tell_a_gain_or_that_it_is_too_small():
    steps = torch.zeros(4, 1000)
    for seed, right in enumerate((70, 0, 40, 50)):
        steps[seed, :right] = 1
    some = {"a": steps, "p": torch.zeros(4, 1000)}
    gain = compared("a", "p", some, level=0.95, margin=0.0)
    # The spread is .0294: t(4) 2.776 / sqrt(5) of it is .0366, with .011 of the images .038.
    assert gain.verdict == "cannot tell" and gain.seeds_needed == 5
    far = compared("a", "p", some, level=0.95, margin=0.9)
    assert far.verdict == "does not" and far.seeds_needed is None


def test_refusals():
    right = {"a": torch.ones(3, 4), "p": torch.ones(2, 4)}
    with pytest.raises(DataError, match="same seeds and images"):
        compared("a", "p", right, level=0.95, margin=0.0)
    with pytest.raises(ConfigError, match="margin"):
        compared("a", "a", right, level=0.95, margin=-0.1)


def test_what_is_written_is_read(tmp_path):
    written = comparison()
    save_comparison(written, tmp_path)
    assert read_comparison(tmp_path) == written
    assert written.student("plain").accuracy == Interval(0.5, 0.4, 0.6)
    path = tmp_path / "compare.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": 8}))
    with pytest.raises(CheckpointError, match="compare knowledge again"):
        read_comparison(tmp_path)
    with pytest.raises(ConfigError, match="holds no comparison"):
        read_comparison(tmp_path / "other")
