"""Draw samples with a folder of diffusers, without halfstep: python draw.py REQUEST.

REQUEST is a JSON file: folder, its variant, noise (a file), call, and out, a file for the samples.
loras are files that are loaded one after the other, each with samples of its own; the folder of the first
has the scheduler, of the named class.
The samples are what the last step of the scheduler returns, latents where there is an autoencoder.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch


def draw(request_file: str) -> None:
    import diffusers
    import torch
    from safetensors.torch import load_file, save_file

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        request["folder"], variant=request["variant"], local_files_only=True, use_safetensors=True
    )
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if request["heads"]:
        _exchange_heads(pipeline, **request["heads"])
    loras = [Path(file) for file in request["loras"]]
    if loras:
        scheduler = getattr(diffusers, request["scheduler"])
        pipeline.scheduler = scheduler.from_pretrained(loras[0].parent, subfolder="scheduler")
    noise, samples = load_file(request["noise"])["noise"], {}
    if not loras:
        samples["whole"] = _sampled(pipeline, noise, request["call"])
    for file in loras:
        pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
        samples[file.name] = _sampled(pipeline, noise, request["call"])
        pipeline.unload_lora_weights()
    save_file(samples, request["out"])


def _exchange_heads(pipeline: Any, file: str, component: str, layer: str, steps: int) -> None:
    """Give each call of a network the last layer of its step."""
    from itertools import cycle

    from safetensors.torch import load_file

    heads, numbers = load_file(file), cycle(range(steps))

    def next_head(layer: Any, inputs: Any) -> None:
        k = next(numbers)
        layer.load_state_dict({name: heads[f"{k}.{name}"] for name in layer.state_dict()})

    getattr(pipeline, component).get_submodule(layer).register_forward_pre_hook(next_head)


def _sampled(pipeline: Any, noise: Any, call: dict[str, Any]) -> Any:
    import torch

    # Not every pipeline takes the noise as an argument, but each draws it with this function.
    module, made = vars(sys.modules[type(pipeline).__module__]), []
    drawing = patch.dict(module, randn_tensor=lambda shape, **options: noise.reshape(shape))
    step = pipeline.scheduler.step

    def recording(*values: Any, **options: Any) -> Any:
        made.append(step(*values, **options))
        return made[-1]

    recorded = patch.object(pipeline.scheduler, "step", recording)
    with torch.no_grad(), drawing, recorded:
        pipeline(**call)
    return made[-1][0].float().contiguous()


if __name__ == "__main__":
    draw(sys.argv[1])
