"""Options that change within a run: recorded with their update, and the same learning rates after a crash."""

import pytest

from halfstep.errors import ConfigError
from halfstep.training.option_changes import changed, Place, value_at
from halfstep.training.run_folder import RunFolder
from tests.support.runs import At, bits, Crash, crash, halve, job, logged_lines

BEGUN = {"learning_rate": 4.0, "save_every": 3}


def change(stage, update, rate, **others):
    return {
        "stage": stage,
        "name": f"s{stage}",
        "update": update,
        "values": {**BEGUN, "learning_rate": rate, **others},
    }


HISTORY = [change(0, 5, 2.0), change(1, 3, 1.0)]


@pytest.mark.parametrize(
    "place, rate",
    [((0, 0), 4), ((0, 4), 4), ((0, 5), 2), ((0, 9), 2), ((1, 0), 2), ((1, 2), 2), ((1, 3), 1), ((2, 0), 1)],
)  # fmt: skip
def test_a_value_holds_from_its_update_on(place, rate):
    assert value_at("learning_rate", 4.0, HISTORY, Place(*place)) == rate


def test_the_last_values_change_nothing_wherever_the_run_goes_on():
    for place in (Place(0, 0), Place(1, 2), Place(1, 3), Place(2, 0)):
        assert changed(BEGUN, HISTORY, {"learning_rate": 1.0, "save_every": 3}, place, "s") == (
            HISTORY,
            [],
        )
    assert changed(BEGUN, [], dict(BEGUN), Place(0, 7), "s0") == ([], [])


def test_another_value_forgets_the_changes_after_it():
    new, words = changed(BEGUN, HISTORY, {"learning_rate": 4.0, "save_every": 2}, Place(1, 1), "s1")
    assert new == [HISTORY[0], change(1, 1, 4.0, save_every=2)]
    assert words == [
        "learning_rate was 1.0, now 4.0, from update 1 of s1 on",
        "save_every was 3, now 2, from update 1 of s1 on",
    ]
    assert changed(BEGUN, HISTORY, {"learning_rate": 3.0}, Place(1, 3), "s1")[0] == [
        HISTORY[0],
        change(1, 3, 3.0),
    ]


# Runs: 8 -> 4 in 7 updates and 4 -> 2 in 14, saved every 3.


def rates(out):
    return {(x["stage"], x["update"]): x["rate"] for x in RunFolder(out).metrics if "rate" in x}


def stop_at(out, stage, update, **options):
    with pytest.raises(Crash):
        halve(out, job=job(callback=At(stage, update, crash)), **options)


def test_a_learning_rate_changes_where_the_run_goes_on(tmp_path):
    stop_at(tmp_path, "0004-steps", 5, log_every=1)
    notes = At("", 0, None)
    halve(tmp_path, log_every=1, learning_rate=1e-3, job=job(callback=notes))
    assert notes.notes == ["learning_rate was 0.003, now 0.001, from update 3 of 0004-steps on"]
    was, now = 3e-3, 1e-3  # linear: the share of updates that are left
    expected = {("0004-steps", k + 1): (was if k < 3 else now) * (1 - k / 7) for k in range(7)}
    expected |= {("0002-steps", k + 1): now * (1 - k / 14) for k in range(14)}
    assert rates(tmp_path) == pytest.approx(expected, rel=1e-12)
    run = RunFolder.open(tmp_path)
    assert run.options["learning_rate"] == 3e-3 and run.about["changes"] == notes.notes
    [only] = run.about["changed_options"]
    assert (only["stage"], only["name"], only["update"]) == (0, "0004-steps", 3)
    assert only["values"]["learning_rate"] == 1e-3 and only["values"]["save_every"] == 3


def test_after_a_crash_the_same_command_has_the_same_rates_to_the_bit(tmp_path):
    for out, crashes in ((tmp_path / "a", ()), (tmp_path / "b", ((5, "4"), (8, "2"), (2, "2")))):
        stop_at(out, "0004-steps", 4)
        for update, steps in crashes:
            if (steps, update) != ("2", 2):
                stop_at(out, f"000{steps}-steps", update, learning_rate=1e-3)
        halve(out, learning_rate=1e-3)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert logged_lines(tmp_path / "a") == logged_lines(tmp_path / "b")
    assert len(RunFolder.open(tmp_path / "b").about["changed_options"]) == 1


def test_an_older_checkpoint_goes_through_the_same_changes(tmp_path):
    """`--from-previous` goes on before the change, which is made again where it was."""
    for out in (tmp_path / "a", tmp_path / "b"):
        stop_at(out, "0002-steps", 8)
        stop_at(out, "0002-steps", 9, learning_rate=1e-3)  # from update 6 on; 9 is not saved
    halve(tmp_path / "a", learning_rate=1e-3)
    newest = tmp_path / "b/checkpoints/01-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    halve(tmp_path / "b", learning_rate=1e-3, job=job(from_previous=True))
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


def test_back_and_forth(tmp_path):
    """A change that is taken back before it is trained with leaves the run's bits as they were."""
    stop_at(tmp_path / "a", "0004-steps", 4)
    stop_at(tmp_path / "a", "0004-steps", 5, learning_rate=1e-3)
    halve(tmp_path / "a")
    halve(tmp_path / "b")
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert len(RunFolder.open(tmp_path / "a").about["changes"]) == 2


def test_other_options_change_no_bit(tmp_path):
    halve(tmp_path / "a")
    stop_at(tmp_path / "b", "0002-steps", 5)
    notes = At("", 0, None)
    halve(tmp_path / "b", save_every=2, log_every=3, job=job(callback=notes))
    assert notes.notes == [
        "log_every was 4, now 3, from update 3 of 0002-steps on",
        "save_every was 3, now 2, from update 3 of 0002-steps on",
    ]
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    stem = "checkpoints/01-00000014.safetensors"
    assert (tmp_path / "a" / stem).read_bytes() == (tmp_path / "b" / stem).read_bytes()


def test_a_finished_run_is_left_as_it_is(tmp_path):
    halve(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    halve(tmp_path, learning_rate=1e-3)
    assert (tmp_path / "run.json").read_bytes() == before


def test_all_else_is_refused_still(tmp_path):
    stop_at(tmp_path, "0004-steps", 5)
    with pytest.raises(ConfigError, match=r"made with weight_decay = 0\.0, now it is 0\.1"):
        halve(tmp_path, weight_decay=0.1, learning_rate=1e-3)
    assert RunFolder.open(tmp_path).about["changed_options"] == []
