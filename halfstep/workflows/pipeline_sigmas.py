"""How diffusers' pipelines set the timesteps of their scheduler: sigmas, mu and config that they change.

Read from the pipelines' own files in diffusers 0.42; a test compares these lists with the installed files.
"""

import re
from typing import Any

from halfstep.config import JsonObject
from halfstep.diffusion.samplers.published_scheduler import (
    dynamic_mu as affine_mu,
    uniform_sigmas,
)

UNIFORM = frozenset(
    re.findall(
        r"\w+",
        """
    Bria BriaFibo BriaFibo2 BriaFiboEdit Chroma ChromaImg2Img ChromaInpaint DreamLite DreamLiteMobile Flux
    Flux2 Flux2Klein Flux2KleinInpaint Flux2KleinKV FluxControl FluxControlImg2Img FluxControlInpaint
    FluxControlNet FluxControlNetImg2Img FluxControlNetInpaint FluxFill FluxImg2Img FluxInpaint FluxKontext
    FluxKontextInpaint HunyuanImage HunyuanImageRefiner HunyuanSkyreelsImageToVideo HunyuanVideo
    HunyuanVideo15 HunyuanVideo15ImageToVideo HunyuanVideoImageToVideo Krea2 LTX LTX2 LTX2Condition LTX2HDR
    LTX2ImageToVideo LTX2InContext LTXImageToVideo LongCatAudioDiT LongCatImage LongCatImageEdit Lumina2
    MotifVideo MotifVideoImage2Video NucleusMoEImage OmniGen OvisImage QwenImage QwenImage21
    QwenImageControlNet QwenImageControlNetInpaint QwenImageEdit QwenImageEditInpaint QwenImageEditPlus
    QwenImageImg2Img QwenImageInpaint VisualClozeGeneration ZImage ZImageControlNet ZImageControlNetInpaint
    ZImageImg2Img ZImageInpaint ZImageOmni
""",
    )
)
"""Pipelines, without the word Pipeline, that pass sigmas=linspace(1, 1/N, N)."""
UNKNOWN = frozenset(
    re.findall(
        r"\w+",
        """
    AceStep CogView4 CogView4Control Cosmos2TextToImage Cosmos2VideoToWorld Cosmos3Omni ErnieImage GlmImage
    Helios HiDreamImage HunyuanVideoFramepack Ideogram4 KandinskyImg2Img LTXI2VLongMultiPrompt
    QwenImageLayered StableAudio3 StableAudio3AudioToAudio StableAudio3Inpaint
    StableDiffusionAttendAndExcite StableDiffusionSAG StableCascadePrior StableVideoDiffusion
    WuerstchenPrior
""",
    )
)
"""Pipelines with a grid or a mu of their own, which is not reproduced here."""
OFFSET_OF_1 = frozenset(
    re.findall(
        r"\w+",
        """
    AltDiffusion AltDiffusionImg2Img CycleDiffusion OnnxStableDiffusion OnnxStableDiffusionImg2Img
    OnnxStableDiffusionInpaint OnnxStableDiffusionUpscale StableDiffusion StableDiffusionDiffEdit
    StableDiffusionImg2Img StableDiffusionInpaint StableDiffusionOnnx StableDiffusionPAG
    StableDiffusionPAGImg2Img StableDiffusionPAGInpaint
""",
    )
)
"""Pipelines that set steps_offset=1 in a scheduler with another one."""


def config_changes(pipeline: str, config: JsonObject) -> JsonObject:
    """The options of a scheduler's config that this pipeline overrides when it is loaded."""
    changed = pipeline.removesuffix("Pipeline") in OFFSET_OF_1
    return {"steps_offset": 1} if changed and config.get("steps_offset", 1) != 1 else {}


def passed_sigmas(
    pipeline: str, steps: int, scheduler: Any, index: JsonObject
) -> list[float] | None:
    """The sigmas that the pipeline passes to `set_timesteps`; None if it passes the number of steps.

    index  model_index.json: Qwen-Image 2.1 keeps `sample_sigmas` there, whatever the number of steps
    """
    if pipeline.removesuffix("Pipeline") not in UNIFORM:
        return None
    if pipeline.startswith("Flux") and scheduler.config.get("use_flow_sigmas"):
        return None
    if pipeline == "QwenImage21Pipeline" and index.get("sample_sigmas"):
        return list(index["sample_sigmas"])
    return uniform_sigmas(steps)


def dynamic_mu(
    pipeline: str, steps: int, tokens: int, scheduler: Any, index: JsonObject
) -> float | None:
    """The mu that is passed where use_dynamic_shifting is on, from the number of image tokens; else None.

    Linear from base_shift at base_image_seq_len to max_shift at max_image_seq_len (as Flux and SD3 do).
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return None
    if pipeline.startswith("Flux2"):
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(tokens, steps))
    if pipeline == "Krea2Pipeline" and index.get("is_distilled"):
        return 1.15
    return affine_mu(config, tokens)
