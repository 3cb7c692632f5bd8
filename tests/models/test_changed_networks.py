"""Networks that users changed: frozen, wrapped, with other layers; averages; the caller's random state."""

import copy
import random
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from halfstep import (
    build,
    Cosine,
    Dataset,
    Denoiser,
    distill,
    distill_classifier,
    GuidedDistillation,
    KnowledgeDistillation,
    load_classifier,
    Pipeline,
    Progressive,
    Reparameterise,
    storage,
    train,
    train_classifier,
    TrainingConfig,
    V,
)
from halfstep.code_identity import identity, options_of
from halfstep.data import rows
from halfstep.errors import ConfigError, NonFinite
from halfstep.methods import DenoiserOnly, Denoising
from halfstep.methods.autoencoding import Autoencoding
from halfstep.methods.base import Method, Objective, Stage, StagePlan
from halfstep.methods.classifiers.recipes import dist
from halfstep.methods.classifiers.supervised import Classification
from halfstep.methods.classifiers.terms import SoftTargets
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.models.classifiers.checkpoint import save_classifier
from halfstep.models.classifiers.registry import build_classifier
from halfstep.models.compression.block_pruning import shallower
from halfstep.models.compression.unet_transfer import transfer_weights
from halfstep.models.eval_mode import to_train
from halfstep.models.with_guidance import with_guidance
from halfstep.training import RunOptions
from halfstep.training.api import run_stages
from halfstep.training.batch_norm import BATCH, update_batch_norm
from halfstep.training.distributed import Processes
from halfstep.training.ema import Average
from halfstep.training.trainable import identity_of

HERE = "tests.models.test_changed_networks"
FEW = TrainingConfig(batch_size=16, log_every=1)


class Named(nn.Sequential):
    """With an attribute that others take for a network."""

    net = model = module = "resnet18"


def plain(num_classes=3, norm=False, tied=False):
    first = nn.Linear(64, 16)
    parts = [nn.Flatten(), first, *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU()]
    parts += [nn.Linear(16, 16), nn.Linear(16, 16)] if tied else []
    if tied:
        parts[-1].weight = parts[-2].weight
    return Named(*parts, nn.Linear(16, num_classes))


def normed(num_classes=3):
    return plain(num_classes, norm=True)


def lazy(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


class Points(nn.Module):
    """A denoiser's network with a batch norm and dropout."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 16), nn.Linear(16, 2)
        self.norm, self.drop = nn.BatchNorm1d(16, momentum=momentum), nn.Dropout(0.5)

    def forward(self, x, t, cond=None):
        h = self.norm(self.enter(torch.cat([x, t[:, None] / 1000], 1)))
        return self.leave(self.drop(torch.relu(h)))


def points_net(momentum=0.1):
    return Points(momentum)


def images(n=60):
    pixels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)
    return Dataset(pixels, torch.arange(n) % 3)


def points(n=100):
    return Dataset(torch.rand(n, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def classifier(function="plain", **config):
    return build_classifier(f"{HERE}:{function}", {"num_classes": 3, **config})


def pipeline(net="mlp", **config):
    net = build("mlp", {"width": 8}) if net == "mlp" else build(f"{HERE}:{net}", config)
    return Pipeline(Denoiser(net, Cosine(), V()), shape=(2,))


HALVE = Progressive(start=4, stop=1, updates=(2, 2))


def classify(net, out, training=FEW, updates=2, data=None):
    method = Classification(updates=updates)
    return train_classifier(net, data or images(), out, method=method, training=training)


def learn(student, out, training=FEW, **options):
    method = KnowledgeDistillation(updates=2, **options)
    return distill_classifier(
        classifier(), student, images(), out, method=method, training=training
    )


# Frozen


@pytest.mark.parametrize("way", [classify, learn])
def test_a_classifiers_frozen_layers_stay(tmp_path, way):
    """Statistics and weight decay, too; the rest learns."""
    net = classifier("normed")
    net[1].requires_grad_(False), net[2].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after = way(
        net, tmp_path / "r", TrainingConfig(batch_size=16, weight_decay=0.1, ema=0.5)
    ).state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith(("1.", "2.")), name


def a_layer(p):
    return next(m for m in p.denoiser.net.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("loaded", [False, True])
def test_a_teachers_frozen_layers_stay_from_stage_to_stage(tmp_path, loaded):
    teacher = pipeline()
    if loaded:
        teacher.save(tmp_path / "t")
        teacher = Pipeline.load(tmp_path / "t")
    a_layer(teacher).requires_grad_(False)
    pattern = [p.requires_grad for p in teacher.denoiser.parameters()]
    before = copy.deepcopy(teacher.denoiser.net.state_dict())
    for _ in range(2):  # the second time it is read
        student = distill(teacher, points(), tmp_path / "r", method=HALVE, training=FEW)
        assert [p.requires_grad for p in teacher.denoiser.parameters()] == pattern
        after = student.denoiser.net.state_dict()
        same = [torch.equal(before[name], after[name]) for name in before]
        frozen = [not grad for grad in pattern]
        assert same == frozen and any(frozen) and not all(frozen)
    a_layer(teacher).requires_grad_(True)
    with pytest.raises(ConfigError, match="frozen"):  # another run
        distill(teacher, points(), tmp_path / "r", method=HALVE, training=FEW)
    a_layer(teacher).requires_grad_(False)
    trained = train(teacher, points(), tmp_path / "d", method=Denoising(updates=2), training=FEW)
    assert torch.equal(a_layer(trained).weight, a_layer(teacher).weight)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_is_frozen_as_a_whole(tmp_path, freeze):
    """By `freeze` it is an evaluated teacher, whose students learn; by hand it cannot be trained."""
    teacher = pipeline()
    if freeze:
        teacher.denoiser.freeze()
        student = distill(teacher, points(), tmp_path / "r", method=HALVE, training=FEW)
        assert all(p.requires_grad for p in student.denoiser.parameters())
        return
    teacher.denoiser.requires_grad_(False)
    for way in (
        lambda out: distill(teacher, points(), out, method=HALVE, training=FEW),
        lambda out: train(teacher, points(), out, method=Denoising(updates=2), training=FEW),
        lambda out: classify(classifier().requires_grad_(False), out),
        lambda out: learn(classifier().requires_grad_(False), out),
    ):
        with pytest.raises(ConfigError, match="frozen"):
            way(tmp_path / "r")
        assert not (tmp_path / "r").exists()


def test_freezing_before_the_copy_keeps_what_was_frozen_before():
    teacher = pipeline().denoiser
    name = next(iter(dict(teacher.net.named_parameters())))
    teacher.net.get_parameter(name).requires_grad_(False)
    copy = teacher.freeze().freeze().trainable_copy()
    assert [n for n, p in copy.net.named_parameters() if not p.requires_grad] == [name]
    assert not any(p.requires_grad for p in teacher.parameters())
    assert [n for n, p in copy.trainable_copy().net.named_parameters() if not p.requires_grad] == [
        name
    ]
    student = next(Reparameterise(updates=1).stages(DenoiserOnly(teacher))).student
    assert [n for n, p in student.net.named_parameters() if not p.requires_grad] == [name]


UVIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 4, "num_heads": 2}


def test_smaller_and_guided_copies_keep_it_too():
    net = build("uvit", {**UVIT, "num_classes": 3})
    net.model.in_blocks[1].requires_grad_(False)
    smaller = shallower(net, (1,))
    names = {n for n, p in smaller.named_parameters() if not p.requires_grad}
    assert names and all("in_blocks.0." in name for name in names)
    guided = with_guidance(net, width=4)
    frozen = {n for n, p in guided.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in net.named_parameters() if not p.requires_grad}


def test_a_smaller_unet_keeps_it_where_weights_are_taken_over():
    config = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4}
    config |= {"block_out_channels": [8, 8], "attention_head_dim": 4}
    config |= {
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
    }
    old, new = (build("unet", {**config, "layers_per_block": n}) for n in (2, 1))
    old.model.conv_in.requires_grad_(False)
    transfer_weights(new, old)
    names = {n for n, p in new.named_parameters() if not p.requires_grad}
    assert names == {"model.conv_in.weight", "model.conv_in.bias"}


def test_statistics_of_a_frozen_layer_without_weights_stay_with_what_is_around_them():
    inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False), nn.Dropout())
    net = nn.Sequential(inner, nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3))
    inner[0].requires_grad_(False)
    to_train(net)
    assert [m.training for m in (inner[1], inner[2], net[1], net)] == [False, True, True, True]


def test_teaching_freezes_no_teacher(tmp_path):
    teacher = classifier()
    method = KnowledgeDistillation(updates=1)
    distill_classifier(teacher, classifier(), images(), tmp_path / "a", method=method, training=FEW)
    classify(teacher, tmp_path / "b")


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
    seen = []
    monkeypatch.setattr(nn.Module, "compile", lambda net: seen.append(type(net).__name__))
    training = TrainingConfig(batch_size=16, compile=True)
    classify(classifier(), tmp_path / "r", training)
    load_classifier(tmp_path / "r", net=f"{HERE}:plain")
    distill(pipeline(), points(), tmp_path / "s", method=HALVE, training=training)
    Pipeline.load(tmp_path / "s" / "stages" / "0001-steps")
    assert seen == ["Named", "MLPNet", "MLPNet"]


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


class Settled(nn.Module):
    """A layer of every kind whose settings no tensor tells."""

    def __init__(self, pool, p=0.5):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.batch, self.act, self.drop = nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.Dropout(p)
        self.pool, self.attention = nn.AvgPool2d(pool), nn.MultiheadAttention(4, 2, dropout=p)
        self.head = nn.Linear(64, 3)
        self.head.register_forward_pre_hook(seen)

    def forward(self, x):
        h = self.drop(self.act(self.batch(self.norm(self.conv(x)))))
        h = self.pool(h).flatten(2).permute(2, 0, 1)
        return self.head(self.attention(h, h, h)[0].permute(1, 2, 0).flatten(1))


def seen(part, given):
    """A hook of the builder's own, which is there again once it is loaded."""


def settled(num_classes=3, pool=(2, 2)):
    return Settled(pool)


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
    "conv.partial": lambda net: net.conv.register_forward_pre_hook(partial(seen)),
    "'doubled'": lambda net: net.register_forward_hook(doubled),
}


@pytest.mark.parametrize("said", SETTINGS)
def test_a_setting_or_a_hook_that_would_be_lost_is_refused(tmp_path, said):
    """All shapes agree, and once it is loaded it is another network."""
    net = classifier("settled", pool=(2, 2))
    save_classifier(net, tmp_path / "fine")
    SETTINGS[said](net)
    with pytest.raises(ConfigError, match=f"no longer.*{said}"):
        save_classifier(net, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_matters_in_training_alone_may_be_another(tmp_path):
    net = classifier("settled")
    net.drop.p, net.batch.momentum, net.act.inplace, net.attention.dropout = 0.1, 0.5, True, 0.0
    handle = net.head.register_forward_hook(doubled)
    handle.remove()
    save_classifier(net, tmp_path / "c")
    back = load_classifier(tmp_path / "c", net=f"{HERE}:settled")
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


# A user's own


@dataclass(frozen=True)
class Towards(Objective):
    goal: float

    def __call__(self, student, batch, draw):
        return (student(batch.x0, draw.uniform(), batch.cond).x0 - self.goal).square().mean(1)


@dataclass(frozen=True)
class Changing(Method):
    def plan(self, teacher):
        return [StagePlan("0", 1), StagePlan("1", 1)]

    def stages(self, teacher):
        yield Stage("0", teacher.denoiser.trainable_copy(), Towards(0.0), 1)
        student = teacher.denoiser.trainable_copy()
        student.net.model.register_buffer("more", torch.ones(1))
        yield Stage("1", student, Towards(0.0), 1)


@dataclass(frozen=True)
class Nought(Method):
    updates: int = 2

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), Towards(0.0), self.updates)


@dataclass(frozen=True)
class Seven(Method):
    updates: int = 2

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), Towards(7.0), self.updates)


@dataclass(frozen=True)
class Any(Method):
    """Its objective is made by what it holds."""

    make: object = field(default=Towards)

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), self.make(), 2)


@dataclass(frozen=True)
class Goal:
    goal: float

    def objective(self):
        return Towards(self.goal)


class Bare(Method):
    """No dataclass."""

    def __init__(self, goal):
        self.goal = goal

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), Towards(self.goal), 2)


def closure(goal):
    return lambda: Towards(goal)


PAIRS = {
    "num_classes": (Nought(), Seven()),
    "lambdas on one line": (Any(lambda: Towards(0.0)), Any(lambda: Towards(7.0))),
    "closures": (Any(closure(0.0)), Any(closure(7.0))),
    "partials": (Any(partial(Towards, 0.0)), Any(partial(Towards, 7.0))),
    "bound methods": (Any(Goal(0.0).objective), Any(Goal(7.0).objective)),
    "attributes": (Bare(0.0), Bare(7.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_methods_of_ones_own_are_two(tmp_path, name):
    one, other = PAIRS[name]
    teacher = pipeline()
    first = distill(teacher, points(), tmp_path / "r", method=one, training=FEW)
    again = distill(teacher, points(), tmp_path / "r", method=one, training=FEW)
    for a, b in zip(first.denoiser.parameters(), again.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigError, match="choose another"):
        distill(teacher, points(), tmp_path / "r", method=other, training=FEW)


def made_from(source):
    """Objects of code that lies in no file."""
    space = {"__name__": "notebook"}
    exec(source, space)
    return space


@pytest.mark.parametrize(
    "one, other",
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("def f(x, y=1): return x", "def f(x, y=2): return x"),
        ("def f(x): return x.sum()", "def f(x): return x.mean()"),
        ("class f:\n def g(self): return 1", "class f:\n def g(self): return 2"),
        ("class f:\n g = 1", "class f:\n g = 2"),
        (
            "class f:\n @property\n def g(self): return 1",
            "class f:\n @property\n def g(self): return 2",
        ),
        (
            "class f:\n @staticmethod\n def g(): return 1",
            "class f:\n @staticmethod\n def g(): return 2",
        ),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2\ndef f(): return g()"),
        ("class g:\n a = 1\nclass f(g): pass", "class g:\n a = 2\nclass f(g): pass"),
        ("def f(): return [h for h in {'a', 'b'}]", "def f(): return [h for h in {'a', 'c'}]"),
    ],
)
def test_code_without_a_file_is_told_apart_by_what_python_made_of_it(one, other):
    first, second = made_from(one)["f"], made_from(one)["f"]
    assert identity(first) == identity(second) != identity(made_from(other)["f"])


def test_of_halfsteps_own_and_installed_code_the_name_says_enough():
    assert options_of(HALVE) == {**vars(HALVE), "updates": [2, 2], "times": []}
    assert identity(torch.relu).endswith("relu") and "code" not in identity(Progressive)
    assert identity(Any(np.float32(2))) == identity(Any(2.0)) != identity(Any(torch.tensor(2.0)))


def test_own_terms_networks_and_augmented_objectives_are_in_it(tmp_path):
    class Mine(SoftTargets):
        def __call__(self, seen):
            return super().__call__(seen) * 2

    assert Mine().describe()["code"] and "code" not in SoftTargets().describe()
    stage = Stage("s", classifier(), Towards(1.0), 1)
    found = identity_of(stage)
    assert any("Named" in code for code in found["network"]) and "goal" in found["objective"]
    assert identity_of(Stage("s", nn.Linear(2, 2), Classification(), 1)) == {}


# Averages


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_an_average_follows_in_any_precision(dtype):
    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.zeros_(net.weight)
    average = Average(net, 0.999)
    average.follow(net, 0)
    nn.init.ones_(net.weight)
    for update in range(1, 3001):
        average.follow(net, update)
    assert average.values[0].dtype == torch.promote_types(dtype, torch.float32)
    assert float(average.values[0]) == pytest.approx(1 - 0.999**3000, abs=1e-4)
    average.copy_to(net)
    assert net.weight.dtype == dtype and float(net.weight.detach()) == pytest.approx(0.95, abs=0.01)


class Shown(Objective):
    """An objective that calls its student with the data, in any mode."""

    def __call__(self, student, batch, draw):
        return student(batch.x0).square().flatten(1).mean(1)


NORMS = [
    nn.BatchNorm1d(2),
    nn.BatchNorm1d(2, momentum=None),
    nn.BatchNorm1d(2, momentum=0.9, affine=False),
    nn.SyncBatchNorm(2),
]


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("n", [1, 50, 640])
def test_statistics_taken_anew_are_those_of_the_data(norm, n):
    net, data = nn.Sequential(copy.deepcopy(norm), nn.Dropout(0.5)), points(n)
    momentum = net[0].momentum
    net[0].running_mean.fill_(7)
    net[0].num_batches_tracked.fill_(1000)  # what was there before does not count
    state = torch.get_rng_state()
    update_batch_norm(Stage("s", net, Shown(), 1), data, torch.device("cpu"), seed=3, index=0)
    assert torch.equal(state, torch.get_rng_state())
    assert net[0].momentum == momentum and "forward" not in vars(net[0]) and net[0].training
    torch.testing.assert_close(net[0].running_mean, data.values.mean(0), atol=0.05, rtol=0)
    if n > 1:
        torch.testing.assert_close(net[0].running_var, data.values.var(0), atol=0.05, rtol=0)
    again = nn.Sequential(copy.deepcopy(norm), nn.Dropout(0.5))
    update_batch_norm(Stage("s", again, Shown(), 1), data, torch.device("cpu"), seed=3, index=0)
    assert torch.equal(again[0].running_mean, net[0].running_mean)
    other = nn.Sequential(copy.deepcopy(norm), nn.Dropout(0.5))
    update_batch_norm(Stage("s", other, Shown(), 1), data, torch.device("cpu"), seed=3, index=1)
    assert n == 1 or not torch.equal(other[0].running_var, net[0].running_var) or n == 640


def test_statistics_of_instance_norms_are_a_mean_over_all_batches():
    net = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True, momentum=0.3))
    shades = torch.linspace(0, 255, 200)[:, None, None, None].expand(-1, 1, 8, 8)
    data = Dataset(shades.round().to(torch.uint8))
    net[0].running_mean.fill_(7)
    update_batch_norm(Stage("s", net, Shown(), 1), data, torch.device("cpu"), seed=5, index=0)
    seen = torch.cat([rows(5, 0, k, BATCH, 200) for k in range(4)])
    assert set(seen.tolist()) == set(range(200))
    want = data.batch(seen).x0.mean((0, 2, 3))
    torch.testing.assert_close(net[0].running_mean, want, atol=1e-5, rtol=0)
    assert net[0].momentum == 0.3


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_average_is_saved_with_statistics_of_its_own(tmp_path, ema):
    """Those of its weights on data that is noised as training does; without an average they are the run's."""
    method, teacher = Denoising(updates=30), pipeline("points_net")
    training = TrainingConfig(
        batch_size=32, ema=ema, learning_rate=0.03, log_every=10, save_every=30
    )
    out = tmp_path / "r"
    net = train(teacher, points(640), out, method=method, training=training).denoiser.net
    tensors, _ = storage.load(out / "checkpoints" / "00-00000030")
    same = torch.equal(tensors["student.net.norm.running_mean"], net.norm.running_mean)
    assert same == (ema == 0)
    if ema:
        assert torch.equal(tensors["average.net.enter.weight"], net.enter.weight)
        generator = torch.Generator().manual_seed(0)
        t = torch.rand(20_000, generator=generator, dtype=torch.float64)
        x0 = points(640).values[torch.randint(640, (20_000,), generator=generator)]
        level = Cosine().at(t[:, None])
        noise = torch.randn(20_000, 2, generator=generator)
        x_t = level.alpha.float() * x0 + level.sigma.float() * noise
        with torch.no_grad():
            h = net.enter(torch.cat([x_t, t[:, None].float()], 1))
        torch.testing.assert_close(net.norm.running_mean, h.mean(0), atol=0.1, rtol=0)
        torch.testing.assert_close(net.norm.running_var, h.var(0), atol=0.1, rtol=0.2)


# One row


@pytest.mark.parametrize("batch, micro", [(9, 4), (1, 0), (4, 1), (7, 3), (3, 2), (1, 5)])
def test_one_row_under_batch_norm_is_refused_before_there_is_a_folder(tmp_path, batch, micro):
    training = TrainingConfig(batch_size=batch, micro_batch_size=micro)
    net = classifier("normed")
    before = copy.deepcopy(net.state_dict())
    for call in (classify, learn):
        with pytest.raises(ConfigError, match="one row"):
            call(net, tmp_path / "r", training)
        assert not (tmp_path / "r").exists()
    with pytest.raises(ConfigError, match="one row"):
        distill(pipeline("points_net"), points(), tmp_path / "r", method=HALVE, training=training)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(ConfigError) as said:
        classify(net, tmp_path / "r", training)
    name, _, value = str(said.value).split("write ")[1].split(" ")[0].partition("=")
    better = {"batch_size": batch, "micro_batch_size": micro, name: int(value)}
    classify(net, tmp_path / "r", TrainingConfig(**better))


def test_one_row_is_fine_where_it_can_be_trained(tmp_path):
    training = TrainingConfig(batch_size=9, micro_batch_size=4)
    classify(classifier(), tmp_path / "a", training)
    net = classifier("normed")
    net[2].requires_grad_(False)  # its statistics are what they are
    classify(net, tmp_path / "b", training)
    with pytest.raises(ConfigError, match="one row"):  # a loss that compares rows
        learn(classifier(), tmp_path / "c", training, terms=dist())
    assert not (tmp_path / "c").exists()


# The caller's random state


def states():
    return torch.get_rng_state(), np.random.get_state()[1], random.getstate()


def alike(one, other):
    return torch.equal(one[0], other[0]) and (one[1] == other[1]).all() and one[2] == other[2]


@dataclass(frozen=True)
class Drawing(Towards):
    """It draws from everywhere, and may fail."""

    goal: float = 0.0
    fails: bool = False

    def __call__(self, student, batch, draw):
        found = super().__call__(student, batch, draw)
        torch.rand(3), np.random.rand(3), random.random()
        return found * (float("nan") if self.fails else 1)


@dataclass(frozen=True)
class Draws(Method):
    fails: bool = False

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        torch.rand(1)
        yield Stage("mine", teacher.denoiser.trainable_copy(), Drawing(fails=self.fails), 2)


@pytest.mark.parametrize("fails", [False, True])
def test_training_leaves_the_callers_random_state(tmp_path, fails):
    net, teacher, data, few = (
        classifier("normed"),
        pipeline(),
        points(),
        TrainingConfig(batch_size=8, ema=0.5),
    )
    guided = Denoiser(build("mlp", {"width": 8, "num_classes": 3}), Cosine(), V())
    shown, before = images(), states()
    calls = [
        lambda: distill(teacher, data, tmp_path / "a", method=Draws(fails), training=few),
        lambda: train(teacher, data, tmp_path / "b", method=Denoising(updates=1), training=few),
        lambda: classify(net, tmp_path / "c", few, data=shown),
        lambda: classify("cnn", tmp_path / "d", few, data=shown),
        lambda: teacher.sample(3, steps=2),
        lambda: next(GuidedDistillation(guidance_embed_dim=4).stages(DenoiserOnly(guided, 2))),
    ]
    for call in calls[: 1 if fails else None]:
        if fails:
            with pytest.raises(NonFinite):
                call()
        else:
            call()
        assert alike(before, states())


class Shift:
    def __init__(self, by):
        self.by = by

    def move(self, x, scale=1):
        return self.by + scale * x


def closed_over(by):
    def move(x):
        return x + by

    return move


PLUS, MINUS = (lambda x: x + 1), (lambda x: x - 1)  # on one line, whose source is that of both
OTHERS = {
    "closure": (closed_over(1), closed_over(2)),
    "lambda": (PLUS, MINUS),
    "arguments of a partial": (partial(Shift.move, Shift(1)), partial(Shift.move, Shift(2))),
    "keywords of a partial": (partial(Shift.move, scale=1), partial(Shift.move, scale=2)),
    "bound method": (Shift(1).move, Shift(2).move),
}


@pytest.mark.parametrize("one, other", OTHERS.values(), ids=OTHERS)
def test_what_a_function_holds_is_part_of_it(one, other):
    assert identity(one) == identity(one) != identity(other)


def test_statistics_are_taken_of_other_draws_in_every_batch_and_stage():
    seeds = []

    class Drawn(Shown):
        def __call__(self, student, batch, draw):
            seeds.append(draw.generator.initial_seed())
            return super().__call__(student, batch, draw)

    for index in (0, 1):
        net = nn.Sequential(nn.BatchNorm1d(2))
        stage = Stage("s", net, Drawn(), 1)
        update_batch_norm(stage, points(3 * BATCH), torch.device("cpu"), seed=3, index=index)
    assert len(seeds) == len(set(seeds)) == 6
