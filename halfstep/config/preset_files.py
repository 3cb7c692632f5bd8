"""The presets that come with halfstep: TOML files of options, by name."""

from pathlib import Path

from halfstep.errors import unknown

_FOLDER = Path(__file__).parents[1] / "presets"


def preset_names(command: str = "") -> list[str]:
    """The names of all presets, or of those whose head says `# command   COMMAND ...`."""
    return sorted(
        path.relative_to(_FOLDER).with_suffix("").as_posix()
        for path in _FOLDER.rglob("*.toml")
        if not command or f"# command   {command} " in path.read_text(encoding="utf-8")
    )


def preset(name: str) -> Path:
    """The file of a preset; `ConfigError` lists the presets for an unknown name."""
    if name not in (names := preset_names()):
        raise unknown("preset", name, names)
    return _FOLDER / f"{name}.toml"
