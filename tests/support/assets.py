"""The json of the models that come with halfstep, written anew beside weights that stay: `make assets`."""

import json
from pathlib import Path

from halfstep import storage
from halfstep.schema import CHECKSUM

ASSETS = Path(__file__).parents[2] / "halfstep" / "assets"


def main() -> None:
    for path in sorted(ASSETS.rglob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        about.pop(CHECKSUM, None)
        if (weights := path.with_suffix(".safetensors")).exists():
            about["sha256"] = storage.checksum(weights)
        if path.name == "classifier.json":
            about = {"net": "features", "config": about["config"], "preprocessing": {}} | about
        storage.write_json(path, about)
        print(path.relative_to(ASSETS))


if __name__ == "__main__":
    main()
