"""Runs that learn from kept walks: resumed to the bit, in micro-batches, with labels, texts and guidance."""

import os
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import halfstep
from halfstep.batch import Cond
from halfstep.data import NoData
from halfstep.data.walks.store import open_walks
from halfstep.diffusion.prediction import Eps
from halfstep.diffusion.samplers import walk_points
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError, Stopped
from halfstep.hub.bundled import bundled_teacher
from halfstep.methods import CachedWalks, GuidedDistillation
from halfstep.methods.diffusion.landing_target import landing_target
from halfstep.models.lora import Lora
from halfstep.pipeline import Pipeline
from halfstep.rng import sample_noise
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_progress import RunProgress
from tests.support import guided, latent_runs
from tests.support.progress import Ledger
from tests.support.runs import (
    bits,
    Crash,
    crash,
    double_teacher,
    everything,
    furthest,
    halted,
    halve,
    job,
    logged_lines,
    losses,
    points,
    teacher,
    TRAINING,
    weights_of,
)

METHOD = CachedWalks(start=8, first=4, stop=2, updates=(7,), noises=20)


def run(out, method=METHOD, data="none", **more):
    return halve(out, method=method, data=data, **more)


def walks_in(out):
    return {
        name: content
        for name, content in everything(out / "walks").items()
        if name not in (".lock", "verified.json")
    }


class Watching(ProgressCallback):
    """Keeps the titles of works and their progress; ends the process after so many walks."""

    def __init__(self, at=None, act=None):
        self.titles, self.ledger, self.at, self.act = [], Ledger(), at, act

    def work(self, title):
        self.titles.append(title)
        return nullcontext(self)

    def expect(self, steps):
        self.ledger.expect(steps)

    def advance(self, steps=1):
        self.ledger.advance(steps)
        if self.at is not None and self.ledger.done >= self.at:
            self.at = None
            self.act()


@pytest.mark.parametrize("new", [0, 9])
@pytest.mark.parametrize("update", [1, 4, 6])
@pytest.mark.parametrize("stage", ["0004-steps", "0002-steps"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, stage, update, new):
    method = replace(METHOD, new_noises=new)
    run(tmp_path / "whole", method)
    halted(tmp_path / "killed", stage, update, method=method, data="none")
    run(tmp_path / "killed", method)
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    assert logged_lines(tmp_path / "killed") == logged_lines(tmp_path / "whole")
    assert walks_in(tmp_path / "killed") == walks_in(tmp_path / "whole")
    assert len(open_walks(tmp_path / "whole" / "walks")) == 20 + 2 * new


def test_a_run_that_is_killed_while_it_walks(tmp_path):
    run(tmp_path / "whole")
    with pytest.raises(Crash):
        run(tmp_path / "killed", job=job(callback=Watching(6, crash)))
    run(tmp_path / "killed")
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    assert walks_in(tmp_path / "killed") == walks_in(tmp_path / "whole")


def test_a_run_that_is_asked_to_stop_while_it_walks(tmp_path):
    ask = Watching(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="while the teacher walked"):
        run(tmp_path / "r", job=job(callback=ask))
    run(tmp_path / "r")
    run(tmp_path / "whole")
    assert bits(tmp_path / "r") == bits(tmp_path / "whole")


def test_progress_is_told_before_and_as_it_walks(tmp_path):
    told = Watching()
    run(tmp_path / "r", job=job(callback=told))
    assert told.titles == ["walking 20 noises, 15 forwards each, 0.0 MB on the disk"]
    assert told.ledger.steps == 20
    assert RunFolder(tmp_path / "r").finished("0004-steps")["forwards"] == 20 * 15 + 7 * 6 * 3
    assert RunFolder(tmp_path / "r").finished("0002-steps")["forwards"] == 14 * 6 * 3


def test_the_share_that_is_done_has_the_walks(tmp_path):
    """300 forwards of walks and 7 updates of 18; 3 of the 14 updates after them."""
    halted(tmp_path / "r", "0002-steps", 4, method=METHOD, data="none")
    progress = RunProgress.of(RunFolder.open(tmp_path / "r"))
    assert progress.done == pytest.approx((300 + 126 + 54) / (300 + 126 + 252))


def test_the_time_of_walking_is_of_the_first_stage(tmp_path, monkeypatch):
    """A clock that ticks with each walk: 20 of 2 seconds."""
    clock = {"now": 0.0}

    class Slow(Watching):
        def advance(self, steps=1):
            super().advance(steps)
            clock["now"] += 2 * steps

    time = SimpleNamespace(monotonic=lambda: clock["now"])
    monkeypatch.setattr("halfstep.training.loop.time", time)
    run(tmp_path / "r", job=job(callback=Slow()))
    kept = RunFolder(tmp_path / "r")
    assert [kept.finished(name)["seconds"] for name in ("0004-steps", "0002-steps")] == [40, 0]


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_are_one_batch(tmp_path, micro):
    """Walks in the same store: smaller batches of walking round otherwise."""
    one = run(tmp_path / "one", pipeline=double_teacher())
    two = run(
        tmp_path / "two", pipeline=double_teacher(), micro_batch_size=micro,
        job=job(walks=tmp_path / "one" / "walks"),
    )  # fmt: skip
    assert furthest(weights_of(one), weights_of(two)) < 1e-6
    assert not (tmp_path / "two" / "walks").exists()


def test_the_noise_follows_from_the_seed_and_is_that_of_no_sample(tmp_path):
    """Students are judged on noise that they have not seen."""
    for name, seed in (("a", 5), ("b", 6)):
        run(tmp_path / name, seed=seed)
    i = torch.arange(20)
    first, other = (
        open_walks(tmp_path / name / "walks").at(i, torch.zeros_like(i)) for name in "ab"
    )
    assert not torch.isin(first, other).any()
    for seed in (0, 5):
        assert not torch.isin(first, sample_noise(seed, range(2_000), (3,))).any()


def test_clipped_walks_are_those_of_the_teachers_sampler(tmp_path):
    pipeline = replace(teacher(), clip=0.3)
    student = run(tmp_path / "r", replace(METHOD, target_clip=0.3), pipeline=pipeline)
    walks, i = open_walks(tmp_path / "r" / "walks"), torch.arange(20)
    noise, end = (walks.at(i, torch.full_like(i, k)) for k in (0, 4))
    again = pipeline.sample(20, noise=noise, steps=8, sampler="heun")
    torch.testing.assert_close(again, end, rtol=1e-5, atol=1e-6)
    unclipped = replace(pipeline, clip=None).sample(20, noise=noise, steps=8, sampler="heun")
    assert not torch.allclose(unclipped, end, atol=1e-2)
    assert student.clip is None  # it lands where the clipped walk lands


def test_data_give_the_conditions_alone(tmp_path):
    """Of a network without conditions nothing: the same walks serve every data."""
    run(tmp_path / "a")
    run(tmp_path / "b", data=points(), job=job(walks=tmp_path / "a" / "walks"))
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


def test_other_walks_are_refused(tmp_path):
    run(tmp_path / "a")
    shared = job(walks=tmp_path / "a" / "walks")
    for changes, words in (
        ({"method": replace(METHOD, solver="ddim")}, r"another solver \(heun, now ddim\)"),
        ({"method": replace(METHOD, start=16)}, "another time grid or number of steps"),
        ({"method": replace(METHOD, first=2)}, "another choice of points"),
        ({"method": replace(METHOD, half=True)}, "another precision of the files"),
        ({"seed": 6}, r"another seed \(5, now 6\)"),
        ({"pipeline": teacher(seed=1)}, "another teacher"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(tmp_path / "b", **{"job": shared, **changes})
        shutil.rmtree(tmp_path / "b")


def test_a_damaged_walk_ends_the_run(tmp_path):
    run(tmp_path / "a")
    path = tmp_path / "a" / "walks" / "points-00000-20.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is damaged: its checksum"):
        run(tmp_path / "b", job=job(walks=path.parent))
    path.unlink()
    run(tmp_path / "b", job=job(walks=path.parent))
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


def test_a_finished_run_needs_no_walks(tmp_path):
    run(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "walks")
    run(tmp_path / "a")
    assert not (tmp_path / "a" / "walks").exists()


def test_training_lowers_the_loss(tmp_path):
    method = CachedWalks(start=8, first=2, stop=2, updates=(60,), noises=64)
    run(tmp_path / "r", method, batch_size=32, learning_rate=3e-3)
    first, *_, last = losses(tmp_path / "r")
    assert last < 0.7 * first


def test_float16_walks_change_little(tmp_path):
    whole = run(tmp_path / "whole")
    half = run(tmp_path / "half", replace(METHOD, half=True))
    assert 0 < furthest(weights_of(whole), weights_of(half)) < 1e-2


def test_float16_moves_a_target_by_a_twentieth_of_a_trained_students_error():
    """On digits; a student of 8 steps ends with losses of 8e-4, an error of 0.03."""
    pipeline, n, fine = bundled_teacher(), 32, uniform(16)
    noise, cond = sample_noise(7, range(n), pipeline.shape), Cond(torch.arange(n) % 10)
    kept = walk_points(pipeline.denoiser.eval(), noise, fine, "heun", range(0, 17, 2), cond=cond)
    worst = 0.0
    for k in range(8):
        t, e = (torch.full((n,), fine[2 * j]).double() for j in (k, k + 1))
        exact, rounded = (
            landing_target(pipeline.denoiser.schedule, x[:, k], x[:, k + 1], t, e)
            for x in (kept, kept.half().float())
        )
        worst = max(worst, float((exact.x0 - rounded.x0).square().mean().sqrt()))
    assert 1e-4 < worst < 2e-3


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["whole", "lora"])
@pytest.mark.parametrize("warm", [True, False])
def test_every_student_of_every_start_is_trained(tmp_path, lora, warm):
    start = teacher()
    before = weights_of(start)
    student = run(
        tmp_path / "r", replace(METHOD, warm_start=warm), pipeline=start, lora=lora, data=points()
    )
    assert furthest(before, weights_of(start)) == 0
    assert len(student.times[0]) == 3
    again = Pipeline.load(tmp_path / "r" / "stages" / "0004-steps")
    assert again.times[0] == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert again.sampler == "ddim"
    assert again.sample(3, seed=1).isfinite().all()


# -- conditions ------------------------------------------------------------------------------------


def labelled(tmp_path, name, method, pipeline=None, data=None, **more):
    return halfstep.distill(
        pipeline or guided.teacher_of(), data or NoData(), tmp_path / name, method=method,
        training=replace(TRAINING, batch_size=4), job=job(**more),
    )  # fmt: skip


def test_labels_are_kept_with_their_walks(tmp_path):
    labelled(tmp_path, "r", METHOD)
    walks = open_walks(tmp_path / "r" / "walks")
    labels = walks.cond(torch.arange(20)).label
    assert sorted(labels.unique().tolist()) == [0, 1, 2]
    assert labels.bincount().max() - labels.bincount().min() <= 1


def test_folded_guidance_is_the_guided_teachers_and_the_student_says_its_scale(tmp_path):
    method = replace(METHOD, guidance_scale=3.0)
    student = labelled(tmp_path, "g", method)
    assert student.guidance_range == (3.0, 3.0)
    assert not student.takes_scale
    assert student.sample(2, guidance_scale=3.0).shape == (2, 2)
    with pytest.raises(ConfigError, match="write guidance_scale=3"):
        student.sample(2)
    labelled(tmp_path, "plain", METHOD)
    i = torch.arange(20)
    guided_walks, plain = (open_walks(tmp_path / name / "walks") for name in ("g", "plain"))
    first, last = torch.zeros(20).long(), torch.full((20,), 4)
    assert torch.equal(guided_walks.at(i, first), plain.at(i, first))
    assert not torch.allclose(guided_walks.at(i, last), plain.at(i, last), atol=1e-3)
    pipeline = guided.teacher_of()
    cond = guided_walks.cond(i)
    again = pipeline.sample(
        20, noise=guided_walks.at(i, first), steps=8, sampler="heun", guidance_scale=3.0,
        labels=cond.label.tolist(),
    )  # fmt: skip
    torch.testing.assert_close(again, guided_walks.at(i, last), rtol=1e-4, atol=1e-5)


def test_a_student_that_takes_its_scale_keeps_it_with_each_walk(tmp_path):
    """guided first, then kept walks at scales of its range, one a walk."""
    first = labelled(
        tmp_path, "first", GuidedDistillation(guidance_range=(1, 4), updates=2, halving=None)
    )
    student = labelled(tmp_path, "walks", METHOD, pipeline=first)
    assert student.guidance_range == (1.0, 4.0)
    assert student.takes_scale
    walks = open_walks(tmp_path / "walks" / "walks")
    scales = walks.cond(torch.arange(20)).guidance_scale
    assert float(scales.min()) >= 1
    assert float(scales.max()) <= 4
    assert len(scales.unique()) == 20
    [row] = [4]
    cond, first_k = walks.cond(torch.tensor([row])), torch.tensor([0])
    end = first.sample(
        1, noise=walks.at(torch.tensor([row]), first_k), steps=8, sampler="heun",
        labels=cond.label.tolist(), guidance_scale=float(cond.guidance_scale),
    )  # fmt: skip
    torch.testing.assert_close(
        walks.at(torch.tensor([row]), torch.tensor([4])), end, rtol=1e-4, atol=1e-5
    )
    student.sample(2, guidance_scale=2.0)


def test_an_eps_teacher_becomes_a_v_teacher_whose_walks_are_kept(tmp_path):
    pipeline = guided.teacher_of()
    pipeline.denoiser.parameterisation = Eps()
    for name in "ab":
        labelled(tmp_path, name, METHOD, pipeline=pipeline)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert (tmp_path / "a" / "stages" / "v-teacher").is_dir()
    with pytest.raises(ConfigError, match="write --data none"):
        labelled(tmp_path, "c", METHOD, data=NoData(walk="student"))


@pytest.mark.parametrize("texts", [False, True], ids=["labels", "texts"])
def test_latents_and_texts_are_kept_with_their_walks(tmp_path, texts):
    data = latent_runs.latents(texts=texts)
    pipeline = latent_runs.pipeline(data, texts=texts)
    student = halfstep.distill(
        pipeline, data, tmp_path / "r", method=METHOD, training=replace(TRAINING, batch_size=4),
        job=job(),
    )  # fmt: skip
    walks = open_walks(tmp_path / "r" / "walks")
    cond = walks.cond(torch.arange(20))
    assert walks.at(torch.arange(3), torch.zeros(3).long()).shape == (3, 2, 4, 4)
    if texts:
        assert cond.encoder_hidden_states.shape == (20, latent_runs.TOKENS, latent_runs.WIDTH)
        states = data.batch(torch.arange(40)).cond.encoder_hidden_states
        known = (cond.encoder_hidden_states[:, None] - states[None]).abs().amax((2, 3)).amin(1)
        assert float(known.max()) == 0
    else:
        assert set(cond.label.tolist()) == {0, 1}
    assert student.sample(2, seed=0).shape == (2, 1, 8, 8)


def test_the_teacher_walks_before_the_first_update_begins(tmp_path):
    """So that the speed and the time left of updates are those of updates alone."""
    counts = []

    class Looking(ProgressCallback):
        def begin(self, stage, update):
            counts.append(len(open_walks(tmp_path / "r" / "walks")))

    run(tmp_path / "r", job=job(callback=Looking()))
    assert counts == [20, 20]
