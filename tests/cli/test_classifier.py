"""`halfstep train classifier` from data to folder: defaults as ever, every option, what is refused."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import halfstep
from halfstep import Augmentation, load_classifier, train_classifier, TrainingConfig
from halfstep.cli import main
from halfstep.data import Dataset
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.classification import score_classifier
from halfstep.methods.classifiers.supervised import Classification, Classify
from halfstep.models.classifiers.registry import classifier_recipe
from halfstep.training.stages import RunOptions
from tests.support.denoisers import seeded

SMALL = [
    "--updates",
    6,
    "--batch-size",
    16,
    "--log-every",
    3,
    "--net",
    "cnn",
    "--net-config",
    "width",
    4,
]


@pytest.fixture
def cli(cli, monkeypatch):
    """Types what follows `halfstep train classifier` on digits."""
    monkeypatch.setenv("COLUMNS", "100")
    return partial(cli, "train", "classifier", "--data", "digits", "--device", "cpu")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def options(folder):
    return json.loads((folder / "run.json").read_text())["options"]


def test_everything_at_once_and_again(cli, tmp_path):
    words = [
        *SMALL, "--augment", "flip", "crop", "--views", 3, "--labels-per-class", 9, "--validate", 0.2,
        "--label-smoothing", 0.1, "--mean", 0.3, "--std", 0.4, "--out", "run",
    ]  # fmt: skip
    status, out, err = cli(*words)
    assert status == 0, err
    assert "note      a classifier of smoothed labels is a poor teacher" in out
    assert "digits, 90 samples" in out and "cnn, " in out
    match = re.search(r"accuracy  ([\d.]+)% .* on the 20 % held out, all 359 images", out)
    net = load_classifier(tmp_path / "run")
    _, held = halfstep.load_data("digits").apart(0.2)
    assert float(match[1]) == pytest.approx(
        100 * score_classifier(net, held).accuracy.value, abs=0.051
    )
    name, config, preprocessing = classifier_recipe(net)
    assert (name, config["width"], preprocessing.mean) == ("cnn", 4, (0.3,))
    measured = [line for line in lines(tmp_path / "run") if "held_out" in line]
    assert [line["update"] for line in measured] == [3, 6] and measured[0]["held_out"] == 359
    exact = score_classifier(net, held)
    assert measured[1]["held_out_accuracy"] == pytest.approx(exact.accuracy.value)
    assert measured[1]["held_out_nll"] == pytest.approx(exact.nll, rel=1e-4)
    before = options(tmp_path / "run")
    assert before["augmentation"] == {"steps": ["flip", "crop"], "views": 3, "seed": 0}
    assert before["label_smoothing"] == 0.1
    again, out, _ = cli(*words)
    assert again == 0 and "this run was finished before" in out and match[0] in out
    status, _, err = cli(*words[:-2], "--views", 4, "--out", "run")
    assert status == 2 and "was made with augmentation.views = 3, now it is 4" in err.replace(
        "\n", " "
    )


def test_fine_tuning_from_a_folder_and_from_a_file(cli, tmp_path):
    assert cli(*SMALL, "--out", "old")[0] == 0
    status, out, err = cli(
        "--updates", 2, "--batch-size", 16, "--init", "old", "--learning-rate", 0, "--out", "new"
    )
    assert status == 0, err
    assert "starts    from old" in out and "afresh" not in out
    old, new = load_classifier("old"), load_classifier("new")
    assert classifier_recipe(old)[:2] == classifier_recipe(new)[:2]
    assert torch.equal(old.head.weight, new.head.weight)
    weights = tmp_path / "old/stages/classifier/classifier.safetensors"
    status, out, err = cli(*SMALL, "--init", weights, "--learning-rate", 0, "--out", "third")
    assert status == 0 and torch.equal(load_classifier("third").head.weight, old.head.weight), err
    status, _, err = cli("--init", "old", "--net", "shallow", "--out", "x")
    assert status == 2 and "holds a cnn, and --net asks for shallow" in err
    status, _, err = cli("--init", "none.pth", "--net", "cnn", "--out", "x")
    assert status == 2 and "none.pth" in err and not (tmp_path / "x").exists()


def test_a_head_of_other_classes_is_said(cli, tmp_path):
    assert cli(*SMALL, "--out", "old")[0] == 0
    few = torch.randint(0, 256, (40, 8, 8), generator=seeded(), dtype=torch.uint8)
    np.savez(tmp_path / "few.npz", images=few.numpy(), labels=np.arange(40) % 3)
    status = main(
        ["train", "classifier", "--data", "few.npz", "--init", "old", "--updates", "2", "--batch-size", "8",
         "--device", "cpu", "--out", "new"]
    )  # fmt: skip
    assert status == 0
    assert load_classifier("new").head.weight.shape[0] == 3


def test_a_network_of_ones_own(cli, tmp_path):
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def mlp(channels, num_classes, size, width=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, width), nn.ReLU(),\n"
        "                         nn.Linear(width, num_classes))\n"
        "def wrong(num_classes):\n"
        "    return nn.Conv2d(1, num_classes, 3)\n"
    )
    words = ["--net", "mynets:mlp", "--updates", 3, "--batch-size", 8, "--out", "mine"]
    status, _, err = cli(*words, "--net-config", "width", 5)
    assert status == 0, err
    assert load_classifier("mine", net="mynets:mlp")[1].weight.shape == (5, 64)
    with pytest.raises(ConfigError, match="code of your own"):
        load_classifier("mine")
    status, _, err = cli("--net", "mynets:wrong", "--out", "x")
    assert status == 2 and "it answers in the shape [2, 10, 6, 6]" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--augment", "mixup"], "mixed images have no label"),
        (["--augment", "flip", "--flip"], "write flip=False, and flip among its steps"),
        (["--views", 3], "--views 3 are of an augmentation"),
        (["--validate", 1.5], "is no share of the data"),
        (["--validate", "digits"], "the held-out data is the training data"),
        (["--validate", "two-moons"], "must be labelled images of shape [1, 8, 8]"),
        (["--labels-per-class", 500], "178 labelled"),
        (["--label-smoothing", 1], "label_smoothing must be"),
        (["--net", "cnnn"], "perhaps you meant 'cnn'"),
        (["--net", "toy-teacher"], "too small for the toy's teacher"),
        (["--init", "imagenet"], "those of efficientnet-lite0"),
        (["--mean", 0.5], "mean"),
        (["--net", "cnn", "--net-config", "widthh", 3], "perhaps you meant 'width'"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_no_folder(cli, tmp_path, words, message):
    status, _, err = cli(*words, "--out", "x")
    assert status == 2 and err.startswith("halfstep: ") and err.count("\n") == 1, err
    assert message in err and not (tmp_path / "x").exists()


def test_a_rehearsal(cli, tmp_path):
    status, out, err = cli(*SMALL, "--augment", "crop", "--dry-run", "--out", "x")
    assert status == 0 and "classifier" in out and not (tmp_path / "x").exists(), err


# The same in Python.


def images(n=60, num_classes=3, labels=None):
    values = torch.randint(0, 256, (n, 1, 8, 8), generator=seeded(), dtype=torch.uint8)
    return Dataset(values, torch.arange(n) % num_classes if labels is None else labels)


TINY = TrainingConfig(batch_size=8, learning_rate=1e-3, log_every=2)


def trained(out, data=None, classifier="cnn", **more):
    return train_classifier(
        classifier, data or images(), out, method=Classification(updates=4), training=TINY,
        job=RunOptions(device="cpu"), **more,
    )  # fmt: skip


def test_in_python(tmp_path):
    net = trained(tmp_path / "a", held_out=images(21, labels=torch.arange(21) % 2))
    assert not net.training
    back = load_classifier(tmp_path / "a")
    x = images().batch(torch.arange(5)).x0
    torch.testing.assert_close(back(x), net(x))
    assert lines(tmp_path / "a")[0]["held_out"] == 21
    same = trained(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


def test_rows_without_labels_are_left_out(tmp_path):
    labels = torch.arange(60) % 3
    labels[30:] = -1
    partly, half = images(labels=labels), images().only(torch.arange(30))
    one, other = trained(tmp_path / "a", partly), trained(tmp_path / "b", half)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_augmented_training_goes_on_to_the_bit(tmp_path):
    for views in (0, 3):
        how = Augmentation(steps=("flip", "crop"), views=views)
        data = dataclasses.replace(images(), augmentation=how)
        whole = trained(tmp_path / f"a{views}", data)
        train_classifier(
            "cnn", data, tmp_path / f"b{views}", method=Classification(updates=2),
            training=dataclasses.replace(TINY, learning_rate_schedule="constant"),
            job=RunOptions(device="cpu"),
        )  # fmt: skip
        longer = train_classifier(
            "cnn", data, tmp_path / f"b{views}", method=Classification(updates=4),
            training=dataclasses.replace(TINY, learning_rate_schedule="constant"),
            job=RunOptions(device="cpu", extend=True),
        )  # fmt: skip
        once = train_classifier(
            "cnn", data, tmp_path / f"c{views}", method=Classification(updates=4),
            training=dataclasses.replace(TINY, learning_rate_schedule="constant"),
            job=RunOptions(device="cpu"),
        )  # fmt: skip
        assert all(
            torch.equal(a, b) for a, b in zip(longer.parameters(), once.parameters(), strict=True)
        )
        assert not torch.equal(whole.head.weight, once.head.weight)


def test_what_python_refuses(tmp_path):
    out = tmp_path / "x"
    with pytest.raises(ConfigError, match="labelled images"):
        trained(out, "two-moons")
    with pytest.raises(ConfigError, match="has 5 classes and the training data 3"):
        trained(out, held_out=images(20, 5))
    with pytest.raises(ConfigError, match=r"does not map images \[2, 1, 8, 8\] to logits \[2, 3\]"):
        net = halfstep.models.classifiers.registry.build_classifier(
            "toy-student", {"channels": 1, "num_classes": 2, "size": 8}
        )
        trained(out, classifier=net)
    with pytest.raises(DataError, match="leaves one part empty"):
        images(3).apart(0.01)
    assert not out.exists()


def test_held_out_data_leaves_the_weights_alone(tmp_path):
    """Neither the scale of feature networks nor anything else is fitted to it."""
    one = trained(tmp_path / "a", classifier="features", held_out=images(20, 2))
    other = trained(tmp_path / "b", classifier="features")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    spread = one.features(images().batch(torch.arange(60)).x0).var(0).mean()
    assert float(spread.detach()) == pytest.approx(1, abs=1e-4)


def test_the_log_asks_about_a_fixed_thousand():
    held = images(1003, 3)
    sizes = []

    def net(x):
        sizes.append(x)
        return torch.eye(3)[torch.zeros(len(x), dtype=torch.int64)] * 5

    measures = Classify(held_out=held).measure(net, held.batch(torch.arange(2)), None)
    first = torch.cat(sizes)
    assert measures["held_out"] == 1000 == len(first)
    sizes.clear()
    Classify(held_out=held).measure(net, held.batch(torch.arange(2)), None)
    assert torch.equal(torch.cat(sizes), first)
    assert measures["held_out_accuracy"] == pytest.approx(1 / 3, abs=0.01)
    assert Classify().measure(net, held.batch(torch.arange(2)), None) == {}


def test_smoothing_is_torchs():
    label, logits = torch.tensor([0, 2, 1, -1]), torch.randn(4, 3, generator=seeded())
    batch = Dataset(torch.zeros(4, 1, 2, 2), label).batch(torch.arange(4))
    loss = Classify(smoothing=0.2)(lambda x: logits, batch, None)
    want = torch.nn.functional.cross_entropy(
        logits[:3], label[:3], label_smoothing=0.2, reduction="none"
    )
    torch.testing.assert_close(loss[:3], want)
    assert loss[3] == 0


def test_the_shipped_digits_classifier_is_still_read():
    folder = Path(halfstep.__file__).parent / "assets" / "digits-classifier"
    digits = halfstep.load_data("digits")
    assert score_classifier(load_classifier(folder), digits).accuracy.value > 0.985
