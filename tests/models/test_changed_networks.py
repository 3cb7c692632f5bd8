"""Networks that users changed are refused before a folder exists: wrappers, layers, settings, hooks."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from halfstep import (
    Cosine,
    Denoiser,
    distill,
    load_classifier,
    Pipeline,
    train,
    TrainingConfig,
    V,
)
from halfstep.errors import ConfigError
from halfstep.methods import Denoising
from halfstep.methods.autoencoding import Autoencoding
from halfstep.methods.base import Method
from halfstep.methods.stages import Stage, StagePlan
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.models.classifiers.checkpoint import save_classifier
from halfstep.training import RunOptions
from halfstep.training.distributed import Processes
from halfstep.training.stages import run_stages
from tests.support.user_networks import (
    classifier,
    classify,
    FEW,
    HALVE,
    HERE,
    images,
    learn,
    note_inputs,
    pipeline,
    points,
    Towards,
)

# Wrapped


def compiled(net):
    return torch.compile(net, backend="eager")


WRAPS = {
    "torch.compile": compiled,
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("name", WRAPS)
def test_wrapped_networks_are_refused_before_there_is_a_folder(tmp_path, name):
    out, wrap = tmp_path / "r", WRAPS[name]
    teacher, inside, part = pipeline(), classifier(), pipeline()
    net = teacher.denoiser.net
    around = Pipeline(Denoiser(wrap(net), Cosine(), V()), shape=(2,))
    part.denoiser.net.model = wrap(part.denoiser.net.model)
    for call in (
        lambda: classify(wrap(inside), out),
        lambda: learn(wrap(inside), out),
        lambda: save_classifier(wrap(inside), out),
        lambda: distill(around, points(), out, method=HALVE, training=FEW),
        lambda: distill(part, points(), out, method=HALVE, training=FEW),
        lambda: train(around, points(), out, method=Denoising(updates=1), training=FEW),
        lambda: around.save(out),
        lambda: part.save(out),
    ):
        with pytest.raises(ConfigError, match=name):
            call()
        assert not out.exists()


def test_compiling_takes_no_attribute_for_a_network(tmp_path, monkeypatch):
    compiled_types = []
    monkeypatch.setattr(nn.Module, "compile", lambda net: compiled_types.append(type(net).__name__))
    training = TrainingConfig(batch_size=16, compile=True)
    classify(classifier(), tmp_path / "r", training)
    load_classifier(tmp_path / "r", net=f"{HERE}:plain")
    distill(pipeline(), points(), tmp_path / "s", method=HALVE, training=training)
    Pipeline.load(tmp_path / "s" / "stages" / "0001-steps")
    assert compiled_types == ["Named", "MLPNet", "MLPNet"]


# No longer what the recipe builds


class Added(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.up = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(x)


def adapter(net):
    net[-1] = Added(net[-1])


def other_head(net):
    net[-1] = nn.Linear(16, 5)


def other_kind(net):
    net[-2] = nn.GELU()


def one_more(net):
    net.append(nn.Identity())


def buffer(net):
    net.register_buffer("scale", torch.ones(1))


def normalised(net):
    weight_norm(net[-1])


def own_forward(net):
    net.forward = lambda x: nn.Sequential.forward(net, x) * 2


def untied(net):
    net[-2].weight = nn.Parameter(net[-2].weight.detach().clone())


def tie(net):
    net[-2].bias = net[-3].bias


CHANGES = [adapter, other_head, other_kind, one_more, buffer, normalised, own_forward, untied, tie]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_classifier_is_refused_before_there_is_a_folder(tmp_path, change):
    net, out = classifier(tied=True), tmp_path / "r"
    save_classifier(net, tmp_path / "fine")
    load_classifier(tmp_path / "fine", net=f"{HERE}:plain")
    change(net)
    for call in (classify, learn, save_classifier):
        with pytest.raises(ConfigError, match="no longer"):
            call(net, out)
        assert not out.exists()


def doubled(part, given, out):
    return 2 * out


SETTINGS = {
    "norm.eps": lambda net: setattr(net.norm, "eps", 1.0),
    "batch.eps": lambda net: setattr(net.batch, "eps", 1.0),
    "conv.padding_mode": lambda net: setattr(net.conv, "padding_mode", "circular"),
    "conv.dilation": lambda net: setattr(net.conv, "dilation", (2, 2)),
    "act.negative_slope": lambda net: setattr(net.act, "negative_slope", 0.5),
    "attention.num_heads": lambda net: setattr(net.attention, "num_heads", 1),
    "head.doubled": lambda net: net.head.register_forward_hook(doubled),
    "conv.partial": lambda net: net.conv.register_forward_pre_hook(partial(note_inputs)),
    "'doubled'": lambda net: net.register_forward_hook(doubled),
}


@pytest.mark.parametrize("message", SETTINGS)
def test_a_setting_or_a_hook_that_would_be_lost_is_refused(tmp_path, message):
    """All shapes agree, and once it is loaded it is another network."""
    net = classifier("with_settings", pool=(2, 2))
    save_classifier(net, tmp_path / "fine")
    SETTINGS[message](net)
    with pytest.raises(ConfigError, match=f"no longer.*{message}"):
        save_classifier(net, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_matters_in_training_alone_may_be_another(tmp_path):
    net = classifier("with_settings")
    net.drop.p, net.batch.momentum, net.act.inplace, net.attention.dropout = 0.1, 0.5, True, 0.0
    handle = net.head.register_forward_hook(doubled)
    handle.remove()
    save_classifier(net, tmp_path / "c")
    back = load_classifier(tmp_path / "c", net=f"{HERE}:with_settings")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(back(x), net.eval()(x))


def test_lazy_layers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="lazy"):
        classify(classifier("lazy"), tmp_path / "r")


def test_a_changed_pipeline_is_refused_before_there_is_a_folder(tmp_path):
    state, out = torch.get_rng_state(), tmp_path / "r"
    for net in ("mlp", "points_net"):
        changed = pipeline(net)
        owner = changed.denoiser.net
        owner = owner.model if net == "mlp" else owner
        name = next(n for n, m in owner.named_children() if isinstance(m, nn.Linear))
        setattr(owner, name, Added(getattr(owner, name)))
        torch.set_rng_state(state)
        for call in (
            lambda p: p.save(out),
            lambda p: train(p, points(), out, method=Denoising(updates=1), training=FEW),
            lambda p: distill(p, points(), out, method=HALVE, training=FEW),
        ):
            with pytest.raises(ConfigError, match="no longer"):
                call(changed)
            assert not out.exists() and torch.equal(state, torch.get_rng_state())


def adapter_of_a_codec(codec):
    codec.model.decoder.conv_out = nn.Sequential(codec.model.decoder.conv_out, nn.Identity())


def test_half_precision_is_no_other_network(tmp_path):
    """Its weights are read back into float32, as they are."""
    net = classifier()
    classify(net.bfloat16().float(), tmp_path / "a")
    teacher = pipeline()
    teacher.denoiser.net.bfloat16()
    student = distill(teacher, points(), tmp_path / "r", method=HALVE, training=FEW)
    back = Pipeline.load(tmp_path / "r" / "stages" / "0001-steps").denoiser.net.state_dict()
    for name, value in student.denoiser.net.state_dict().items():
        assert torch.equal(value.float(), back[name])


def test_a_student_that_its_method_changes_is_refused_before_its_stage(tmp_path):
    with pytest.raises(ConfigError, match="no longer"):
        distill(pipeline(), points(), tmp_path / "r", method=Changing(), training=FEW)
    assert (tmp_path / "r" / "stages" / "0").exists() and not (
        tmp_path / "r" / "stages" / "1"
    ).exists()


CODEC = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
CODEC |= {"in_channels": 1, "out_channels": 1, "latent_channels": 2}


@pytest.mark.parametrize("change", [adapter_of_a_codec, "wrapped", "frozen"])
def test_a_changed_codec_is_refused_before_there_is_a_folder(tmp_path, change):
    codec, out = KLCodec.fresh(CODEC), tmp_path / "r"
    codec.save(tmp_path / "fine")
    word = "no longer" if callable(change) else change
    if callable(change):
        change(codec)
    elif change == "wrapped":
        codec.model.decoder, word = compiled(codec.model.decoder), "torch.compile"
    else:
        codec.requires_grad_(False)
    with pytest.raises(ConfigError, match=word):
        run_stages(
            "train codec", Autoencoding(updates=1).stages(codec), {}, images(), out, FEW,
            RunOptions(device="cpu"), Processes("cpu"), write=lambda stage, folder: codec.save(folder),
            read=lambda stage, folder: None,
        )  # fmt: skip
    assert not out.exists()
    if change != "frozen":
        with pytest.raises(ConfigError, match=word):
            codec.save(out)
        assert not out.exists()


@dataclass(frozen=True)
class Changing(Method):
    def plan(self, teacher):
        return [StagePlan("0", 1), StagePlan("1", 1)]

    def stages(self, teacher):
        yield Stage("0", teacher.denoiser.trainable_copy(), Towards(0.0), 1)
        student = teacher.denoiser.trainable_copy()
        student.net.model.register_buffer("more", torch.ones(1))
        yield Stage("1", student, Towards(0.0), 1)
