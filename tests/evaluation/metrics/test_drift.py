"""Drift: known changes are found, alarms are raised for them, and not for chance."""

import math

import pytest
import torch
from torch.nn import functional as F

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.drift import alarms, drift, measures
from tests.support.denoisers import seeded

SHAPE = (3, 8, 10)


def pictures(n, seed):
    """RGB: a colour, a gradient and some grain of each picture's own; they stay within +-0.9."""
    g = seeded(seed)
    colour = (torch.rand(n, 3, 1, 1, generator=g, dtype=torch.float64) - 0.5) * 0.8
    slope = (torch.rand(n, 1, 1, 1, generator=g, dtype=torch.float64) - 0.5) * 0.6
    grain = (torch.rand(n, *SHAPE, generator=g, dtype=torch.float64) - 0.5) * 0.2
    return colour + slope * torch.linspace(-1, 1, SHAPE[-1], dtype=torch.float64) + grain


def changes(teacher, student, **options):
    return {measure.measure: measure.change.value for measure in drift(teacher, student, **options)}


def test_output_scaled_by_1_05_raises_the_alarms_of_contrast_and_saturation():
    teacher = pictures(300, seed=0)
    result = drift(teacher, 1.05 * teacher)
    assert [measure.measure for measure in result] == [
        "brightness of red",
        "brightness of green",
        "brightness of blue",
        "contrast",
        "saturation",
        "fine detail",
    ]
    assert alarms(result) == (
        "contrast +5 %, outside ±3 %",
        "saturation +5 %, outside ±3 %",
    )
    change = {measure.measure: measure.change.value for measure in result}
    assert change["contrast"] == pytest.approx(0.05, abs=1e-9)
    assert change["saturation"] == pytest.approx(0.05, abs=1e-9)
    assert abs(change["fine detail"]) < 1e-3  # a scale is no sharpness


def test_scaled_output_is_found_from_other_noise_too():
    """Noise that is not the teacher's leaves much more open, and the same two alarms."""
    result = drift(pictures(10_000, seed=1), 1.08 * pictures(10_000, seed=2))
    assert [alarm.split()[0] for alarm in alarms(result)] == ["contrast", "saturation"]


@pytest.mark.parametrize("n", [8, 40, 400])
def test_an_equal_student_with_independent_noise_raises_none_in_20_seeds(n):
    raised = [
        alarm
        for seed in range(20)
        for alarm in alarms(drift(pictures(n, 2 * seed), pictures(n, 2 * seed + 1)))
    ]
    assert raised == []


def test_nor_without_any_limit_so_that_the_level_alone_holds():
    """With limit 0 an alarm is a plain test of no change: still 0.1 % over all of 20 comparisons."""
    raised = [
        alarm
        for seed in range(20)
        for alarm in alarms(drift(pictures(60, 2 * seed), pictures(60, 2 * seed + 1), limit=0.0))
    ]
    assert raised == []


def test_a_student_on_the_limit_is_not_an_alarm_that_chance_raises():
    """3 % more contrast than the teacher, with other noise: half the values lie outside ±3 %."""
    outside, raised = 0, []
    for seed in range(40):
        result = drift(pictures(100, 2 * seed), 1.03 * pictures(100, 2 * seed + 1))
        outside += sum(
            abs(measure.change.value) > 0.03 for measure in result if measure.measure == "contrast"
        )
        raised += alarms(result)
    assert 10 <= outside <= 38  # so the point alone would have raised many
    assert raised == []


def test_the_interval_covers_the_true_change():
    covered = 0
    for seed in range(200):
        result = drift(pictures(80, 2 * seed), 1.04 * pictures(80, 2 * seed + 1))
        change = next(measure.change for measure in result if measure.measure == "saturation")
        covered += change.low <= 0.04 <= change.high
    assert 0.90 <= covered / 200 <= 0.985


def test_pairs_make_a_change_certain_that_other_noise_leaves_open():
    teacher, jitter = pictures(200, 3), pictures(200, 5)
    paired = drift(teacher, 1.05 * teacher + 0.01 * jitter)[3].change
    apart = drift(teacher, 1.05 * pictures(200, 4))[3].change
    assert paired.low < paired.value < paired.high
    assert (apart.high - apart.low) > 5 * (paired.high - paired.low)


# The measures.


def test_each_measure_answers_to_its_own_change_alone():
    teacher = pictures(200, 6)
    red = teacher.clone()
    red[:, 0] += 0.1
    result = changes(teacher, red)
    # 0.1 of 2 is .05 of the range, on a mean of about .5
    assert result["brightness of red"] == pytest.approx(
        0.05 / float((teacher[:, 0] + 1).mean() / 2)
    )
    assert result["brightness of green"] == result["brightness of blue"] == 0
    assert abs(result["contrast"]) < 1e-12 and abs(result["fine detail"]) < 1e-12
    padded = F.pad(teacher, (1, 1, 1, 1), mode="replicate")
    soft = changes(teacher, F.avg_pool2d(padded, 3, stride=1))
    assert soft["fine detail"] < -0.3
    assert max(abs(soft[f"brightness of {name}"]) for name in ("red", "green", "blue")) < 0.01
    grey = changes(teacher, teacher.mean(1, keepdim=True).expand_as(teacher))
    assert grey["saturation"] == pytest.approx(-1)


def test_measures_of_images_known_by_hand():
    stripes = torch.tensor([-1.0, 1.0, 1.0, -1.0]).repeat(1, 1, 5, 1)  # columns 0 1 1 0 in [0, 1]
    result = measures(stripes)
    assert set(result) == {"brightness", "contrast", "fine detail"}
    assert result["brightness"].item() == 0.5
    assert result["contrast"].item() == 0.5
    # inside, 4 less 0 + 1 + 1 + 1 is 1, over 20 * .25
    assert result["fine detail"].item() == pytest.approx(1 / 5, rel=1e-4)
    red = torch.tensor([1.0, -1.0, 0.0])[:, None, None].expand(1, 3, 3, 4)
    result = measures(red)
    assert [result[f"brightness of {c}"].item() for c in ("red", "green", "blue")] == [1, 0, 0.5]
    assert result["saturation"].item() == 1 and result["contrast"].item() == 0
    assert result["fine detail"].item() == 0


def test_fine_detail_is_1_for_white_noise():
    noise = 0.2 * torch.randn(40, 1, 30, 34, generator=seeded(7), dtype=torch.float64)
    assert float(measures(noise)["fine detail"].mean()) == pytest.approx(1, rel=0.02)


def test_channels_of_anything_else_are_numbered():
    names = list(measures(torch.zeros(2, 4, 3, 5)))
    assert names[:4] == [f"brightness of channel {k}" for k in range(4)]
    assert "saturation" not in names


def test_a_teacher_without_colour_has_a_drift_that_is_finite():
    grey = pictures(50, 8)[:, :1].expand(50, 3, 8, 10)
    tint = grey.clone()
    tint[:, 2] += 0.2
    result = {measure.measure: measure for measure in drift(grey, tint)}
    assert result["saturation"].change.value == pytest.approx(0.1 * 255)
    assert result["saturation"].alarm == "saturation +2550 %, outside ±3 %"
    assert all(
        measure.alarm is None
        for measure in drift(torch.full_like(grey, -1), torch.full_like(grey, -1))
    )


def test_words_say_the_change_and_the_limit():
    teacher = pictures(100, 9)
    result = {measure.measure: measure for measure in drift(teacher, 0.88 * teacher, limit=0.015)}
    assert result["saturation"].alarm == "saturation -12 %, outside ±1.5 %"
    assert (result["contrast"].measure, result["contrast"].limit) == ("contrast", 0.015)
    assert result["contrast"].alarm == "contrast -12 %, outside ±1.5 %"
    slight = {measure.measure: measure for measure in drift(teacher, 1.034 * teacher)}
    assert slight["saturation"].alarm == "saturation +3.4 %, outside ±3 %"


def test_the_interval_is_that_of_a_mean_where_only_the_student_varies():
    """A constant teacher: the change is a mean, and its interval Student's own."""
    teacher = torch.zeros(16, 1, 3, 3, dtype=torch.float64)
    level = torch.randn(16, 1, 1, 1, generator=seeded(1), dtype=torch.float64) * 0.1
    result = drift(teacher, teacher + level)[0].change
    spread = float(level.std()) / math.sqrt(16)  # 2.13145 is the .975 quantile of t with 15 degrees
    assert result.value == pytest.approx(float(level.mean()))
    assert result.high - result.value == pytest.approx(2.13145 * spread, rel=1e-5)


def test_what_cannot_be_compared_is_refused():
    images = pictures(20, 0)
    with pytest.raises(ConfigError, match="same n and seed"):
        drift(images, images[:19])
    with pytest.raises(ConfigError, match="same n and seed"):
        drift(images[:, 0], images[:, 0])
    with pytest.raises(ConfigError, match="8 images of 3x3"):
        drift(images[:7], images[:7])
    with pytest.raises(ConfigError, match="8 images of 3x3"):
        drift(images[..., :2], images[..., :2])
    with pytest.raises(ConfigError, match=r"limit=0\.03"):
        drift(images, images, limit=1.0)
    with pytest.raises(DataError, match="nan or infinite"):
        drift(images, images.log())
