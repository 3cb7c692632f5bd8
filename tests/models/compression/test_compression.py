"""int8 and pruned students: what is kept on the disk, and what is zero.

What needs torchao is skipped without it: pip install 'halfstep[int8]'.
"""

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import halfstep
from halfstep.errors import CheckpointError, ConfigError
from halfstep.hub.bundled import bundled_students
from halfstep.models.classifiers.checkpoint import load_classifier, save_classifier
from halfstep.models.classifiers.registry import build_classifier
from halfstep.models.compression.int8 import plain_tensors, quantise, wide_layers
from halfstep.models.compression.magnitude_pruning import KINDS, sparsify, zero_share
from halfstep.pipeline import Pipeline

ASSETS = Path(halfstep.__file__).parent / "assets"
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


def student(steps=4):
    return next(one for one in bundled_students() if len(one.grid()) - 1 == steps)


def with_net(pipeline, net):
    denoiser = copy.deepcopy(pipeline.denoiser)
    denoiser.net = net
    return replace(pipeline, denoiser=denoiser)


# Pruning.


def wide(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.Conv2d(32, 48, 3),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.Linear(16, 10),
    )


def test_the_smallest_weights_of_all_layers_together_go():
    before, net = wide(), sparsify(wide(), 0.3)
    old = torch.cat([before[k].weight.flatten() for k in (1, 3)])
    new = torch.cat([net[k].weight.flatten() for k in (1, 3)])
    gone = round(0.3 * len(old))
    assert int((new == 0).sum()) == gone
    order = old.abs().argsort()
    assert torch.equal((new == 0).nonzero().flatten(), order[:gone].sort().values)
    assert torch.equal(new[order[gone:]], old[order[gone:]])
    for k in (0, 4):  # three columns, ten rows: they stay
        assert torch.equal(before[k].weight, net[k].weight)


def test_rows_go_layer_by_layer_the_smallest_norms_first():
    before, net = wide(), sparsify(wide(), 0.25, rows=True)
    for k, rows in ((1, 12), (3, 4)):
        norms = before[k].weight.flatten(1).norm(dim=1)
        dead = (net[k].weight.flatten(1) == 0).all(1)
        assert int(dead.sum()) == rows
        assert norms[dead].max() < norms[~dead].min()
        assert torch.equal(net[k].weight[~dead], before[k].weight[~dead])


def test_pruning_leaves_no_masks():
    net = sparsify(wide(), 0.5)
    assert net.state_dict().keys() == wide().state_dict().keys()
    assert all(not layer._forward_pre_hooks for layer in net.modules())
    assert all(isinstance(layer.weight, nn.Parameter) for layer in (net[1], net[3]))


def test_the_share_of_zeros_is_of_all_parameters():
    assert zero_share([torch.tensor([0.0, 1, 2, 3]), torch.zeros(1)]) == 0.4
    assert zero_share([]) == 0


@pytest.mark.parametrize("share, message", [(0, "0.3"), (1, "0.3"), (-0.5, "0.3"), (30, "example 0.3"),
                                         (float("nan"), "got nan")])  # fmt: skip
def test_a_share_that_is_none_is_refused(share, message):
    with pytest.raises(ConfigError, match=message):
        sparsify(wide(), share)


def test_a_network_without_wide_layers_has_nothing_to_prune():
    with pytest.raises(ConfigError, match="nothing to prune"):
        sparsify(nn.Linear(15, 400), 0.5)
    assert wide_layers(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 15)), *KINDS).keys() == {"0"}


# int8.


@needs_torchao
def test_int8_is_read_again_to_the_bit(tmp_path):
    original = student()
    small = with_net(original, quantise(copy.deepcopy(original.denoiser.net)))
    small.save(tmp_path / "int8")
    original.save(tmp_path / "float")
    again = Pipeline.load(tmp_path / "int8")
    drawn = small.sample(6, guidance_scale=2)
    assert torch.equal(again.sample(6, guidance_scale=2), drawn)
    off = (drawn - original.sample(6, guidance_scale=2)).square().mean().sqrt()
    assert 0 < off < 0.03
    sizes = [(tmp_path / n / "pipeline.safetensors").stat().st_size for n in ("int8", "float")]
    assert sizes[0] < 0.32 * sizes[1]
    assert again.describe()["quantised"]["kind"] == "int8-dynamic"
    assert "quantised" not in original.describe()


@needs_torchao
def test_int8_rounds_each_row_to_255_levels():
    net = nn.Sequential(nn.Linear(32, 16, bias=False))
    weight = net[0].weight.detach().clone()
    tensors = plain_tensors(quantise(net))
    q, scale = tensors["0.weight.qdata"], tensors["0.weight.scale"]
    assert q.dtype is torch.int8 and q.shape == (16, 32)
    assert ((q * scale.reshape(16, 1) - weight).abs() <= scale.reshape(16, 1) / 2 * 1.001).all()
    assert (q.short().abs().amax(1) >= 127).all()  # of -128 int8 has no magnitude


@needs_torchao
@pytest.mark.parametrize("harm, message", [("shape", "other shapes"), ("name", "lacks")])
def test_int8_is_read_strictly(tmp_path, harm, message):
    from halfstep import storage

    original = student()
    with_net(original, quantise(copy.deepcopy(original.denoiser.net))).save(tmp_path)
    tensors, about = storage.load(tmp_path / "pipeline")
    name = next(n for n in tensors if n.endswith("qdata"))
    value = tensors.pop(name)
    if harm == "shape":
        tensors[name] = value[:1].clone()
    storage.save(tmp_path / "pipeline", tensors, about)
    with pytest.raises(CheckpointError, match=message):
        Pipeline.load(tmp_path)


@needs_torchao
def test_what_cannot_be_int8_is_refused():
    with pytest.raises(ConfigError, match="no linear layer"):
        quantise(nn.Linear(15, 400))
    net = quantise(nn.Sequential(nn.Linear(16, 16)))
    with pytest.raises(ConfigError, match="already"):
        quantise(net)
    with pytest.raises(ConfigError, match="made from"):
        sparsify(net, 0.5)
    original = student()
    with pytest.raises(ConfigError, match="cannot be trained"):
        with_net(original, quantise(copy.deepcopy(original.denoiser.net))).denoiser.trainable_copy()


def test_int8_without_torchao_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("halfstep.models.compression.int8.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install 'halfstep\\[int8\\]'"):
        quantise(nn.Linear(16, 16))
    original = student()
    original.denoiser.net.quantised = {"kind": "int8-dynamic", "torchao": "0.18.0"}
    original.save(tmp_path)
    with pytest.raises(ConfigError, match="halfstep\\[int8\\]"):
        Pipeline.load(tmp_path)


def test_another_quantisation_is_refused(tmp_path):
    original = student()
    original.denoiser.net.quantised = {"kind": "int3"}
    original.save(tmp_path)
    with pytest.raises(ConfigError, match="'int3'"):
        Pipeline.load(tmp_path)


@needs_torchao
def test_an_int8_classifier_is_read_again(tmp_path):
    original = load_classifier(ASSETS / "digits-classifier").eval()
    small = quantise(copy.deepcopy(original))
    save_classifier(small, tmp_path)
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(load_classifier(tmp_path).eval()(x), small(x))
        assert not torch.equal(small(x), original(x))


@pytest.mark.parametrize("name", ["cnn", "shallow", "deeper", "features", "toy-teacher"])
@pytest.mark.parametrize("rows", [False, True])
def test_classifiers_are_pruned_however_their_weights_lie(name, rows):
    """Channels last gives what the same weights give that lie by rows, and the share is what was asked."""
    torch.manual_seed(0)
    lies = build_classifier(name, {"num_classes": 3, "channels": 1})
    stands = copy.deepcopy(lies).to(memory_format=torch.contiguous_format)
    sparsify(lies, 0.5, rows=rows), sparsify(stands, 0.5, rows=rows)
    for a, b in zip(lies.parameters(), stands.parameters(), strict=True):
        assert torch.equal(a, b)
    wide_ones = [layer.weight for layer in wide_layers(lies, *KINDS).values()]
    assert zero_share(wide_ones) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("share", [0.97, 0.99, 0.9999999])
def test_no_layer_is_emptied(rows, share):
    """The largest of each stays, also where another layer's weights are all larger."""
    net = wide()
    with torch.no_grad():
        next(iter(wide_layers(net, *KINDS).values())).weight.mul_(1e-3)
    before = {name: layer.weight.clone() for name, layer in wide_layers(net, *KINDS).items()}
    sparsify(net, share, rows=rows)
    for name, old in before.items():
        left = net.get_submodule(name).weight
        norms = old.flatten(1).norm(dim=1) if rows else old.abs().flatten()
        nonzero = (left != 0).flatten(1).any(1) if rows else (left != 0).flatten()
        assert nonzero.any() and nonzero[norms.argmax()]


def test_a_share_of_which_nothing_is_pruned_is_refused():
    for rows in (False, True):
        with pytest.raises(ConfigError, match="larger"):
            sparsify(wide(), 1e-9, rows=rows)


def test_a_layer_of_which_nothing_is_pruned_is_none_to_refuse_beside_others():
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        net[1].weight.add_(9.0)
    sparsify(net, 0.25)
    assert (zero_share([net[0].weight]), zero_share([net[1].weight])) == (0.5, 0.0)


def test_a_weight_that_two_layers_share_is_counted_once():
    one, other = nn.Linear(32, 32), nn.Linear(32, 32)
    other.weight = one.weight
    with pytest.raises(ConfigError, match="larger"):  # .41 of 2,048 weights; of 3,072 it were .61
        sparsify(nn.Sequential(one, nn.Linear(32, 32), other), 2e-4)


def test_a_weight_that_two_layers_share_is_pruned_once():
    one, other = nn.Linear(32, 32), nn.Linear(32, 32)
    other.weight = one.weight
    net = sparsify(nn.Sequential(one, nn.Linear(32, 32), other), 0.5)
    assert net[0].weight is net[2].weight
    assert zero_share([net[0].weight, net[1].weight]) == pytest.approx(0.5, abs=0.01)
