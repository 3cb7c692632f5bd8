"""Folders as diffusers saves them, with a scheduler alone."""

import json

SD = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
"""Stable Diffusion's table of betas."""


def scheduler_folder(path, name, pipeline=None, index=None, **config):
    """A scheduler's folder, or with a pipeline that pipeline's folder."""
    folder = path / "scheduler" if pipeline else path
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"_class_name": name, **config})
    (folder / "scheduler_config.json").write_text(text, encoding="utf-8")
    if pipeline:
        about = {"_class_name": pipeline, "scheduler": ["diffusers", name], **(index or {})}
        (path / "model_index.json").write_text(json.dumps(about), encoding="utf-8")
    return path
