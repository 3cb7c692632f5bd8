"""Libraries are imported in silence, and without torchvision."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from halfstep.quiet import quietly

ROOT = Path(__file__).parents[1]

CODES = {
    "distances": "from halfstep.evaluation import frechet_distance as f\n"
    "import torch; assert f(torch.eye(4), torch.eye(4)) < 1e-9",
    "networks": "from halfstep.models import build; build('unet', {'sample_size': 8, 'in_channels': 1})",
    "schedulers": "from halfstep.diffusion.samplers import supported_schedulers\n"
    "assert supported_schedulers()",
    "a class of diffusers": "from halfstep.models.diffusers_net import diffusers_class\n"
    "assert diffusers_class('UNet2DModel')",
    "public names": "import halfstep; [getattr(halfstep, name) for name in halfstep.__all__]",
}
# The first imports torch, once for all; each other runs in a copy of that process, without diffusers yet.
SCRIPT = """
import json, os, sys

sys.modules["torchvision"] = None  # importing it would raise
first, *others = json.loads(sys.argv[1]).items()
exec(first[1])
assert not {"diffusers", "transformers", "torchao"} & sys.modules.keys()
for name, code in others:
    if (child := os.fork()) == 0:
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), 2)
        exec(code, {})
        sys.stderr.flush()
        os._exit(0)
    print(json.dumps([name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]), flush=True)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The exit status of each piece of code, warnings being errors, and what it wrote to stderr."""
    folder = tmp_path_factory.mktemp("quiet")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(CODES)],
        cwd=folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    statuses = dict(map(json.loads, done.stdout.splitlines()))
    results = {name: (status, (folder / name).read_text()) for name, status in statuses.items()}
    return results | {"distances": (done.returncode, done.stderr)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied by fork")
@pytest.mark.parametrize("name", CODES)
def test_libraries_behind_it_are_imported_in_silence_and_without_torchvision(name, imported):
    """torchvision beside a CPU build of torch breaks it: nothing may pull it in.  torchao has a say."""
    status, errors = imported[name]
    assert status == 0 and not errors, errors


def test_only_imports_are_quiet(caplog):
    """What is said after them, and what the caller has turned off, stays as it was."""
    with quietly():
        logging.getLogger("a").warning("not shown")
        logging.getLogger("a").error("an error")
        warnings.warn("nor this", stacklevel=1)
    logging.getLogger("a").warning("shown")
    assert caplog.messages == ["an error", "shown"]
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", stacklevel=1)
    logging.disable(logging.ERROR)
    try:
        with quietly():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


def test_imports_of_two_threads_end_in_any_order():
    """The one that began first ends first, and what follows is heard again."""
    first, second = quietly(), quietly()
    before = logging.root.manager.disable
    first.__enter__()
    with warnings.catch_warnings():
        second.__enter__()
        first.__exit__(None, None, None)
        assert logging.root.manager.disable >= logging.WARNING
        second.__exit__(None, None, None)
    assert logging.root.manager.disable == before
