"""Frozen weights in half precision: the outputs under autocast are the same to the bit."""

import copy

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.models import build
from halfstep.models.half_storage import CAST, on_same_weights, store_frozen, store_weights
from halfstep.models.with_guidance import with_guidance
from tests.support.diffusers_networks import CONDITIONS, SMALL
from tests.support.pipelines import NETS, shaken

ROWS = 2
CASES = [*NETS, *SMALL]


def example(name):
    """A network away from its zeros, the shape of its samples, and a condition."""
    torch.manual_seed(1)
    if name in NETS:
        config, shape = NETS[name]
        return shaken(build(name, dict(config))), shape, None
    states, added, _ = CONDITIONS[name](ROWS)
    config = SMALL[name]
    kind = "unet-condition" if name.startswith("UNet") else name.partition("-")[0]
    net = shaken(build(kind, config))
    channels = config["in_channels"] // (4 if net.inputs.packed else 1)
    return net, (channels, 8, 8), Cond(encoder_hidden_states=states, added=added)


def outputs(net, shape, cond, dtype):
    denoiser = Denoiser(net, Cosine(), V(), autocast=dtype).freeze()
    x = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return denoiser.raw_output(x, torch.tensor([0.3, 0.7]), cond)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # Flux's norms
@pytest.mark.parametrize("name", CASES)
def test_the_outputs_are_the_same_to_the_bit(name, dtype):
    net, shape, cond = example(name)
    expected = outputs(net, shape, cond, dtype)
    store_weights(net.requires_grad_(False), dtype)
    stored = [p for layer in net.modules() if type(layer) in CAST for p in layer.parameters()]
    assert stored and {p.dtype for p in stored} == {dtype}
    assert net.input_dtype == torch.float32
    actual = outputs(net, shape, cond, dtype)  # nan where float16 overflows, as it does in Flux
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_the_guidance_embedding_too():
    net = with_guidance(shaken(build("uvit", NETS["uvit"][0])), width=8)
    shaken(net)
    cond = Cond(guidance_scale=torch.tensor([1.5, 4.0]))
    expected = outputs(net, (3, 4, 6), cond, torch.bfloat16)
    store_weights(net.requires_grad_(False), torch.bfloat16)
    assert outputs(net, (3, 4, 6), cond, torch.bfloat16).equal(expected)


class Tied(nn.Module):
    """An embedding whose weight a linear layer shares, a subclass with its own use, and float64."""

    def __init__(self):
        super().__init__()
        self.embed, self.out, self.twin = nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(4, 4)
        self.again, self.precise = self.twin, nn.Linear(4, 4).double()
        self.out.weight, self.tied = self.embed.weight, nn.Linear(4, 4)
        self.tied.weight = self.twin.weight
        self.mine = nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4)


def test_weights_that_others_share_stay():
    net = Tied()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    store_weights(net.requires_grad_(False), torch.bfloat16)
    assert net.out.weight is net.embed.weight and net.embed.weight.dtype == torch.float32
    assert net.out.bias.dtype == net.twin.weight.dtype == torch.bfloat16
    assert net.again.weight is net.twin.weight is net.tied.weight
    assert net.precise.weight.dtype == torch.float64 and net.mine.weight.dtype == torch.float32
    for name, p in net.named_parameters():
        assert p.equal(before[name].to(p.dtype))


def test_a_denoiser_that_is_trained_or_in_fp32_stays():
    net = build("mlp", NETS["mlp"][0])
    for denoiser in (
        Denoiser(net, Cosine(), V()).freeze(),
        Denoiser(copy.deepcopy(net), Cosine(), V(), autocast=torch.bfloat16)
        .train()
        .requires_grad_(True),
    ):
        store_frozen([nn.ModuleList([denoiser])])
        assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
    frozen = Denoiser(net, Cosine(), V(), autocast=torch.bfloat16).freeze()
    mine = on_same_weights(frozen)
    weight, theirs = mine.net.model.enter.weight, net.model.enter.weight
    assert weight is not theirs and weight.data_ptr() == theirs.data_ptr()
    store_frozen([nn.ModuleList([mine])])
    assert mine.net.model.enter.weight.dtype == torch.bfloat16
    assert net.model.enter.weight.dtype == torch.float32 and not hasattr(net, "input_dtype")
