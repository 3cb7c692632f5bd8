"""Runs from Python: they record the name of their data, and of several processes only the first writes."""

import json

import pytest
import torch

import halfstep
from halfstep.evaluation.setups import Evaluation
from halfstep.methods import Denoising, Progressive
from halfstep.methods.classifiers.supervised import Classification
from halfstep.training import RunOptions, train_classifier, TrainingConfig
from halfstep.training.run_config import write_config
from halfstep.training.run_folder import RunFolder
from tests.support.processes import launched

TRAINING = TrainingConfig(batch_size=8)
QUICK = Evaluation(samples=16, full=2, split_samples=0, baselines=("ddim",), cost_rounds=0, shown=2)


def digits_pipeline():
    torch.manual_seed(0)
    config = {
        "img_size": 8,
        "patch_size": 4,
        "in_chans": 1,
        "embed_dim": 8,
        "depth": 2,
        "num_heads": 2,
    }
    denoiser = halfstep.Denoiser(halfstep.build("uvit", config), halfstep.Cosine(), halfstep.V())
    return halfstep.Pipeline(denoiser, (1, 8, 8))


def test_a_run_from_python_records_the_name_of_its_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    method = Denoising(updates=2)
    options = {"method": method, "training": TRAINING, "job": RunOptions(device="cpu")}
    teacher = halfstep.train(digits_pipeline(), "digits", tmp_path / "t", **options)
    assert RunFolder.open(tmp_path / "t").config == {"data": "digits"}
    options["method"] = Progressive(start=4, stop=2, updates=(2,))
    halfstep.distill(teacher, "digits", tmp_path / "s", **options)
    report = halfstep.evaluate(
        tmp_path / "s", QUICK, teacher=tmp_path / "t", features="digits", device="cpu"
    )
    assert report.run.config["data"] == "digits" and [row.steps for row in report.students] == [2]


def test_a_classifier_too_and_data_in_memory_have_no_name(tmp_path):
    method = Classification(updates=1)
    train_classifier("cnn", "digits", tmp_path / "a", method=method, training=TRAINING)
    assert RunFolder.open(tmp_path / "a").config == {"data": "digits"}
    data = halfstep.load_data("digits")
    train_classifier("cnn", data, tmp_path / "b", method=method, training=TRAINING)
    assert not (tmp_path / "b" / "config.toml").exists()


def test_the_config_of_a_command_stays(tmp_path):
    method = Classification(updates=1)
    train_classifier("cnn", "digits", tmp_path / "a", method=method, training=TRAINING)
    write_config(tmp_path / "a", {"data": "digits", "updates": 1})
    train_classifier("cnn", "digits", tmp_path / "a", method=method, training=TRAINING)
    assert RunFolder.open(tmp_path / "a").config == {"data": "digits", "updates": 1}


CODEC = '''
"""Train a codec in both processes, and record what each writes beside the run."""

import json, os, sys
from pathlib import Path

out, written = Path(sys.argv[1]), []


def audit(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(str(args[0]))


sys.addaudithook(audit)

from halfstep.methods.autoencoding import Autoencoding
from halfstep.training import TrainingConfig
from halfstep.workflows.options import DataOptions, FolderOptions
from halfstep.workflows.train_codec import CodecOptions, train_codec, TrainCodecConfig

result = train_codec(TrainCodecConfig(
    folder=FolderOptions(out=out, device="cpu"), dataset=DataOptions(data="digits"),
    codec=CodecOptions(width=4), method=Autoencoding(updates=1), training=TrainingConfig(batch_size=8),
))
found = {"psnr": result.psnr, "written": [path for path in written if path.startswith(str(out))]}
Path(sys.argv[2] + os.environ["RANK"]).write_text(json.dumps(found))
'''


@pytest.mark.slow
def test_of_two_processes_the_first_writes_the_codec(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CODEC)
    status, out, err = launched(str(script), str(tmp_path / "run"), str(tmp_path / "result-"))
    assert status == 0, out + err
    first, second = (json.loads((tmp_path / f"result-{rank}").read_text()) for rank in (0, 1))
    assert first["psnr"] == second["psnr"] and second["written"] == []
    assert any("reconstructions" in path for path in first["written"])
    assert (tmp_path / "run" / "codec" / "codec.safetensors").exists()
