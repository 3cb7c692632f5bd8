"""The `RunOptions` of a command: device, folder, and the options that its processes compare."""

from pathlib import Path
from typing import Any

from halfstep.config import JsonObject
from halfstep.config.fields import flat
from halfstep.config.validate import Validated
from halfstep.evaluation.features.registry import BELOW
from halfstep.training.stages import RunOptions
from halfstep.workflows.options import FolderOptions, ShardOptions, WalksOptions

PLACES = ("data", "validate", "init", "teacher", "teacher_config")
"""Text options that name a place, or a share of the data: its fingerprint is compared instead."""


def run_options_of(options: Any, **more: Any) -> RunOptions:
    """The `RunOptions` of a command's options, with more of them by name."""
    folder: FolderOptions = options.folder
    memory: Validated = getattr(options, "memory", ShardOptions())
    kept: WalksOptions = getattr(options, "kept", WalksOptions())
    return RunOptions(
        device=folder.device,
        extend=folder.extend,
        from_previous=folder.from_previous,
        log=folder.log,
        samples_every=getattr(folder, "samples_every", None),
        walks=kept.walks,
        shared=shared_options(options),
        **vars(memory),
        **more,
    )


def shared_options(options: Any) -> JsonObject:
    """All options but places: the content of a place is compared instead of its name."""
    return {
        name: _kind(value) if name == "features" else value
        for name, value in flat(options).items()
        if name not in PLACES and not isinstance(value, Path) and not _places(value)
    }


def _kind(features: Any) -> Any:
    """classifier for classifier:FOLDER; other features as they are."""
    kind = str(features).partition(":")[0]
    return kind if kind in BELOW else features


def _places(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(each, Path) for each in value)
