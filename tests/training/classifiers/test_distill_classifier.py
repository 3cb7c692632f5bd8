"""Classifiers distilled in runs: resumed to the bit, with and without kept answers, features and all."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep import storage
from halfstep.batch import Batch
from halfstep.data import Dataset
from halfstep.errors import CheckpointError, ConfigError, DataError
from halfstep.methods.classifiers.feature_terms import AttentionTransfer, FeatureMatch
from halfstep.methods.classifiers.knowledge import KnowledgeDistillation
from halfstep.methods.classifiers.recipes import decoupled, hinton, patient_teacher
from halfstep.methods.classifiers.terms import HardLabels, SoftTargets
from halfstep.methods.classifiers.weight_schedules import Linear
from halfstep.models.classifiers.checkpoint import load_classifier
from halfstep.models.classifiers.ensemble import ROWS, Teachers
from halfstep.models.classifiers.registry import build_classifier
from halfstep.training.classifiers.distillation import distill_classifier
from halfstep.training.classifiers.logit_cache import cached_logits, missing
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import RunOptions
from tests.support.classifiers import Net, pictures, run, same, student, teachers, TRAINING, weights
from tests.support.processes import launched
from tests.support.progress import Ledger
from tests.support.runs import At, bits, Crash, crash, everything, logged_lines

CHANGING = (
    SoftTargets(weight=Linear(1, 0)),
    HardLabels(weight=Linear(0, 1, 0.5)),
    FeatureMatch(pairs=(("hidden", "hidden"), ("conv", "conv")), weight=Linear(1e-2, 0)),
)


# To the bit.


@pytest.mark.parametrize(
    "terms", [hinton(), CHANGING, decoupled()], ids=["hinton", "changing", "decoupled"]
)
def test_a_resumed_run_ends_at_the_same_bits(tmp_path, terms):
    run(tmp_path / "a", *terms)
    for update in (2, 7, 13):
        with pytest.raises(Crash):
            run(tmp_path / "b", *terms, callback=At("student", update, crash))
    run(tmp_path / "b", *terms)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert logged_lines(tmp_path / "a") == logged_lines(tmp_path / "b")


@pytest.mark.parametrize("flip", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("micro", [0, 4])
def test_kept_answers_change_nothing(tmp_path, flip, count, micro):
    options = {
        "data": pictures(flip=flip),
        "teacher": teachers()[:count],
        "micro_batch_size": micro,
    }
    plain = run(tmp_path / "a", **options)
    cached = run(tmp_path / "b", **options, cache=tmp_path / "kept")
    again = run(tmp_path / "c", **options, cache=tmp_path / "kept")
    assert same(plain, cached) and same(plain, again)
    assert bits(tmp_path / "a") == bits(tmp_path / "b") == bits(tmp_path / "c")
    assert len(list((tmp_path / "kept").glob("view-*.safetensors"))) == 1 + flip


def test_kept_answers_and_a_resumed_run(tmp_path):
    data = pictures(flip=True)
    run(tmp_path / "a", data=data)
    for update in (5, 11):
        with pytest.raises(Crash):
            run(
                tmp_path / "b",
                data=data,
                cache=tmp_path / "kept",
                callback=At("student", update, crash),
            )
    run(tmp_path / "b", data=data)  # the kept answers are no part of what a run is
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert logged_lines(tmp_path / "a") == logged_lines(tmp_path / "b")


def test_a_permuted_batch_has_its_answers_permuted(tmp_path):
    data, teacher = pictures(150, flip=True), Teachers(*teachers())
    for each in ([64, 64, 22] * 2, [150] * 2):  # what is there already is done at once
        ledger = Ledger()
        cache = cached_logits(tmp_path / "kept", teacher, data, progress=ledger)
        assert ledger.each == each and ledger.steps == 2 * 150
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:7], order[: ROWS + 1], order.flip(0)):
        batch = data.batch(rows, rows % 2 > 0)
        assert torch.equal(cache(batch), teacher(batch.x0))


def test_a_teacher_that_was_in_train_mode_answers_the_same(tmp_path):
    noisy = teachers()[0].train()
    assert same(run(tmp_path / "a", teacher=[noisy.train()]), run(tmp_path / "b"))


# What is in the folder.


def test_the_student_alone_is_exported_and_the_projectors_are_checkpointed(tmp_path):
    trained = run(tmp_path / "r", *CHANGING)
    folder = tmp_path / "r" / "stages" / "student"
    tensors, about = storage.load(folder / "classifier")
    assert tensors.keys() == student().state_dict().keys()
    assert type(trained) is Net and not trained.training
    loaded = load_classifier(tmp_path / "r", net="tests.support.classifiers:Net")
    assert same(loaded, trained)
    state, _ = storage.load(tmp_path / "r" / "checkpoints" / "00-00000014")
    for each in ("student.projectors.features-0.weight", "exp_avg.projectors.features-1.bias"):
        assert each in state
    assert about["net"] == "tests.support.classifiers:Net"


def test_every_term_is_logged_by_name(tmp_path):
    run(tmp_path / "r", *CHANGING)
    lines = [line for line in RunFolder(tmp_path / "r").metrics if "loss" in line]
    assert [line["update"] for line in lines] == [3, 4, 6, 8, 9, 12, 14]
    for line in lines:
        assert line["terms"].keys() == line["weights"].keys() == {"soft", "hard", "features"}
        done = line["update"] / 14
        assert line["weights"]["soft"] == pytest.approx(1 - done)
        assert line["weights"]["hard"] == pytest.approx(min(2 * done, 1))
    assert lines[-1]["terms"]["soft"] < lines[0]["terms"]["soft"]


def test_the_weights_follow_the_share_of_updates_done(tmp_path):
    """The first update of a weight that starts at 0 moves nothing (Adam makes any gradient a step)."""
    before = weights(student())
    options = {"updates": 1, "ema": 0.0}
    moved = run(tmp_path / "a", SoftTargets(weight=Linear(1, 0)), **options)
    still = run(tmp_path / "b", SoftTargets(weight=Linear(0, 1)), **options)
    assert not torch.equal(moved.head.weight, before["head.weight"])
    assert torch.equal(still.head.weight, before["head.weight"])


def test_the_student_learns(tmp_path):
    trained = run(
        tmp_path / "r",
        *patient_teacher(),
        data=pictures(labels=False),
        updates=150,
        learning_rate=1e-2,
    )
    lines = [line["terms"]["soft"] for line in RunFolder(tmp_path / "r").metrics if "loss" in line]
    assert lines[-1] < lines[0] / 3
    x = pictures().batch(torch.arange(75)).x0
    assert trained(x).shape == (75, 4)


def test_what_a_run_is_continued_with(tmp_path):
    run(tmp_path / "r")
    with pytest.raises(ConfigError, match="made with term soft"):
        run(tmp_path / "r", *hinton(temperature=2.0))
    with pytest.raises(ConfigError, match="made with teacher = "):
        run(tmp_path / "r", teacher=teachers())
    with pytest.raises(ConfigError, match="made with term hard"):
        run(tmp_path / "r", *hinton(hard_weight=0.0))


def test_more_updates(tmp_path):
    run(tmp_path / "r")
    with pytest.raises(ConfigError, match="add --extend"):
        run(tmp_path / "r", updates=20)


# What cannot be, before there is a folder.


class Fixed(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :5]


class Anew(Dataset):
    """Augmented by draws that nobody can name."""

    @property
    def views(self):
        return None

    def training_batch(self, rows, draw):
        batch = super().training_batch(rows, draw)
        return Batch(batch.x0 + 0.1 * draw.normal(batch.x0), batch.cond, batch.ids)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"data": pictures(labels=False)}, DataError, "needs labels and this data has none"),
        ({"teacher": [Fixed()]}, ConfigError, "same classes"),
        ({"precision": "bf16"}, ConfigError, "precision is 'bf16': leave it out"),
        ({"terms": CHANGING, "compile": True}, ConfigError, "leave compile out"),
        ({"terms": CHANGING, "teacher": teachers()}, ConfigError, "no features in common"),
        ({"terms": (AttentionTransfer(pairs=(("conv", "hidden"),)),)}, ConfigError, "give maps"),
    ],
)
def test_what_cannot_be_leaves_no_folder(tmp_path, options, error, message):
    terms = options.pop("terms", ())
    with pytest.raises(error, match=message):
        run(tmp_path / "r", *terms, **options)
    assert not (tmp_path / "r").exists()


def test_a_student_that_cannot_be_saved(tmp_path):
    with pytest.raises(ConfigError, match="was not made by build_classifier"):
        distill_classifier(teachers(), Net(), pictures(), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_trying_leaves_no_trace(tmp_path):
    """One update with and without a trial before it: the generators and statistics are as they were."""
    net = student()
    before = weights(net)
    with pytest.raises(Crash):
        distill_classifier(
            teachers(),
            net,
            pictures(),
            tmp_path / "r",
            job=RunOptions(device="cpu", callback=Refusing()),
        )
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


class Refusing(At):
    def __init__(self):
        super().__init__("", 0, crash)

    def begin(self, stage, update):
        raise Crash


def test_a_teacher_with_no_weight_is_noted(tmp_path):
    callback = At("", 0, crash)
    run(tmp_path / "r", *hinton(soft_weight=0.0), callback=callback, updates=1)
    assert len(callback.notes) == 2 and "learns from labels alone" in callback.notes[1]


# Kept answers that cannot be used.


def test_an_augmentation_without_views_is_refused(tmp_path):
    data = Anew(pictures().values)
    with pytest.raises(ConfigError, match="augmented anew at every draw, so"):
        run(tmp_path / "r", *patient_teacher(), data=data, cache=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"teacher": [Net(9, seed=3)]}, "another teacher"),
        ({"data": pictures(74)}, "another data"),
        ({"data": pictures(flip=True)}, "another views"),
    ],
)
def test_a_foreign_cache_is_refused(tmp_path, changed, message):
    run(tmp_path / "a", cache=tmp_path / "kept", updates=1)
    before = everything(tmp_path / "kept")
    with pytest.raises(ConfigError, match=f"{message} .*choose another folder, or delete that one"):
        run(tmp_path / "b", cache=tmp_path / "kept", updates=1, **changed)
    assert everything(tmp_path / "kept") == before and not (tmp_path / "b").exists()


def test_a_damaged_cache_is_refused(tmp_path):
    run(tmp_path / "a", cache=tmp_path / "kept", updates=1)
    path = tmp_path / "kept" / "view-0000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"abc")
    with pytest.raises(CheckpointError, match="damaged: its checksum is not"):
        run(tmp_path / "b", cache=tmp_path / "kept", updates=1)
    path.with_suffix(".json").unlink()
    assert missing(tmp_path / "kept", pictures()) == 1
    run(tmp_path / "b", cache=tmp_path / "kept", updates=1)
    assert path.read_bytes() == whole


def test_a_cache_with_other_bits_is_refused(tmp_path):
    """As another machine would have made it: right as a file, and a last place off."""
    data, teacher = pictures(), Teachers(*teachers())
    cached_logits(tmp_path, teacher, data)
    stem = tmp_path / "view-0000"
    tensors, about = storage.load(stem)
    storage.save(stem, {"logits": tensors["logits"] * (1 + 1e-6)}, about)
    with pytest.raises(
        ConfigError, match=r"answers here by up to .* other than what '.*' keeps of it"
    ):
        cached_logits(tmp_path, teacher, data)


class Centred(nn.Module):
    """Logits that depend on the other rows."""

    def forward(self, x):
        return x.flatten(1)[:, :4] - x.flatten(1)[:, :4].mean(0)


def test_a_teacher_that_looks_at_the_whole_batch_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="depend on the other samples of a batch"):
        run(tmp_path / "r", teacher=[Centred()])
    assert not (tmp_path / "r").exists()


class Placed(nn.Module):
    """Logits whose last places depend on where a row is, as those of some kernels do."""

    def forward(self, x):
        return x.flatten(1)[:, :4] * (1 + 1e-6 * torch.arange(len(x))[:, None])


def test_a_teacher_whose_rounding_depends_on_the_place_is_asked_row_by_row(tmp_path):
    callback = At("", 0, crash)
    plain = run(tmp_path / "a", teacher=[Placed()], callback=callback, updates=4)
    assert "one sample at a time" in callback.notes[0]
    cached = run(tmp_path / "b", teacher=[Placed()], updates=4, cache=tmp_path / "kept")
    assert same(plain, cached)
    assert not Teachers(Placed()).is_reproducible(torch.ones(ROWS, 3, 5, 4))
    assert Teachers(Fixed()).is_reproducible(torch.randn(ROWS, 3, 5, 4))


# Two processes.

SCRIPT = """
import sys, torch
from tests.training.classifiers.test_distill_classifier import CHANGING, in_two

in_two(sys.argv[1])
"""


class Doubled(Dataset):
    """The same pictures in float64, for what has to agree to more than seven digits."""

    def batch(self, rows, flips=None):
        plain = super().batch(rows, flips)
        return replace(plain, x0=plain.x0.double())


def in_two(out):
    data = pictures()
    terms = (*hinton(), FeatureMatch(pairs=(("hidden", "hidden"),), weight=0.1))
    net = build_classifier(
        "tests.models.classifiers.test_classifier_teachers:Plain", {"width": 4}
    ).double()
    student = distill_classifier(
        Net(9, seed=1).double(), net, Doubled(data.values, data.labels, data.names), out,
        method=KnowledgeDistillation(terms=terms, updates=6), training=TRAINING, job=RunOptions(device="cpu"),
    )  # fmt: skip
    return student


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    status, out, err = launched(str(script), str(tmp_path / "two"))
    assert (status, err) == (0, ""), out + err
    alone = in_two(tmp_path / "one")
    tensors, _ = storage.load(tmp_path / "two" / "stages" / "student" / "classifier")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=1e-10)
    losses = [
        [x["loss"] for x in RunFolder(tmp_path / f).metrics if "loss" in x] for f in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
