"""`halfstep export --format comfyui` by the command line."""

import pytest

from tests.support.comfyui import stable_diffusion, student, tiny_comfyui

__all__ = ["tiny_comfyui"]


@pytest.mark.usefixtures("tiny_comfyui")
def test_the_command(cli, tmp_path):
    pipeline = student(stable_diffusion(tmp_path / "teacher"))
    pipeline.save(tmp_path / "student")
    (tmp_path / "teacher").rename(tmp_path / "moved")
    command = "export", "student", "--out", "out", "--format", "comfyui"
    status, _, error = cli(*command)
    assert status != 0 and "teacher" in error
    status, out, _ = cli(*command, "--source", "moved")
    assert status == 0 and "student.safetensors" in out and "4 samples" in out
