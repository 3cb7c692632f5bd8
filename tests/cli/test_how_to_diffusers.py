"""The commands of docs/how-to/diffusers.md, from folder to folder, with few updates."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from tests.support import families
from tests.support.docs import ROOT

PAGE = (ROOT / "docs" / "how-to" / "diffusers.md").read_text()
SECTIONS = {
    "Pixels: DDPM": families.ddpm_pipeline,
    "Latents with guidance: Stable Diffusion": families.stable_diffusion,
    "Flow matching: Stable Diffusion 3": families.sd3,
}


def commands(section):
    """The commands of a section of the page, with two updates a stage and no gate."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line)[1:]
        for k, word in enumerate(words[:-1]):
            if word in ("--updates", "--halving-updates"):
                words[k + 1] = "2"
        if words[0] == "distill":
            words += ["--batch-size", "4", "--tolerance", "0"]
            words += ["--size", "8"] if "ddpm" in words else []
        yield words


@pytest.fixture
def pictures(cli, tmp_path):
    """A folder of 12 images with captions."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for k in range(12):
        image = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
        image.save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("a cat")
    return folder


@pytest.mark.parametrize(
    "section", [s if "DDPM" in s else pytest.param(s, marks=pytest.mark.slow) for s in SECTIONS]
)
def test_the_commands_of_the_page_run(section, cli, pictures, tmp_path):
    """The last one writes a folder that diffusers loads and samples; its proof is in the export."""
    typed = list(commands(section))
    teacher = typed[0][typed[0].index("--teacher") + 1]
    SECTIONS[section]().save_pretrained(tmp_path / teacher)
    for words in typed:
        status, out, err = cli(*words)
        assert status == 0, (words, out, err)
    folder = tmp_path / typed[-1][-1]
    assert (folder / "model_index.json").is_file() and "num_inference_steps" in (
        folder / "README.md"
    ).read_text()
    assert re.search(r"\d\.\d+e-\d\d", out) or "the same" in out
