"""Draw samples with a folder of diffusers, without halfstep: python draw.py REQUEST.

REQUEST is a JSON file: folder, noise (a safetensors file), call, and out, a file for the samples.
The samples are what the last step of the scheduler returns, latents where there is an autoencoder.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch


def draw(request_file: str) -> None:
    import torch
    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file, save_file

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    pipeline = DiffusionPipeline.from_pretrained(
        request["folder"], local_files_only=True, use_safetensors=True
    )
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise, samples = load_file(request["noise"])["noise"], []
    # Not every pipeline takes the noise as an argument, but each draws it with this function.
    module = vars(sys.modules[type(pipeline).__module__])
    drawing = patch.dict(module, randn_tensor=lambda shape, **options: noise.reshape(shape))
    step = pipeline.scheduler.step

    def recording(*values: Any, **options: Any) -> Any:
        made = step(*values, **options)
        samples.append(made[0])
        return made

    pipeline.scheduler.step = recording
    with torch.no_grad(), drawing:
        pipeline(**request["call"])
    save_file({"samples": samples[-1].float().contiguous()}, request["out"])


if __name__ == "__main__":
    draw(sys.argv[1])
