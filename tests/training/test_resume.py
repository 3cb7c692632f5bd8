"""Nothing that was saved is lost, whatever happens, and a resumed run ends at the same bits."""

import json
import os
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import halfstep.training.run_identity as asked
from halfstep import files, storage
from halfstep.errors import CheckpointError, ConfigError
from halfstep.methods import Progressive
from halfstep.models.lora import Lora
from halfstep.training import checkpoint
from halfstep.training.optimiser import Optimiser
from halfstep.training.run_folder import RunFolder
from tests.support.disk import crashing, largest_file
from tests.support.runs import (
    At,
    bits,
    Crash,
    crash,
    everything,
    forgetful,
    halted,
    halve,
    job,
    logged_lines,
    own,
    points,
    squares,
    teacher,
    TRAINING,
)

LAST = "checkpoints/01-00000014"
"""The last checkpoint of a finished `halve`."""


class TestMidStage:
    @pytest.mark.parametrize("stage, updates", [("0004-steps", 7), ("0002-steps", 14)])
    @pytest.mark.parametrize("share", [0, 0.4, 0.6, 1])
    def test_gone_after_an_update(self, tmp_path, whole, stage, updates, share):
        """Before the first checkpoint, beside one, and when all but the stage's folder is done."""
        update = round(1 + share * (updates - 1))
        halted(tmp_path / "r", stage, update)
        halve(tmp_path / "r")
        assert bits(tmp_path / "r") == bits(whole)
        assert logged_lines(tmp_path / "r") == logged_lines(whole)

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

    @pytest.mark.parametrize("options", [{}, {"precision": "bf16", "ema": 0.0}])
    def test_an_adapter(self, tmp_path, options):
        """Of dropout, batch norm, tied and idle weights; RUN/base is written before the first update."""
        options = {**options, "lora": Lora(rank=2), "pipeline": forgetful()}
        halve(tmp_path / "a", **options)
        for stage, update in (("0004-steps", 1), ("0004-steps", 5), ("0002-steps", 8)):
            halted(tmp_path / "b", stage, update, **options)
            assert (tmp_path / "b" / "base" / "pipeline.json").exists()
        halve(tmp_path / "b", **options)
        assert bits(tmp_path / "a") == bits(tmp_path / "b")
        assert logged_lines(tmp_path / "a") == logged_lines(tmp_path / "b")
        saved = storage.load(tmp_path / "a" / LAST)[0]
        assert all(".lora_" in name for name in saved)

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
        files_of = {out: (tmp_path / out / nine).read_bytes() for out in "bcd"}
        assert files_of["b"] == files_of["c"] == files_of["d"]

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
        [seconds] = [
            x
            for x in RunFolder(tmp_path / "r").metrics
            if x["stage"] == "0002-steps" and "updates" in x
        ]
        assert seconds["seconds"] == spent > 0

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
            before, there = (s.optimiser.state[s.student.weight][moment] for s in (one, other))
            assert torch.equal(before, there) and before.stride() == there.stride() != (18, 9, 3, 1)

    def test_a_finished_run_is_returned_and_nothing_is_touched(self, tmp_path, whole):
        shutil.copytree(whole, tmp_path / "r")
        before = everything(tmp_path / "r")
        student = halve(tmp_path / "r", job=job(callback=At("", 0, crash)))
        assert everything(tmp_path / "r") == before
        assert len(student.times[0]) == 3 and not student.denoiser.training


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
        assert logged_lines(out) == logged_lines(whole), moments[at]
        assert everything(out).keys() == everything(whole).keys(), moments[at]
        shutil.rmtree(out)


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
        message = str(caught.value)
        assert message.startswith(f"cannot write '{out}/checkpoints/01-00000006.safetensors': ")
        assert "what was saved before is untouched" in message and "\n" not in message
        assert before and everything(out / "checkpoints") == before
        halve(out)
        assert bits(out) == bits(whole) and logged_lines(out) == logged_lines(whole)

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
        assert bits(out) == bits(whole) and logged_lines(out) == logged_lines(whole)


class TestTheSameFolder:
    @pytest.mark.parametrize(
        "options, says",
        [
            ({"warmup": 2}, "with warmup = 0, now it is 2"),
            ({"seed": 6}, "with seed = 5, now it is 6"),
            ({"ema": 0.0}, "with ema = 0.9, now it is 0.0"),
            ({"betas": (0.9, 0.99)}, r"with betas = \[0.9, 0.999\], now it is \[0.9, 0.99\]"),
            ({"batch_size": 8}, "with batch_size = 6, now it is 8"),
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
        expected_notes = [f"torch was {torch.__version__}, now 9.9", "threads was 1, now 7"]
        assert resumed("0004-steps", 7) == [f"{note}: {after}" for note in expected_notes]
        assert resumed("0002-steps", 2) == []
        changes = {"threads": 7, "torch": "9.9", "commit": "abc", "processes": 2}
        more = "processes was 1, now 2"
        assert resumed("0002-steps", 4) == [f"{more}: {after}"]
        about = json.loads((out / "run.json").read_text())
        assert about["changes"] == [*expected_notes, more]
        assert about["environment"]["threads"] == 7

    def test_threads_are_those_of_torch(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert asked.environment("cpu")["threads"] == 2
        finally:
            torch.set_num_threads(before)
        environment = asked.environment("cpu", 3)
        assert environment["torch"] == torch.__version__ and environment["processes"] == 3


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
        assert logged_lines(out) == logged_lines(tmp_path / "fresh")
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
        """A dry run says so too, and the command that made the run still goes on with it."""
        out = shutil.copytree(whole, tmp_path / "r")
        before, longer = everything(out), Progressive(start=8, stop=2, updates=(8,))
        for options in ({}, {"dry_run": lambda *_: None}):
            with pytest.raises(
                ConfigError, match="0004-steps was finished with 7 updates and only"
            ):
                halve(out, method=longer, job=job(extend=True, **options))
            assert everything(out) == before
        halve(out)

    def test_a_stage_that_the_next_has_begun_from_has_no_more(self, tmp_path):
        """Its last checkpoint is there, but the next stage has learnt from the student of fewer updates."""
        with pytest.raises(Crash):
            halve(tmp_path, job=job(callback=At("0002-steps", 4, crash)))
        before, longer = everything(tmp_path), Progressive(start=8, stop=2, updates=(8, 14))
        with pytest.raises(ConfigError, match="0004-steps was finished with 7 updates and only"):
            halve(tmp_path, method=longer, job=job(extend=True))
        assert everything(tmp_path) == before

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
        with pytest.raises(ConfigError, match=r"with weight_decay = 0.0, now it is 0.1: choose"):
            halve(whole, weight_decay=0.1, job=job(extend=True))
