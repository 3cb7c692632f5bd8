"""Refusals that name their words."""

import re

import pytest


def refused(kind, *words):
    return pytest.raises(kind, match="(?s)" + ".*".join(re.escape(word) for word in words))
