"""`halfstep grid`: a table of 80 columns, JSON, and one sentence for what is refused."""

import json

from tests.support.scheduler_folders import scheduler_folder, SD


def test_the_table_fits_a_terminal(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    config = {**SD, "skip_prk_steps": True}
    scheduler_folder(tmp_path / "sd", "PNDMScheduler", "StableDiffusionPipeline", **config)
    status, out, err = cli("grid", "sd", "--steps", 4, 16)
    assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= 80
    lines = [line.split() for line in out.splitlines()]
    assert ["timestep", "751", "501", "501", "251", "1"] in lines
    assert ["sigma", "14.615", "4.0817", "1.6129", "0.6932", "0.0000"] in lines
    assert ["call", *map(str, range(9, 17)), "end"] in lines
    assert (
        "ComfyUI: euler, simple" in out and "wrong levels" in out and "not as 1: 4 network" in out
    )
    assert "steps     4, 16, as given" in out


def test_json(cli, tmp_path):
    config = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler_folder(tmp_path / "s", "DDIMScheduler", **config)
    status, out, _ = cli("grid", "s", "--json")
    read = json.loads(out)
    assert status == 0 and read["scheduler"] == "DDIMScheduler" and len(read["walks"]) == 8
    walk = read["walks"][0]
    assert walk["timesteps"] == [999, 749, 499, 249] and walk["sigmas"][0] is None
    assert walk["levels"][0] == [0, 1] and walk["levels"][-1] == [1, 0]


def test_refusals_are_one_line(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    for words in (["empty"], ["empty", "--steps", 0], ["empty", "--tokens", 0], []):
        status, out, err = cli("grid", *words)
        assert status == 2 and not out and len(err.splitlines()) == 1
