"""Libraries are imported in silence, and without torchvision."""

import logging
import subprocess
import sys
import warnings

import pytest

from halfstep.quiet import quietly


@pytest.mark.parametrize(
    "code",
    [
        "from halfstep.evaluation import frechet_distance as f\n"
        "import torch; assert f(torch.eye(4), torch.eye(4)) < 1e-9",
        "from halfstep.models import build; build('unet', {'sample_size': 8, 'in_channels': 1})",
        "from halfstep.diffusion.samplers import supported_schedulers; assert supported_schedulers()",
        "from halfstep.models.diffusers_net import diffusers_class; assert diffusers_class('UNet2DModel')",
        "import halfstep; [getattr(halfstep, name) for name in halfstep.__all__]",
    ],
    ids=["distances", "networks", "schedulers", "a class of diffusers", "public names"],
)
def test_libraries_behind_it_are_imported_in_silence_and_without_torchvision(code):
    """torchvision beside a CPU build of torch breaks it: nothing may pull it in.  torchao has a say."""
    code = "import sys; sys.modules['torchvision'] = None\n" + code  # importing it would raise
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0 and not result.stderr, result.stderr


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
