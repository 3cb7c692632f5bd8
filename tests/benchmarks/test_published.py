"""The published presets are started on data that fit them."""

import sys

import pytest
import torch

from benchmarks import published
from benchmarks.published import CAPTION, make_data, options_of, WITHOUT_LABELS
from halfstep.data import load
from halfstep.hub.uvit import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_made_data_are_what_the_preset_takes(name, tmp_path):
    options = options_of(name, data="made", out=tmp_path / "run")
    where, source = make_data(name, options, tmp_path), options.dataset
    data = load(str(where), size=source.size, channels=source.channels, flip=source.flip)
    n = PUBLISHED[name].num_classes or WITHOUT_LABELS
    assert (len(data), data.shape) == (n, PUBLISHED[name].shape)
    batch = data.batch(torch.tensor([0, n - 1]))
    if options.network.labels:
        assert batch.cond.label.tolist() == [0, n - 1]
    if options.network.texts:
        assert batch.cond.encoder_hidden_states.shape == (2, *CAPTION)


@pytest.mark.slow
def test_the_smallest_is_started(capsys, monkeypatch):
    words = ["benchmarks.published", "cifar10_uvit_small", "--updates", "2", "--samples", "1"]
    monkeypatch.setattr(sys, "argv", words)
    assert published.main() == 0
    out = capsys.readouterr().out
    assert "128 samples at a time" in out and "started   2 updates of 1 samples: loss" in out
