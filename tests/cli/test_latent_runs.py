"""Models of latents and of texts through training, distillation, the gate, evaluation and the report."""

import json
from dataclasses import replace

import pytest
import torch

from halfstep.batch import Cond
from halfstep.data.latents.contexts import Contexts
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.encoding import Layout, write_latents
from halfstep.data.latents.image_stream import stream
from halfstep.errors import ConfigError
from halfstep.evaluation import scorer
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.setups import Evaluation
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw
from halfstep.training.checks.data import notes, read_by
from tests.support.latent_runs import among_photos, CODEC, latents, N, pipeline, pixels
from tests.support.progress import Ledger

# -- what is compared ------------------------------------------------------------------------------


def test_samples_are_compared_with_images_of_every_class(monkeypatch):
    data = latents()
    teacher = pipeline(data)
    monkeypatch.setattr(scorer, "MOST_DECODED", 10)
    ledger = Ledger()
    images = scorer.real_images(data, teacher, progress=ledger)
    rows = torch.arange(0, N, 4)
    assert data.batch(rows).cond.label.float().mean() == 0.5  # as many of either class
    assert images.shape == (10, 1, 8, 8)
    assert torch.allclose(images, teacher.codec.decode(data.batch(rows).x0), atol=1e-6)
    assert ledger.notes == ["decoding 10 of 40 latents"] and ledger.steps == 1
    monkeypatch.setattr(scorer, "MOST_DECODED", 100)
    assert len(scorer.real_images(data, teacher)) == N
    with pytest.raises(ConfigError, match="no codec"):
        scorer.real_images(data, replace(teacher, codec=None))


def test_models_of_texts_are_judged_on_the_datas_captions():
    data = latents(texts=True)
    teacher = pipeline(data, texts=True)
    captions = scorer.captions_of(data, teacher)
    states = captions(torch.arange(N)).encoder_hidden_states
    assert len({tuple(c.flatten().tolist()) for c in states}) == N
    again = captions(torch.tensor([3, N + 3])).encoder_hidden_states
    assert torch.equal(again[0], again[1]) and torch.equal(again[0], states[3])
    evaluation, see = Evaluation(samples=9), Features("pixels", pixels(), "as they are")
    real = scorer.real_images(data, teacher)
    judge = scorer.scorer_for(see, real, evaluation, captions=captions)
    sampled = judge.sample(teacher, "ddim", 2)
    by_hand = teacher.sample(9, steps=2, encoder_hidden_states=states[:9])
    assert torch.allclose(sampled.images, by_hand, atol=1e-5)
    assert not torch.allclose(sampled.images, teacher.sample(9, steps=2), atol=1e-4)
    judge.batch = 3  # whatever the batches are
    assert torch.allclose(judge.sample(teacher, "ddim", 2).images, by_hand, atol=1e-5)
    more = judge.extend(sampled.first(5), teacher, "ddim", 2)
    assert torch.allclose(more.images, by_hand, atol=1e-5)
    assert scorer.captions_of(data, pipeline(latents())) is None
    assert scorer.captions_of(latents(), teacher) is None  # samples have the empty text


def test_samples_have_the_captions_of_the_images_that_they_are_compared_with():
    data = latents(texts=True)
    teacher, held_out = pipeline(data, texts=True), latents(texts=True)
    held_out = replace(held_out, contexts=_mirrored(held_out.contexts))
    rows = torch.arange(5)

    def states(captions):
        return captions(rows).encoder_hidden_states

    own = states(scorer.captions_beside(data, data, teacher))
    assert torch.equal(own, states(scorer.captions_of(data, teacher)))
    other = states(scorer.captions_beside(data, held_out, teacher))
    assert torch.equal(other, -own)
    with pytest.raises(
        ConfigError, match="the held-out data have none: give latents with captions"
    ):
        scorer.captions_beside(data, latents(), teacher)
    assert scorer.captions_beside(latents(), latents(), pipeline(latents())) is None


def _mirrored(contexts):
    """The captions with states of the other sign."""
    states = contexts.rows(torch.arange(N)).encoder_hidden_states
    null = contexts.null.encoder_hidden_states
    return Contexts.of(
        Cond(encoder_hidden_states=-states), torch.arange(N + 1), Cond(encoder_hidden_states=null)
    )


# -- what is read ----------------------------------------------------------------------------------


def test_what_is_not_read_is_left_out():
    data, plain = latents(texts=True), pipeline(latents())
    read = read_by(plain, data)
    assert read.contexts is None and torch.equal(read.labels, data.labels)
    reader = pipeline(data, texts=True)
    read = read_by(reader, data)
    assert read.labels is None and read.names == () and read.contexts is data.contexts


@pytest.mark.parametrize(
    ("change", "texts", "message"),
    [
        (
            dict(scale=1.0),
            False,
            r"carry the scale 1 and the network's 0\.5: encode .* --scale 0\.5",
        ),
        ("other null", True, "texts were encoded by another encoder"),
        (dict(names=("a", "b", "c")), False, "the network has 2 classes and the data 3"),
    ],
)
def test_data_of_another_make_is_refused(change, texts, message):
    data = latents(texts=texts)
    model = pipeline(data, texts=texts)
    if change == "other null":
        other = data.contexts.null.encoder_hidden_states.flip(1)
        null = Cond(encoder_hidden_states=other)
        change = dict(contexts=replace(data.contexts, null=null))
    assert read_by(model, data) is not None
    with pytest.raises(ConfigError, match=message):
        read_by(model, replace(data, **change))


def test_a_model_of_texts_on_data_without_texts_reads_the_empty_one():
    model, data = pipeline(latents(texts=True), texts=True), latents()
    read = read_by(model, data)
    rows = torch.arange(3)
    drawn = read.training_batch(rows, Draw.all(torch.Generator().manual_seed(0), 3))
    for batch in (read.batch(rows), drawn):
        assert torch.equal(batch.cond.encoder_hidden_states, model.empty.expand(3, -1, -1))
    [note] = notes(model, read)
    assert "every sample has the empty text" in note
    assert read.to("meta").batch(torch.arange(2)).cond.encoder_hidden_states.device.type == "meta"


def test_what_may_be_right_is_told():
    data = latents()
    model = pipeline(data)
    assert list(notes(model, data)) == []
    assert list(notes(model, replace(data, codec=model.codec.digest()))) == []
    [note] = notes(model, replace(data, codec="0" * 64))
    assert "made by another codec than the network's" in note
    [note] = notes(model, replace(data, names=("b", "a")))
    assert "taken for the network's (a, b, ...), number by number" in note


@pytest.fixture
def cli(cli, tmp_path, monkeypatch):
    """Types a command in a folder of photos and a codec; what it printed."""
    return among_photos(cli, tmp_path, monkeypatch)


@pytest.mark.parametrize("texts", [pytest.param(False, marks=pytest.mark.slow), True])
def test_latents_are_distilled_gated_judged_and_reported(cli, tmp_path, texts):
    condition = "--texts" if texts else "--labels"
    encode = ["latents", "--data", "photos", "--codec", "codec", "--out", "l", "--device", "cpu"]
    if texts:
        pytest.importorskip("transformers")
        from tests.support.texts import clip

        clip(tmp_path / "clip")
        encode += ["--text", "clip", "--tokens", "5"]
    cli(*encode)
    few = ("--updates", "2", "--batch-size", "4", "--device", "cpu", "--data", "l")
    net = ("--net-config", "embed_dim", "16", "depth", "2", "num_heads", "2", "patch_size", "2")
    cli("train", "denoiser", *few, condition, "--drop-labels", "0.3", "--out", "t", *net)
    look = ("--features", "tests.support.latent_runs:pixels")
    out = cli(
        "distill", "progressive", "--teacher", "t", "--out", "d", "--start", "4", *few, *look,
        "--samples", "16", "--until", "1",
    )  # fmt: skip
    assert "decoding 12 of 12 latents" in out and "gate" in out
    student = Pipeline.load(tmp_path / "d" / "stages" / "0001-steps")
    assert student.codec.scale == 0.5 and student.sample(2).shape == (2, 1, 8, 8)
    if texts:
        assert student.empty.shape == (5, 32)
    quick = ("--samples", "16", "--baselines", "ddim", "--cost-rounds", "1", "--device", "cpu")
    out = cli("evaluate", "d", *look, *quick)
    assert "verdict" in out
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    assert {row["role"] for row in report["rows"]} == {"teacher", "baseline", "student"}
    assert report["measure"]["real"] == 12
    cli("report", "d")
    assert "</html>" in (tmp_path / "d" / "report.html").read_text()


def test_a_teacher_of_latents_is_judged_by_images_too(cli, tmp_path):
    write_latents(
        stream("photos"), KLCodec.fresh(CODEC, scale=0.5), tmp_path / "m", layout=Layout(shard=5)
    )
    assert len(open_latents("m")) == 12
    cli("latents", "--data", "photos", "--codec", "codec", "--out", "l", "--device", "cpu")
    few = ("--updates", "2", "--batch-size", "4", "--device", "cpu", "--data", "l")
    net = ("--net-config", "embed_dim", "16", "depth", "2", "num_heads", "2", "patch_size", "2")
    cli("train", "denoiser", *few, "--out", "t", *net)
    look = ("--features", "tests.support.latent_runs:pixels", "--data", "photos")
    quick = ("--samples", "16", "--baselines", "ddim", "--cost-rounds", "0", "--device", "cpu")
    cli("evaluate", "t", *look, *quick)
    assert (tmp_path / "t" / "report.html").exists()
