"""The tutorials do what they say; tests/test_docs.py runs the one on classifiers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfstep.training.run_folder import RunFolder
from tests.support.docs import blocks, named, NOTEBOOKS, ROOT

OWN_IMAGES = ROOT / "docs" / "tutorials" / "own-images.md"


def outputs(path):
    """What came out of each cell of code: the printed text, and the kinds of what is shown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in [cell for cell in cells if cell["cell_type"] == "code"]:
        kinds = [kind for output in cell["outputs"] for kind in output.get("data", {})]
        yield "".join("".join(output.get("text", "")) for output in cell["outputs"]), kinds


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_a_notebook_runs_and_shows_what_is_committed(notebook, tmp_path):
    """Numbers may differ by a fifth, as machines round differently; `make notebooks` writes them anew."""
    again = tmp_path / "again.ipynb"
    command = [sys.executable, "-m", "tests.support.notebooks", str(notebook), "--out", str(again)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    number = re.compile(r"\d+\.\d+")
    pairs = list(zip(outputs(notebook), outputs(again), strict=True))
    assert any("image/png" in kinds for _, (_, kinds) in pairs)
    for (text, kinds), (new_text, new_kinds) in pairs:
        assert new_kinds == kinds
        assert number.sub("", new_text) == number.sub("", text)
        expected = [pytest.approx(float(value), rel=0.2) for value in number.findall(text)]
        assert [float(value) for value in number.findall(new_text)] == expected


@pytest.mark.slow
def test_a_folder_of_100_images_becomes_a_teacher_and_a_student(tmp_path):
    """Everything that the page says to type, in its order."""
    [draw, *_] = blocks(OWN_IMAGES, "python")
    subprocess.run([sys.executable, "-c", draw], cwd=tmp_path, check=True, timeout=60)
    assert len(list(tmp_path.glob("pictures/*.png"))) == 100
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for script in blocks(OWN_IMAGES, "bash"):
        subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=3000,
        )
    student = RunFolder.open(tmp_path / "runs" / "student").student()
    assert len(student.grid()) - 1 == 4
    teacher, few, own = (
        np.asarray(Image.open(tmp_path / f"{name}.png"), float)
        for name in ("teacher", "teacher-4", "student")
    )
    assert np.square(own - teacher).mean() < np.square(few - teacher).mean()
