"""Damaged files of a run are named and refused, and the checkpoint before them is used."""

import json
import re
import shutil

import pytest

from halfstep.errors import CheckpointError
from halfstep.training import checkpoint
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.locate import locate_pipeline
from tests.support.disk import crashing
from tests.support.runs import (
    At,
    bits,
    Crash,
    crash,
    everything,
    halted,
    halve,
    job,
    logged_lines,
    rewritten,
)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def flipped(out):
    flip(out / "checkpoints/01-00000006.safetensors")


def cut(out):
    path = out / "checkpoints/01-00000006.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def missing(out):
    (out / "checkpoints/01-00000006.safetensors").unlink()


def no_json(out):
    (out / "checkpoints/01-00000006.json").write_text('{"stage": 1, "upd')


def other_update(out):
    path = out / "checkpoints/01-00000006.json"
    path.write_text(path.read_text().replace('"update": 6', '"update": 5'))


def said_again(**other):
    """By whoever knows its checksum."""
    return lambda out: rewritten(
        out / "checkpoints/01-00000006.json", lambda about: about.update(other)
    )


def opened(out):
    """The arguments that open a run again."""
    about = json.loads((out / "run.json").read_text())
    return {"command": about["command"], "options": about["options"]}


class TestDamage:
    @pytest.fixture
    def interrupted(self, tmp_path):
        """Checkpoints at 3 and 6 of the second stage; the third is still to come."""
        halted(tmp_path / "r", "0002-steps", 8)
        names = sorted(path.name for path in (tmp_path / "r/checkpoints").glob("01-*.json"))
        assert names == ["01-00000003.json", "01-00000006.json"]
        return tmp_path / "r"

    @pytest.mark.parametrize(
        "harm, says",
        [
            (flipped, r"01-00000006\.safetensors' is damaged: its checksum"),
            (cut, r"01-00000006\.safetensors' is damaged: its checksum"),
            (missing, r"01-00000006\.safetensors' is missing"),
            (no_json, r"01-00000006\.json' is damaged"),
            (other_update, r"01-00000006\.json' is damaged: its checksum"),
            (said_again(update=5), r"01-00000006\.json' does not say what its name says"),
            (said_again(run="0" * 32), r"01-00000006' is a checkpoint of another run"),
            (said_again(name="0001-steps"), r"01-00000006' is a checkpoint of another stage"),
            (said_again(seconds="long"), r"01-00000006\.json' is damaged: seconds must be"),
        ],
    )
    def test_a_damaged_checkpoint_is_named_and_refused(self, interrupted, whole, harm, says):
        harm(interrupted)
        before = everything(interrupted)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=says) as caught:
                halve(interrupted)
            assert str(caught.value).endswith("add --from-previous to go on from update 3 instead")
            assert everything(interrupted) == before
        begun = []

        class Looking(At):
            def begin(self, stage, update):
                begun.append((stage.name, update))

        callback = Looking("", 0, crash)
        halve(interrupted, job=job(from_previous=True, callback=callback))
        assert begun == [("0002-steps", 3)]
        assert len(callback.notes) == 1 and re.search(says, callback.notes[0])
        assert callback.notes[0].endswith("; going on from update 3")
        assert bits(interrupted) == bits(whole) and logged_lines(interrupted) == logged_lines(whole)

    def test_both_damaged(self, interrupted, whole):
        for path in (interrupted / "checkpoints").glob("01-*.safetensors"):
            flip(path)
        halve(interrupted, job=job(from_previous=True))
        assert bits(interrupted) == bits(whole)

    def test_the_only_one_damaged(self, tmp_path):
        halted(tmp_path / "r", "0004-steps", 4)
        flip(tmp_path / "r/checkpoints/00-00000003.safetensors")
        with pytest.raises(CheckpointError, match="to go on from the stage's start instead"):
            halve(tmp_path / "r")

    @pytest.mark.parametrize("name", ["pipeline.safetensors", "pipeline.json", "stage.json"])
    @pytest.mark.parametrize("gone", [False, True])
    def test_a_damaged_finished_stage_is_named(self, tmp_path, whole, name, gone):
        out = tmp_path / "r"
        shutil.copytree(whole, out)
        path = out / "stages/0004-steps" / name
        path.unlink() if gone else path.write_bytes(path.read_bytes()[:-7])
        before = everything(out)
        with pytest.raises(CheckpointError) as caught:
            halve(out)
        message = str(caught.value)
        assert f"0004-steps/{name}' " in message and "\n" not in message
        assert f"or delete '{out}/stages/0004-steps', and the same command trains" in message
        assert everything(out) == before
        shutil.rmtree(out / "stages/0004-steps")
        halve(out)
        assert bits(out) == bits(whole)

    def test_a_damaged_run_json(self, tmp_path, whole):
        shutil.copytree(whole, tmp_path / "r")
        path = tmp_path / "r/run.json"
        for text, says in (
            ("{", r"run\.json' is damaged: Expecting"),
            ('{"command": "x"}', r"run\.json' is damaged: it lacks"),
        ):
            path.write_text(text)
            with pytest.raises(CheckpointError, match=says):
                halve(tmp_path / "r")

    def test_a_stage_of_another_run_is_not_its_own(self, tmp_path, whole):
        """The same teacher and the same options but the seed."""
        halve(tmp_path / "b", seed=9)
        shutil.copytree(whole, tmp_path / "a")
        shutil.rmtree(tmp_path / "a/stages/0002-steps")
        shutil.copytree(tmp_path / "b/stages/0002-steps", tmp_path / "a/stages/0002-steps")
        before = everything(tmp_path / "a")
        with pytest.raises(CheckpointError, match="0002-steps' is a stage of another run"):
            halve(tmp_path / "a")
        assert everything(tmp_path / "a") == before
        with pytest.raises(CheckpointError, match="another run"):
            locate_pipeline(tmp_path / "a")

    def test_stages_that_changed_places_are_not_their_own(self, tmp_path, whole):
        shutil.copytree(whole, tmp_path / "a")
        one, two = (tmp_path / "a/stages" / name for name in ("0004-steps", "0002-steps"))
        one.rename(tmp_path / "x")
        two.rename(one)
        (tmp_path / "x").rename(two)
        with pytest.raises(CheckpointError, match="holds the stage '0002-steps'"):
            halve(tmp_path / "a")
        with pytest.raises(CheckpointError, match="holds the stage"):
            locate_pipeline(tmp_path / "a", steps=4)

    def test_what_a_stage_holds_is_its_own(self, tmp_path, whole):
        """Its stage.json stays, and another's pipeline comes: a whole one, but not the stage's."""
        shutil.copytree(whole, tmp_path / "a")
        for file in ("pipeline.json", "pipeline.safetensors"):
            shutil.copy(whole / "stages/0004-steps" / file, tmp_path / "a/stages/0002-steps")
        with pytest.raises(CheckpointError, match="not the one that was written with"):
            halve(tmp_path / "a")

    def test_a_run_that_was_moved_or_copied_keeps_its_stages(self, tmp_path, whole):
        shutil.copytree(whole, tmp_path / "elsewhere")
        assert halve(tmp_path / "elsewhere").times == locate_pipeline(tmp_path / "elsewhere").times

    @pytest.mark.parametrize(
        "line, says",
        [
            ("{", "Expecting property name"),
            ("", "Expecting value"),
            ("[]", "must be a table"),
            ('{"stage": "0004-steps", "update": 4}', "lacks loss"),
            ('{"stage": 4, "updates": 8, "seconds": 1, "forwards": 2}', "stage must be text"),
            (
                '{"stage": "x", "update": 4, "loss": NaN, "norm": 1, "learning_rate": 1}',
                "NaN is no number",
            ),
            (
                '{"stage": "x", "updates": 1e999, "seconds": 1, "forwards": 2}',
                "not a finite number",
            ),
            ("[" * 5000, "nested deeper"),
            ("\x00", "Expecting value"),
        ],
    )
    def test_a_damaged_line_of_metrics_is_named(self, tmp_path, whole, line, says):
        shutil.copytree(whole, tmp_path / "r")
        path = tmp_path / "r/metrics.jsonl"
        first, rest = path.read_text().split("\n", 1)
        path.write_text(f"{first}\n{line}\n{rest}")
        with pytest.raises(
            CheckpointError, match=f"line 2 of '.*metrics.jsonl' is damaged: .*{says}"
        ):
            halve(tmp_path / "r")

    def test_what_a_crash_left_is_ignored_and_goes(self, interrupted, whole):
        folder = interrupted / "checkpoints"
        shutil.copy(folder / "01-00000006.safetensors", folder / "01-00000009.safetensors")
        for name in ("01-00000012.safetensors.part", "01-00000012.json.part"):
            (folder / name).write_text("half")
        (interrupted / "stages/.0002-steps.part").mkdir()
        (interrupted / "stages/.0002-steps.part/pipeline.json").write_text("{")
        with (interrupted / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "0002-st')
        halve(interrupted)
        assert bits(interrupted) == bits(whole) and logged_lines(interrupted) == logged_lines(whole)
        assert everything(interrupted).keys() == everything(whole).keys()

    def test_half_removed_it_is_gone_altogether(self, interrupted, monkeypatch):
        folder = interrupted / "checkpoints"
        with monkeypatch.context() as patched, pytest.raises(Crash):
            crashing(patched, 1)
            checkpoint.remove(folder / "01-00000006")
        assert sorted(path.name for path in folder.glob("01-00000006*")) == [
            "01-00000006.safetensors"
        ]
        assert checkpoint.choose(folder, 1) == "01-00000003"

    def test_a_stage_between_its_two_names_gets_its_own_back(self, interrupted):
        """Gone while the extended stage took its place: what was there before is there."""
        stages = interrupted / "stages"
        (stages / "0004-steps").rename(stages / ".0004-steps.old")
        (stages / ".0004-steps.part").mkdir()
        RunFolder.begin(interrupted, **opened(interrupted)).close()
        assert [path.name for path in stages.iterdir()] == ["0004-steps"]

    def test_the_metrics_are_no_part_of_the_state(self, interrupted, whole):
        """A log that somebody deleted or emptied costs its lines, not the run."""
        (interrupted / "metrics.jsonl").unlink()
        halve(interrupted)
        assert bits(interrupted) == bits(whole)
        new = [line for line in logged_lines(interrupted) if "update" in line]
        assert new == [
            x for x in logged_lines(whole) if x["stage"] == "0002-steps" and x.get("update", 0) > 6
        ]
        names = [line["stage"] for line in logged_lines(interrupted) if "updates" in line]
        assert names == ["0004-steps", "0002-steps"]
