"""A run in half precision stores its teacher so, and changes no bit of what it computes or was given."""

import copy

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.methods import GuidedDistillation, Progressive
from halfstep.models import build
from halfstep.models.gradient_checkpointing import checkpointing
from halfstep.models.half_storage import CAST
from halfstep.models.lora import LoraBase, LoraNet
from halfstep.models.offload import offload
from halfstep.models.with_guidance import with_guidance
from halfstep.training import distill, RunOptions, trainable, TrainingConfig
from halfstep.workflows.live_bytes import LiveBytes
from tests.support.diffusers_networks import CONDITIONS, SMALL
from tests.support.pipelines import pipeline
from tests.support.runs import bits, points

BF16 = TrainingConfig(batch_size=6, learning_rate=3e-3, save_every=3, seed=5, precision="bf16")


def halved(teacher, out, training=BF16, method=None, **job):
    return distill(
        teacher, points_of(teacher), out, training=training,
        method=method or Progressive(start=4, stop=1, updates=(2,)),
        job=RunOptions(device="cpu", **job),
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
    student = halved(teacher, tmp_path / "stored", gate=keep)
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


FP32 = TrainingConfig(batch_size=6, learning_rate=3e-3, save_every=3, seed=5)


def recomputes(net):
    return any(getattr(part, "gradient_checkpointing", False) for part in net.modules())


@pytest.mark.parametrize("name", ["uvit", "unet", "dit"])
def test_gradient_checkpointing_changes_no_bit(name, tmp_path):
    teacher, during = pipeline(name), []
    frozen = next(iter(dict(teacher.denoiser.net.named_parameters())))
    teacher.denoiser.requires_grad_(True)
    dict(teacher.denoiser.net.named_parameters())[frozen].requires_grad_(False)

    def look(student):
        during.append(recomputes(student.denoiser))
        return True

    plain = halved(copy.deepcopy(teacher), tmp_path / "plain", FP32)
    student = halved(teacher, tmp_path / "less", FP32, gradient_checkpointing=True, gate=look)
    assert bits(tmp_path / "less") == bits(tmp_path / "plain")
    assert during == [True, True]
    for each in (plain, student, teacher):
        assert not recomputes(each.denoiser)
        assert not dict(each.denoiser.net.named_parameters())[frozen].requires_grad


def test_gradient_checkpointing_changes_no_bit_of_a_guided_run(tmp_path):
    teacher = pipeline("uvit", class_names=("a", "b"), null=2)
    method = GuidedDistillation(updates=2, halving=None)
    labels = torch.tensor([0, 1] * 6)
    data = type(points())(points_of(teacher).values, labels, ("a", "b"))
    for name, on in (("plain", False), ("less", True)):
        job = RunOptions(device="cpu", gradient_checkpointing=on)
        distill(teacher, data, tmp_path / name, method=method, training=FP32, job=job)
    assert bits(tmp_path / "less") == bits(tmp_path / "plain")


def test_gradient_checkpointing_takes_less():
    net = build("uvit", {"img_size": 8, "in_chans": 1, "patch_size": 2, "embed_dim": 32, "depth": 8,
                         "num_heads": 4})  # fmt: skip
    denoiser, peaks, gradients = Denoiser(net, Cosine(), V()), [], []
    for on in (False, True):
        x = torch.ones(16, 1, 8, 8)
        with LiveBytes(free=denoiser.parameters()) as live:
            if on:
                with checkpointing(denoiser):
                    denoiser(x, torch.full((16,), 0.5)).x0.square().mean().backward()
            else:
                denoiser(x, torch.full((16,), 0.5)).x0.square().mean().backward()
        peaks.append(live.peak)
        gradients.append([p.grad for p in denoiser.parameters() if p.grad is not None])
        denoiser.zero_grad()
    assert peaks[1] < peaks[0] / 2
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_every_network_of_diffusers_can_be_checkpointed(name):
    """The same gradients; refused where the guidance scale would be lost in the recomputation."""
    config, kind = (
        SMALL[name],
        "unet-condition" if name.startswith("UNet") else name.partition("-")[0],
    )
    denoiser = Denoiser(build(kind, config), Cosine(), V())
    torch.manual_seed(0)
    states, added, _ = CONDITIONS[name](2)
    channels = config["in_channels"] // (4 if denoiser.net.inputs.packed else 1)
    x, cond = torch.randn(2, channels, 8, 8), Cond(encoder_hidden_states=states, added=added)
    gradients = []
    for on in (False, True):
        with checkpointing(denoiser) if on else torch.enable_grad():
            denoiser.raw_output(x, torch.full((2,), 0.5), cond).square().mean().backward()
        gradients.append({n: p.grad for n, p in denoiser.named_parameters() if p.grad is not None})
        denoiser.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    assert all(gradients[1][n].equal(g) for n, g in gradients[0].items())


def test_gradient_checkpointing_is_refused_before_there_is_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="no blocks that gradient checkpointing could recompute"):
        halved(pipeline("mlp"), tmp_path / "r", FP32, gradient_checkpointing=True)
    assert not (tmp_path / "r").exists()
    dit = with_guidance(pipeline("dit").denoiser.net, width=8)
    with pytest.raises(ConfigError, match="no input for the guidance scale"):
        checkpointing(Denoiser(dit, Cosine(), V())).__enter__()


@pytest.mark.parametrize("name", ["uvit", "unet", "dit"])
def test_an_offloaded_teacher_answers_the_same(name, monkeypatch):
    """The mechanism with the CPU as the device; its layers are brought and taken away one by one."""
    from diffusers.hooks import group_offloading

    moves = []
    for what in ("onload_", "offload_"):
        real = getattr(group_offloading.ModuleGroup, what)
        monkeypatch.setattr(
            group_offloading.ModuleGroup,
            what,
            lambda group, real=real, what=what: moves.append(what) or real(group),
        )
    denoiser = pipeline(name).denoiser
    x, t = torch.randn(2, *pipeline(name).shape), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        expected = denoiser.raw_output(x, t)
        offload([nn.ModuleList([denoiser])], torch.device("cpu"))
        before = len(moves)
        assert denoiser.raw_output(x, t).equal(expected)
    layers = sum(isinstance(m, nn.Linear | nn.Conv2d) for m in denoiser.net.modules())
    during = moves[before:]
    assert during.count("onload_") >= layers and during.count("offload_") >= layers


def test_offload_is_refused_where_it_saves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="this run is on the CPU"):
        halved(pipeline(), tmp_path / "r", FP32, offload=True)
    assert not (tmp_path / "r").exists()
    lora = Denoiser(LoraNet(LoraBase(pipeline().denoiser.net, 2)), Cosine(), V())
    with pytest.raises(ConfigError, match="with the adapter off"):
        offload([nn.ModuleList([lora])], torch.device("cpu"))
