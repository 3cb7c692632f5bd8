"""Samples and latents of several processes, threads standing in for them: those of one, to the bit."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from halfstep.errors import ConfigError, HalfstepError
from halfstep.progress import SILENT
from halfstep.training.distributed import Processes
from halfstep.training.divided import Divided
from halfstep.workflows.images import StartOptions
from halfstep.workflows.prompts import PromptOptions
from halfstep.workflows.sample import _identity, _job, SampleConfig
from tests.support.conditions import named_pipeline, Words
from tests.support.evaluation import FEATURES, pipeline, SHAPE
from tests.support.group import in_threads
from tests.support.latents import about, captions, encoded, some_images, TinyCodec
from tests.support.progress import Ledger
from tests.support.runs import everything

TEXTS = PromptOptions(prompt=("a", "bc", "def"), negative_prompt=("no", "none"))


class Counting(Words):
    """Words that know which texts they encoded."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def conditions(self, texts):
        self.seen += texts
        return super().conditions(texts)


def drawn(processes, config, pipes):
    """The job of one process, and what it drew with its own network."""
    pipe = pipes[processes.rank]
    job = _job(pipe, config, processes, SILENT)
    return pipe, job, job.run(Ledger() if processes.first else SILENT)


@pytest.mark.parametrize("world", [2, 3])
def test_samples_and_texts_are_divided_and_those_of_one(tmp_path, monkeypatch, world):
    monkeypatch.setattr("halfstep.workflows.prompts.AT_ONCE", 1)
    config = SampleConfig(
        out=tmp_path / "one", n=7, batch_size=2, npz=True, texts=TEXTS, guidance_scale=2.0, seed=4
    )
    pipes = [named_pipeline(texts=Counting()) for _ in range(world)]
    one = named_pipeline().sample(
        7, seed=4, guidance_scale=2.0, prompts=[("a", "bc", "def")[k % 3] for k in range(7)],
        negative_prompts=[("no", "none")[k % 2] for k in range(7)],
    )  # fmt: skip
    several = in_threads(
        partial(drawn, config=replace(config, out=tmp_path / "many"), pipes=pipes), world
    )
    assert torch.equal(several[0][2].samples, one)
    assert all(len(sampled.samples) == 0 for _, _, sampled in several[1:])
    assert {sampled.npz for _, _, sampled in several} == {tmp_path / "many" / "samples.npz"}
    assert all(job.prompts is None for _, job, _ in several[1:])
    seen = [pipe.texts.seen for pipe, _, _ in several]
    assert sorted(text for texts in seen for text in texts) == [
        "a",
        "bc",
        "def",
        "no",
        "none",
    ] and all(seen)


@pytest.mark.parametrize("world", [2, 3])
def test_images_masks_and_classes_follow_their_samples(tmp_path, world):
    images = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, *SHAPE[1:], dtype=torch.bool)
    mask[..., :2] = True
    config = SampleConfig(
        out=tmp_path, n=5, batch_size=2, npz=True, steps=2, first=1, labels="2,0,1"
    )

    pipes = [pipeline(class_names=("a", "b", "c")) for _ in range(world)]

    def act(processes):
        job = _job(pipes[processes.rank], config, processes, SILENT)
        start = replace(job.start, images=images, mask=mask, strength=1.0)
        return replace(job, start=start).run().samples

    expected = pipeline(class_names=("a", "b", "c")).sample(
        5, steps=2, first=1, labels=[0, 1, 2, 0, 1], images=images, mask=mask
    )
    assert torch.equal(in_threads(act, world)[0], expected)


def test_noise_follows_its_samples(tmp_path):
    noise = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    config = SampleConfig(out=tmp_path, n=5, batch_size=2, npz=True, steps=2)

    pipes = [pipeline() for _ in range(2)]

    def act(processes):
        job = _job(pipes[processes.rank], config, processes, SILENT)
        return replace(job, start=replace(job.start, noise=noise)).run().samples

    expected = pipeline().sample(5, steps=2, noise=noise)
    assert torch.equal(in_threads(act)[0], expected)


def test_what_the_first_refuses_all_refuse(tmp_path):
    config = SampleConfig(out=tmp_path, n=2, texts=PromptOptions(negative_prompt=("no",)))
    pipes = [named_pipeline() for _ in range(2)]
    errors = in_threads(lambda p: _job(pipes[p.rank], config, p, SILENT))
    assert {type(error) for error in errors} == {ConfigError}
    assert all("guidance is off" in str(error) for error in errors)


@pytest.mark.parametrize(
    "changes, name", [({"seed": 5}, "seed"), ({"n": 4}, "n"), ({"labels": "1"}, "labels")]
)
def test_other_options_have_another_identity(tmp_path, changes, name):
    config = SampleConfig(out=tmp_path, npz=True, n=3)
    identities = [
        _identity(_job(pipeline(class_names=("a", "b")), each, Processes("cpu"), SILENT))
        for each in (config, replace(config, **changes))
    ]
    assert identities[0][name] != identities[1][name]
    other = replace(config, start=StartOptions())
    assert identities[0] == _identity(
        _job(pipeline(class_names=("a", "b")), other, Processes("cpu"), SILENT)
    )


class Failing(TinyCodec):
    """A codec that fails at one of its calls."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def moments(self, images):
        if self.calls == self.at:
            raise MemoryError("no room")
        return super().moments(images)


@pytest.mark.parametrize("world", [2, 3])
def test_files_of_latents_and_captions_are_those_of_one(tmp_path, world):
    encoded(tmp_path / "one", captions=captions())
    ledger, codecs = Ledger(), [TinyCodec() for _ in range(world)]

    def act(processes):
        texts, codec = captions(), codecs[processes.rank]
        progress = ledger if processes.first else SILENT
        division = Divided(processes)
        out = tmp_path / "many"
        missing = encoded(out, codec=codec, captions=texts, division=division, progress=progress)
        again = encoded(out, codec=codec, captions=captions(), division=division)
        return missing, texts.texts, again

    results = in_threads(act, world)
    assert results == [(True, None, False)] * world
    assert ledger.steps == len(some_images())
    assert everything(tmp_path / "many") == everything(tmp_path / "one")


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("then", [1, 3])
def test_encoding_goes_on_with_another_number_of_processes(tmp_path, failing, then):
    encoded(tmp_path / "one", some_images(19))
    out = tmp_path / "many"

    codecs = [Failing(5) if rank == failing else TinyCodec() for rank in range(2)]

    def fail(p):
        return encoded(out, some_images(19), codec=codecs[p.rank], division=Divided(p))

    errors = in_threads(fail)
    assert all(isinstance(error, HalfstepError | MemoryError) for error in errors)
    assert all("no room" in str(error) for error in errors)
    assert 0 < len(about(out)["shards"]) < 5 and not about(out)["complete"]
    codecs = [TinyCodec() for _ in range(then)]
    done = in_threads(
        lambda p: encoded(out, some_images(19), codec=codecs[p.rank], division=Divided(p)), then
    )
    assert done == [True] * then
    assert everything(out) == everything(tmp_path / "one")


def test_a_unit_of_samples_is_whole_batches_of_sampler_and_features():
    """So that dividing them changes no bit, whatever their sizes."""
    from halfstep.evaluation import SampleScorer
    from halfstep.evaluation.features.cache import data_features

    real = torch.zeros(4, *SHAPE)
    features = replace(FEATURES, batch=6)
    scorer = SampleScorer(features, real, n=40, batch=4)
    units = [rows for rows, _ in scorer._units(range(3, 40))]
    assert [(rows.start, rows.stop) for rows in units] == [(3, 15), (15, 27), (27, 39), (39, 40)]
    one = scorer.sample(pipeline(), "ddim", 2)
    pipes = [pipeline() for _ in range(3)]

    def act(processes):
        division, pipe, found = Divided(processes), pipes[processes.rank], []

        def lead():
            divided = SampleScorer(features, real, n=40, batch=4, division=division)
            found.append(divided.sample(pipe, "ddim", 2))
            found.append(data_features(features, one.images, cache=None, division=division))

        division.lead(lead, pipe.denoiser, features)
        return found

    samples, again = in_threads(act, 3)[0]
    assert torch.equal(samples.images, one.images) and torch.equal(samples.features, one.features)
    assert torch.equal(again, one.features)
