"""How the options of a command want its run carried out."""

from pathlib import Path
from typing import Any

from halfstep.config.fields import flat
from halfstep.evaluation.features.registry import BELOW
from halfstep.training.api import RunOptions
from halfstep.workflows.options import FolderOptions

PLACES = ("data", "validate", "init")
"""Options of text that name a place, or a share of the data, whose fingerprint is compared."""


def run_options_of(options: Any, **more: Any) -> RunOptions:
    """How the options of a command want its run carried out."""
    folder: FolderOptions = options.folder
    return RunOptions(
        device=folder.device,
        extend=folder.extend,
        from_previous=folder.from_previous,
        shared=shared_options(options),
        **more,
    )


def shared_options(options: Any) -> dict[str, Any]:
    """All options but places, of which what lies there counts."""
    return {
        name: _kind(value) if name == "features" else value
        for name, value in flat(options).items()
        if name not in PLACES and not isinstance(value, Path) and not _places(value)
    }


def _kind(features: Any) -> Any:
    """classifier of classifier:FOLDER; whatever names no place is as it is."""
    kind = str(features).partition(":")[0]
    return kind if kind in BELOW else features


def _places(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(each, Path) for each in value)
