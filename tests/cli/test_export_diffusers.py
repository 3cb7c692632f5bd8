"""`halfstep export --format diffusers` by the command line."""

from tests.support.diffusers_students import draw_in_this_process, student


def test_the_command(cli, tmp_path, monkeypatch):
    draw_in_this_process(monkeypatch)
    student("ddim", tmp_path / "teacher").save(tmp_path / "student")
    command = "export", "student", "--out", "out", "--format", "diffusers"
    status, _, error = cli(*command, "--source", "teacher")
    assert status != 0 and "leave source out" in error
    status, out, _ = cli(*command, "--license", "apache-2.0")
    assert status == 0 and "4 samples" in out and "of the largest value" in out
    assert (
        "model_index.json" in out
        and "license: apache-2.0" in (tmp_path / "out/README.md").read_text()
    )
    status, _, error = cli("export", "student", "--out", "other", "--push", "me/fast")
    assert status != 0 and "push belongs to format='diffusers'" in error
