"""Data for a pipeline of texts and named tensors: their own, and the pipeline's for those that they lack."""

from dataclasses import replace

import pytest
import torch

from halfstep.data import Dataset
from halfstep.data.latents.contexts import Contexts
from halfstep.data.latents.dataset import Latents
from halfstep.data.latents.shards import Shards
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.denoising import Denoising
from halfstep.methods.diffusion.progressive import Progressive
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw
from halfstep.training import distill, train, TrainingConfig
from halfstep.training.checks.data import notes, read_by
from halfstep.training.run_folder import RunFolder
from tests.support.conditions import named_pipeline, SIZES, Words
from tests.support.denoisers import seeded

TEXTS = ["a", "bc", "def", "ab"]
SETTINGS = TrainingConfig(batch_size=3, warmup=0)


def latents(encoder=None):
    """Four latents of one channel and one pixel, with a text each."""
    moments = torch.randn(4, 2, 1, 1, generator=seeded())
    encoder = encoder or Words()
    contexts = Contexts.of(encoder.conditions(TEXTS), torch.arange(5), encoder.conditions([""]))
    return Latents(Shards((moments,)), 1, 1.0, contexts=contexts)


def of_latents(**changes):
    return replace(named_pipeline(**changes), shape=(1, 1, 1))


def batches(data):
    rows = torch.tensor([1, 3])
    return data.batch(rows), data.training_batch(rows, Draw.all(seeded(), 2))


def test_texts_are_the_datas_and_constants_the_pipelines():
    read, said = read_by(of_latents(), latents()), Words().conditions(["bc", "ab"])
    for batch in batches(read):
        assert torch.equal(batch.cond.added["time_ids"], SIZES.expand(2, -1))
        mask = batch.cond.added["encoder_attention_mask"]
        assert torch.equal(mask, said.added["encoder_attention_mask"]) and mask.dtype == torch.int64
        states = batch.cond.encoder_hidden_states
        torch.testing.assert_close(states, said.encoder_hidden_states, rtol=1e-3, atol=1e-3)


def test_named_tensors_that_the_pipeline_does_not_read_are_left_out():
    pipe = of_latents()
    added = {"time_ids": SIZES, "pooled_projections": pipe.added["pooled_projections"]}
    for batch in batches(read_by(replace(pipe, added=added), latents())):
        assert sorted(batch.cond.named()) == ["encoder_hidden_states", *sorted(added)]
    plain = replace(pipe, empty=None, added={})
    assert read_by(plain, latents()).batch(torch.tensor([0])).cond is None


def test_data_without_texts_have_the_empty_one_and_it_is_said():
    pipe, data = named_pipeline(), Dataset(torch.rand(6, 2), torch.arange(6) % 2)
    read = read_by(pipe, data)
    for batch in batches(read):
        assert batch.cond.label is None  # the pipeline reads no labels
        for name, value in pipe.text_defaults.named().items():
            assert torch.equal(batch.cond.named()[name], value.expand(2, *value.shape[1:]))
    [note] = notes(pipe, read)
    assert "every sample has the empty text" in note
    assert read.fingerprint() == replace(data, labels=None).fingerprint()


@pytest.mark.parametrize("name", ["pooled_projections", "encoder_attention_mask"])
def test_texts_of_another_encoder_are_refused_by_the_name_of_what_differs(name):
    pipe = of_latents()
    other = replace(pipe, added={**pipe.added, name: pipe.added[name] + 1})
    with pytest.raises(ConfigError, match=f"another encoder.*{name}"):
        read_by(other, latents())


def test_training_and_distilling_read_named_tensors(tmp_path):
    """Training drops them with the texts; the student is saved with them, and loaded in the run."""
    pipe, data = of_latents(), latents()
    pipe.denoiser.requires_grad_(True)
    method = Denoising(updates=2, drop_labels=0.5)
    teacher = train(pipe, data, tmp_path / "t", method=method, training=SETTINGS)
    assert teacher.added.keys() == pipe.added.keys()
    student = distill(
        teacher,
        data,
        tmp_path / "s",
        method=Progressive(start=2, stop=1, updates=(2,)),
        training=SETTINGS,
    )
    net = "tests.support.conditions:reading"
    again = RunFolder(tmp_path / "s").student(net=net)
    assert isinstance(again, Pipeline) and torch.equal(again.added["time_ids"], SIZES)
    options = {"prompts": ["a", "bc"], "latents": True}
    with_texts = again.with_texts(Words())
    assert torch.equal(student.sample(2, **options), with_texts.sample(2, **options))
    other = replace(pipe, added={**pipe.added, "time_ids": SIZES + 1})
    with pytest.raises(ConfigError, match="empty text"):
        train(other, data, tmp_path / "t", method=method, training=SETTINGS)
