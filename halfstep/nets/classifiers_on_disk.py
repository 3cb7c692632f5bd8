"""A classifier on disk: FOLDER/classifier.json says how it is built, classifier.safetensors has its weights.

    {"net": "cnn", "config": {...}, "preprocessing": {...}, "sha256": ...}

A file never names code that is run: a classifier of the user's own loads when its function is named again.
"""

from pathlib import Path
from typing import Any

from torch import nn

from halfstep import storage
from halfstep.errors import CheckpointError, ConfigError
from halfstep.nets.classifiers import build_classifier, classifier_recipe
from halfstep.nets.preprocessing import Preprocessing

STAGE = Path("stages") / "classifier"
"""Where a run of `halfstep train classifier` has it."""


def save_classifier(classifier: nn.Module, folder: Path) -> None:
    """Write FOLDER/classifier.safetensors and FOLDER/classifier.json."""
    name, config, preprocessing = classifier_recipe(classifier)
    about = {"net": name, "config": config, "preprocessing": preprocessing.to_json()}
    folder.mkdir(parents=True, exist_ok=True)
    storage.save(folder / "classifier", classifier.state_dict(), about)


def load_classifier(folder: Path | str, *, net: str | None = None) -> nn.Module:
    """A classifier in eval mode, from its folder or from the run that made it.

    net  the function, package.module:function, that built a network of one's own: said again, because a
         file does not name code that is run

    `CheckpointError` if there is none, or it is damaged.
    """
    stem = place_of(Path(folder).expanduser()) / "classifier"
    tensors, about = storage.load(stem)
    classifier = _built(stem, about, net)
    storage.load_into(classifier, tensors, f"'{stem}.safetensors'")
    return classifier.eval()


def place_of(folder: Path) -> Path:
    """The folder that holds classifier.json: this one, or the finished stage of this run, of any name."""
    if (folder / "classifier.json").exists():
        return folder
    if (folder / STAGE / "classifier.json").exists():
        return folder / STAGE
    found = sorted((folder / "stages").glob("*/classifier.json"))
    if len(found) == 1:
        return found[0].parent
    if found:
        raise CheckpointError(
            f"'{folder}' holds {len(found)} classifiers: name one of them, for example '{found[-1].parent}'"
        )
    raise CheckpointError(f"'{folder}' holds no classifier: it has no classifier.json")


def _built(stem: Path, about: dict[str, Any], net: str | None) -> nn.Module:
    name = about.get("net", "features")  # files of halfstep 0.1 had no other
    if not isinstance(name, str) or not isinstance(about.get("config"), dict):
        raise CheckpointError(
            f"'{stem}.json' is damaged: it does not say how the classifier is built"
        )
    if ":" in name and net != name:
        raise ConfigError(
            f"the classifier in '{stem.parent}' is built by '{name}', code of your own: say so with "
            f"net='{name}' (--net {name})"
        )
    preprocessing = Preprocessing.from_json(about.get("preprocessing") or {})
    return build_classifier(name, about["config"], preprocessing=preprocessing)
