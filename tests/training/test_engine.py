"""The loop: its optimiser, rates, averages, refusals and its use of memory."""

import gc
import json
import math
import re
import signal
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep.data import rows
from halfstep.errors import CheckpointError, ConfigError, NonFinite
from halfstep.methods import DenoiserOnly, Denoising, Progressive
from halfstep.methods.base import Objective, Stage
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw, key
from halfstep.training import distill, Stopped, train, TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.ema import Average
from halfstep.training.oom import naming_memory
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from halfstep.training.update import micro_batches, step
from tests.support.runs import (
    At,
    bits,
    Doubled,
    everything,
    forgetful,
    halve,
    job,
    own,
    points,
    squares,
    teacher,
    TRAINING,
)

ONE = Progressive(start=8, stop=4, updates=(5,))
"""A single halving."""


def doubled():
    return Doubled(points().values)


def double_teacher():
    pipeline = teacher()
    pipeline.denoiser.double()
    return pipeline


def losses(out):
    return [line["loss"] for line in RunFolder(out).metrics if "loss" in line]


def weights_of(pipeline):
    return {name: p.detach().clone() for name, p in pipeline.denoiser.named_parameters()}


def furthest(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)


class TestAverage:
    def test_closed_form(self):
        net, decay, n = nn.Linear(3, 2).double(), 0.8, 9
        average = Average(net, decay)
        seen = []
        for update in range(n):
            with torch.no_grad():
                for p in net.parameters():
                    p.normal_(generator=torch.Generator().manual_seed(update))
            seen.append([p.detach().clone() for p in net.parameters()])
            average.follow(net, update)
        for k, value in enumerate(average.values):
            expected = decay ** (n - 1) * seen[0][k]
            for update in range(1, n):
                expected += (1 - decay) * decay ** (n - 1 - update) * seen[update][k]
            assert (value - expected).abs().max() < 1e-15
        average.copy_to(net)
        assert all(torch.equal(p, v) for p, v in zip(net.parameters(), average.values, strict=True))

    def test_the_first_update_copies(self):
        net = nn.Linear(3, 2)
        average = Average(net, 0.999)
        with torch.no_grad():
            net.weight.fill_(7.0)
        average.follow(net, 0)
        assert torch.equal(average.values[0], net.weight)
        with torch.no_grad():
            net.weight.fill_(8.0)
        assert torch.equal(average.values[0], torch.full((2, 3), 7.0))  # a copy of its own

    def test_a_stage_ends_with_the_average(self, tmp_path):
        from halfstep import storage

        halve(tmp_path / "r", method=ONE, save_every=100)
        kept, _ = storage.load(tmp_path / "r" / "checkpoints" / "00-00000005")
        stage, _ = storage.load(tmp_path / "r" / "stages" / "0004-steps" / "pipeline")
        for name, value in stage.items():
            assert torch.equal(value, kept[f"average.{name}"])
            assert not torch.equal(value, kept[f"student.{name}"])

    def test_off_it_is_nowhere(self, tmp_path):
        from halfstep import storage

        halve(tmp_path / "r", method=ONE, ema=0.0, save_every=100)
        kept, _ = storage.load(tmp_path / "r" / "checkpoints" / "00-00000005")
        stage, _ = storage.load(tmp_path / "r" / "stages" / "0004-steps" / "pipeline")
        assert not [name for name in kept if name.startswith("average.")]
        assert all(torch.equal(value, kept[f"student.{name}"]) for name, value in stage.items())


class TestRate:
    @pytest.mark.parametrize(
        "options, expected",
        [
            ({}, [1.0, 0.75, 0.5, 0.25]),
            ({"learning_rate_schedule": "constant"}, [1.0] * 4),
            ({"learning_rate_schedule": "constant", "warmup": 2}, [0.0, 0.5, 1.0, 1.0]),
            ({"warmup": 2}, [0.0, 0.375, 0.5, 0.25]),
            ({"warmup": 8}, [0.0, 0.75 / 8, 0.5 / 4, 0.25 * 3 / 8]),
        ],
    )
    def test_values(self, options, expected):
        training = TrainingConfig(learning_rate=1.0, **options)
        assert [training.rate_at(k, 4) for k in range(4)] == pytest.approx(expected, abs=1e-15)

    def test_it_starts_anew_in_every_stage_and_is_what_the_metrics_say(self, tmp_path):
        halve(
            tmp_path / "r",
            method=Progressive(start=4, updates=(3, 2)),
            log_every=1,
            learning_rate=0.6,
        )
        found = [line["rate"] for line in RunFolder(tmp_path / "r").metrics if "rate" in line]
        assert found == pytest.approx([0.6, 0.4, 0.2, 0.6, 0.3])

    def test_at_rate_0_nothing_moves(self, tmp_path):
        pipeline = teacher()
        before = weights_of(pipeline)
        student = halve(tmp_path / "r", pipeline=pipeline, learning_rate=0.0)
        assert furthest(weights_of(student), before) == 0


class TestOptimiser:
    @pytest.mark.parametrize("clip", [0.0, 0.05, 1e9])
    @pytest.mark.parametrize("decay", [0.0, 0.3])
    def test_a_stage_is_a_plain_loop_of_torch(self, tmp_path, clip, decay):
        """The engine against twenty lines that do the same with torch's single-tensor AdamW."""
        method, updates = Progressive(start=8, stop=4, updates=(6,)), 6
        options = {"max_grad_norm": clip, "weight_decay": decay, "betas": (0.8, 0.95), "ema": 0.0}
        options |= {"warmup": 2, "log_every": 1}
        pipeline, data = double_teacher(), doubled()
        student = halve(tmp_path / "r", method=method, pipeline=pipeline, data=data, **options)

        stage = next(iter(method.stages(DenoiserOnly(double_teacher().denoiser))))
        net = stage.student
        optimiser = torch.optim.AdamW(
            net.parameters(), betas=(0.8, 0.95), weight_decay=decay, foreach=False, fused=False
        )
        seed, batch, expected = TRAINING.seed, TRAINING.batch_size, []
        for k in range(updates):
            chosen = data.batch(rows(seed, 0, k, batch, len(data)))
            draw = Draw.all(torch.Generator().manual_seed(key(seed, 0, k)), batch)
            loss = stage.objective(net, chosen, draw).mean()
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf)
            optimiser.param_groups[0]["lr"] = (
                TRAINING.learning_rate * (1 - k / updates) * min(k / 2, 1)
            )
            optimiser.step()
            expected.append((float(loss.detach()), float(norm)))
        lines = [line for line in RunFolder(tmp_path / "r").metrics if "loss" in line]
        found = [value for line in lines for value in (line["loss"], line["norm"])]
        assert found == pytest.approx([v for pair in expected for v in pair], rel=1e-12)
        assert furthest(weights_of(student), dict(net.named_parameters())) < 1e-14

    def test_clipping_bounds_the_gradient_and_reports_it_unclipped(self):
        net = nn.Linear(2, 1, bias=False).double()
        seen = []

        class Spy(torch.optim.SGD):
            def step(self, closure=None):
                seen.append(net.weight.grad.clone())

        net.weight.grad = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        norm = step(
            net,
            State(net, Spy(net.parameters()), None, None),
            TrainingConfig(max_grad_norm=0.5),
            1.0,
        )
        assert float(norm) == 5.0
        assert float(seen[0].norm()) == pytest.approx(0.5, rel=1e-5) and net.weight.grad is None

    def test_a_scaled_gradient_is_clipped_as_it_is(self):
        """The loss scaler's factor is taken out before the norm is measured and bounded."""
        net, scaler = nn.Linear(2, 1, bias=False), torch.amp.GradScaler("cpu", init_scale=1024.0)
        seen = []

        class Spy(torch.optim.SGD):
            def step(self, closure=None):
                seen.append(net.weight.grad.clone())

        scaler.scale(torch.ones(()))
        net.weight.grad = 1024 * torch.tensor([[3.0, 4.0]])
        norm = step(
            net,
            State(net, Spy(net.parameters()), None, scaler),
            TrainingConfig(max_grad_norm=0.5),
            1.0,
        )
        assert float(norm) == 5.0
        assert float(seen[0].norm()) == pytest.approx(0.5, rel=1e-5)

    def test_the_loss_that_is_logged_is_the_mean_of_its_updates(self, tmp_path):
        """Reports fall on the updates 3, 4, 6 and 7: every three a checkpoint, every four a line."""
        each, some = ({"log_every": k, "learning_rate": 1e-9} for k in (1, 4))
        halve(tmp_path / "a", method=ONE, **each)
        halve(tmp_path / "b", method=ONE, **some)
        one = losses(tmp_path / "a")
        assert len(one) == 5
        want = [sum(one[:3]) / 3, one[3], one[4]]
        assert losses(tmp_path / "b") == pytest.approx(want, rel=1e-6)
        norms = [[x["norm"] for x in RunFolder(tmp_path / k).metrics if "norm" in x] for k in "ab"]
        assert norms[1] == pytest.approx([max(norms[0][:3]), *norms[0][3:]], rel=1e-6)

    @pytest.mark.parametrize("micro", [1, 4, 5, 6, 99])
    def test_micro_batches_are_the_whole_batch(self, tmp_path, micro):
        def run(name, size):
            out = tmp_path / name
            options = {"micro_batch_size": size, "log_every": 1}
            student = halve(out, pipeline=double_teacher(), data=doubled(), **options)
            return losses(out), weights_of(student)

        whole, split = run("whole", 0), run("split", micro)
        assert len(whole[0]) == 7 + 14
        assert split[0] == pytest.approx(whole[0], rel=1e-9)
        assert furthest(split[1], whole[1]) < 1e-12

    @pytest.mark.parametrize(
        "share, size, expected",
        [
            (slice(0, 6), 0, [(0, 6)]),
            (slice(0, 6), 4, [(0, 4), (4, 6)]),
            (slice(3, 6), 2, [(3, 5), (5, 6)]),
            (slice(3, 6), 9, [(3, 6)]),
        ],
    )
    def test_slices(self, share, size, expected):
        assert [(s.start, s.stop) for s in micro_batches(share, size)] == expected


class TestCheckpoints:
    def test_they_fall_on_update_numbers_and_two_are_kept(self, tmp_path):
        out, seen = tmp_path / "r", []

        class Looking(ProgressCallback):
            def step(self, update, rate):
                found = sorted(path.name for path in (out / "checkpoints").glob("*"))
                seen.append([name for name in found if name.endswith(".json")])
                assert len(found) == 2 * len(seen[-1])

        halve(out, job=job(callback=Looking()))
        stage = [[], [], [], [3], [3], [3], [3, 6]]
        later = [[], [], [], [3], [3], [3], [3, 6], [3, 6], [3, 6], [6, 9], [6, 9], [6, 9]]
        later += [[9, 12], [9, 12]]
        expected = [[f"00-{k:08d}.json" for k in found] for found in stage]
        # The first stage's last one stays until the second is finished.
        expected += [["00-00000007.json", *(f"01-{k:08d}.json" for k in f)] for f in later]
        assert seen == expected
        left = sorted(path.name for path in (out / "checkpoints").iterdir())
        assert left == ["01-00000014.json", "01-00000014.safetensors"]

    def test_a_stage_says_what_it_cost(self, tmp_path):
        halve(tmp_path / "r")
        lines = [line for line in RunFolder(tmp_path / "r").metrics if "updates" in line]
        assert [(x["stage"], x["updates"], x["forwards"]) for x in lines] == [
            ("0004-steps", 7, 7 * 6 * 5),
            ("0002-steps", 14, 14 * 6 * 5),
        ]
        for line in lines:
            about = json.loads((tmp_path / "r/stages" / line["stage"] / "stage.json").read_text())
            assert {name: about[name] for name in line} == line and line["seconds"] > 0

    def test_a_stage_of_no_updates_is_its_teacher(self, tmp_path):
        pipeline = teacher()
        before = weights_of(pipeline)
        for _ in range(2):
            student = halve(
                tmp_path / "r", pipeline=pipeline, method=Progressive(start=2, updates=(0,))
            )
            assert furthest(weights_of(student), before) == 0


class Explodes(torch.autograd.Function):
    """Itself, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.inf


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
        said = str(caught.value)
        assert f"not finite at update {at} of stage-0" in said and "\n" not in said
        assert "lower --learning-rate (now 0.003) or --max-grad-norm (now 1)" in said
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
        kept = sorted(path.name for path in (tmp_path / "r").rglob("checkpoints/*.safetensors"))
        assert len(kept) == (2 if save_every == 3 else 0)  # of updates 3 and 6

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


def hungry(k, seen=None):
    """An objective that has memory for k samples."""

    def loss(error, call):
        big = error * 2
        if seen is not None:
            assert all(ref() is None for ref in seen), "a failed attempt's tensors are still there"
            seen.append(weakref.ref(big))
        if len(error) > k:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        return squares(error, call)

    return loss


class TestMemory:
    @pytest.mark.parametrize("k, fits", [(12, 6), (6, 6), (5, 3), (2, 1), (1, 1)])
    def test_the_largest_half_that_fits_is_named_and_works(self, tmp_path, k, fits):
        with pytest.raises(ConfigError) as caught:
            halve(tmp_path / "r", method=own(hungry(k, [])), batch_size=13)
        said = str(caught.value)
        assert said == (
            "out of memory with a micro-batch of 13 (CUDA out of memory. Tried to allocate 2 GiB.): "
            f"add --micro-batch-size {fits}"
        )
        advice = int(re.search(r"--micro-batch-size (\d+)", said)[1])
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
        seen, earlier = [], []

        class Counting(ProgressCallback):
            def begin(self, stage, update):
                self.name = stage.name
                earlier.append(weakref.ref(stage.student))

            def step(self, update, rate):
                live = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
                places = {x.data_ptr() for x in live if x.shape == (37, 4)}
                seen.append((self.name, len(places)))

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
        assert [count for _, count in seen[2:]] == [expected] * 4
        assert len(earlier) == 3


class TestPrecision:
    @pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.half)])
    def test_only_the_network_runs_in_it(self, tmp_path, precision, dtype):
        inside, outside = set(), set()

        def loss(error, call):
            outside.add(error.dtype)
            return squares(error, call)

        pipeline = teacher()
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, args, out: inside.add(out.dtype) if type(module) is nn.Linear else None
        )
        try:
            student = halve(
                tmp_path / "r", method=own(loss), pipeline=pipeline, precision=precision
            )
        finally:
            hook.remove()
        assert inside == {dtype} and outside == {torch.float32}
        assert {p.dtype for p in student.denoiser.parameters()} == {torch.float32}
        # Neither the user's pipeline nor what is returned samples in it: a loaded one does not.
        assert pipeline.denoiser.autocast is None and student.denoiser.autocast is None

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_it_halves(self, tmp_path, precision):
        exact = halve(tmp_path / "a")
        rough = halve(tmp_path / "b", precision=precision)
        assert 0 < furthest(weights_of(exact), weights_of(rough)) < 0.02
        assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=0.1)

    def test_fp16_leaves_out_what_overflows_and_goes_on(self, tmp_path):
        """A loss this large overflows at first: the scaler halves its scale until it does not."""
        halve(tmp_path / "r", method=own(lambda e, k: 3000 * squares(e, k), updates=30),
              precision="fp16", log_every=1)  # fmt: skip
        lines = [line for line in RunFolder(tmp_path / "r").metrics if "norm" in line]
        assert lines[0]["norm"] == 0.0 and lines[-1]["norm"] > 0  # 0: every gradient was left out
        text = (tmp_path / "r" / "metrics.jsonl").read_text()
        assert "Infinity" not in text and "NaN" not in text
        about = json.loads((tmp_path / "r" / "checkpoints" / "00-00000030.json").read_text())
        assert about["scaler"]["scale"] < 65536

    def test_fp16_that_never_fits_is_stopped(self, tmp_path):
        method = own(lambda e, k: squares(Explodes.apply(e), k), updates=100)
        with pytest.raises(NonFinite, match="update 19 of stage-0"):
            halve(tmp_path / "r", method=method, precision="fp16", log_every=10, save_every=100)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on import
    def test_compiled(self, tmp_path):
        plain = halve(tmp_path / "a")
        seen = []

        class Looking(ProgressCallback):
            def begin(self, stage, update):
                seen.append(stage.student.net._compiled_call_impl is not None)

        compiled = halve(tmp_path / "b", compile=True, job=job(callback=Looking()))
        assert seen == [True, True]
        assert furthest(weights_of(plain), weights_of(compiled)) < 1e-4
        assert bits(tmp_path / "a").keys() == bits(tmp_path / "b").keys()
        loaded = Pipeline.load(tmp_path / "b" / "stages" / "0002-steps")
        assert (loaded.sample(3) - compiled.sample(3)).abs().max() < 1e-5


def interrupt():
    signal.raise_signal(signal.SIGINT)


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_it_saves_and_says_how_to_go_on(self, tmp_path, number):
        def unheard(number, frame):
            raise AssertionError("the run did not listen")

        out = tmp_path / "r"
        look = At("0002-steps", 4, lambda: signal.raise_signal(number))
        before = signal.signal(number, unheard)
        try:
            with pytest.raises(Stopped, match=r"stopped at update 5 of 0002-steps; run the same"):
                halve(out, job=job(callback=look))
            assert signal.getsignal(number) is unheard
        finally:
            signal.signal(number, before)
        assert (out / "checkpoints" / "01-00000005.json").exists()
        halve(out)
        halve(tmp_path / "whole")
        assert bits(out) == bits(tmp_path / "whole")

    def test_a_second_ctrl_c_stops_at_once(self, tmp_path):
        def twice():
            interrupt()
            interrupt()

        with pytest.raises(KeyboardInterrupt):
            halve(tmp_path / "r", job=job(callback=At("0004-steps", 5, twice)))
        halve(tmp_path / "r")
        halve(tmp_path / "whole")
        assert bits(tmp_path / "r") == bits(tmp_path / "whole")

    def test_asked_in_a_stages_last_update_the_next_one_stops(self, tmp_path):
        look = At("0004-steps", 7, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped, match="update 1 of 0002-steps"):
            halve(tmp_path / "r", job=job(callback=look))
        look = At("0002-steps", 14, lambda: signal.raise_signal(signal.SIGTERM))
        assert len(halve(tmp_path / "r", job=job(callback=look)).times[0]) == 3  # it was finished

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
    def test_what_is_ignored_stays_ignored(self, tmp_path, number):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            look = At("0004-steps", 4, lambda: signal.raise_signal(number))
            halve(tmp_path / "r", job=job(callback=look))
            assert signal.getsignal(number) == signal.SIG_IGN
        finally:
            signal.signal(number, before)
        assert (tmp_path / "r" / "stages" / "0002-steps").exists()

    def test_in_a_thread_of_its_own(self, tmp_path):
        done = []
        thread = threading.Thread(target=lambda: done.append(halve(tmp_path / "r")))
        thread.start()
        thread.join()
        halve(tmp_path / "whole")
        assert done and bits(tmp_path / "r") == bits(tmp_path / "whole")


class TestJobs:
    def test_the_gate_ends_a_run_and_ends_it_again(self, tmp_path):
        shown = []

        def gate(student):
            shown.append(len(student.times[0]) - 1)
            return shown[-1] > 4

        method = Progressive(start=16, stop=1, updates=(2,))
        for _ in range(2):
            student = halve(tmp_path / "r", method=method, job=job(gate=gate))
            assert len(student.times[0]) - 1 == 4
        assert shown == [8, 4, 8, 4]
        assert sorted(p.name for p in (tmp_path / "r/stages").iterdir()) == [
            "0004-steps",
            "0008-steps",
        ]

    def test_the_first_stages_seed_is_not_the_seconds(self, tmp_path):
        """Draws, batches and dropout depend on the stage: two stages of one objective differ."""
        seen = []

        def loss(error, call):
            seen.append(error.detach().clone())
            return squares(error, call)

        halve(tmp_path / "r", method=own(loss, updates=1, stages=2), learning_rate=0.0)
        assert not torch.equal(seen[0], seen[1])

    def test_a_teacher_is_trained_and_the_pipeline_left_as_it_was(self, tmp_path):
        pipeline = teacher()
        before, method = weights_of(pipeline), Denoising(updates=9)
        options = {"method": method, "training": TRAINING, "job": job()}
        trained = train(pipeline, points(), tmp_path / "r", **options)
        assert furthest(weights_of(pipeline), before) == 0 < furthest(weights_of(trained), before)
        again = train(pipeline, points(), tmp_path / "r", **options)
        assert furthest(weights_of(again), weights_of(trained)) == 0
        assert again.times == () and not again.denoiser.training
        loaded = Pipeline.load(tmp_path / "r" / "stages" / "teacher")
        assert torch.equal(loaded.sample(2, steps=3), trained.sample(2, steps=3))
        with pytest.raises(ConfigError, match=r"with pipeline\.clip = None, now it is 1\.0"):
            train(replace(pipeline, clip=1.0), points(), tmp_path / "r", **options)
        with pytest.raises(ConfigError, match="was made with start = "):
            train(teacher(seed=1), points(), tmp_path / "r", **options)

    def test_a_network_that_could_not_be_saved_is_refused_before_it_is_trained(self, tmp_path):
        pipeline = teacher()
        del pipeline.denoiser.net.recipe
        with pytest.raises(ConfigError, match="was not made by"):
            halve(tmp_path / "r", pipeline=pipeline)
        assert not (tmp_path / "r").exists()

    def test_data_of_another_shape(self, tmp_path):
        with pytest.raises(ConfigError, match=r"samples of shape \[3\] and the data has \[2\]"):
            halve(tmp_path / "r", data="two-moons")

    def test_a_device_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match=r"device 'cuda:7' cannot be used .*: write auto"):
            halve(tmp_path / "r", job=job(device="cuda:7"))

    @pytest.mark.parametrize(
        "options, says",
        [
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"save_every": 0}, "save_every must be at least 1"),
            ({"learning_rate": -1.0}, "learning_rate must be"),
            ({"micro_batch_size": -1}, "micro_batch_size must be"),
            ({"seed": 2**32}, "seed"),
            ({"seed": -1}, "seed"),
            ({"ema": 1.0}, "ema"),
            ({"betas": (0.9, 1.0)}, "betas"),
            ({"warmup": 10**10}, "warmup"),
        ],
    )
    def test_settings_that_cannot_be(self, options, says):
        with pytest.raises(ConfigError, match=says):
            TrainingConfig(**options)


@pytest.mark.parametrize(
    "line", ["{", "[]", "nan", '{"stage": 1}', '{"stage": "a", "updates": "x"}']
)
def test_a_damaged_line_of_the_metrics_is_named_with_what_to_do(line, tmp_path):
    whole = '{"stage": "a", "update": 1, "loss": 0.5, "norm": 1.0, "rate": 0.1}'
    (tmp_path / "metrics.jsonl").write_text(f"{whole}\n{line}\n")
    with pytest.raises(CheckpointError, match=r"line 2.*metrics\.jsonl.*mend or remove the line"):
        _ = RunFolder(tmp_path).metrics
