"""A tiny pipeline of each family of diffusers: real classes, random weights, a vocabulary of a few words."""

import warnings

import torch

from halfstep.rng import key
from tests.support.diffusers_networks import SMALL
from tests.support.texts import clip_tokenizer, lively, PIECES, WORDS

VAE = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
}
TABLE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}
WIDE = {
    "UNet2DConditionModel-SDXL": {
        "cross_attention_dim": 48,
        "projection_class_embeddings_input_dim": 48 + 16,
    },
    "SD3Transformer2DModel": {
        "joint_attention_dim": 48,
        "pooled_projection_dim": 32,
        "sample_size": 8,
    },
    "FluxTransformer2DModel": {"joint_attention_dim": 32, "pooled_projection_dim": 32},
}
"""What the widths of the tiny encoders make other than in the networks' own tests."""


def network(name, **options):
    import diffusers

    torch.manual_seed(0)
    config = {**SMALL[name], **WIDE.get(name, {}), **options}
    return lively(getattr(diffusers, name.partition("-")[0])(**config)).eval()


def vae(**options):
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(**{**VAE, **options}).eval()


def clip_text(width=32, *, projected=False, positions=11):
    import transformers

    torch.manual_seed(2)
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=16,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return lively(kind(config)).eval()


def t5_text(width=32):
    import transformers

    torch.manual_seed(3)
    config = transformers.T5Config(
        vocab_size=len(PIECES) + 3, d_model=width, d_kv=5, d_ff=37, num_layers=2, num_heads=3
    )
    return lively(transformers.T5EncoderModel(config)).eval()


def t5_tokenizer():
    import transformers

    pieces = [(piece, -float(k > 2) * (3 - len(piece) / 4)) for k, piece in enumerate(PIECES)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=9)


def ddim(**options):
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{**TABLE, "set_alpha_to_one": False, "steps_offset": 1, **options})


def flow(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def ddpm_pipeline(kind="DDPM", **scheduler):
    import diffusers

    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    unet = lively(diffusers.UNet2DModel(**config)).eval()
    made = getattr(diffusers, f"{kind}Scheduler")(**scheduler)
    return getattr(diffusers, f"{kind}Pipeline")(unet=unet, scheduler=made)


def dit_pipeline():
    import diffusers

    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
    )
    labels = {str(k): f"class {k}, other name" for k in range(1000)}
    return diffusers.DiTPipeline(
        transformer=lively(net).eval(), vae=vae(), scheduler=ddim(), id2label=labels
    )


def stable_diffusion(**scheduler):
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=lively(unet).eval(),
        scheduler=ddim(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2():
    """Linear projections, a text encoder of another width, v and zero SNR, as 2.1."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=[1, 2],
        use_linear_projection=True,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(16),
        tokenizer=clip_tokenizer(),
        unet=lively(unet).eval(),
        scheduler=ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl():
    import diffusers

    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(16, projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network("UNet2DConditionModel-SDXL"),
        scheduler=ddim(),
        add_watermarker=False,
    )


def pixart(kind="Sigma"):
    import diffusers

    net = network("PixArtTransformer2DModel", caption_channels=32, out_channels=8)
    return getattr(diffusers, f"PixArt{kind}Pipeline")(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=vae(),
        transformer=net,
        scheduler=ddim(),
    )


def sd3(**scheduler):
    import diffusers

    return diffusers.StableDiffusion3Pipeline(
        transformer=network("SD3Transformer2DModel"),
        scheduler=flow(**{"shift": 3.0, **scheduler}),
        vae=vae(shift_factor=0.1, scaling_factor=1.5),
        text_encoder=clip_text(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(16, projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(48),
        tokenizer_3=t5_tokenizer(),
    )


def flux(**options):
    import diffusers

    shift = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
    return diffusers.FluxPipeline(
        scheduler=flow(**shift),
        vae=vae(
            shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=network("FluxTransformer2DModel", **options),
    )


def sana():
    import diffusers
    import transformers

    torch.manual_seed(4)
    config = transformers.Gemma2Config(
        vocab_size=len(PIECES),
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    torch.manual_seed(1)
    codec = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_out_channels=(8, 16),
        decoder_layers_per_block=(1, 1),
        decoder_qkv_multiscales=((), ()),
        decoder_norm_types=("rms_norm", "rms_norm"),
        decoder_act_fns=("silu", "silu"),
        scaling_factor=0.5,
    )
    return diffusers.SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=lively(transformers.Gemma2Model(config)).eval(),
        vae=codec.eval(),
        transformer=network("SanaTransformer2DModel", caption_channels=16, sample_size=16),
        scheduler=flow(shift=3.0),
    )


def gemma_tokenizer():
    import transformers

    ids = {
        word: k
        for k, word in enumerate(
            ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
        )
    }
    return transformers.GemmaTokenizer(vocab=ids, merges=[], model_max_length=300)


def qwen():
    import diffusers
    import transformers

    torch.manual_seed(5)
    words = ["<pad>", "<end>", *(chr(k) for k in range(33, 127)), "Ġ", "Ċ"]
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_window_layers": 1,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 10000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "window_size": 112,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={w: k for k, w in enumerate(words)},
        merges=[],
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<pad>",
    )
    torch.manual_seed(1)
    codec = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        attn_scales=[],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.5, 0.5, 1.0, 2.0],
    )
    pipeline = diffusers.QwenImagePipeline(
        scheduler=flow(
            use_dynamic_shifting=True, shift_terminal=0.02, base_shift=0.5, max_shift=0.9
        ),
        vae=codec.eval(),
        text_encoder=lively(transformers.Qwen2_5_VLForConditionalGeneration(config)).eval(),
        tokenizer=tokenizer,
        transformer=network("QwenImageTransformer2DModel", joint_attention_dim=16),
    )
    return pipeline


FAMILIES = {
    "ddpm": ddpm_pipeline,
    "ddim": lambda: ddpm_pipeline("DDIM"),
    "dit": dit_pipeline,
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-2": stable_diffusion_2,
    "sdxl": sdxl,
    "pixart": pixart,
    "pixart-alpha": lambda: pixart("Alpha"),
    "sd3": sd3,
    "flux": flux,
    "sana": sana,
    "qwen-image": qwen,
}

TEXTS = ["a cat", "cat a b"]
SCALES = {
    "dit": "guidance_scale",
    "stable-diffusion": "guidance_scale",
    "stable-diffusion-2": "guidance_scale",
    "pixart-alpha": "guidance_scale",
    "sdxl": "guidance_scale",
    "pixart": "guidance_scale",
    "sd3": "guidance_scale",
    "sana": "guidance_scale",
    "flux": "true_cfg_scale",
    "qwen-image": "true_cfg_scale",
}
"""The argument of each pipeline for the scale of classifier-free guidance."""
SIZED = {"flux": 16, "qwen-image": 16}
"""Sizes of the images where a network's config has none."""


UNGUIDED = ("ddpm", "ddim")
PROMPTED = tuple(name for name in FAMILIES if name not in ("ddpm", "ddim", "dit"))


@torch.no_grad()
def own_samples(name, pipeline, noise, steps, scale=1.0):
    """What diffusers' own pipeline draws from this noise: latents, or images in [-1, 1] where it has none."""
    if name == "dit":
        return _dit_samples(pipeline, noise, steps, scale)
    if name in UNGUIDED:
        return _unet_samples(pipeline, noise, steps)
    options = {"num_inference_steps": steps, SCALES[name]: scale}
    if name in SIZED:
        noise = type(pipeline)._pack_latents(noise, len(noise), noise.shape[1], *noise.shape[2:])
        options |= {"negative_prompt": [""] * len(noise)} if scale > 1 else {}
    if name in ("pixart", "pixart-alpha", "sana"):
        options |= {"use_resolution_binning": False, "clean_caption": False}
    if name == "sana":
        options["complex_human_instruction"] = None
    side = 2 * (noise.shape[-1] if name not in SIZED else 8)
    with warnings.catch_warnings(action="ignore"):  # numpy's, from within diffusers
        out = pipeline(
            TEXTS, height=side, width=side, latents=noise, output_type="latent", **options
        )
    images = torch.as_tensor(out.images)
    if name in SIZED:
        images = type(pipeline)._unpack_latents(images, 16, 16, 2)
    return images[:, :, 0] if name == "qwen-image" else images


def _unet_samples(pipeline, noise, steps):
    """diffusers' pipelines of pixels take no noise to start from: it is their first draw."""
    from unittest import mock

    module = type(pipeline).__module__
    draws = lambda shape, **options: noise if shape == tuple(noise.shape) else None  # noqa: E731
    generators = [torch.Generator().manual_seed(key(0, k)) for k in range(len(noise))]
    with mock.patch(f"{module}.randn_tensor", draws):
        made = pipeline(
            batch_size=len(noise), num_inference_steps=steps, generator=generators, output_type="np"
        )
    return torch.as_tensor(made.images).permute(0, 3, 1, 2) * 2 - 1


def _dit_samples(pipeline, noise, steps, scale):
    from unittest import mock

    latents = []
    decode = lambda z: latents.append(z) or mock.Mock(sample=torch.zeros(len(z), 3, 16, 16))  # noqa: E731
    with (
        mock.patch("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **options: noise),
        mock.patch.object(pipeline.vae, "decode", decode),
    ):
        pipeline(
            list(range(len(noise))),
            guidance_scale=scale,
            num_inference_steps=steps,
            output_type="pt",
        )
    return latents[0] * pipeline.vae.config.scaling_factor
