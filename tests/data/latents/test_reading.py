"""Reading of latents: random draws, means, shards, captions and fingerprints."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from halfstep.batch import Cond
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.shards import Shards
from halfstep.rng import Draw
from tests.support.denoisers import seeded
from tests.support.latents import (
    caption_texts,
    captions,
    encoded,
    moments_of,
    some_images,
    TinyCodec,
    TinyTexts,
)


def test_a_draw_is_fresh_and_of_image_or_mirror_image(tmp_path):
    """(mean + exp(log-variance / 2) eps) scale, of the mirror image where the draw is below 1/2."""
    images = some_images()
    encoded(tmp_path / "l", images)
    latents, exact = open_latents(tmp_path / "l"), moments_of(images)
    rows = torch.tensor([10, 3, 3, 0, 7, 9, 1])
    generator = seeded(5)
    for _ in range(3):  # the state of the generator goes on: each read has its own chance
        copy = torch.Generator()
        copy.set_state(generator.get_state())
        x0 = latents.training_batch(rows, Draw.all(generator, 7)).x0
        mirrored = torch.rand(7, generator=copy, dtype=torch.float64) < 0.5
        noise = torch.randn(7, 3, 2, 3, generator=copy)
        mean, logvar = exact[rows, mirrored.long()].chunk(2, dim=1)
        assert 0 < mirrored.sum() < 7
        torch.testing.assert_close(x0, (mean + (logvar / 2).exp() * noise) * 0.7, rtol=0, atol=1e-6)


def test_slices_of_a_batch_draw_what_the_whole_draws(tmp_path):
    encoded(tmp_path / "l", captions=captions())
    latents, rows = open_latents(tmp_path / "l"), torch.tensor([10, 3, 3, 0, 7])
    whole = latents.training_batch(rows, Draw.all(seeded(2), 5))
    for part in (slice(0, 2), slice(2, 5)):
        some = latents.training_batch(rows[part], Draw(seeded(2), 5, part))
        assert torch.equal(some.x0, whole.x0[part])
        assert torch.equal(some.cond.label, whole.cond.label[part])
        assert torch.equal(some.cond.encoder_hidden_states, whole.cond.encoder_hidden_states[part])


def test_extreme_log_variances_are_clamped(tmp_path):
    class Extreme(TinyCodec):
        def moments(self, images):
            mean = images[:, :, ::2, ::2]
            return torch.cat([mean, 100 * mean.sign()], 1)

    encoded(tmp_path / "l", codec=Extreme(scale=0.1))
    latents = open_latents(tmp_path / "l")
    x0 = latents.training_batch(torch.arange(11), Draw.all(seeded(), 11)).x0
    assert 1e3 < x0.abs().max() < np.exp(10) * 5 * 0.1


def test_a_batch_is_without_chance(tmp_path):
    encoded(tmp_path / "l")
    latents, rows = open_latents(tmp_path / "l"), torch.tensor([9, 9, 0])
    expected = moments_of(some_images())[rows, 0, :3] * 0.7
    torch.testing.assert_close(latents.batch(rows).x0, expected, rtol=0, atol=1e-6)
    latents.batch(rows).x0.zero_()  # a batch is a copy
    latents.moments.parts[0].zero_()  # and so is what is mapped: nothing reaches the files
    torch.testing.assert_close(
        open_latents(tmp_path / "l").batch(rows).x0, expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("lengths", [(7,), (3, 3, 1), (1, 4, 2)])
def test_rows_across_shards(lengths):
    values = torch.randn(7, 2, 3, generator=seeded())
    shards = Shards(values.split(lengths))
    assert len(shards) == 7 and shards.shape == (2, 3) and shards.nbytes == 7 * 6 * 4
    for rows in ([6, 0, 3, 3, 2, 5], [4], [1, 1, 1], []):
        rows = torch.tensor(rows, dtype=torch.int64)
        assert torch.equal(shards.rows(rows), values[rows])
    assert shards.to("cpu") is shards
    assert shards.to("meta").parts[0].shape == (7, 2, 3)


def test_moving_keeps_everything(tmp_path):
    encoded(tmp_path / "l", captions=captions())
    latents = open_latents(tmp_path / "l")
    moved = latents.to("meta")
    assert (len(moved), moved.shape, moved.names) == (11, (3, 2, 3), latents.names)
    assert moved.contexts.offsets.device.type == moved.labels.device.type == "meta"
    digest = TinyCodec().digest()
    assert latents.codec == moved.codec == replace(latents, labels=None).codec == digest
    encoded(tmp_path / "other", codec=TinyCodec(seed=1))
    assert open_latents(tmp_path / "other").codec == TinyCodec(seed=1).digest() != digest
    same = latents.to("cpu")
    assert same.moments is latents.moments and same.fingerprint() == latents.fingerprint()


def test_fingerprint_sees_what_is_read(tmp_path):
    encoded(tmp_path / "a")
    encoded(tmp_path / "same")
    encoded(tmp_path / "codec", codec=TinyCodec(seed=1))
    encoded(tmp_path / "scale", codec=TinyCodec(scale=0.8))
    encoded(tmp_path / "images", some_images(10))
    encoded(tmp_path / "texts", captions=captions())
    a = open_latents(tmp_path / "a")
    assert a.fingerprint() == open_latents(tmp_path / "same").fingerprint()
    assert len(a.fingerprint()) == 64
    assert a.fingerprint() == open_latents(tmp_path / "a", verify=False).fingerprint()
    assert a.fingerprint() == replace(a, names=("A", "B", "C")).fingerprint()
    texts = open_latents(tmp_path / "texts")
    others = [open_latents(tmp_path / name) for name in ("codec", "scale", "images")]
    others += [a, texts, replace(texts, contexts=None), replace(a, labels=None, names=())]
    assert len({data.fingerprint() for data in others}) == 7


def test_one_of_several_captions_is_read(tmp_path):
    encoded(tmp_path / "l", captions=captions(), batch=2)
    latents, texts = open_latents(tmp_path / "l"), caption_texts()
    states = {text: TinyTexts().encode([text])[0] for texts in texts for text in texts}
    first = latents.batch(torch.tensor([8, 0, 10])).cond
    assert isinstance(first, Cond) and first.encoder_hidden_states.dtype == torch.float32
    expected = torch.stack([states[texts[k][0]] for k in (8, 0, 10)])
    torch.testing.assert_close(first.encoder_hidden_states, expected, rtol=0, atol=2e-3)
    null = latents.null_context.encoder_hidden_states
    torch.testing.assert_close(null, TinyTexts().encode([""]), rtol=0, atol=2e-3)
    assert null.shape == (1, 5, 4) and null.dtype == torch.float32

    rows, drawn_captions = torch.tensor([8] * 30 + [0, 4]), set()
    states_drawn = latents.training_batch(rows, Draw.all(seeded(1), 32)).cond.encoder_hidden_states
    for row, state in zip(rows.tolist(), states_drawn, strict=True):
        near = [t for t in texts[row] if (state - states[t]).abs().max() < 2e-3]
        assert len(near) == 1
        drawn_captions.add(near[0])
    assert set(texts[8]) <= drawn_captions and len(texts[8]) == 3


def test_captions_are_drawn_evenly_and_last(tmp_path):
    """With texts, latents are those that are drawn without."""
    encoded(tmp_path / "with", captions=captions())
    encoded(tmp_path / "without")
    latents, textless = open_latents(tmp_path / "with"), open_latents(tmp_path / "without")
    rows = torch.full((3000,), 8)
    drawn = latents.training_batch(rows, Draw.all(seeded(), 3000))
    assert torch.equal(drawn.x0, textless.training_batch(rows, Draw.all(seeded(), 3000)).x0)
    counts = drawn.cond.encoder_hidden_states[:, 0, 0].unique(return_counts=True)[1]
    assert len(counts) == 3 and (counts - 1000).abs().max() < 120
    assert textless.null_context is None and textless.contexts is None


def test_an_image_without_captions_has_the_empty_text(tmp_path):
    texts = [(), *caption_texts()[1:]]
    encoded(tmp_path / "l", captions=captions(texts))
    latents = open_latents(tmp_path / "l")
    cond = latents.batch(torch.tensor([0, 1])).cond
    null = latents.null_context.encoder_hidden_states[0]
    assert torch.equal(cond.encoder_hidden_states[0], null)
    assert not torch.equal(cond.encoder_hidden_states[1], null)


@pytest.mark.slow
def test_reading_is_held_to_twenty_times_what_a_step_needs(capsys):
    from benchmarks.latents import main

    options = [
        "--images",
        "96",
        "--shard",
        "20",
        "--batch-size",
        "6",
        "--rounds",
        "1",
        "--device",
        "cpu",
    ]
    for more in ([], ["--half"]):
        main([*options, *more, "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["shards"] == 5 and result["held_to"] == 20
        assert result["ratio"] == pytest.approx(result["read"] / result["needed"])
        assert result["ratio"] > 20
    main(options)
    assert "held to 20" in capsys.readouterr().out
