"""Runs tests in forks; each line read is a list of tests, each line printed an exit code.

What is slow to import and not the project's is imported once, here: a mutant costs its tests and not the 7
seconds of importing torch and the others.  Nothing of halfstep is imported, so every fork sees the mutant.
`running` gives this file to `python -c`, so that `tests` is the copy's and not yet imported either.
"""

import gc
import json
import os
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module

import pytest
import torch

SLOW = [
    "accelerate",
    "diffusers",
    "diffusers.loaders.single_file_utils",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.dit_transformer_2d",
    "diffusers.models.unets.unet_2d",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddim",
    "html.parser",
    "jinja2",
    "kornia",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "numpy",
    "PIL.Image",
    "psutil",
    "rich.console",
    "rich.progress",
    "rich.table",
    "safetensors.torch",
    "scipy.linalg",
    "scipy.special",
    "scipy.stats",
    "sentencepiece",
    "sklearn.datasets",
    "sklearn.metrics",
    "sklearn.neighbors",
    "tokenizers",
    "torch.profiler",
    "torch.utils.flop_counter",
    "torchmetrics.image.fid",
    "torchmetrics.image.inception",
    "torchmetrics.image.kid",
    "transformers",
    "tyro",
]
ENOUGH = 0.2  # seconds from which a test waits until the quick ones have passed


class Quick:
    """Measures what each test costs with its fixtures, and runs the quick ones first.

    The order within the quick ones and within the others stays.  That no test needs another before it is
    what `pytest -n 2` shows, where either process sees half of them.
    """

    def __init__(self, file="seconds.json"):
        self.file, self.seconds = file, {}
        if os.path.exists(file):
            with open(file) as known:
                self.seconds = json.load(known)
        self.fixtures, self.calls = {}, {}

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0) >= ENOUGH)  # is stable
        self.items = items

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            took = time.perf_counter() - began
            self.fixtures[fixturedef] = max(took, self.fixtures.get(fixturedef, 0))

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.calls[report.nodeid] = report.duration

    def pytest_sessionfinish(self):
        """Adds this session's tests to the file."""
        for item in self.items:
            needed = [d for defs in item._fixtureinfo.name2fixturedefs.values() for d in defs]
            cost = self.calls.get(item.nodeid, 0) + sum(self.fixtures.get(d, 0) for d in needed)
            self.seconds.setdefault(item.nodeid, cost)
        with open(self.file, "w") as known:
            json.dump(self.seconds, known)


def main():
    for name in SLOW:
        with suppress(ImportError):  # then the tests that need it say so
            import_module(name)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # imports 400 modules
    gc.freeze()  # a fork that collects rubbish would copy every page
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            out = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            code = 70  # neither passed nor failed
            words = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", *line.split()]
            try:
                code = int(pytest.main(words, plugins=[Quick()]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
