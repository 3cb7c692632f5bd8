"""Updates: averaged weights, learning rates, the optimiser's arithmetic, precision."""

import json
import math

import pytest
import torch
from torch import nn

from halfstep.data import rows
from halfstep.errors import ConfigError, NonFinite
from halfstep.methods import DenoiserOnly, Progressive
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw, key
from halfstep.training import TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.ema import Average
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from halfstep.training.update import micro_batches, refuse_other_shape, step
from tests.support.runs import (
    bits,
    double_teacher,
    doubled,
    Explodes,
    furthest,
    halve,
    job,
    losses,
    own,
    squares,
    teacher,
    TRAINING,
    weights_of,
)

ONE = Progressive(start=8, stop=4, updates=(5,))
"""A single halving."""


@pytest.mark.parametrize("shape", [(), (6, 1), (5,), (6, 2)])
def test_an_objective_returns_one_loss_a_sample(shape):
    with pytest.raises(ConfigError, match=r"return one loss a sample, shape \[6\]"):
        refuse_other_shape(torch.zeros(shape), 6)
    refuse_other_shape(torch.zeros(6), 6)


def test_a_run_refuses_the_mean_of_a_batch(tmp_path):
    with pytest.raises(ConfigError, match="one loss a sample"):
        halve(tmp_path / "r", method=own(lambda error, k: squares(error, k).mean()))


class TestAverage:
    def test_closed_form(self):
        net, decay, n = nn.Linear(3, 2).double(), 0.8, 9
        average = Average(net, decay)
        weights = []
        for update in range(n):
            with torch.no_grad():
                for p in net.parameters():
                    p.normal_(generator=torch.Generator().manual_seed(update))
            weights.append([p.detach().clone() for p in net.parameters()])
            average.follow(net.parameters(), update)
        for k, value in enumerate(average.values):
            expected = decay ** (n - 1) * weights[0][k]
            for update in range(1, n):
                expected += (1 - decay) * decay ** (n - 1 - update) * weights[update][k]
            assert (value - expected).abs().max() < 1e-15
        average.copy_to(net)
        assert all(torch.equal(p, v) for p, v in zip(net.parameters(), average.values, strict=True))

    def test_the_first_update_copies(self):
        net = nn.Linear(3, 2)
        average = Average(net, 0.999)
        with torch.no_grad():
            net.weight.fill_(7.0)
        average.follow(net.parameters(), 0)
        assert torch.equal(average.values[0], net.weight)
        with torch.no_grad():
            net.weight.fill_(8.0)
        assert torch.equal(average.values[0], torch.full((2, 3), 7.0))  # a copy of its own

    def test_a_stage_ends_with_the_average(self, tmp_path):
        from halfstep import storage

        halve(tmp_path / "r", method=ONE, save_every=100)
        tensors, _ = storage.load(tmp_path / "r" / "checkpoints" / "00-00000005")
        stage, _ = storage.load(tmp_path / "r" / "stages" / "0004-steps" / "pipeline")
        for name, value in stage.items():
            assert torch.equal(value, tensors[f"average.{name}"])
            assert not torch.equal(value, tensors[f"student.{name}"])

    def test_off_it_is_nowhere(self, tmp_path):
        from halfstep import storage

        halve(tmp_path / "r", method=ONE, ema=0.0, save_every=100)
        tensors, _ = storage.load(tmp_path / "r" / "checkpoints" / "00-00000005")
        stage, _ = storage.load(tmp_path / "r" / "stages" / "0004-steps" / "pipeline")
        assert not [name for name in tensors if name.startswith("average.")]
        assert all(torch.equal(value, tensors[f"student.{name}"]) for name, value in stage.items())


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
        rates = [line["rate"] for line in RunFolder(tmp_path / "r").metrics if "rate" in line]
        assert rates == pytest.approx([0.6, 0.4, 0.2, 0.6, 0.3])

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
        logged = [value for line in lines for value in (line["loss"], line["norm"])]
        assert logged == pytest.approx([v for pair in expected for v in pair], rel=1e-12)
        assert furthest(weights_of(student), dict(net.named_parameters())) < 1e-14

    def test_clipping_bounds_the_gradient_and_reports_it_unclipped(self):
        net = nn.Linear(2, 1, bias=False).double()
        norms = []

        class Spy(torch.optim.SGD):
            def set_rate(self, rate):
                pass

            def step(self, closure=None):
                norms.append(net.weight.grad.clone())

        net.weight.grad = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        norm = step(
            net,
            State(net, Spy(net.parameters()), None, None),
            TrainingConfig(max_grad_norm=0.5),
            1.0,
        )
        assert float(norm) == 5.0
        assert float(norms[0].norm()) == pytest.approx(0.5, rel=1e-5) and net.weight.grad is None

    def test_a_scaled_gradient_is_clipped_as_it_is(self):
        """The loss scaler's factor is taken out before the norm is measured and bounded."""
        net, scaler = nn.Linear(2, 1, bias=False), torch.amp.GradScaler("cpu", init_scale=1024.0)
        norms = []

        class Spy(torch.optim.SGD):
            def set_rate(self, rate):
                pass

            def step(self, closure=None):
                norms.append(net.weight.grad.clone())

        scaler.scale(torch.ones(()))
        net.weight.grad = 1024 * torch.tensor([[3.0, 4.0]])
        norm = step(
            net,
            State(net, Spy(net.parameters()), None, scaler),
            TrainingConfig(max_grad_norm=0.5),
            1.0,
        )
        assert float(norm) == 5.0
        assert float(norms[0].norm()) == pytest.approx(0.5, rel=1e-5)

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
        calls = []

        class Looking(ProgressCallback):
            def begin(self, stage, update):
                calls.append(stage.student.net._compiled_call_impl is not None)

        compiled = halve(tmp_path / "b", compile=True, job=job(callback=Looking()))
        assert calls == [True, True]
        assert furthest(weights_of(plain), weights_of(compiled)) < 1e-4
        assert bits(tmp_path / "a").keys() == bits(tmp_path / "b").keys()
        loaded = Pipeline.load(tmp_path / "b" / "stages" / "0002-steps")
        assert (loaded.sample(3) - compiled.sample(3)).abs().max() < 1e-5
