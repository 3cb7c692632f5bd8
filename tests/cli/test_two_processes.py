"""Two processes of the same command: they do what one does, and compare what was typed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep import storage
from halfstep.cli.commands.distill_classifier import main as knowledge
from halfstep.cli.commands.gate_options import GateOptions
from halfstep.cli.commands.train_classifier import main as classifier
from halfstep.errors import ConfigError
from halfstep.models.classifiers.checkpoint import save_classifier
from halfstep.models.classifiers.registry import build_classifier
from halfstep.training.distributed import Processes
from halfstep.training.peers import refuse_different
from halfstep.workflows.run_options import shared_options
from tests.support.processes import ComparedError, launched
from tests.support.runs import bits


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 5])
def test_the_command_line(tmp_path, times):
    from halfstep.cli import main

    net = ["--net", "mlp", "--net-config", "width", "8", "depth", "1"]
    common = ["--data", "two-moons", "--batch-size", "6", "--device", "auto"]
    made = ["train", "denoiser", "--out", str(tmp_path / "t"), *net, *common, "--updates", "2"]
    assert main(made) == 0
    options = ["--teacher", str(tmp_path / "t"), "--start", "4", *common, "--updates", "10", "10"]
    command = [
        "distill",
        "progressive",
        *options,
        "--save-every",
        "4",
        "--ema",
        ".9",
        "--tolerance",
        "0",
    ]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    one = tmp_path / "one" / "stages"
    for k in range(times):
        out = tmp_path / f"two-{k}"
        # The dashes: torchrun would take --start for its own --start-method.
        status, output, err = launched("-m", "--", "halfstep", *command, "--out", str(out))
        assert (status, err) == (0, ""), output + err
        assert output.count("student ") == 2, "one process speaks"
        for name in ("0002-steps", "0001-steps"):
            theirs, about = storage.load(out / "stages" / name / "pipeline")
            mine, expected = storage.load(one / name / "pipeline")
            assert about == expected
            assert max(float((theirs[n] - mine[n]).abs().max()) for n in mine) < 1e-5
        assert bits(out) == bits(tmp_path / "two-0")
    about = json.loads((out / "run.json").read_text())
    assert about["environment"]["processes"] == 2 and about["environment"]["device"] == "cpu"


@pytest.fixture
def command(monkeypatch, tmp_path):
    """What a process that was typed these words comes with; two places with the same things lie here."""
    monkeypatch.chdir(tmp_path)
    values = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(3)).byte()
    for name, shift in (("data", 0), ("held", 1), ("other", 2)):
        images, labels = (values + shift).numpy(), np.arange(40) % 2
        for place in ("a", "b"):
            Path(place).mkdir(exist_ok=True)
            np.savez(Path(place, name), images=images, labels=labels)
    for seed, net in enumerate(("start", "elsewhere")):
        torch.manual_seed(seed)
        net_of = build_classifier("cnn", {"channels": 1, "num_classes": 2, "width": 2})
        for place in ("a", "b"):
            save_classifier(net_of, Path(place, net))

    def keep(processes, values):
        raise ComparedError(values)

    def ask(verb, *words):
        monkeypatch.setattr(Processes, "compare", keep)
        common = ["--out", "r", "--device", "cpu", "--batch-size", "4"]
        with pytest.raises(ComparedError) as caught:
            {"classifier": classifier, "knowledge": knowledge}[verb]([*words, *common])
        return caught.value.args[0]

    return ask


TEACHER = ["--teacher", "a/start"]


class TestTheWordOfACommand:
    @pytest.mark.parametrize(
        "verb, rest, option, mine, theirs",
        [
            ("classifier", [], "--data", "a/data.npz", "b/data.npz"),
            ("classifier", [], "--validate", "a/held.npz", "b/held.npz"),
            ("classifier", [], "--init", "a/start", "b/start"),
            ("classifier", ["--net", "cnn", "--net-config", "width", "2"], "--init",
             "a/start/classifier.safetensors", "b/start/classifier.safetensors"),
            ("knowledge", TEACHER, "--data", "a/data.npz", "b/data.npz"),
            ("knowledge", TEACHER, "--validate", "a/held.npz", "b/held.npz"),
            ("knowledge", [], "--teacher", "a/start", "b/start"),
        ],
    )  # fmt: skip
    def test_another_place_with_the_same_is_not_refused(
        self, command, verb, rest, option, mine, theirs
    ):
        data = [] if option == "--data" else ["--data", "a/data.npz"]
        refuse_different([command(verb, *data, *rest, option, at) for at in (mine, theirs)])

    @pytest.mark.parametrize(
        "verb, rest, option, mine, theirs, named",
        [
            ("classifier", [], "--data", "a/data.npz", "a/other.npz", "data"),
            ("classifier", [], "--validate", "a/held.npz", "a/other.npz", "held_out"),
            ("classifier", [], "--validate", "0.2", "0.4", "held_out"),
            ("classifier", [], "--init", "a/start", "a/elsewhere", "start"),
            ("knowledge", TEACHER, "--validate", "a/held.npz", "a/other.npz", "held_out"),
            ("knowledge", TEACHER, "--validate", "0.2", "0.4", "held_out"),
            ("knowledge", [], "--teacher", "a/start", "a/elsewhere", "teacher"),
        ],
    )
    def test_something_else_is_refused_and_named(
        self, command, verb, rest, option, mine, theirs, named
    ):
        data = [] if option == "--data" else ["--data", "a/data.npz"]
        with pytest.raises(ConfigError, match=rf"differ in {named}:"):
            refuse_different([command(verb, *data, *rest, option, at) for at in (mine, theirs)])

    def test_of_features_the_kind_is_compared_here_and_their_weights_by_the_gate(self):
        typed = [
            shared_options(GateOptions(features=features))["features"]
            for features in (
                "classifier:/a/x",
                "classifier:/b/x",
                "inception:/a/x",
                "a.b:make",
                "auto",
            )
        ]
        assert typed == ["classifier", "classifier", "inception", "a.b:make", "auto"]
