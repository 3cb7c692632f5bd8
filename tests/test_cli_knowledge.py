"""`halfstep distill knowledge`: from folders of classifiers to a student beside its teacher."""

import tomllib

import pytest
import torch

from halfstep.cli import main
from halfstep.data import Dataset
from halfstep.errors import DataError
from halfstep.evaluation.agreement import beside, share
from halfstep.nets.classifiers import build_classifier
from halfstep.nets.classifiers_on_disk import load_classifier, save_classifier
from halfstep.nets.teachers import Teachers
from halfstep.training.run import read_metrics
from tests.runs import everything

QUICK = ["--updates", 3, "--batch", 16, "--log-every", 1, "--device", "cpu", "--net", "toy-student"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, classes, seed in (("t0", 10, 0), ("t1", 10, 1), ("few", 3, 0)):
        torch.manual_seed(seed)
        config = {"channels": 1, "classes": classes, "size": 8}
        save_classifier(build_classifier("features", config), tmp_path / name)

    def run(*words):
        status = main(["distill", "knowledge", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def test_a_run_beside_its_teachers(cli, tmp_path):
    words = ["--teacher", "t0", "t1", "--data", "digits", "--out", "r", *QUICK, "--cache", "kept"]
    words += ["--recipe-config", "temperature", 3, "soft_weight", "1..0", "--validate", "digits"]
    status, out, err = cli(*words)
    assert (status, err) == (0, "")
    for line in (
        "teacher   t0, t1: 103,892 parameters",
        "student   toy-student: 3,610 parameters",
        "at        r/stages/student",
        "on        digits, all 1,797 of it; 95 % intervals",
    ):
        assert line in out
    for label in ("student", "teacher", "agree"):
        assert any(line.startswith(label) and " % (" in line for line in out.splitlines()[-3:])
    config = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert config["recipe_config"] == {"temperature": "3", "soft_weight": "1..0"}
    [first, *_] = read_metrics(tmp_path / "r")
    assert first["weights"] == {"soft": pytest.approx(2 / 3), "hard": 0.1}
    assert load_classifier(tmp_path / "r").config["classes"] == 10
    assert (tmp_path / "kept" / "view-0000.safetensors").exists()
    before = everything(tmp_path / "r" / "stages")
    status, out, _ = cli(*words)
    assert status == 0 and "this run was finished before" in out
    assert everything(tmp_path / "r" / "stages") == before
    assert cli("--config", "r/config.toml")[0] == 0


def test_rehearsed(cli, tmp_path):
    status, out, _ = cli("--teacher", "t0", "--data", "digits", "--out", "r", *QUICK, "--dry-run")
    assert status == 0 and "student" in out and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ("--data digits --out r", "needs --teacher and the folder of a classifier"),
        ("--teacher nowhere --data digits --out r", "'nowhere' holds no classifier"),
        ("--teacher t0 --data digits --out r --recipe hintn", "perhaps you meant 'hinton'"),
        (
            "--teacher t0 --data digits --out r --recipe-config alpha 1",
            "no option of the recipe 'hinton'",
        ),
        ("--teacher t0 --data digits --out r --net shalow", "perhaps you meant 'shallow'"),
        ("--teacher few --data digits --out r", "the teacher knows 3 classes and the data has 10"),
        ("--teacher t0 few --data digits --out r", "the teachers know 3 and 10 classes"),
        ("--teacher t0 --data two-moons --out r", "classifiers are taught on images"),
        ("--teacher t0 --data digits --out r --precision bf16", "leave it out"),
        ("--teacher t0 --data digits --out r --recipe features", "give it pairs of parts"),
    ],
)
def test_what_cannot_be(cli, tmp_path, words, said):
    status, _, err = cli(*words.split(), "--device", "cpu")
    assert status == 2 and said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_features_from_the_line(cli, tmp_path):
    pairs = '[["hidden", "hidden"]]'
    words = ["--recipe", "features", "--recipe-config", "pairs", pairs, "feature_weight", 0.1]
    status, _, err = cli("--teacher", "t0", "--data", "digits", "--out", "r", *QUICK, *words)
    assert (status, err) == (0, "")
    assert "features" in read_metrics(tmp_path / "r")[0]["terms"]


# The numbers.


@pytest.mark.parametrize(
    "hits, of, low, high",
    [(28, 38, 0.580, 0.850), (27, 38, 0.552, 0.830), (32, 38, 0.696, 0.926), (0, 10, 0, 0.278)],
)
def test_wilsons_interval(hits, of, low, high):
    """Those of the report's 38 images, and of none at all."""
    found = share(torch.arange(of) < hits)
    assert found.value == hits / of
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


class Says(torch.nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(float(shift)))

    def forward(self, x):
        return torch.nn.functional.one_hot((x[:, 0, 0, 0] + self.shift).long() % 3, 3).float()


def test_a_student_beside_its_teacher_on_all_rows():
    """1,030 rows, a ragged last batch; a row without a label counts for the agreement alone."""
    n = 1030
    values = torch.zeros(n, 1, 8, 8)
    labels = torch.zeros(n, dtype=torch.int64)
    labels[-6:] = 1  # in the last batch alone
    labels[0] = -1
    found = beside(Says(0), Teachers(Says(1)), Dataset(values, labels, ("a", "b", "c")))
    assert found.rows == n
    assert found.student.value == (n - 7) / (n - 1) and found.teacher.value == 6 / (n - 1)
    assert found.agreement.value == 0
    for none in (None, torch.full((n,), -1)):
        with pytest.raises(DataError, match="accuracy needs labels"):
            names = () if none is None else ("a", "b", "c")
            beside(Says(0), Says(1), Dataset(values, none, names))
