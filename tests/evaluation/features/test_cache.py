"""Features kept by content, and numbers that know how they were measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from halfstep.data import Dataset
from halfstep.errors import ConfigError
from halfstep.evaluation.comparable import Measured
from halfstep.evaluation.features import cache as feature_cache
from halfstep.evaluation.features.cache import data_features, fingerprint
from halfstep.evaluation.features.registry import digits_features, Features
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.files import cache_folder
from halfstep.identity import digest_of
from tests.support.denoisers import seeded
from tests.support.runs import rewritten


class Tallied(nn.Module):
    """Averages each channel; counts the images that it sees."""

    def __init__(self, gain=1.5):
        super().__init__()
        self.gain, self.images_seen = nn.Parameter(torch.tensor(gain)), 0

    def forward(self, x):
        self.images_seen += len(x)
        return self.gain * x.mean((2, 3))


def through(net, **options):
    return Features("tallied", net, digest=digest_of(net), **options)


@pytest.fixture
def data():
    values = torch.randint(256, (37, 3, 4, 6), generator=seeded(), dtype=torch.uint8)
    return Dataset(values, torch.arange(37) % 5)


# The cache.


def test_a_second_reading_computes_nothing_and_gives_the_same(data, tmp_path):
    net = Tallied()
    first = data_features(through(net), data, cache=tmp_path)
    assert net.images_seen == 37 and first.dtype == torch.float64
    images = data.batch(torch.arange(37)).x0
    assert torch.equal(first, net(images).double())
    net.images_seen = 0
    assert torch.equal(data_features(through(net), data, cache=tmp_path), first)
    assert torch.equal(data_features(through(net), images, cache=tmp_path), first)
    assert net.images_seen == 0


def test_without_a_folder_or_a_digest_nothing_is_kept(data, tmp_path):
    net = Tallied()
    nameless = Features("tallied", net)
    for features, cache in [(through(net), None), (nameless, tmp_path), (nameless, tmp_path)]:
        net.images_seen = 0
        data_features(features, data, cache=cache)
        assert net.images_seen == 37
    assert not list(tmp_path.iterdir())


def changed(data):
    values = data.values.clone()
    values[36, 2, 3, 5] ^= 1  # the last bit of the last byte
    return replace(data, values=values)


@pytest.mark.parametrize(
    "change",
    ["one bit", "order", "fewer", "shape", "network", "preprocessing", "version"],
)
def test_whatever_changes_is_computed_anew(change, data, tmp_path, monkeypatch):
    net = Tallied()
    features, other = through(net), data
    data_features(features, data, cache=tmp_path)
    if change == "one bit":
        other = changed(data)
    elif change == "order":
        other = Dataset(data.values.flip(0))
    elif change == "fewer":
        other = Dataset(data.values[:-1])
    elif change == "shape":
        other = Dataset(data.values.reshape(37, 3, 6, 4))
    elif change == "network":
        with torch.no_grad():
            net.gain += 1e-6
        features = through(net)
    elif change == "preprocessing":
        features = replace(features, preprocessing="otherwise")
    else:
        monkeypatch.setattr(feature_cache, "__version__", "0.0.0")
    net.images_seen = 0
    computed = data_features(features, other, cache=tmp_path)
    assert net.images_seen == len(other)
    assert torch.equal(computed, net(other.batch(torch.arange(len(other))).x0).double())
    net.images_seen = 0
    data_features(features, other, cache=tmp_path)
    assert net.images_seen == 0  # and that is kept beside the first
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_labels_names_and_flips_are_no_content(data, tmp_path):
    net = Tallied()
    data_features(through(net), data, cache=tmp_path)
    net.images_seen = 0
    data_features(through(net), replace(data, labels=None, flip=True), cache=tmp_path)
    assert net.images_seen == 0


@pytest.mark.parametrize("damage", ["weights", "json", "gone"])
def test_an_entry_that_is_damaged_is_computed_anew(damage, data, tmp_path):
    net = Tallied()
    first = data_features(through(net), data, cache=tmp_path)
    [weights], [about] = tmp_path.glob("*.safetensors"), tmp_path.glob("*.json")
    if damage == "weights":
        blob = bytearray(weights.read_bytes())
        blob[-1] ^= 1
        weights.write_bytes(blob)
    elif damage == "json":
        about.write_text("{")
    else:
        weights.unlink()
    for count in (37, 0):
        net.images_seen = 0
        assert torch.equal(data_features(through(net), data, cache=tmp_path), first)
        assert net.images_seen == count


def test_an_entry_of_something_else_is_not_taken(data, tmp_path):
    """The name of an entry is a part of its key: the whole key lies inside and is compared."""
    net = Tallied()
    data_features(through(net), data, cache=tmp_path)
    [about] = tmp_path.glob("*.json")
    rewritten(about, lambda message: message.update(data="another"))
    net.images_seen = 0
    data_features(through(net), data, cache=tmp_path)
    assert net.images_seen == 37


def test_a_cache_that_cannot_be_written_is_done_without(data, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    net = Tallied()
    assert data_features(through(net), data, cache=blocked / "cache").shape == (37, 3)
    assert blocked.read_text() == "not a folder"


def test_float64_is_kept_where_it_says_more(data, tmp_path):
    net = Tallied()
    precise = Features("precise", lambda x: net(x).double() / 3, digest="precise")
    first = data_features(precise, data, cache=tmp_path)
    assert not torch.equal(first, first.float().double())
    assert torch.equal(data_features(precise, data, cache=tmp_path), first)


def test_many_parts_are_one_set(monkeypatch, data, tmp_path):
    net = Tallied()
    whole = data_features(through(net), data, cache=None)
    monkeypatch.setattr(feature_cache, "CHUNK", 10)
    torch.testing.assert_close(data_features(through(net), data, cache=tmp_path), whole)


def test_the_fingerprint_is_of_the_images_as_they_are_seen(data):
    images = data.batch(torch.arange(37)).x0
    assert fingerprint(data) == fingerprint(images) == fingerprint(Dataset(images))
    assert len({fingerprint(data), fingerprint(changed(data)), fingerprint(images.double())}) == 3


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("HALFSTEP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/halfstep")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "halfstep"
    monkeypatch.setenv("HALFSTEP_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"


# Numbers that know how they were measured.


def measured(value=0.2, low=0.18, high=0.23, **changes):
    made = Measured(
        Interval(value, low, high),
        metric="frechet_distance",
        features="digits",
        digest="d" * 64,
        preprocessing="as it lies, [-1, 1]",
        samples=2000,
        real="a" * 64,
        real_samples=1797,
        floor=0.096,
    )
    return replace(made, **changes)


DIFFERENCES = [
    ({"metric": "kernel_distance"}, "the metric (frechet_distance against kernel_distance)"),
    ({"digest": "e" * 64}, "the features' weights (dddddddddddd against eeeeeeeeeeee)"),
    (
        {"preprocessing": "bicubic"},
        "the preprocessing (as it lies, [-1, 1] against bicubic)",
    ),
    ({"samples": 1000}, "the number of samples (2000 against 1000)"),
    ({"real": "b" * 64}, "the real data (aaaaaaaaaaaa against bbbbbbbbbbbb)"),
    ({"real_samples": 9}, "the number of real images (1797 against 9)"),
]
COMPARISONS = [
    lambda a, b: a.over(b),
    lambda a, b: a < b,
    lambda a, b: a > b,
    lambda a, b: a.surely_below(b),
    lambda a, b: min(a, b),
    lambda a, b: sorted([a, b]),
]


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize("change, message", DIFFERENCES)
def test_what_differs_is_refused_and_named(change, message, compare):
    with pytest.raises(ConfigError, match="measure both in the same way") as refused:
        compare(measured(), measured(**change))
    text = str(refused.value)
    sides = message[message.index("(") + 1 : -1].split(" against ")
    assert message[: message.index(" (")] in text and all(side in text for side in sides)
    others = [other[: other.index(" (")] for _, other in DIFFERENCES if other != message]
    assert not any(f"{other} (" in text for other in others)


def test_everything_that_differs_is_named_at_once():
    with pytest.raises(ConfigError) as refused:
        measured().over(measured(samples=10, real="c", preprocessing="other"))
    for condition in ("the number of samples", "the real data", "the preprocessing"):
        assert condition in str(refused.value)


def test_the_same_weights_under_another_name_are_the_same_features():
    assert measured() < measured(0.3, features="classifier copied")
    with pytest.raises(ConfigError, match=r"the features \(digits against mine\)"):
        measured(digest="").check_comparable(measured(digest="", features="mine"))
    measured(digest="").check_comparable(measured(digest=""))


def test_the_floor_is_no_condition():
    measured().check_comparable(measured(floor=None))


def test_the_ratio_lies_between_the_ends():
    """Every pair of values from the two intervals has its ratio within, and the ends are reached."""
    above, below = measured(0.3, 0.2, 0.4), measured(0.2, 0.1, 0.25)
    ratio = above.over(below)
    assert ratio == Interval(pytest.approx(1.5), pytest.approx(0.8), pytest.approx(4.0))
    below_zero = measured(-0.1, -0.2, 0.3).over(below)
    assert (below_zero.low, below_zero.high) == (pytest.approx(-2.0), pytest.approx(3.0))


@pytest.mark.parametrize("ends", [(0.1, 0.0, 0.2), (0.1, -0.1, 0.2), (-0.1, 0.1, 0.2)])
def test_a_ratio_to_what_may_be_nothing_is_refused(ends):
    with pytest.raises(ConfigError, match="may be 0"):
        measured().over(measured(*ends))


def test_order_and_certainty():
    low, high, wide = measured(0.1, 0.09, 0.12), measured(0.2, 0.19, 0.21), measured(0.3, 0.05, 0.5)
    assert low < high < wide and high > low and not high < low
    assert not measured(0.1, 0.09, 0.195).surely_below(high)
    assert low.surely_below(high) and not high.surely_below(low) and not low.surely_below(wide)


def test_it_takes_what_the_features_say_of_themselves():
    digits = digits_features()
    made = Measured.through(
        digits, "kernel_distance", Interval(0.1, 0.0, 0.2), samples=5, real="r", real_samples=7
    )
    assert (made.features, made.digest) == ("digits", digits.digest)
    assert (made.preprocessing, made.samples, made.real_samples) == ("as it lies, [-1, 1]", 5, 7)


def test_it_reads_as_a_sentence():
    made = measured()
    for part in ("frechet_distance", "2,000 samples", "1,797 real", "digits", "as it lies"):
        assert part in str(made)
