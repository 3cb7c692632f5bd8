"""Modules that can be imported until the test ends."""

import sys

import pytest


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Write a module that can be imported until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, text):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        sys.modules.pop(name, None)
        written.append(name)
        return path

    yield write
    for name in written:
        sys.modules.pop(name, None)
