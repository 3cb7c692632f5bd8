"""Losses that are not finite, and memory that runs out."""

import gc
import math
import re
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep.errors import ConfigError, NonFinite
from halfstep.methods import Progressive
from halfstep.methods.stages import Objective, Stage
from halfstep.training import distill
from halfstep.training.ema import Average
from halfstep.training.oom import naming_memory
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from halfstep.training.update import step
from tests.support.runs import (
    At,
    everything,
    Explodes,
    forgetful,
    halve,
    job,
    own,
    points,
    squares,
    TRAINING,
)


def bad_loss(call):
    return lambda error, k: squares(error, k) * (math.nan if k == call else 1)


def bad_gradient(call):
    return lambda error, k: squares(Explodes.apply(error) if k == call else error, k)


class TestNonFinite:
    @pytest.mark.parametrize("bad", [bad_loss, bad_gradient])
    @pytest.mark.parametrize("at", [7, 8, 11])
    def test_it_stops_and_says_where(self, tmp_path, bad, at):
        out, before = tmp_path / "r", {}
        look = At("stage-0", at, lambda: before.update(everything(out)))
        with pytest.raises(NonFinite) as caught:
            halve(out, method=own(bad(at), updates=20), save_every=5, job=job(callback=look))
        message = str(caught.value)
        assert f"not finite at update {at} of stage-0" in message and "\n" not in message
        assert "lower --learning-rate (now 0.003), with which the same command goes on" in message
        assert message.endswith("or lower --max-grad-norm (now 1) in another --out")
        checkpoints = {k: v for k, v in everything(out).items() if k.startswith("checkpoints")}
        assert checkpoints == {k: v for k, v in before.items() if k.startswith("checkpoints")}
        assert len(checkpoints) == 2 * (at // 5) and not (out / "stages").exists()
        lines = RunFolder(out).metrics
        assert lines and all(math.isfinite(x["loss"]) and math.isfinite(x["norm"]) for x in lines)
        assert max(line["update"] for line in lines) <= at
        # What was saved is from before it: the same command goes on from there.
        halve(out, method=own(squares, updates=20), save_every=5)
        assert (out / "stages" / "stage-0").exists()

    def test_in_the_very_last_update(self, tmp_path):
        with pytest.raises(
            NonFinite, match=r"update 7 of .*lower --learning-rate .* add --max-grad-norm 1"
        ):
            halve(tmp_path / "r", method=own(bad_gradient(7)), save_every=100, max_grad_norm=0.0)
        assert not (tmp_path / "r" / "stages").exists()
        assert not (tmp_path / "r" / "checkpoints").exists()

    @pytest.mark.parametrize("ema", [0.0, 0.9])
    @pytest.mark.parametrize("save_every", [3, 100])
    def test_weights_after_the_last_update(self, tmp_path, monkeypatch, ema, save_every):
        """Loss and gradient of an update say nothing about the weights that it leaves."""

        def spoilt(student, state, settings, rate):
            norm = step(student, state, settings, rate)
            if state.update == 7:
                with torch.no_grad():
                    next(iter(student.parameters())).view(-1)[0] = torch.inf
            return norm

        monkeypatch.setattr("halfstep.training.update.step", spoilt)
        with pytest.raises(NonFinite, match="weights"):
            halve(tmp_path / "r", method=own(squares, updates=8), save_every=save_every, ema=ema)
        assert not (tmp_path / "r" / "stages").exists()
        checkpoints = sorted(
            path.name for path in (tmp_path / "r").rglob("checkpoints/*.safetensors")
        )
        assert len(checkpoints) == (2 if save_every == 3 else 0)  # of updates 3 and 6

    def test_averaged_weights_after_the_last_update(self, tmp_path, monkeypatch):
        def spoilt(average, module, update):
            average.values[0].fill_(torch.nan)

        monkeypatch.setattr(Average, "follow", spoilt)
        with pytest.raises(NonFinite, match="weights"):
            halve(tmp_path / "r", method=own(squares, updates=2), ema=0.9)
        assert not (tmp_path / "r" / "stages").exists()

    def test_the_progress_bar_is_taken_down(self, tmp_path):
        class Counting(ProgressCallback):
            begun = ended = 0

            def begin(self, stage, update):
                self.begun += 1

            def end(self, stage):
                self.ended += 1

        callback = Counting()
        with pytest.raises(NonFinite):
            halve(tmp_path / "r", method=own(bad_loss(0)), job=job(callback=callback))
        assert (callback.begun, callback.ended) == (1, 1)


def hungry(k, sizes=None):
    """An objective that has memory for k samples."""

    def loss(error, call):
        big = error * 2
        if sizes is not None:
            assert all(ref() is None for ref in sizes), "a failed attempt's tensors are still there"
            sizes.append(weakref.ref(big))
        if len(error) > k:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        return squares(error, call)

    return loss


class TestMemory:
    @pytest.mark.parametrize("k, fits", [(12, 6), (6, 6), (5, 3), (2, 1), (1, 1)])
    def test_the_largest_half_that_fits_is_named_and_works(self, tmp_path, k, fits):
        with pytest.raises(ConfigError) as caught:
            halve(tmp_path / "r", method=own(hungry(k, [])), batch_size=13)
        message = str(caught.value)
        assert message == (
            "out of memory with a micro-batch of 13 (CUDA out of memory. Tried to allocate 2 GiB.): "
            f"add --micro-batch-size {fits}"
        )
        advice = int(re.search(r"--micro-batch-size (\d+)", message)[1])
        callback = At("", 0, None)
        halve(
            tmp_path / "r",
            method=own(hungry(k)),
            batch_size=13,
            micro_batch_size=advice,
            job=job(callback=callback),
        )
        assert callback.notes == [
            f"micro_batch_size was 0, now {fits}: from here on not the same to the bit"
        ]

    def test_an_attempt_leaves_room_for_all_that_an_update_keeps(self, tmp_path):
        """Gradients are there from the second micro-batch on, and two moments of each weight."""
        rooms = []

        class Hungry(Objective):
            def __call__(self, student, batch, draw):
                live = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
                # Tied and idle weights have gradients too; whatever lies elsewhere is counted once.
                rooms.append(len({x.data_ptr() for x in live if x.shape == (37, 4)}))
                gradients = [p.grad is not None for p in student.parameters()]
                if len(batch.x0) > 2:
                    raise torch.OutOfMemoryError("no room")
                assert all(gradients)
                return student(batch.x0, draw.uniform(), None).x0.square().mean(1)

        method = own(squares)
        object.__setattr__(method, "stages", lambda teacher: iter([stage]))
        pipeline = forgetful(37)
        stage = Stage("only", pipeline.denoiser.trainable_copy(), Hungry(), 3)
        with pytest.raises(ConfigError, match="add --micro-batch-size 2"):
            halve(tmp_path / "r", method=method, batch_size=9, pipeline=pipeline, ema=0.0)
        # The pipeline's weight and the student's; in the attempts a gradient and two moments besides.
        assert rooms == [2, 5, 5]

    def test_not_even_one(self, tmp_path):
        with pytest.raises(ConfigError, match="not even one sample fits: use a smaller network"):
            halve(tmp_path / "r", method=own(hungry(0)))

    def test_within_the_micro_batch_that_was_asked(self, tmp_path):
        with pytest.raises(ConfigError, match=r"a micro-batch of 4 .*: add --micro-batch-size 2"):
            halve(tmp_path / "r", method=own(hungry(3)), batch_size=12, micro_batch_size=4)
        with pytest.raises(ConfigError, match=r"a micro-batch of 6 .*: add --micro-batch-size 3"):
            halve(tmp_path / "q", method=own(hungry(3)), batch_size=6, micro_batch_size=50)

    def test_in_the_middle_of_a_run_what_was_saved_stays(self, tmp_path):
        out, before = tmp_path / "r", {}

        def loss(error, call):
            if call == 5:
                before.update(everything(out / "checkpoints"))
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            return squares(error, call)

        with pytest.raises(ConfigError, match="add --micro-batch-size 3"):
            halve(out, method=own(loss))
        assert before and everything(out / "checkpoints") == before

    def test_other_errors_keep_their_traceback(self):
        with (
            pytest.raises(RuntimeError, match="shapes"),
            naming_memory(4, lambda k: pytest.fail("decisions")),
        ):
            raise RuntimeError("shapes do not fit")

    @pytest.mark.parametrize("ema", [0.0, 0.9])
    def test_teacher_student_average_and_no_fourth_copy(self, tmp_path, request, ema):
        """Live tensors of a shape that nothing else has, in every update of three halvings."""
        networks, earlier = [], []

        class Counting(ProgressCallback):
            def begin(self, stage, update):
                self.name = stage.name
                earlier.append(weakref.ref(stage.student))

            def step(self, update, rate):
                live = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
                places = {x.data_ptr() for x in live if x.shape == (37, 4)}
                networks.append((self.name, len(places)))

        def alive(student):
            gc.collect()
            assert [ref() is not None for ref in earlier] == [False] * max(len(earlier) - 2, 0) + [
                True
            ] * min(len(earlier), 2)
            return True

        gc.collect()
        gc.freeze()  # what other tests left behind is not asked
        request.addfinalizer(gc.unfreeze)
        method = Progressive(start=8, updates=(2, 2, 2))
        distill(
            forgetful(37),  # which nobody else holds
            points(),
            tmp_path / "r",
            method=method,
            training=replace(TRAINING, ema=ema),
            job=job(callback=Counting(), gate=alive),
        )
        # Teacher, student, AdamW's two moments, and the average if there is one; gradients are gone.
        expected = 4 + bool(ema)
        assert [count for _, count in networks[2:]] == [expected] * 4
        assert len(earlier) == 3
