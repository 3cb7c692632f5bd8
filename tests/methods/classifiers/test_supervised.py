"""Training a classifier: the loss by hand, per sample, and its refusal."""

import pytest
import torch
from torch import nn

from halfstep.batch import Batch, Cond
from halfstep.errors import DataError
from halfstep.methods.classifiers.supervised import Classification, Classify
from halfstep.rng import Draw
from tests.support.denoisers import seeded


def test_the_loss_is_each_samples_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    x, label = torch.randn(5, 1, 2, 3, generator=seeded()), torch.tensor([0, 3, 1, 1, 2])
    loss = Classify()(net, Batch(x, Cond(label)), Draw.all(seeded(), 5))
    logits = net(x)
    by_hand = logits.exp().sum(1).log() - logits[torch.arange(5), label]
    torch.testing.assert_close(loss, by_hand)


def test_one_stage():
    net = nn.Linear(1, 1)
    [stage] = Classification(updates=7).stages(net)
    assert (stage.name, stage.student, stage.updates, stage.times) == ("classifier", net, 7, ())
    assert stage.objective.forwards == 3


@pytest.mark.parametrize("cond", [None, Cond()])
def test_data_without_labels_is_refused(cond):
    with pytest.raises(DataError, match="needs labels"):
        Classify()(nn.Identity(), Batch(torch.zeros(2, 3), cond), Draw.all(seeded(), 2))
