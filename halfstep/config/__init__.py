"""Options: their declared types and ranges, TOML files and presets."""

from collections.abc import Mapping
from typing import Any

JsonObject = dict[str, Any]
"""An object of a JSON file, or a table of a TOML file."""
NetConfig = Mapping[str, Any]
"""The arguments that a network is built with, by name."""
