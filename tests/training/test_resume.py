"""Nothing that was saved is lost, whatever happens, and a resumed run ends at the same bits."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import halfstep.training.run_identity as asked
from halfstep import files, storage
from halfstep.cli import main
from halfstep.errors import CheckpointError, ConfigError
from halfstep.methods import Progressive
from halfstep.training import checkpoint
from halfstep.training.optimiser import Optimiser
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.locate import locate_pipeline
from tests.support.disk import largest_file
from tests.support.runs import (
    At,
    bits,
    Crash,
    crash,
    everything,
    forgetful,
    halve,
    job,
    own,
    points,
    rewritten,
    squares,
    teacher,
    TRAINING,
)

LAST = "checkpoints/01-00000014"
"""The last checkpoint of a finished `halve`."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "r"
    halve(out)
    return out


def halted(out, stage, update, **options):
    """A run that is gone after this update, before anything of it is saved."""
    with pytest.raises(Crash):
        halve(out, job=job(callback=At(stage, update, crash)), **options)


def losses(out):
    """Everything in metrics.jsonl but the clock's."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(out).metrics]


class TestMidStage:
    @pytest.mark.parametrize("stage, updates", [("0004-steps", 7), ("0002-steps", 14)])
    @pytest.mark.parametrize("share", [0, 0.4, 0.6, 1])
    def test_gone_after_an_update(self, tmp_path, whole, stage, updates, share):
        """Before the first checkpoint, beside one, and when all but the stage's folder is done."""
        update = round(1 + share * (updates - 1))
        halted(tmp_path / "r", stage, update)
        halve(tmp_path / "r")
        assert bits(tmp_path / "r") == bits(whole)
        assert losses(tmp_path / "r") == losses(whole)

    @pytest.mark.parametrize(
        "options",
        [
            {"micro_batch_size": 4},
            {
                "weight_decay": 0.1,
                "betas": (0.5, 0.6),
                "warmup": 3,
                "learning_rate_schedule": "constant",
            },
            {"ema": 0.0, "max_grad_norm": 0.0, "precision": "bf16"},
        ],
    )
    def test_dropout_buffers_tied_and_idle_weights(self, tmp_path, options):
        halve(tmp_path / "a", pipeline=forgetful(), **options)
        for stage, update in (("0004-steps", 5), ("0002-steps", 4), ("0002-steps", 8)):
            halted(tmp_path / "b", stage, update, pipeline=forgetful(), **options)
        halve(tmp_path / "b", pipeline=forgetful(), **options)
        assert bits(tmp_path / "a") == bits(tmp_path / "b")
        steps, _ = storage.load(tmp_path / "a" / LAST)
        counts = {float(v) for name, v in steps.items() if name.startswith("step.")}
        assert len(counts) == 2  # some weights had no gradient now and then

    def test_the_state_of_the_loss_scaling(self, tmp_path):
        method = own(lambda e, k: 3000 * squares(e, k), updates=12)
        options = {"method": method, "precision": "fp16"}
        halve(tmp_path / "a", **options)
        for update in (2, 5, 11):
            halted(tmp_path / "b", "stage-0", update, **options)
        halve(tmp_path / "b", **options)
        assert bits(tmp_path / "a") == bits(tmp_path / "b")
        scales = []
        for out in ("a", "b"):
            about = json.loads((tmp_path / out / "checkpoints" / "00-00000012.json").read_text())
            scales.append(about["scaler"])
        assert scales[0] == scales[1] and scales[0]["scale"] < 65536
        assert everything(tmp_path / "a" / "checkpoints").keys() == {
            "00-00000012.json",
            "00-00000012.safetensors",
        }

    def test_every_tensor_of_the_state_is_there_again(self, tmp_path):
        """Weights, average and moments after update 9, resumed at 6, against those never stopped."""
        halve(tmp_path / "a", job=job(callback=At("0002-steps", 9, lambda: None)), save_every=9)
        for out, options in (("b", {}), ("c", {"save_every": 9})):
            halted(tmp_path / out, "0002-steps", 10, **options)
        halted(tmp_path / "d", "0002-steps", 8)
        halted(tmp_path / "d", "0002-steps", 10)
        nine = "checkpoints/01-00000009.safetensors"
        found = {out: (tmp_path / out / nine).read_bytes() for out in "bcd"}
        assert found["b"] == found["c"] == found["d"]

    def test_the_time_that_was_spent_is_remembered(self, tmp_path):
        def begun(**where):
            net = torch.nn.Linear(2, 3)
            return checkpoint.State(net, Optimiser(net, TRAINING, fused=False), None, None, **where)

        checkpoint.write(tmp_path, 0, "stage", begun(update=7, seconds=12.5))
        other = begun()
        checkpoint.restore(tmp_path / "00-00000007", other)
        assert (other.update, other.seconds) == (7, 12.5)

    def test_a_resumed_stage_goes_on_counting_its_seconds(self, tmp_path, monkeypatch):
        """From a clock that ticks to one that stands still: what was spent before is all there is."""
        ticking = SimpleNamespace(monotonic=count(0.0, 10.0).__next__)
        monkeypatch.setattr("halfstep.training.loop.time", ticking)
        halted(tmp_path / "r", "0002-steps", 5)
        spent = json.loads((tmp_path / "r/checkpoints/01-00000003.json").read_text())["seconds"]
        standing = SimpleNamespace(monotonic=lambda: 1e6)
        monkeypatch.setattr("halfstep.training.loop.time", standing)
        halve(tmp_path / "r")
        [found] = [
            x
            for x in RunFolder(tmp_path / "r").metrics
            if x["stage"] == "0002-steps" and "updates" in x
        ]
        assert found["seconds"] == spent > 0

    def test_moments_lie_in_memory_as_their_weights_do(self, tmp_path):
        """Those of weights that lie channels last; otherwise sums over them are rounded otherwise."""

        def begun():
            net = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
            return checkpoint.State(net, Optimiser(net, TRAINING, fused=False), None, None)

        one, other = begun(), begun()
        one.student(torch.ones(1, 2, 4, 4)).sum().backward()
        one.optimiser.step()
        checkpoint.write(tmp_path, 0, "stage", one)
        checkpoint.restore(tmp_path / "00-00000000", other)
        for moment in ("exp_avg", "exp_avg_sq"):
            kept, there = (s.optimiser.state[s.student.weight][moment] for s in (one, other))
            assert torch.equal(kept, there) and kept.stride() == there.stride() != (18, 9, 3, 1)

    def test_a_finished_run_is_returned_and_nothing_is_touched(self, tmp_path, whole):
        shutil.copytree(whole, tmp_path / "r")
        before = everything(tmp_path / "r")
        student = halve(tmp_path / "r", job=job(callback=At("", 0, crash)))
        assert everything(tmp_path / "r") == before
        assert len(student.times[0]) == 3 and not student.denoiser.training


def torn(real, *args):
    """A write that came through but for the end of the file."""
    real(*args)
    paths = [args[0].folder / "metrics.jsonl"] if isinstance(args[0], RunFolder) else args
    path = next(path for path in paths if isinstance(path, Path))
    path.write_bytes(path.read_bytes()[:-5])


def one_file(real, folder, **options):
    """Of a folder that is being removed."""
    for path in sorted(Path(folder).glob("*"))[:1]:
        path.unlink()


def crashing(patched, at):
    """Every change to the disk counts; the one of number `at` does not happen, or happens by half."""
    done = []

    def counted(owner, name, half=None):
        real = getattr(owner, name)

        def act(*args, **kwargs):
            for when in ("before", "within") if half else ("before",):
                done.append(f"{when} {name}")
                if len(done) - 1 == at:
                    if when == "within":
                        half(real, *args)
                    raise Crash
            return real(*args, **kwargs)

        patched.setattr(owner, name, act)

    patched.setattr(os, "fsync", lambda descriptor: None)  # slow, and nobody pulls a plug here
    patched.setattr(asked, "_commit", lambda: None)  # asks git
    for name in ("replace", "unlink", "mkdir", "chmod"):
        counted(Path, name)
    counted(os, "fsync")
    counted(storage, "save_file", torn)
    counted(files, "fill", torn)
    counted(shutil, "rmtree", one_file)
    counted(RunFolder, "log", torn)
    return done


SHORT, LONGER = (Progressive(start=8, stop=2, updates=(3, n)) for n in (2, 4))


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("each", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_gone_before_or_within_any_change_to_the_disk(tmp_path, each, extended):
    """The same bits and metrics, and nothing left over; also where a finished stage is replaced."""

    def run(name, at, method):
        options = {"method": method, "save_every": 1, "log_every": 2, "width": 2, "batch_size": 2}
        with pytest.MonkeyPatch.context() as patched:
            done = crashing(patched, at)
            halve(tmp_path / name, job=job(extend=extended), **options)
        return done

    def begun(name):
        if extended:
            shutil.copytree(tmp_path / "short", tmp_path / name)
        return tmp_path / name

    method = LONGER if extended else SHORT
    run("short", -1, SHORT)
    whole = begun("whole")
    moments = run("whole", -1, method)
    assert len(moments) > 60
    for at in range(0, len(moments), each):
        out = begun(f"{at}")
        with pytest.raises(Crash):
            run(f"{at}", at, method)
        run(f"{at}", -1, method)
        assert bits(out) == bits(whole), moments[at]
        assert losses(out) == losses(whole), moments[at]
        assert everything(out).keys() == everything(whole).keys(), moments[at]
        shutil.rmtree(out)


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
        assert bits(interrupted) == bits(whole) and losses(interrupted) == losses(whole)

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
        said = str(caught.value)
        assert f"0004-steps/{name}' " in said and "\n" not in said
        assert f"or delete '{out}/stages/0004-steps', and the same command trains" in said
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
        assert bits(interrupted) == bits(whole) and losses(interrupted) == losses(whole)
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
        new = [line for line in losses(interrupted) if "update" in line]
        assert new == [
            x for x in losses(whole) if x["stage"] == "0002-steps" and x.get("update", 0) > 6
        ]
        names = [line["stage"] for line in losses(interrupted) if "updates" in line]
        assert names == ["0004-steps", "0002-steps"]


class TestFullDisk:
    def test_while_a_checkpoint_is_written(self, tmp_path, whole):
        out, room = tmp_path / "r", []
        before = {}

        def fill():
            before.update(everything(out / "checkpoints"))
            room.append(largest_file(4096))
            room[0].__enter__()

        look = At("0002-steps", 6, fill)
        try:
            with pytest.raises(CheckpointError) as caught:
                halve(out, job=job(callback=look))
        finally:
            room[0].__exit__(None, None, None)
        said = str(caught.value)
        assert said.startswith(f"cannot write '{out}/checkpoints/01-00000006.safetensors': ")
        assert "what was saved before is untouched" in said and "\n" not in said
        assert before and everything(out / "checkpoints") == before
        halve(out)
        assert bits(out) == bits(whole) and losses(out) == losses(whole)

    @pytest.mark.parametrize("writing", ["metrics.jsonl", "run.json", "0002-steps"])
    def test_while_anything_else_is_written(self, tmp_path, whole, writing, monkeypatch):
        out = tmp_path / "r"
        full = OSError(28, "No space left on device")

        def unwritable(owner, name, of):
            real = getattr(owner, name)

            def act(path, *args, **kwargs):
                if writing in str(path) and of(args):
                    raise full
                return real(path, *args, **kwargs)

            patched.setattr(owner, name, act)

        with monkeypatch.context() as patched:
            unwritable(os, "open", lambda args: args[0] & os.O_CREAT)
            unwritable(Path, "mkdir", lambda args: True)
            with pytest.raises(CheckpointError, match=f"{writing}.*: No space left") as caught:
                halve(out)
        assert "\n" not in str(caught.value)
        halve(out)
        assert bits(out) == bits(whole) and losses(out) == losses(whole)


class TestTheSameFolder:
    @pytest.mark.parametrize(
        "options, says",
        [
            ({"learning_rate": 1e-3}, "with learning_rate = 0.003, now it is 0.001"),
            ({"seed": 6}, "with seed = 5, now it is 6"),
            ({"ema": 0.0}, "with ema = 0.9, now it is 0.0"),
            ({"betas": (0.9, 0.99)}, r"with betas = \[0.9, 0.999\], now it is \[0.9, 0.99\]"),
            ({"save_every": 4}, "with save_every = 3, now it is 4"),
            ({"precision": "bf16"}, "with precision = fp32, now it is bf16"),
            ({"method": Progressive(start=4, stop=2, updates=(7,))}, "with start = 8, now it is 4"),
            ({"data": points(41)}, "with data = [0-9a-f]{16}, now it is [0-9a-f]{16}"),
            ({"pipeline": teacher(seed=1)}, "with teacher = [0-9a-f]{16}, now it is"),
            ({"pipeline": teacher(width=9)}, r"with pipeline\.net\.config\.width = 8, now it is 9"),
        ],
    )
    def test_other_options_are_refused_by_name(self, whole, options, says):
        before = everything(whole)
        with pytest.raises(ConfigError, match=f"was made {says}.*choose another --out") as caught:
            halve(whole, **options)
        assert "\n" not in str(caught.value) and "--extend" not in str(caught.value)
        assert everything(whole) == before

    def test_another_command_is_refused(self, whole):
        with pytest.raises(
            ConfigError, match="a run of 'distill progressive', not of 'distill own'"
        ):
            halve(whole, method=own(squares))

    def test_a_foreign_folder_is_refused_and_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(
            ConfigError, match=r"not empty and holds no run \(it has 'thesis.tex'\)"
        ):
            halve(tmp_path)
        assert everything(tmp_path) == {"thesis.tex": b"mine"}
        with pytest.raises(ConfigError, match=r"cannot be a run's folder \(Not a directory\)"):
            halve(tmp_path / "thesis.tex")
        with pytest.raises(ConfigError, match=r"cannot be a run's folder \(Not a directory\)"):
            halve(tmp_path / "thesis.tex" / "r")

    def test_a_run_that_was_gone_before_it_began_is_none(self, tmp_path, whole):
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / ".lock").touch()
        files.temporary_path(tmp_path / "r" / "run.json").write_text("{")
        halve(tmp_path / "r")
        assert bits(tmp_path / "r") == bits(whole)

    def test_after_a_refusal_the_folder_is_free(self, whole):
        """The lock is given back, though the exception and its frames live on."""
        with pytest.raises(ConfigError) as caught:
            halve(whole, seed=9)
        assert caught.value.__traceback__ is not None
        halve(whole)

    def test_what_changed_around_it_is_named_and_remembered(self, tmp_path, monkeypatch):
        out, watches = tmp_path / "r", []
        halted(out, "0004-steps", 4)

        def resumed(stage, update):
            watches.append(At(stage, update, crash))
            with pytest.raises(Crash):
                halve(out, job=job(callback=watches[-1]))
            return watches[-1].notes

        real = asked.environment

        def here(*args):
            return {**real(*args), **changes}

        monkeypatch.setattr("halfstep.training.run_folder.environment", here)
        changes = {}
        assert resumed("0004-steps", 6) == []
        changes = {"threads": 7, "torch": "9.9"}
        after = "from here on not the same to the bit"
        told = [f"torch was {torch.__version__}, now 9.9", "threads was 1, now 7"]
        assert resumed("0004-steps", 7) == [f"{note}: {after}" for note in told]
        assert resumed("0002-steps", 2) == []
        changes = {"threads": 7, "torch": "9.9", "commit": "abc", "processes": 2}
        more = "processes was 1, now 2"
        assert resumed("0002-steps", 4) == [f"{more}: {after}"]
        about = json.loads((out / "run.json").read_text())
        assert about["changes"] == [*told, more]
        assert about["environment"]["threads"] == 7

    def test_threads_are_those_of_torch(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert asked.environment("cpu")["threads"] == 2
        finally:
            torch.set_num_threads(before)
        found = asked.environment("cpu", 3)
        assert found["torch"] == torch.__version__ and found["processes"] == 3


class TestExtend:
    def test_by_halvings(self, tmp_path, whole):
        out = tmp_path / "r"
        shutil.copytree(whole, out)
        further = Progressive(start=8, stop=1, updates=(7,))
        with pytest.raises(
            ConfigError, match="with stop = 2, now it is 1: add --extend, or choose"
        ):
            halve(out, method=further)
        halve(out, method=further, job=job(extend=True))
        halve(tmp_path / "fresh", method=further)
        assert bits(out) == bits(tmp_path / "fresh") and len(bits(out)) == 3
        assert losses(out) == losses(tmp_path / "fresh")
        assert everything(out).keys() == everything(tmp_path / "fresh").keys()
        halve(out, method=further)  # from now on that is the command
        assert json.loads((out / "run.json").read_text())["changes"] == ["stop was 2, now 1"]

    def test_by_halvings_with_updates_each(self, tmp_path):
        halve(tmp_path / "a", method=Progressive(start=8, stop=2, updates=(3, 4)))
        longer = Progressive(start=8, stop=1, updates=(3, 4, 2))
        halve(tmp_path / "a", method=longer, job=job(extend=True))
        halve(tmp_path / "b", method=longer)
        assert bits(tmp_path / "a") == bits(tmp_path / "b")

    def test_by_updates_of_the_last_stage(self, tmp_path):
        short, longer = (Progressive(start=8, stop=2, updates=(4, n)) for n in (5, 9))
        options = {
            "learning_rate_schedule": "constant"
        }  # with a falling rate the first 5 would differ
        halve(tmp_path / "a", method=short, **options)
        with pytest.raises(
            ConfigError, match=r"with updates = \[4, 5\], now it is \[4, 9\]: add --e"
        ):
            halve(tmp_path / "a", method=longer, **options)
        begun = []

        class Looking(At):
            def begin(self, stage, update):
                begun.append((stage.name, update))

        callback = Looking("", 0, crash)
        halve(tmp_path / "a", method=longer, job=job(extend=True, callback=callback), **options)
        assert begun == [("0002-steps", 5)]
        halve(tmp_path / "b", method=longer, **options)
        assert bits(tmp_path / "a") == bits(tmp_path / "b")
        done = [line["updates"] for line in RunFolder(tmp_path / "a").metrics if "updates" in line]
        assert done == [4, 9]

    def test_only_the_last_stage_can_have_more(self, tmp_path, whole):
        shutil.copytree(whole, tmp_path / "r")
        before = bits(tmp_path / "r")
        with pytest.raises(ConfigError, match="0004-steps was finished with 7 updates and only"):
            halve(
                tmp_path / "r",
                method=Progressive(start=8, stop=2, updates=(8,)),
                job=job(extend=True),
            )
        assert bits(tmp_path / "r") == before

    @pytest.mark.parametrize(
        "method, says",
        [
            (Progressive(start=8, stop=2, updates=(6,)), r"updates = \[7\], now it is \[6\]"),
            (Progressive(start=8, stop=4, updates=(7,)), "stop = 2, now it is 4"),
        ],
    )
    def test_nothing_is_taken_back(self, whole, method, says):
        before = everything(whole)
        with pytest.raises(ConfigError, match=f"{says}: choose another --out"):
            halve(whole, method=method, job=job(extend=True))
        assert everything(whole) == before

    def test_and_nothing_else(self, whole):
        with pytest.raises(ConfigError, match=r"with learning_rate = 0.003, now it is 0.1: choose"):
            halve(whole, learning_rate=0.1, job=job(extend=True))


UPDATES = 150
"""Of each of the command's three stages."""


def command(out, teacher):
    """A run of three halvings, long enough to be caught in the middle of."""
    options = {
        "batch_size": "3",
        "save-every": "7",
        "log-every": "11",
        "ema": ".9",
        "device": "cpu",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--out", str(out), "--start", "8", "--updates", *[str(UPDATES)] * 3]
    words += ["--tolerance", "0"]
    return ["distill", "progressive", "--teacher", str(teacher), "--data", "two-moons", *words]


@contextmanager
def started(arguments):
    """The command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "halfstep", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process, happened, seconds=120):
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


def newest(out):
    return max((path.name for path in (out / "checkpoints").glob("*.json")), default="")


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A teacher of the two moons, barely trained."""
    out = tmp_path_factory.mktemp("moons") / "teacher"
    net = ["--net", "mlp", "--net-config", "width", "8", "depth", "1", "--device", "cpu"]
    words = ["--data", "two-moons", "--out", str(out), *net, "--updates", "2", "--batch-size", "4"]
    assert main(["train", "denoiser", *words]) == 0
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory, moons):
    """The command, never disturbed."""
    out = tmp_path_factory.mktemp("alone") / "r"
    assert main(command(out, moons)) == 0
    return out


class TestProcesses:
    @pytest.mark.slow
    def test_killed_at_random_moments(self, tmp_path, moons, alone):
        """kill -9; the same command again ends at the bits of a run left alone."""
        seed = random.SystemRandom().randrange(2**32)
        chance, out, reached = random.Random(seed), tmp_path / "r", []
        print(f"random seed {seed}")
        every = [f"{k:02d}-{n:08d}.json" for k in range(3) for n in range(7, UPDATES, 7)]
        part = len(every) // 4
        for moment in [chance.randrange(k * part, (k + 1) * part) for k in range(3)]:
            with started(command(out, moons)) as process:
                wait_for(process, lambda moment=moment: newest(out) >= every[moment])
                time.sleep(chance.random() / 20)
                process.kill()
                assert process.wait() == -signal.SIGKILL
            reached.append(newest(out))
        print(f"killed at {reached}")
        assert reached == sorted(set(reached))
        with started(command(out, moons)) as process:
            _, err = process.communicate()
            assert process.returncode == 0, err
        assert bits(out) == bits(alone) and len(bits(out)) == 3
        assert losses(out) == losses(alone)

    @pytest.mark.parametrize(
        "asked", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
    )
    def test_asked_to_stop_killed_and_alone_on_its_folder(
        self, tmp_path, moons, alone, capfd, asked
    ):
        """Asked to stop it says so; killed it cannot; the same command ends at the same bits."""
        out, seen = tmp_path / "r", []
        for number in (asked, signal.SIGKILL):
            with started(command(out, moons)) as process:
                before = newest(out)
                wait_for(process, lambda before=before: newest(out) != before)
                capfd.readouterr()
                assert main(command(out, moons)) == 2  # a second process
                said = capfd.readouterr().err.strip().splitlines()
                assert said == [
                    f"halfstep: another process is working on '{out}': wait for it, or choose another "
                    "--out"
                ]
                process.send_signal(number)
                _, err = process.communicate(timeout=60)
                if number == signal.SIGKILL:
                    assert process.returncode == -number
                    continue
                assert process.returncode == 130
                assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
                assert err.startswith("halfstep: stopped at update ")
                assert err.endswith("run the same command again to go on\n")
            seen.append(newest(out))
        assert seen and newest(out) > seen[0]
        # The lock died with the process: this one goes on where it was, to the same bits.
        assert main(command(out, moons)) == 0
        assert bits(out) == bits(alone)

    def test_two_runs_of_one_process(self, tmp_path):
        run = RunFolder.begin(tmp_path / "r", "distill own", {})
        with pytest.raises(ConfigError, match="another process is working on"):
            RunFolder.begin(tmp_path / "r", "distill own", {})
        run.close()
        RunFolder.begin(tmp_path / "r", "distill own", {}).close()
