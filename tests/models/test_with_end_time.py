"""A network that is told where its step ends: it starts as the one before, and then reads the end."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.errors import ConfigError
from halfstep.models import build, recipe
from halfstep.models.lora import LoraBase, LoraNet
from halfstep.models.with_end_time import with_end_time
from halfstep.models.with_guidance import with_guidance
from halfstep.pipeline import Pipeline
from tests.models.test_diffusers_net import channels, condition, net_name
from tests.support.diffusers_networks import SMALL
from tests.support.networks import data, ROWS, TINY, tiny

OURS = list(TINY)


def noisy(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return module.eval()


def given(cond, **named):
    return replace(cond or Cond(), **named)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("classes", [None, 3])
@torch.no_grad()
def test_it_starts_as_the_network_and_reads_the_end_from_then_on(name, classes):
    net, batch, t = noisy(tiny(name, classes)), data(name, classes), torch.linspace(100, 900, ROWS)
    told = with_end_time(net, width=8)
    ends = torch.tensor([0.0, 50.0, 100.0, 300.0])
    assert torch.equal(
        told(batch.x0, t, given(batch.cond, t_end=ends)), net(batch.x0, t, batch.cond)
    )
    noisy(told)
    one = told(batch.x0, t, given(batch.cond, t_end=ends))
    other = told(batch.x0, t, given(batch.cond, t_end=ends + torch.tensor([0.0, 0, 0, 100])))
    assert torch.allclose(one[:3], other[:3], atol=1e-6)
    assert (one[3] - other[3]).abs().max() > 1e-5
    with pytest.raises(ConfigError, match="told where its step ends"):
        told(batch.x0, t, batch.cond)
    with pytest.raises(ConfigError, match="reads no t_end"):
        net(batch.x0, t, given(batch.cond, t_end=ends))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_so_does_every_network_of_diffusers(name):
    net = noisy(build(net_name(name), SMALL[name]))
    (cond, _), t = condition(name), torch.tensor([0.3, 0.7])
    x = torch.randn(2, channels(name), 8, 8)
    told = with_end_time(net, width=8).eval()
    ends = torch.tensor([0.1, 0.2])
    assert torch.equal(told(x, t, given(cond, t_end=ends)), net(x, t, cond))
    noisy(told)
    one = told(x, t, given(cond, t_end=ends))
    other = told(x, t, given(cond, t_end=ends + torch.tensor([0.0, 0.4])))
    assert torch.allclose(one[0], other[0], atol=1e-6) and (one[1] - other[1]).abs().max() > 1e-6


@pytest.mark.parametrize("first", [with_guidance, with_end_time])
@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_scale_and_end_are_both_inputs_in_either_order(name, first):
    net, batch, t = noisy(tiny(name, 3)), data(name, 3), torch.full((ROWS,), 500.0)
    second = with_end_time if first is with_guidance else with_guidance
    both = second(first(net, width=8), width=8)
    cond = given(batch.cond, guidance_scale=torch.full((ROWS,), 2.0), t_end=t / 2)
    assert torch.equal(both(batch.x0, t, cond), net(batch.x0, t, batch.cond))
    noisy(both)
    base = both(batch.x0, t, cond)
    for changed in ({"guidance_scale": cond.guidance_scale + 1}, {"t_end": t / 3}):
        assert (both(batch.x0, t, replace(cond, **changed)) - base).abs().max() > 1e-5


@pytest.mark.parametrize("name", OURS)
def test_it_is_rebuilt_from_its_recipe_and_saved(name, tmp_path):
    told = noisy(with_end_time(tiny(name, 3), width=8))
    assert recipe(told)[1]["t_end_embed_dim"] == 8
    again = build(*recipe(told))
    again.load_state_dict(told.state_dict())
    shape = (2,) if name == "mlp" else (3, 8, 8)
    fine = (1.0, 0.5, 0.0)
    pipeline = Pipeline(
        Denoiser(told, Cosine(), V()), shape, class_names=("a", "b", "c"), times=(fine, fine[::2]),
        fine_times=fine, sampler="flow-map",
    )  # fmt: skip
    if name == "unet-condition":
        pipeline = replace(pipeline, empty=torch.zeros(7, 12))
    pipeline.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    assert loaded.sampler == "flow-map" and loaded.fine_times == fine
    assert torch.equal(loaded.sample(2, steps=2), pipeline.sample(2, steps=2))
    assert (loaded.sample(2, steps=2) - loaded.sample(2, steps=1)).abs().max() > 1e-4


def test_its_gradient_reaches_the_new_layers():
    told = with_end_time(tiny("uvit", None), width=8).train()
    told(
        torch.randn(2, 3, 8, 8), torch.full((2,), 500.0), Cond(t_end=torch.ones(2))
    ).sum().backward()
    assert told.model.t_end_embed.leave.weight.grad.abs().max() > 0


def test_a_dit_is_not_checkpointed_with_a_time_in_its_blocks():
    told = with_end_time(tiny("dit", None), width=8)
    told.model.enable_gradient_checkpointing()
    with pytest.raises(ConfigError, match="checkpointing"):
        told.train()(torch.randn(2, 3, 8, 8), torch.ones(2), Cond(t_end=torch.ones(2)))


def test_what_cannot_be_extended_is_refused():
    told = with_end_time(tiny("mlp", None), width=8)
    with pytest.raises(ConfigError, match="already"):
        with_end_time(told)
    with pytest.raises(ConfigError, match="leave lora out"):
        base = LoraBase(tiny("uvit", None), 2)
        with_end_time(LoraNet(base, base.add()))
    for width in (0, 3, 5, 2**17):
        with pytest.raises(ConfigError, match="even number"):
            with_end_time(tiny("mlp", None), width=width)
    with pytest.raises(ConfigError, match="not made by"):
        with_end_time(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="t_end_embed_dim"):
        with_end_time(build("tests.models.test_with_end_time:plain", {"t_end_embed_dim": 0}))


def plain(t_end_embed_dim=0):
    """A network of a user that adds layers and does not say what it reads."""
    net = nn.Module()
    net.first = nn.Linear(2, 2)
    if t_end_embed_dim:
        net.end = nn.Linear(2, 2)
    return net


# The denoiser's part: the network's own unit of time.


class Recorder(nn.Module):
    """Keeps the time and the condition of its last call."""

    reads = ("t_end",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, cond=None):
        self.t, self.cond = t, cond
        return torch.zeros_like(x)


SCHEDULES = [Cosine(), RectifiedFlow(), VPLinear(), Karras(), BetaTable()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "time, at_half, at_data",
    [
        (NetTime(), lambda level: 500.0, 0.0),
        (NetTime(scale=1000.0, offset=-1.0), lambda level: 499.0, -1.0),
        (NetTime(of="sigma", scale=2.0), lambda level: 2 * level.sigma, 0.0),
        (NetTime(of="logsnr", scale=0.5), lambda level: 0.5 * level.logsnr, 10.0),
    ],
)
def test_the_end_is_in_the_networks_unit_also_at_data(schedule, time, at_half, at_data):
    denoiser = Denoiser(Recorder(), schedule, V(), time=time)
    x, t = torch.zeros(2, 3), torch.tensor([0.75, 0.75], dtype=torch.float64)
    denoiser(x, t, Cond(t_end=torch.tensor([0.5, 0.0], dtype=torch.float64)))
    level = schedule.at(torch.tensor(0.5, dtype=torch.float64))
    expected = torch.tensor([float(at_half(level)), at_data])
    assert denoiser.net.cond.t_end.dtype == torch.float32
    assert torch.allclose(denoiser.net.cond.t_end, expected, rtol=1e-6)


def test_one_end_a_sample():
    denoiser = Denoiser(Recorder(), Cosine(), V())
    with pytest.raises(ConfigError, match=r"expected shape \[2\]"):
        denoiser(torch.zeros(2, 3), torch.ones(2), Cond(t_end=torch.zeros(1)))


def test_the_end_stays_in_the_unconditional_branch():
    ends = torch.tensor([0.25, 0.5])
    cond = Cond(torch.tensor([0, 1]), t_end=ends)
    assert torch.equal(cond.dropped(2).t_end, ends)
    assert torch.equal(cond.cat(cond.dropped(2)).t_end, ends.repeat(2))
    assert torch.equal(cond.dropped(Cond(torch.tensor([2]), t_end=torch.ones(1))).t_end, ends)
    assert torch.equal(cond[torch.tensor([1])].t_end, ends[1:])
