"""Repair a run folder after a crash, and refuse folders with other content."""

from pathlib import Path

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.training import checkpoint

LATENTS = "latents"
"""The folder, in a run's, of images that were encoded for its teacher before it began."""
PROMPTS = "prompts"
"""The folder, in a run's, of the conditions of prompts, of a run without data."""
WALKS = "walks"
"""The folder, in a run's, of its teacher's kept walks."""
FIRST_FILES = (files.LOCK, "run.json", LATENTS, PROMPTS)
"""Files, whole or temporary, of a run that was killed before its first stage."""
LOCKED_FILES = ("run.json", "metrics.jsonl", "config.toml", "gate.json")
"""Files that only the process with the lock writes."""


def remove_unfinished(folder: Path) -> None:
    """Remove half-written stages, checkpoints and files, and finish the renaming of a stage."""
    files.tidy(folder, *LOCKED_FILES)
    checkpoints, stages = folder / "checkpoints", folder / "stages"
    for place in (checkpoints, stages):
        files.refuse_link(place)
    checkpoint.tidy(checkpoints)
    with files.writing(stages):
        for old in stages.glob(".*.old"):
            final = stages / old.name[1 : -len(".old")]
            if not final.exists():  # killed between the two renames
                old.replace(final)
    for unfinished in stages.glob(".*"):
        files.remove(unfinished)


def refuse_foreign(folder: Path) -> None:
    """`ConfigError` for a folder that has files but no run."""
    if folder.exists() and not (folder / "run.json").exists():
        names = [path.name for path in folder.iterdir()]
        if strange := [name for name in names if not files.matches_names(name, *FIRST_FILES)]:
            raise ConfigError(
                f"'{folder}' is not empty and holds no run (it has '{min(strange)}'): choose another "
                "--out"
            )
