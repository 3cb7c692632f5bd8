"""`halfstep export` of a LoRA run by the command line."""

from tests.support.diffusers_students import draw_in_this_process, lora_stage


def test_the_command(cli, tmp_path, monkeypatch):
    draw_in_this_process(monkeypatch)
    lora_stage("stable-diffusion", tmp_path)
    stage = "run/stages/0004-steps"
    status, _, error = cli("export", stage, "--out", "out", "--format", "lora", "--merge")
    assert status != 0 and "leave one of them out" in error
    status, out, _ = cli("export", stage, "--out", "out", "--license", "mit")
    assert status == 0 and "4 samples" in out and "of the largest value" in out
    assert "student_lora.safetensors" in out
    status, out, _ = cli("export", stage, "--out", "own", "--merge", "--format", "pipeline")
    assert status == 0 and "to the bit" in out
