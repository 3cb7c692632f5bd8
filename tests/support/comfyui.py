"""Students of tiny diffusers pipelines, and a ComfyUI that knows such tiny models."""

from dataclasses import replace

import pytest

from halfstep.diffusion.time_grids import grid
from halfstep.pipeline import Pipeline
from halfstep.pipeline.to_comfyui import models
from tests.support import families

TINY = {
    "Stable Diffusion 1": {"cross_attention_dim": 32},
    "Stable Diffusion XL": {"cross_attention_dim": 48, "addition_embed_type": "text_time"},
    "Stable Diffusion 3": {"joint_attention_dim": 48},
    "Flux": {"guidance_embeds": True},
}
"""What a tiny model is known by."""
PLACES = {model.name: k for k, model in enumerate(models.MODELS)}


@pytest.fixture
def tiny_comfyui(monkeypatch):
    """ComfyUI knows the tiny models in the place of the real ones."""
    known = [replace(models.MODELS[PLACES[name]], config=config) for name, config in TINY.items()]
    monkeypatch.setattr(models, "MODELS", tuple(known))


def scaled(theirs, model):
    """The pipeline with the latents of ComfyUI's model."""
    known = models.MODELS[PLACES[model]] if len(models.MODELS) == len(PLACES) else None
    known = known or next(each for each in models.MODELS if each.name == model)
    theirs.vae.register_to_config(scaling_factor=known.scale, shift_factor=known.shift or None)
    return theirs


def stable_diffusion(folder, **scheduler):
    """The folder of a tiny Stable Diffusion that predicts v."""
    theirs = families.stable_diffusion(**{"prediction_type": "v_prediction", **scheduler})
    scaled(theirs, "Stable Diffusion 1").save_pretrained(folder)
    return folder


def student(folder, steps=4, **fields):
    """The teacher in a folder as a student of so many steps."""
    teacher = Pipeline.from_diffusers(folder)
    times = grid("auto", steps, teacher.denoiser.schedule)
    return replace(teacher, times=(times,), sampler="ddim", **fields)


NODES = {
    "CheckpointLoaderSimple": ({"ckpt_name": str}, ("MODEL", "CLIP", "VAE")),
    "UNETLoader": ({"unet_name": str, "weight_dtype": str}, ("MODEL",)),
    "DualCLIPLoader": ({"clip_name1": str, "clip_name2": str, "type": str}, ("CLIP",)),
    "TripleCLIPLoader": (dict.fromkeys(("clip_name1", "clip_name2", "clip_name3"), str), ("CLIP",)),
    "VAELoader": ({"vae_name": str}, ("VAE",)),
    "LoraLoaderModelOnly": (
        {"model": "MODEL", "lora_name": str, "strength_model": float},
        ("MODEL",),
    ),
    "ModelSamplingDiscrete": ({"model": "MODEL", "sampling": str, "zsnr": bool}, ("MODEL",)),
    "ModelSamplingSD3": ({"model": "MODEL", "shift": float}, ("MODEL",)),
    "ModelSamplingFlux": (
        {"model": "MODEL", "max_shift": float, "base_shift": float, "width": int, "height": int},
        ("MODEL",),
    ),
    "CLIPTextEncode": ({"clip": "CLIP", "text": str}, ("CONDITIONING",)),
    "FluxGuidance": ({"conditioning": "CONDITIONING", "guidance": float}, ("CONDITIONING",)),
    "EmptyLatentImage": (dict.fromkeys(("width", "height", "batch_size"), int), ("LATENT",)),
    "EmptySD3LatentImage": (dict.fromkeys(("width", "height", "batch_size"), int), ("LATENT",)),
    "KSampler": (
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            "seed": int,
            "steps": int,
            "cfg": float,
            "sampler_name": str,
            "scheduler": str,
            "denoise": float,
        },
        ("LATENT",),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": str}, ()),
}
"""ComfyUI's nodes: the types of their inputs, a type of Python for a value, and of their outputs."""


def nodes_of(graph):
    """The inputs of a workflow's nodes by class; each is a value or an existing output of the right type."""
    for node in graph.values():
        assert node.keys() == {"class_type", "inputs"}
        inputs, _ = NODES[node["class_type"]]
        assert node["inputs"].keys() == inputs.keys()
        for name, kind in inputs.items():
            value = node["inputs"][name]
            if isinstance(kind, type):
                assert isinstance(value, kind)
            else:
                number, output = value
                assert NODES[graph[number]["class_type"]][1][output] == kind
    return {node["class_type"]: node["inputs"] for node in graph.values()}
