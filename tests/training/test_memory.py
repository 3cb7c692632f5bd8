"""A run in half precision stores its teacher so, and changes no bit of what it computes or was given."""

import copy

import torch

from halfstep.methods import Progressive
from halfstep.models.half_storage import CAST
from halfstep.training import distill, RunOptions, trainable, TrainingConfig
from tests.support.pipelines import pipeline
from tests.support.runs import points

BF16 = TrainingConfig(batch_size=6, learning_rate=3e-3, save_every=3, seed=5, precision="bf16")


def halved(teacher, out, gate=None):
    return distill(
        teacher, points_of(teacher), out, method=Progressive(start=4, stop=1, updates=(2,)),
        training=BF16, job=RunOptions(device="cpu", gate=gate),
    )  # fmt: skip


def points_of(teacher):
    """Samples of the teacher's shape."""
    values = torch.rand(12, *teacher.shape, generator=torch.Generator().manual_seed(1))
    return type(points())(2 * values - 1)


def dtypes(net):
    return {p.dtype for layer in net.modules() if type(layer) in CAST for p in layer.parameters()}


def test_a_teacher_stored_in_half_precision_changes_no_bit(tmp_path, monkeypatch):
    teacher, kept, stored = pipeline(), [], []
    teacher.denoiser.requires_grad_(True)
    before = copy.deepcopy(teacher.denoiser.state_dict())

    def keep(student):
        kept.append((student, copy.deepcopy(student.denoiser.state_dict())))
        return True

    real = trainable.store_frozen

    def watched(networks):
        real(networks)
        stored.extend(dtypes(network) for network in networks)

    monkeypatch.setattr(trainable, "store_frozen", watched)
    student = halved(teacher, tmp_path / "stored", keep)
    assert stored == [{torch.bfloat16}] * 2  # the given teacher, then the first student
    assert dtypes(student.denoiser) == dtypes(teacher.denoiser) == {torch.float32}
    assert not hasattr(teacher.denoiser.net, "input_dtype")
    assert all(p.requires_grad for p in teacher.denoiser.parameters())
    assert all(teacher.denoiser.state_dict()[name].equal(v) for name, v in before.items())
    for each, weights in kept:  # a student that a gate kept stays what it was
        assert all(each.denoiser.state_dict()[name].equal(v) for name, v in weights.items())
    monkeypatch.setattr(trainable, "store_frozen", lambda networks: None)
    plain = halved(copy.deepcopy(teacher), tmp_path / "plain")
    for name, value in plain.denoiser.state_dict().items():
        assert student.denoiser.state_dict()[name].equal(value), name
