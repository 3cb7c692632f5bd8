"""A LoRA is its base until it is trained, is trained alone, and leaves its base when it is not needed."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from halfstep import build, Denoiser
from halfstep.diffusion.denoiser import not_trained
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.models.lora import adaptable, LoraBase, LoraNet, merge, plain_denoiser, product
from halfstep.models.rebuild import refuse_changed_net
from halfstep.models.with_guidance import with_guidance
from tests.support.lora import lively, without_adapter
from tests.support.networks import data, TINY, tiny
from tests.support.pipelines import shaken

T = torch.tensor([0.2, 0.5, 0.7, 0.9])


def outputs(denoiser, name="mlp"):
    torch.manual_seed(1)
    batch = data(name, 0)
    with torch.no_grad():
        return denoiser(batch.x0, T, batch.cond).x0


def teacher(name="mlp"):
    return Denoiser(shaken(tiny(name, 0)), Cosine(), V()).freeze()


@pytest.mark.parametrize("name", TINY)
def test_without_an_adapter_and_with_a_fresh_one_it_is_the_base_to_the_bit(name):
    given = teacher(name)
    expected = outputs(given, name)
    off = without_adapter(given)
    fresh = off.trainable_copy()
    trained = lively(off.trainable_copy())
    assert torch.equal(outputs(off, name), expected) and torch.equal(outputs(fresh, name), expected)
    assert not torch.allclose(outputs(trained, name), expected)
    assert torch.equal(outputs(off, name), expected) and torch.equal(outputs(given, name), expected)
    again = trained.trainable_copy()
    assert torch.equal(outputs(again, name), outputs(trained, name))
    torch.testing.assert_close(
        outputs(plain_denoiser(trained), name), outputs(trained, name), rtol=1e-4, atol=1e-5
    )
    refuse_changed_net(given.net), refuse_changed_net(plain_denoiser(trained).net)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(5, 4, dtype=torch.float64)

    def forward(self, x, t=None, cond=None):
        return self.line(x)


def test_full_rank_reaches_the_least_squares_minimum_of_full_training():
    """The rank is larger than both sides; the bias, which an adapter has not, is zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    net = Line()
    with torch.no_grad():
        net.line.bias.zero_()
    best = (x @ torch.linalg.lstsq(x, y).solution - y).square().mean()
    base = LoraBase(net, 100)
    student = LoraNet(base, base.add())
    assert [p.shape for p in student.parameters()] == [(4, 5), (4, 4)]
    optimiser = torch.optim.LBFGS(student.parameters(), max_iter=500, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=1e-16)  # fmt: skip

    def loss():
        optimiser.zero_grad()
        value = (student(x, T) - y).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        before = (net(x) - y).square().mean()
    assert abs(loss().item() - best) < 1e-6 < before - best


@pytest.mark.parametrize("layer, name", [
    (nn.Conv2d(3, 6, 3, stride=2, padding=1), "convolution"),
    (nn.Conv2d(3, 6, (1, 3), padding="same", bias=False), "flat"),
    (nn.Linear(4, 7), "linear"),
])  # fmt: skip
def test_a_merged_weight_computes_what_the_layers_do(layer, name):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(layer.double())

        def forward(self, x, t=None, cond=None):
            return self.inner(x)

    base = LoraBase(One(), 2)
    student = lively(Denoiser(LoraNet(base, base.add()), Cosine(), V())).net
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(student.merged()(x), student(x, T), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(student(x, T), layer(x))


def test_a_product_is_summed_in_float64():
    a, b = torch.tensor([[1.0], [1e-8]]), torch.tensor([[1.0, 1.0]])
    assert product(a, b).item() == 1 + float(torch.tensor(1e-8)) and product(a, b).shape == (1, 1)
    with pytest.raises(ConfigError, match="layer 'line'"):
        merge(
            Line(),
            {"line.lora_A.weight": torch.ones(2, 4), "line.lora_B.weight": torch.ones(4, 2)},
            "it",
        )


class Odd(nn.Module):
    """Layers that adapters are not for, and one that they are."""

    def __init__(self):
        super().__init__()
        self.good, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.tied, self.embed, self.twice = nn.Linear(4, 4), nn.Embedding(4, 4), nn.Linear(4, 4)
        self.tied.weight, self.again = self.embed.weight, self.twice
        self.attention = nn.MultiheadAttention(4, 2)
        self.fast = nn.TransformerEncoderLayer(4, 2, 8)
        self.deep, self.wide = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, dilation=2)
        self.ring = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")


def test_layers_that_adding_to_the_weight_would_change_otherwise_have_no_adapter():
    net = Odd()
    assert list(adaptable(net, not_trained(net))) == ["good"]
    with pytest.raises(ConfigError, match="has none that are trained"):
        LoraBase(net.requires_grad_(False), 4)
    with pytest.raises(ConfigError, match="has none that are trained"):
        LoraBase(nn.Sequential(nn.LayerNorm(4)), 4)


def test_names_that_end_alike_are_told_apart():
    """'out' is a layer, and so is its namesake in a block; the third is a norm, which peft would refuse."""
    net = nn.ModuleDict({
        "out": nn.Linear(4, 2), "a": nn.ModuleDict({"out": nn.Linear(4, 4)}),
        "b": nn.ModuleDict({"out": nn.LayerNorm(4)}),
    })  # fmt: skip
    base = LoraBase(net, 3)
    name = base.add()
    ranks = {path: base.net.get_submodule(path).r[name] for path in base.paths}
    assert ranks == {"out": 2, "a.out": 3}


def test_only_the_adapter_is_a_parameter_and_it_alone_learns():
    given = teacher()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    off = without_adapter(given)
    student = off.trainable_copy()
    assert not list(off.parameters()) and all(".lora_" in name for name in student.state_dict())
    optimiser = torch.optim.AdamW(student.parameters(), 0.1, weight_decay=0.1)
    batch = data("mlp", 0)
    for _ in range(3):
        student(batch.x0, T).x0.square().sum().backward()
        optimiser.step(), optimiser.zero_grad()
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert not any(p.grad is not None for p in given.parameters())
    assert not torch.equal(outputs(student), outputs(off))


def test_the_base_stays_in_eval_mode():
    net = build("tests.support.runs:Forgetful", {"width": 8})
    off = Denoiser(LoraNet(LoraBase(net, 2)), Cosine(), V())
    assert not off.net.base.net.training and off.net.recipe == net.recipe
    student = off.trainable_copy()
    student.train()
    mean = net.norm.running_mean.clone()
    x = torch.randn(4, 3)
    assert torch.equal(student(x, T).x0, student(x, T).x0)
    assert torch.equal(net.norm.running_mean, mean) and student.net.base.net.training is False


def test_the_weights_are_there_once_and_an_adapter_leaves_with_its_student():
    given = teacher()
    off = without_adapter(given)
    student = off.trainable_copy()
    theirs = {p.data_ptr() for p in given.parameters()}
    assert {p.data_ptr() for p in student.net.base.weights} == theirs
    layer = student.net.base.net.model.enter
    second = student.trainable_copy()
    assert set(layer.lora_A) == {"0", "1"}
    del student
    gc.collect()
    outputs(second)
    assert set(layer.lora_A) == {"1"}
    assert second.trainable_copy().net._name == "0"  # the name is free again


def test_a_recomputed_layer_has_the_adapter_that_is_trained():
    """Gradient checkpointing runs the layers again in the backward, after the teacher's forward."""
    given = teacher()
    off = without_adapter(given)
    student = lively(off.trainable_copy())
    x = data("mlp", 0).x0

    def gradients(recompute):
        block = student.net.base.net.model.blocks[0]
        plain = block.forward
        if recompute:
            block.forward = lambda *args: checkpoint(plain, *args, use_reentrant=False)
        loss = student(x, T).x0.square().sum()
        with torch.no_grad():
            off(x, T), lively(off.trainable_copy(), seed=1)(x, T)
        loss.backward()
        found = [p.grad.clone() for p in student.parameters()]
        student.zero_grad()
        block.__dict__.pop("forward", None)
        return found

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(a, b)


def test_it_moves_and_is_cast_with_its_base():
    student = without_adapter(teacher()).trainable_copy().to("meta")
    weights = [*student.net.base.weights, *student.parameters()]
    assert {p.device.type for p in weights} == {"meta"}


def test_the_first_values_depend_on_the_layer_alone():
    def values():
        torch.rand(torch.randint(5, ()))
        return without_adapter(teacher()).trainable_copy().state_dict()

    a, b = values(), values()
    assert all(torch.equal(a[name], b[name]) for name in a)
    first = a["net.adapter.model.enter.lora_A.weight"]
    assert first.abs().max() <= first.shape[1] ** -0.5 < 1.2 * first.abs().max()
    drawn = [v.flatten()[0].item() for name, v in a.items() if "lora_A" in name]
    assert len(set(drawn)) == len(drawn)


def test_it_holds_one_guidance_scale_and_ignores_the_condition_of_it():
    from halfstep.batch import Cond

    student = without_adapter(teacher()).trainable_copy()
    assert with_guidance(student.net) is student.net
    x = data("mlp", 0).x0
    scaled = student(x, T, Cond(guidance_scale=torch.full((4,), 5.0))).x0
    assert torch.equal(scaled, student(x, T).x0)
    assert student.trainable_copy().net.holds_scale


def test_an_int8_network_is_refused():
    net = nn.Sequential(nn.Linear(4, 4))
    net.quantised = {"kind": "int8-dynamic"}
    with pytest.raises(ConfigError, match="int8"):
        LoraBase(net, 2)
