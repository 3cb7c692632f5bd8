"""Names of files and folders that are no unicode, and option files with a mark."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from halfstep.errors import DataError
from halfstep.training.run_folder import RunFolder
from tests.cli.commands import TRAIN
from tests.support.runs import refused

LATIN = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    "typed",
    [
        [*TRAIN, "--out", LATIN],
        [*TRAIN[:2], "--data", LATIN, "--net", "mlp", "--out", "run"],
        ["sample", LATIN, "--out", "x.png"],
        ["evaluate", LATIN],
        ["demo", "--out", LATIN],
        [*TRAIN, "--config", LATIN, "--out", "run"],
    ],
)
def test_a_name_that_is_no_unicode_is_refused_before_a_folder_is_made(typed, cli, tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    assert refused(cli(*typed), "UTF-8")
    assert len(list(tmp_path.iterdir())) == 1


def test_classes_are_text_and_files_may_have_any_name(tmp_path):
    from halfstep.data import load
    from halfstep.data.latents.image_stream import stream

    picture = Image.fromarray(np.zeros((8, 8), np.uint8))
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "x.png")
    shutil.copy(tmp_path / "a" / "x.png", os.fsencode(tmp_path) + b"/a/caf\xe9.png")
    assert len(load(str(tmp_path))) == 2
    images = stream(str(tmp_path))
    assert images.digest(range(2)) and images.stamp(range(2))
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copy(tmp_path / "a" / "x.png", os.fsencode(tmp_path) + b"/caf\xe9/x.png")
    for read in (load, stream):
        with pytest.raises(DataError, match="UTF-8"):
            read(str(tmp_path))


def test_a_run_in_a_folder_whose_name_is_no_unicode(cli, tmp_path, monkeypatch):
    """Its options name no such folder, so it is trained, sampled and measured."""
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    monkeypatch.chdir(os.fsencode(tmp_path) + b"/caf\xe9")
    assert cli(*TRAIN, "--out", ".")[0] == 0
    assert cli("sample", ".", "--n", "2", "--out", "x.png")[0] == 0


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_options_from_a_file_with_a_mark(mark, cli, tmp_path):
    (tmp_path / "o.toml").write_text(f'{mark}data = "two-moons"\nnet = "mlp"\n', encoding="utf-8")
    assert (
        cli(
            "train",
            "denoiser",
            "--config",
            "o.toml",
            "--updates",
            "1",
            "--batch-size",
            "8",
            "--out",
            "r",
        )[0]
        == 0
    )
    assert RunFolder.open(tmp_path / "r").config["data"] == "two-moons"
