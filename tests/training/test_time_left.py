"""The time left: exact at a steady speed, without a jump where stages of another cost begin."""

import pytest

from halfstep.training.progress import HALF_LIFE, TimeLeft


def played(time, cost, seconds, count, now=0.0):
    """So many updates, each of this cost and length; returns when they end."""
    for _ in range(count):
        now += seconds
        time.add(cost, now)
    return now


def test_before_the_first_update_nothing_is_known():
    time = TimeLeft()
    time.begin(7.0)
    assert time.seconds(3) is None
    time.add(4, 9.0)
    assert time.seconds(6) == pytest.approx(3.0)  # of it alone


def test_at_a_steady_speed_it_is_exact_whatever_came_first():
    time = TimeLeft()
    time.begin(0.0)
    time.add(5, 60.0)  # compiles
    now = played(time, 5, 0.5, 1, 60.0)
    assert time.seconds(5) == pytest.approx(0.5)
    played(time, 5, 0.5, 100, now)
    assert time.seconds(50) == pytest.approx(5.0)


def test_no_jump_where_a_dearer_stage_begins():
    """Cost is what counts: an update of 10 forwards takes as long as two of 5."""
    time = TimeLeft()
    time.begin(0.0)
    now = played(time, 5, 0.5, 20)
    before = time.seconds(1000)
    time.begin(now + 300.0)  # a gate has looked at samples in between
    now = played(time, 10, 40.0, 1, now + 300.0)  # warms up
    assert time.seconds(1000) == before == pytest.approx(100.0)
    played(time, 10, 1.0, 20, now)
    assert time.seconds(1000) == pytest.approx(100.0)


def test_half_of_it_is_forgotten_after_a_half_life():
    """Updates of 1 ms for long, then of 2 ms for a half-life: half of what was known is left."""
    time = TimeLeft()
    time.begin(0.0)
    now = played(time, 1, 0.001, 300_000)
    assert time.seconds(1) == pytest.approx(0.001)
    played(time, 1, 0.002, int(HALF_LIFE / 0.002), now)
    # of the seconds that count half are of either speed: 1 / (0.5 / 0.001 + 0.5 / 0.002)
    assert time.seconds(1) == pytest.approx(1 / 750, rel=1e-3)
