"""Memorisation: copies are found, whole or few; what is only typical is not accused."""

import pytest
import torch

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics import memorisation as module
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.memorisation import nearest, TrainingImages
from tests.support.denoisers import seeded

SHAPE = (1, 3, 4)


def drawn(n, seed, scale=1.0):
    return scale * torch.randn(n, *SHAPE, generator=seeded(seed), dtype=torch.float64)


TRAINING, HELD_OUT = drawn(700, 0), drawn(250, 1)


def memorisation(samples, training, held_out, **options):
    return TrainingImages.beside(training, held_out).memorisation(samples, **options)


@pytest.mark.parametrize("memory", [1, 700 * 7, 1 << 23])
def test_the_nearest_two_are_those_of_a_second_implementation(memory):
    result = nearest(drawn(23, 2) + 40, TRAINING + 40, memory=memory)
    apart = (drawn(23, 2)[:, None] - TRAINING[None]).flatten(2).square().sum(2).sqrt()
    assert torch.allclose(result, apart.sort(1).values[:, :2], rtol=1e-9)


def test_a_copy_is_at_no_distance_at_all_however_far_from_0_the_data_are():
    training = TRAINING.float() + 1000
    assert (nearest(training[40:60], training)[:, 0] == 0).all()
    assert (nearest(training[40:60], training)[:, 1] > 0).all()


def test_a_generator_that_returns_training_images_is_flagged():
    result = memorisation(
        TRAINING[torch.randint(700, (300,), generator=seeded(3))], TRAINING, HELD_OUT
    )
    assert result.train.value == result.ratio.value == result.ratio.high == 0
    assert result.copies.value > 0.99
    assert result.flag is not None and "100 % of the samples are copies" in result.flag


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_generator_is_not_flagged(seed):
    result = memorisation(drawn(400, 10 + seed), TRAINING, HELD_OUT)
    assert result.flag is None
    assert result.ratio.value == pytest.approx(1, abs=0.12)
    assert result.ratio.low < result.ratio.value < result.ratio.high
    assert result.held_out.value == pytest.approx(float(nearest(HELD_OUT, TRAINING)[:, 0].mean()))


def test_the_ratio_of_an_honest_one_covers_1():
    covered = 0
    for seed in range(40):
        other = drawn(150, 1000 + seed)
        result = memorisation(drawn(200, 100 + seed), TRAINING, other, resamples=100, seed=seed)
        covered += result.ratio.low <= 1 <= result.ratio.high
    assert covered >= 33  # 38 expected; fewer than 33 come once in 300


def test_samples_that_are_only_more_typical_than_data_are_not_accused():
    """A generator that stays near the middle is nearer to everything, and copies nothing."""
    result = memorisation(drawn(400, 20, scale=0.75), TRAINING, HELD_OUT)
    assert result.ratio.high < 0.95
    assert result.flag is None


def test_a_generator_that_copies_now_and_then_is_flagged():
    samples = drawn(400, 30)
    samples[:40] = TRAINING[100:140]
    result = memorisation(samples, TRAINING, HELD_OUT)
    assert result.ratio.low > 0.8  # the mean hardly shows it
    assert result.copies.value == pytest.approx(0.1, abs=0.02)
    assert result.flag is not None and "copies" in result.flag


def test_copies_with_a_little_noise_are_flagged():
    samples = TRAINING[:300] + 0.1 * drawn(300, 40)
    assert "copies" in memorisation(samples, TRAINING, HELD_OUT).flag


def test_a_training_set_whose_every_image_is_there_twice_hides_no_copies():
    twice = torch.cat(
        [TRAINING, TRAINING + 1e-3]
    )  # so no copy is much nearer to one than to the next
    result = memorisation(TRAINING[:300] + 0.05 * drawn(300, 50), twice, HELD_OUT)
    assert result.copies.value < 0.05
    assert result.ratio.high < module.TOO_NEAR
    assert result.flag is not None and "as far from the training images" in result.flag


def test_duplicates_among_the_data_itself_are_no_memorisation():
    """A fifth of the held-out images are near copies of training images: so may the samples be."""
    duplicated, samples = HELD_OUT.clone(), drawn(300, 60)
    duplicated[:50] = TRAINING[:50] + 0.01
    samples[:60] = TRAINING[100:160] + 0.01
    assert memorisation(samples, TRAINING, duplicated).flag is None


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ConfigError, match="held_out are training"):
        memorisation(drawn(50, 1), TRAINING, TRAINING[:90])
    with pytest.raises(ConfigError, match="points of one size"):
        nearest(drawn(5, 1)[..., :3], TRAINING)
    with pytest.raises(ConfigError, match="at least two"):
        nearest(drawn(5, 1), TRAINING[:1])
    with pytest.raises(DataError, match="nan or infinite"):
        nearest(drawn(5, 1).log(), TRAINING)


def test_it_is_said_only_where_the_whole_interval_says_so():
    def flag(ratio, copies):
        return module._flag(Interval(*ratio), Interval(*copies))

    none = (0.0, -0.01, 0.01)
    assert flag((0.45, 0.4, 0.51), none) is None  # half of it may be chance
    assert flag((0.45, 0.4, 0.49), none).startswith("the samples lie 0.45 times as far")
    assert flag((1.0, 0.9, 1.1), (0.05, 0.009, 0.09)) is None
    assert flag((1.0, 0.9, 1.1), (0.05, 0.011, 0.09)).startswith("5 % of the samples are copies")


def test_each_number_is_its_own():
    """Distances on a line: samples a third, held-out images a whole from the training images."""
    training = torch.arange(0.0, 40, 4)[:, None]
    samples, held_out = training[:6] + 1 / 3, training + 1
    result = memorisation(samples, training, held_out)
    assert result.train.value == pytest.approx(1 / 3)
    assert result.held_out.value == pytest.approx(1)
    assert result.ratio.value == pytest.approx(1 / 3)
    assert result.copies.value == pytest.approx(1 - 1)  # 1/3 of 11/3, and 1 of 3: both are copies
    assert memorisation(training[:6] + 1.2, training, held_out).copies.value == pytest.approx(-1)
