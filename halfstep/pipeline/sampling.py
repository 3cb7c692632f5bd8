"""Draw samples with a pipeline."""

from collections.abc import Mapping, Sequence
from typing import Literal, overload, TYPE_CHECKING

import torch
from torch import Tensor

from halfstep.batch import batches
from halfstep.pipeline.base import PipelineFields
from halfstep.pipeline.conditioning import model_inputs, Prompts
from halfstep.pipeline.image_inputs import check_noise, image_start
from halfstep.pipeline.output import as_pil, check_output, Output
from halfstep.pipeline.samplers import check_counts, check_edit, sampler_fn
from halfstep.progress import expected, Progress, SILENT
from halfstep.rng import sample_noise

if TYPE_CHECKING:
    from PIL.Image import Image


class SamplingPipeline(PipelineFields):
    """The part of a `Pipeline` that draws samples."""

    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = ...,
        steps: int | None = ...,
        sampler: str | None = ...,
        labels: Sequence[int] | None = ...,
        prompts: Prompts | None = ...,
        encoder_hidden_states: Tensor | None = ...,
        negative_prompts: Prompts | None = ...,
        added: Mapping[str, Tensor] | None = ...,
        guidance_scale: float = ...,
        variance: float = ...,
        images: Tensor | None = ...,
        strength: float = ...,
        mask: Tensor | None = ...,
        noise: Tensor | None = ...,
        batch: int = ...,
        first: int = ...,
        latents: bool = ...,
        progress: Progress = ...,
        output: Literal["tensor"] = ...,
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = ...,
        steps: int | None = ...,
        sampler: str | None = ...,
        labels: Sequence[int] | None = ...,
        prompts: Prompts | None = ...,
        encoder_hidden_states: Tensor | None = ...,
        negative_prompts: Prompts | None = ...,
        added: Mapping[str, Tensor] | None = ...,
        guidance_scale: float = ...,
        variance: float = ...,
        images: Tensor | None = ...,
        strength: float = ...,
        mask: Tensor | None = ...,
        noise: Tensor | None = ...,
        batch: int = ...,
        first: int = ...,
        latents: bool = ...,
        progress: Progress = ...,
        output: Literal["pil"],
    ) -> "list[Image]": ...

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        labels: Sequence[int] | None = None,
        prompts: Prompts | None = None,
        encoder_hidden_states: Tensor | None = None,
        negative_prompts: Prompts | None = None,
        added: Mapping[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        variance: float = 0.0,
        images: Tensor | None = None,
        strength: float = 1.0,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        batch: int = 256,
        first: int = 0,
        latents: bool = False,
        progress: Progress = SILENT,
        output: Output = "tensor",
    ) -> "Tensor | list[Image]":
        """Draw n samples: images or points.

        Args:
            n: number of samples.
            seed: image k of a seed does not depend on n, batch and `first`.
            steps: sampler steps; by default a student's fewest, or a teacher's `steps`.
            sampler: ddim, heun, dpmpp-2m or ancestral; stochastic, for a student distilled for it;
                dpmpp-3s, dpm-fast or euler-maruyama, each on its own grid; scheduler, the one that a
                model of diffusers was published with; or a scheduler of diffusers by its class:
                "diffusers:UniPCMultistepScheduler".
            labels: one a sample; by default the classes in turn.
            prompts: one text a sample, or one for all, for a network that reads texts, by default the
                empty one; or their conditions, encoded once by `Texts.conditions`.
            encoder_hidden_states: float [n, tokens, D] or [1, tokens, D], the states of the texts in
                place of `prompts`.
            negative_prompts: one text for all samples, or one a sample, that guidance leads away from
                instead of the empty one; refused where it would change nothing: at guidance_scale 1, and
                of a student that takes the scale, in which the teacher's own null condition is folded in.
            added: named tensors of the samples, [n, ...] or [1, ...], in place of those of the prompts or
                the pipeline's own.
            guidance_scale: of classifier-free guidance, 1 is off; within the range of a student that
                takes it.
            variance: of ancestral, from 0 (small) to 1 (large).
            images: float [n, C, H, W] in [-1, 1], or uint8, to edit: sampling starts from them at the
                time `strength`.
            strength: in (0, 1]; 1 starts from noise alone.
            mask: bool [n, C, H, W], or 1 along axes that are alike: True where pixels are repainted, as
                in diffusers; the others are kept at every step and returned to the bit. At strength 1 the
                pixels in the mask change nothing; below it sampling starts from them.
            noise: float [n, *shape] to start from, as `encode` returns it; by default the seed's.
            batch: samples of one network call.
            first: number of the first image.
            latents: return latents without decoding.
            progress: advances at every step of every batch.
            output: tensor, or pil for a list of PIL images, gray or RGB.

        Returns:
            float32 [n, ...] on the CPU, images in [-1, 1]; with output="pil" a list of n PIL images.

        Raises:
            ConfigError: a number of steps that a student was not distilled for, an unknown sampler, inputs
                that do not fit the model, or output="pil" for points.
        """
        check_output(output, self.shape, has_codec=self.codec is not None, latents=latents)
        self.check_counts(n, seed=seed, batch=batch, first=first, variance=variance)
        sampler = sampler or self.sampler
        times = self.grid(steps, sampler)
        start = image_start(n, self.shape, self.codec, images, mask, strength)
        check_noise(noise, n, self.shape)
        if images is not None:
            check_edit(sampler, masked=mask is not None)
            times = start.grid(times, student=bool(self.times))
        inputs_of = model_inputs(
            self, n, first, guidance_scale, negative_prompts, labels=labels, prompts=prompts,
            encoder_hidden_states=encoder_hidden_states, added=added,
        )  # fmt: skip
        schedule, device = self.denoiser.schedule, self.device
        self.denoiser.eval()
        samples, parts = list[Tensor](), batches(range(n), batch)
        progress = expected(progress, (len(times) - 1) * len(parts))
        for part in parts:
            rows = slice(part.start, part.stop)
            ids = range(first + part.start, first + part.stop)
            z = sample_noise(seed, ids, self.shape) if noise is None else noise[rows].float()
            z, pixels = z.to(device), start[rows].to(device)
            inputs = pixels.of_model(self.codec)
            draw = sampler_fn(
                sampler, seed, ids, self.shape, times, schedule, variance, inputs.around(z),
                self.scheduler, self.fine_times,
            )  # fmt: skip
            model, cond = inputs_of(rows)
            z = inputs.begin(schedule, z, times[0])
            x = draw(model, z, times, cond=cond, clip=self.clip_of(sampler), progress=progress)
            if self.codec is not None and not latents:
                x, inputs = self.codec.decode(x), pixels
            samples.append(inputs.restore_unmasked(x).cpu())
        drawn = torch.cat(samples) if samples else self._none(latents)
        return as_pil(drawn) if output == "pil" else drawn

    def check_counts(
        self, n: int, *, seed: int = 0, batch: int = 256, first: int = 0, variance: float = 0.0
    ) -> None:
        """Refuse counts that `sample` does not take, or that no memory could hold.

        Args:
            n: samples.
            seed: seed of their noise.
            batch: samples of one network call.
            first: number of the first sample.
            variance: as in `sample`.

        Raises:
            ConfigError: a count beyond its range.
        """
        factor = 1 if self.codec is None else self.codec.factor
        sides = (side * factor for side in self.shape[1:])
        check_counts(n, seed, batch, first, variance, (*self.shape[:1], *sides))

    def _none(self, latents: bool) -> Tensor:
        """No samples, in the shape that samples have."""
        sample = torch.zeros(1, *self.shape, dtype=torch.float32)
        if self.codec is not None and not latents:
            sample = self.codec.decode(sample.to(self.device)).cpu()
        return sample[:0]
