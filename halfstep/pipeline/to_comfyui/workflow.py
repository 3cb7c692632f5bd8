"""A workflow that samples a student, in the form of ComfyUI's API, which its page opens too."""

from math import log
from typing import Any

from halfstep.config import JsonObject
from halfstep.pipeline.to_comfyui.models import ComfyModel
from halfstep.pipeline.to_comfyui.sampling import ComfySampling

Link = list[Any]
"""The number of a node and of one of its outputs."""


class _Graph:
    """Nodes by number."""

    def __init__(self) -> None:
        self.nodes: JsonObject = {}

    def add(self, class_type: str, **inputs: Any) -> str:
        """Add a node; returns its number."""
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": class_type, "inputs": inputs}
        return number


def workflow(
    file: str,
    model: ComfyModel,
    sampling: ComfySampling,
    size: tuple[int, int],
    guidance_scale: float | None = None,
    lora: str | None = None,
) -> JsonObject:
    """The nodes that load the file and draw one image.

    file            the name of the file, in ComfyUI's models/checkpoints or models/diffusion_models
    size            height and width in pixels
    guidance_scale  of a network that takes it as an input (Flux)
    lora            the name of a LoRA for the network in the file, in models/loras
    """
    graph = _Graph()
    network, clip, vae = _loaded(graph, file, model)
    if lora is not None:
        loader = graph.add("LoraLoaderModelOnly", model=network, lora_name=lora, strength_model=1.0)
        network = [loader, 0]
    marked = model.markers and lora is None
    network = _sampled_as(graph, network, sampling, size, model.levels, marked=marked)
    positive: Link = [graph.add("CLIPTextEncode", text="a photograph of a cat", clip=clip), 0]
    negative: Link = [graph.add("CLIPTextEncode", text="", clip=clip), 0]
    if guidance_scale is not None:
        scale: JsonObject = {"guidance": guidance_scale}
        positive = [graph.add("FluxGuidance", conditioning=positive, **scale), 0]
    empty = "EmptyLatentImage" if model.encoders else "EmptySD3LatentImage"
    latent = graph.add(empty, width=size[1], height=size[0], batch_size=1)
    sampler = graph.add(
        "KSampler",
        model=network,
        positive=positive,
        negative=negative,
        latent_image=[latent, 0],
        seed=0,
        steps=sampling.steps,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    decoded = graph.add("VAEDecode", samples=[sampler, 0], vae=vae)
    graph.add("SaveImage", images=[decoded, 0], filename_prefix="halfstep")
    return graph.nodes


def _loaded(graph: _Graph, file: str, model: ComfyModel) -> tuple[Link, Link, Link]:
    """The network, the text encoders and the autoencoder."""
    if model.encoders:
        loader = graph.add("CheckpointLoaderSimple", ckpt_name=file)
        return [loader, 0], [loader, 1], [loader, 2]
    network = graph.add("UNETLoader", unet_name=file, weight_dtype="default")
    [(class_type, encoders), (_, [autoencoder])] = model.loaders.items()
    names: JsonObject = {f"clip_name{k}": name for k, name in enumerate(encoders, 1)}
    if class_type == "DualCLIPLoader":
        names["type"] = "flux"
    clip = graph.add(class_type, **names)
    return [network, 0], [clip, 0], [graph.add("VAELoader", vae_name=autoencoder), 0]


def _sampled_as(
    graph: _Graph,
    network: Link,
    sampling: ComfySampling,
    size: tuple[int, int],
    levels: int,
    *,
    marked: bool,
) -> Link:
    """The network with the node that says what it predicts and on which levels.

    marked  the file says whether the network predicts v
    """
    if sampling.sampling:
        if marked and sampling.sampling != "x0":
            return network
        options: JsonObject = {"sampling": sampling.sampling, "zsnr": sampling.zero_snr}
        return [graph.add("ModelSamplingDiscrete", model=network, **options), 0]
    if levels == 1000:
        return [graph.add("ModelSamplingSD3", model=network, shift=sampling.shift), 0]
    mu = log(sampling.shift)  # the same for every number of tokens
    options = {"max_shift": mu, "base_shift": mu, "width": size[1], "height": size[0]}
    return [graph.add("ModelSamplingFlux", model=network, **options), 0]
