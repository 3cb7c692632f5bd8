"""The pipeline: a denoiser with everything that sampling needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn, Tensor

from halfstep.batch import batches
from halfstep.capacity import refuse_too_large
from halfstep.config.validate import Count, validate
from halfstep.diffusion.samplers.invert import encode, refuse_blind_to_noise
from halfstep.errors import ConfigError
from halfstep.models.codec import Texts
from halfstep.models.uvit.resize import resized
from halfstep.pipeline.conditioning import differing, model_inputs, Prompts
from halfstep.pipeline.description import (
    as_checkpoint_error,
    describe,
    Description,
    fields_from,
    NetBuilder,
)
from halfstep.pipeline.image_inputs import latents_of, read_images
from halfstep.pipeline.samplers import check_counts
from halfstep.pipeline.sampling import SamplingPipeline
from halfstep.pipeline.saving import load_fields, save_pipeline
from halfstep.pipeline.summary import summary
from halfstep.pixels import as_floats
from halfstep.progress import expected, Progress, SILENT


@dataclass(frozen=True, eq=False, repr=False)
class Pipeline(SamplingPipeline):
    """A denoiser with everything that sampling needs; it can be saved and loaded.

    Args:
        denoiser: the network with its schedule and parameterisation.
        shape: the shape of one sample, for example (1, 8, 8); of a latent if there is a codec.
        times: the grids that a student was distilled for; empty for a teacher, which takes any.
        class_names: empty if it has no classes.
        null: the label that means "no class", which guidance needs, or None.
        clip: clip predicted images to [-clip, clip] at every step, or None.
        sampler: the default: a teacher's published one; the one a student was distilled for, ddim or
            stochastic.
        steps: the default number of steps, of a teacher or of a student with fine_times.
        codec: turns latents into images; None for a model of pixels.
        empty: the states of the empty text, float [tokens, D], of a network that reads texts.
        texts: the encoder of texts; it is not saved.
        guidance_range: the range of the scales that its network takes as an input, with one call a step;
            None for a network that is guided by two calls.
        direction: "denoise", or "invert" for a student that goes from data to noise (`encode`).
        added: the other tensors that its network reads, such as pooled_projections [D],
            encoder_attention_mask [tokens] or time_ids [6]: by name their values for the empty text, of
            one sample. They are the default of samples, and the null of guidance, which keeps sizes
            (time_ids) as they are.
        scheduler: the diffusers scheduler that a model was published with, for sampler="scheduler".
        clipping: "x0-and-eps" recomputes the eps of a clipped image; "x0" leaves it, as diffusers'
            `clip_sample`.
        origin: the diffusers pipeline that the model came from, whose parts an export to diffusers
            writes.
        fine_times: the grid of the fine steps that a student takes several of at once: it serves every
            number of steps from its grids' fewest to theirs. Its grids' times are among them.
        guidance_norm: side of the patches on which guidance keeps the norm of the output (Qwen-Image); 0:
            none.

    Raises:
        ConfigError: options that do not go together, such as a student with a sampler that has a grid of
            its own.
    """

    def encode(
        self,
        images: Tensor,
        *,
        steps: int | None = None,
        labels: Sequence[int] | None = None,
        prompts: Prompts | None = None,
        encoder_hidden_states: Tensor | None = None,
        negative_prompts: Prompts | None = None,
        added: Mapping[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        batch: int = 256,
        progress: Progress = SILENT,
    ) -> Tensor:
        """Invert images to noise by DDIM; `sample(n, noise=...)` decodes it.

        By DDIM from data to noise, with a teacher, or with a student distilled for it. Another model, or
        the same with other labels, may decode it (Su et al. 2023). Nothing is clipped.

        Args:
            images: float [n, C, H, W] in [-1, 1], or uint8.
            steps: as in `sample`.
            labels: one a sample; by default the classes in turn.
            prompts: as in `sample`.
            encoder_hidden_states: as in `sample`, float [n, tokens, D].
            negative_prompts: as in `sample`.
            added: as in `sample`, [n, ...] or [1, ...] each.
            guidance_scale: as in `sample`.
            batch: samples of one network call.
            progress: advances at every step of every batch.

        Returns:
            float32 [n, *shape] on the CPU.

        Raises:
            ConfigError: a student that was distilled to sample, or inputs that do not fit the model.
        """
        images = as_floats(images)
        n = len(images) if images.ndim else 0
        check_counts(n, 0, batch, 0)
        images = read_images(n, self.shape, self.codec, images)
        if self.times and self.direction != "invert":
            raise ConfigError(
                "this student was distilled to sample from noise to data: encode with its teacher, or with "
                "a student made for it (halfstep distill encoder)"
            )
        times = self._times(steps)
        refuse_blind_to_noise(self.denoiser, times[-1])
        inputs_of = model_inputs(
            self, n, 0, guidance_scale, negative_prompts, labels=labels, prompts=prompts,
            encoder_hidden_states=encoder_hidden_states, added=added,
        )  # fmt: skip
        device, noise = self.device, [torch.empty(0, *self.shape, dtype=torch.float32)]
        self.denoiser.eval()
        parts = batches(range(n), batch)
        progress = expected(progress, (len(times) - 1) * len(parts))
        for part in parts:
            rows = slice(part.start, part.stop)
            x0 = latents_of(self.codec, images[rows].to(device))
            model, cond = inputs_of(rows)
            noise.append(encode(model, x0, times, cond=cond, progress=progress).cpu())
        return torch.cat(noise)

    def to(self, device: torch.device | str) -> Self:
        """Move its networks to the device; returns itself.

        Args:
            device: a torch device, or its name.
        """
        self.denoiser.to(device)
        if isinstance(self.codec, nn.Module):
            self.codec.to(device)
        return self

    def with_texts(self, texts: Texts) -> Self:
        """A copy with an encoder of texts; one that it was not trained with is refused.

        Args:
            texts: the encoder.

        Raises:
            ConfigError: another encoder than the network's, or a network that reads no texts.
        """
        if self.empty is None and not self.added:
            raise ConfigError("this pipeline reads no texts: leave the encoder out")
        if names := differing(texts.null(), self):
            raise ConfigError(
                f"this encoder has another {' and '.join(names)} of the empty text than the one that this "
                "model was trained with: give that one"
            )
        return replace(self, texts=texts)

    def at_size(self, height: int, width: int) -> Self:
        """A copy for another size in pixels, untrained: a U-ViT's position embedding is interpolated.

        Args:
            height: pixels.
            width: pixels.

        Raises:
            ConfigError: a student, a model that makes no images, or a size that its network cannot have.
        """
        height, width = validate("height", height, Count), validate("width", width, Count)
        if self.origin is not None:
            raise ConfigError("a size of diffusers is given first: from_diffusers(..., size=...)")
        factor = 1 if self.codec is None else self.codec.factor
        if len(self.shape) != 3 or self.times or height % factor or width % factor:
            whole = f", in multiples of {factor} pixels" if factor > 1 else ""
            raise ConfigError(
                f"another size is for a teacher of images{whole}, got {height} x {width}: leave the size out"
            )
        refuse_too_large(f"a size of {height} x {width}", (3, height, width), "write a smaller one")
        shape = self.shape[0], height // factor, width // factor
        denoiser = self.denoiser.trainable_copy()
        denoiser.net = resized(denoiser.net, shape[1:])
        return replace(self, denoiser=denoiser.freeze(), shape=shape)

    def save(self, folder: Path | str, *, dtype: torch.dtype | None = None) -> None:
        """Write FOLDER/pipeline.safetensors and FOLDER/pipeline.json, and its codec; all or nothing.

        Args:
            folder: a folder, made if it is missing.
            dtype: dtype of the weights in the file; they are read back into the network's own, float32.

        Raises:
            ConfigError: a network that could not be rebuilt from a file, or a folder that cannot be
                written.
        """
        save_pipeline(self, Path(folder), dtype)

    @classmethod
    def load(
        cls, folder: Path | str, *, net: NetBuilder = None, base: str | None = None
    ) -> "Pipeline":
        """Load what `save` wrote, or a stage of a run.

        Args:
            folder: the folder of a pipeline, such as RUN/stages/0004-steps.
            net: builds a user's own network: a function, or its name package.module:function.
            base: of a LoRA run's stage: the folder or hub name of its teacher, if that has moved.

        Raises:
            CheckpointError: no pipeline is there, or it is damaged.
            ConfigError: the network is your own code, and `net` does not name it.
        """
        fields = load_fields(Path(folder), net, base)
        with as_checkpoint_error(f"'{Path(folder) / 'pipeline.json'}'"):
            return cls(**fields)

    @classmethod
    def from_diffusers(
        cls,
        source: Any,
        *,
        size: int | tuple[int, int] | None = None,
        family: Any = None,
        config: Path | str | None = None,
        guidance_range: tuple[float, float] | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Pipeline":
        """A pipeline of diffusers as one of halfstep, which samples as its own pipeline does.

        Everything follows from the configs. An object's network is not copied; it is frozen.

        Args:
            source: a `DiffusionPipeline`, its folder, its name on the hub, or a .safetensors file with
                `config`.
            size: of the images in pixels, a side or (height, width); by default the network's own.
            family: how a pipeline calls its network that halfstep does not know: a `Family`, or a TOML
                file.
            config: folder or name of a pipeline with the configs of a single file.
            guidance_range: of a network that takes its scale as an input; by default 1 to 10.
            dtype: torch.bfloat16 or torch.float16 stores the weights of linear layers and convolutions so
                as they are read from a folder, 2 bytes a parameter, and runs the network under autocast:
                for sampling, and for a LoRA's teacher. Such a pipeline is neither saved nor trained.

        Raises:
            CheckpointError: a folder that is not whole, or names code of others, which is never run.
            ConfigError: a pipeline or a scheduler that halfstep cannot read, or a size that the network
                has not.
        """
        from halfstep.pipeline.from_diffusers import fields_of  # imports diffusers

        return cls(**fields_of(source, size, family, config, guidance_range, dtype))

    def __repr__(self) -> str:
        return summary(self)

    def describe(self) -> Description:
        """Everything but the weights, as JSON; default values are left out."""
        return describe(self)


def from_description(
    about: Description, *, net: NetBuilder = None, source: str = "this description"
) -> Pipeline:
    """Build the pipeline that `Pipeline.describe` described, with fresh weights and no codec.

    net     builds a user's own network
    source  names the description in an error
    """
    fields = fields_from(about, net=net, source=source)
    with as_checkpoint_error(source):
        return Pipeline(**fields)
