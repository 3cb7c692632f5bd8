"""The loop: its optimiser, rates, averages, refusals and its use of memory."""

import json
import signal
import threading
from dataclasses import replace

import pytest
import torch

from halfstep.errors import CheckpointError, ConfigError
from halfstep.methods import Denoising, Progressive
from halfstep.pipeline import Pipeline
from halfstep.training import Stopped, train, TrainingConfig
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from tests.support.runs import (
    At,
    bits,
    furthest,
    halve,
    job,
    own,
    points,
    squares,
    teacher,
    TRAINING,
    weights_of,
)


class TestCheckpoints:
    def test_they_fall_on_update_numbers_and_two_are_kept(self, tmp_path):
        out, listings = tmp_path / "r", []

        class Looking(ProgressCallback):
            def step(self, update, rate):
                names = sorted(path.name for path in (out / "checkpoints").glob("*"))
                listings.append([name for name in names if name.endswith(".json")])
                assert len(names) == 2 * len(listings[-1])

        halve(out, job=job(callback=Looking()))
        stage = [[], [], [], [3], [3], [3], [3, 6]]
        later = [[], [], [], [3], [3], [3], [3, 6], [3, 6], [3, 6], [6, 9], [6, 9], [6, 9]]
        later += [[9, 12], [9, 12]]
        expected = [[f"00-{k:08d}.json" for k in names] for names in stage]
        # The first stage's last one stays until the second is finished.
        expected += [["00-00000007.json", *(f"01-{k:08d}.json" for k in f)] for f in later]
        assert listings == expected
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
        draws = []

        def loss(error, call):
            draws.append(error.detach().clone())
            return squares(error, call)

        halve(tmp_path / "r", method=own(loss, updates=1, stages=2), learning_rate=0.0)
        assert not torch.equal(draws[0], draws[1])

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
