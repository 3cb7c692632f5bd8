"""Knowledge distillation where it is easily wrong in silence: other classes, changed images, two teachers."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from torch import nn

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.classification import score_classifier
from halfstep.methods.classifiers.feature_terms import FeatureMatch, Relational
from halfstep.methods.classifiers.knowledge import KnowledgeDistillation
from halfstep.methods.classifiers.recipes import patient_teacher, recipe
from halfstep.methods.classifiers.supervised import Classification
from halfstep.methods.classifiers.terms import (
    distinct,
    HardLabels,
    JensenShannon,
    LogitMatch,
    SoftTargets,
)
from halfstep.methods.classifiers.weight_schedules import Linear
from halfstep.models.classifiers.checkpoint import initialise, load_classifier, save_classifier
from halfstep.models.classifiers.ensemble import Teachers
from halfstep.models.classifiers.preprocessing import Preprocessing
from halfstep.models.classifiers.registry import build_classifier, class_names
from halfstep.models.compression.int8 import quantise
from halfstep.training.classifiers.api import held_out_dataset, labelled_images, train_classifier
from halfstep.training.classifiers.logit_cache import cached_logits
from halfstep.training.stages import RunOptions
from tests.support.classifiers import Net, pictures, run, same, teachers, TRAINING
from tests.support.progress import Ledger
from tests.support.runs import refused


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.25))


def built(cls=Net, width=4):
    return build_classifier(f"{cls.__module__}:{cls.__name__}", {"width": width})


# --- images -------------------------------------------------------------------------------------------


def test_whoever_changes_the_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="teacher changes"):
        Teachers(InPlace(9))(torch.zeros(3, 3, 5, 4))
    with pytest.raises(ConfigError, match="teacher changes"):
        run(tmp_path / "a", teacher=[InPlace(9), Net(9)])
    with pytest.raises(ConfigError, match="student changes"):
        run(tmp_path / "b", teacher=None, student=built(InPlace))
    assert not list(tmp_path.iterdir())


def test_the_answers_are_of_images_and_not_of_labels(tmp_path):
    """The same pictures with fewer labels, or none, take what was kept; others do not."""
    teacher, data = Teachers(*teachers()), pictures()
    cached = cached_logits(tmp_path, teacher, data)
    fewer = replace(data, labels=data.labels.clone().fill_(-1))
    for other in (fewer, pictures(labels=False)):
        ledger = Ledger()
        again = cached_logits(tmp_path, teacher, other, progress=ledger)
        assert torch.equal(again.table, cached.table)
        assert ledger.each == [len(data)]  # read, never asked
    with pytest.raises(ConfigError, match="another data"):
        cached_logits(tmp_path, teacher, data.only(torch.arange(74)))


def test_a_teacher_of_double_precision_is_kept_in_it(tmp_path):
    class Double(Net):
        def forward(self, x):
            return super().forward(x).double() + 1e-9

    plain = run(tmp_path / "a", teacher=Double(9))
    cached = run(tmp_path / "b", teacher=Double(9), cache=tmp_path / "kept")
    assert same(plain, cached)
    assert (
        cached_logits(tmp_path / "kept", Teachers(Double(9)), pictures()).table.dtype
        == torch.double
    )


# --- whose classes ------------------------------------------------------------------------------------


def test_other_classes_are_refused_by_name(tmp_path):
    data = pictures()
    other = replace(data, names=("a", "b", "c", "x"), values=data.values.flip(0))
    with pytest.raises(ConfigError, match="held-out data a, b, c, x"):
        held_out_dataset(other, data)
    held_out_dataset(replace(other, names=data.names), data)
    held_out_dataset(replace(other, names=()), data)  # numbers say nothing
    teacher = built()
    teacher.class_names = ("a", "b", "c", "x")
    with pytest.raises(ConfigError, match="a, b, c, x and the data"):
        run(tmp_path / "r", teacher=teacher)
    with pytest.raises(ConfigError, match="has the classes"):
        other_teacher = built()
        other_teacher.class_names = data.names
        Teachers(teacher, other_teacher)
    assert not (tmp_path / "r").exists()


def test_a_classifier_keeps_the_names_of_its_classes(tmp_path):
    method, job = Classification(updates=2), RunOptions(device="cpu")
    labelled = pictures().only(torch.arange(75)[torch.arange(75) % 3 > 0])
    train_classifier(built(), labelled, tmp_path / "t", method=method, training=TRAINING, job=job)
    net = f"{Net.__module__}:{Net.__name__}"
    teacher = load_classifier(tmp_path / "t", net=net)
    assert class_names(teacher) == tuple("abcd")
    nameless = pictures(labels=False)
    student = run(tmp_path / "s", *patient_teacher(), teacher=teacher, data=nameless)
    assert class_names(student) == tuple("abcd")
    assert class_names(load_classifier(tmp_path / "s", net=net)) == tuple("abcd")


def test_a_student_of_images_without_labels_can_be_validated(cli, tmp_path):
    for place, seed in (("flat", 0), ("apart/ant", 1), ("apart/bee", 2), ("other/cat", 3)):
        for k in range(4):
            path = tmp_path / place / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = tuple(
                torch.randint(0, 256, (3,), generator=torch.Generator().manual_seed(seed + k))
            )
            Image.new("RGB", (8, 8), tuple(map(int, colour))).save(path)
    teacher = build_classifier("features", {"channels": 3, "num_classes": 2, "size": 8})
    teacher.class_names = ("ant", "bee")
    save_classifier(teacher, tmp_path / "t")
    quick = ["--updates", 2, "--batch-size", 4, "--device", "cpu", "--net", "toy-student"]
    words = ["--teacher", "t", "--data", "flat", "--recipe", "patient-teacher", *quick]
    distilled = partial(cli, "distill", "knowledge", *words)
    status, out, err = distilled("--validate", "apart", "--out", "r")
    assert status == 0, err
    assert "all 8 images" in out
    words = distilled("--validate", "other", "--out", "x")
    assert refused(words, "the teacher has the classes ant, bee and the data cat")
    assert class_names(load_classifier(tmp_path / "r")) == ("ant", "bee")


def test_scores_of_what_cannot_be_scored():
    net = Net(4)
    data = pictures()
    with pytest.raises(DataError, match="up to 3"):
        score_classifier(nn.Sequential(Net(4), nn.Linear(4, 3)), data)
    for parameter in net.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(DataError, match="nan"):
        score_classifier(net, data)


# --- whose teacher ------------------------------------------------------------------------------------


def test_a_teacher_is_also_what_is_done_to_its_images():
    nets = [
        build_classifier("tests.support.classifiers:Net", {"width": 4}, preprocessing=before)
        for before in (
            Preprocessing(),
            Preprocessing(mean=(0.1,) * 3, std=(1.0,) * 3),
            Preprocessing(mean=(0.1,) * 3, std=(2.0,) * 3),
        )
    ]
    assert len({Teachers(net).digest for net in nets}) == 3
    relu, gelu = (nn.Sequential(Net(4), nn.Dropout(p)) for p in (0.1, 0.2))
    assert Teachers(relu).digest != Teachers(gelu).digest


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_an_int8_teacher_teaches_and_is_no_start(tmp_path):
    whole = build_classifier("features", {"channels": 1, "num_classes": 4, "size": 8})
    small = quantise(build_classifier("features", {"channels": 1, "num_classes": 4, "size": 8}))
    assert Teachers(small).digest != Teachers(whole).digest
    with pytest.raises(ConfigError, match="int8 weights"):
        initialise(whole, small)


# --- what is asked ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: SoftTargets(form="KL"), "perhaps you meant|choose from cross-entropy, kl"),
        (lambda: LogitMatch(form="MEAN"), "choose from half-sum, mean"),
        (lambda: Relational(of="distances"), "perhaps you meant 'distance'"),
        (lambda: HardLabels(smoothing=1.5), "smoothing"),
        (lambda: JensenShannon(teacher_share=2.0), "teacher_share"),
        (
            lambda: FeatureMatch(pairs=("hidden", "hidden")),
            "pairs name a part",
        ),
        (
            lambda: FeatureMatch(pairs=(("a", "b"),), projector="sometimes"),
            "choose from always, auto",
        ),
        (lambda: recipe("report", {"hard_weight": "0.1..0"}), "write one that does not change"),
        (lambda: recipe("report", {"soft_weight": Linear(1, 0)}), "write one that does not change"),
        (lambda: recipe("keras", {"alpha": None}), "alpha is a number, got None"),
        (lambda: recipe("tang", {"hard_share": [1]}), "hard_share is a number"),
        (lambda: KnowledgeDistillation(updates=-3), "updates must be"),
        (lambda: Classification(updates=-2), "updates must be"),
    ],
)
def test_what_was_mistyped_is_refused(made, words):
    with pytest.raises(ConfigError, match=words):
        made()


def test_terms_of_one_name_are_told_apart():
    terms = (SoftTargets(), SoftTargets(temperature=2.0), SoftTargets(name="soft2"), SoftTargets())
    assert [term.name for term in distinct(terms)] == ["soft", "soft3", "soft2", "soft4"]


def test_nothing_to_learn_is_refused(tmp_path):
    with pytest.raises(DataError, match="75 images"):
        data = pictures()
        labelled_images(replace(data, labels=data.labels.clone().fill_(-1)))
    with pytest.raises(DataError, match="nothing to learn"):
        run(tmp_path / "r", HardLabels(), data=pictures(labels=False))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--unlabelled"], "--labels-per-class"),
        (["--teacher", "t", "t"], "names a folder twice"),
    ],
)
def test_options_that_would_do_nothing(options, words, cli, tmp_path):
    save_classifier(build_classifier("features", {"channels": 1}), tmp_path / "t")
    first = [] if "--teacher" in options else ["--teacher", "t"]
    more = ["--data", "digits", "--net", "toy-student", "--updates", 1, "--out", "r"]
    assert refused(cli("distill", "knowledge", *first, *options, *more), words)
    assert not (tmp_path / "r").exists()


def test_how_many_labels_an_accuracy_is_of(cli, tmp_path):
    save_classifier(build_classifier("features", {"channels": 1}), tmp_path / "t")
    words = [
        "--teacher",
        "t",
        "--data",
        "digits",
        "--net",
        "toy-student",
        "--updates",
        1,
        "--batch-size",
        8,
    ]
    status, out, err = cli(
        "distill", "knowledge", *words, "--labels-per-class", 5, "--unlabelled", "--out", "r"
    )
    assert status == 0, err
    assert "all 1,797 images (50 of them with a label)" in out
