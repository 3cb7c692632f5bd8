"""Upload an exported folder to the hub."""

import re
from pathlib import Path

from halfstep.errors import CheckpointError, ConfigError
from halfstep.quiet import quietly

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_name(name: str) -> None:
    """`ConfigError` for what is no name on the hub."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"push is a name on the hub, OWNER/NAME, got {name!r}: write for example me/fast"
        )


def upload(folder: Path, name: str) -> str:
    """Create the model on the hub, unless it is there, and upload the folder; return its address.

    Signs in as `hf auth login` left it.  `CheckpointError` says why the hub did not take it; the
    folder stays.
    """
    with quietly():
        from huggingface_hub import HfApi
    try:
        api = HfApi()
        url = api.create_repo(name, repo_type="model", exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, repo_type="model")
    except Exception as error:  # the hub's client raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"the hub did not take '{name}' ({reason:.200}); '{folder}' is whole and stays: upload it with "
            f"hf upload {name} {folder}"
        ) from error
    return str(url)
