"""A denoiser, and how it wants to be sampled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge, Gt
from torch import nn, Tensor

from halfstep import files, storage
from halfstep.batch import batches, Cond
from halfstep.capacity import refuse_too_large
from halfstep.config import JsonObject
from halfstep.config.validate import (
    Count,
    CountOrNone,
    is_valid,
    NotNegative,
    shown,
    validate,
    Validated,
)
from halfstep.diffusion.denoiser import Denoiser, Denoises
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.samplers.invert import encode, refuse_blind_to_noise
from halfstep.diffusion.samplers.presets import SAMPLER_PRESETS
from halfstep.diffusion.time_grids import checked, Direction, on_schedule, Steps, Times
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.codec import Codec, Texts
from halfstep.models.compression.int8 import load_plain_tensors, plain_tensors
from halfstep.models.rebuild import refuse_changed_net, refuse_wrapped
from halfstep.models.uvit.resize import resized
from halfstep.pipeline.conditioning import condition, same_states
from halfstep.pipeline.description import (
    as_checkpoint_error,
    codec_file,
    describe,
    Description,
    fields_from,
    FORMAT,
)
from halfstep.pipeline.image_inputs import check_noise, image_start, latents_of, read_images
from halfstep.pipeline.samplers import (
    check_counts,
    check_edit,
    check_sampler,
    check_student,
    sampler_fn,
    student_grid,
    teacher_grid,
)
from halfstep.pixels import as_floats
from halfstep.progress import expected, Progress, SILENT
from halfstep.rng import sample_noise


@dataclass(frozen=True, eq=False)
class Pipeline(Validated):
    """A denoiser with all it needs to be sampled; describes itself on disk.

    denoiser  the network with its schedule and parameterisation
    shape     of one sample, for example (1, 8, 8): a latent's where there is a codec
    times     the grids it may be sampled on: a student's own; empty for a teacher, which takes any
    classes   names of the classes, empty if it has none
    null      the label that means "no class", or None if there is none: guidance needs it
    clip      clip predicted images to [-clip, clip] at every step, or None
    sampler   where none is named: a teacher's published one; a student's own, ddim or stochastic
    steps     a teacher's own number of steps
    codec     turns latents into images; None for a model of pixels
    empty     the states of the empty text, [tokens, D], of a network that reads texts
    texts     what turns texts into such states; it is not saved
    guidance_range  of scales that its network takes as an input: one call a step; None for
              one that is guided from outside, by two
    direction "denoise", or "invert" for a student that goes from data to noise (`encode`)
    """

    denoiser: Denoiser
    shape: tuple[Count, ...]
    times: tuple[Times, ...] = ()
    class_names: tuple[str, ...] = ()
    null: CountOrNone | None = None
    clip: Annotated[float, Gt(0)] | None = None
    sampler: str = "ddim"
    steps: Annotated[Steps, Ge(1)] = 64
    codec: Codec | None = None
    empty: Tensor | None = None
    texts: Texts | None = None
    guidance_range: tuple[NotNegative, NotNegative] | None = None
    direction: Direction = "denoise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shape:
            raise ConfigError(
                "a sample has at least one axis, got shape (): write for example (2,)"
            )
        if self.guidance_range is not None and not self.guidance_range[0] <= self.guidance_range[1]:
            raise ConfigError(
                f"guidance_range is the lowest scale and the highest, got {self.guidance_range}: write "
                "them in order"
            )
        for times in self.times:
            checked(times)
        check_sampler(self.sampler)
        if self.times and self.sampler in SAMPLER_PRESETS:
            raise ConfigError(
                f"'{self.sampler}' has a grid of its own and so has a student: write sampler='ddim'"
            )
        rows = getattr(self.denoiser.net, "num_classes", None)
        if self.null is not None and rows is not None and self.null >= rows:
            raise ConfigError(
                f"null is the label of no class, below the network's num_classes = {rows}, got {self.null}: "
                f"write for example null={rows - 1}"
            )

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        encoder_hidden_states: Tensor | None = None,
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
    ) -> Tensor:
        """n samples, float32 [n, ...] on the CPU: images, or what the model is a model of.

        seed      image k of a seed is the same whatever n, batch and `first` are
        steps     sampler steps; a student's fewest, or a teacher's own, by default
        sampler   ddim, heun, dpmpp-2m or ancestral (`variance` 0 small to 1 large); stochastic, for a
                  student made for it; dpmpp-3s, dpm-fast or euler-maruyama, each on a grid of its own;
                  or one of diffusers' schedulers by its class: "diffusers:UniPCMultistepScheduler"
        labels    one a sample; by default the classes in turn
        prompts   one text a sample, for a network that reads texts, by default the empty one; or
                  `encoder_hidden_states`, their states
        guidance_scale  of classifier-free guidance, 1 is off; of a student that takes it, within its range
        images    [n, C, H, W] in [-1, 1], or uint8, which the samples are made of: sampling begins with
                  them at time `strength` of its grid; 1 begins with noise alone
        mask      bool, as images, or 1 where all are alike: True where pixels are repainted, as in
                  diffusers; the others are kept at every step and come back to the bit.  At strength 1
                  the pixels in the mask change nothing; below it sampling begins with them
        noise     [n, *shape] that sampling starts from, as `encode` returns it; by default the seed's
        first     number of the first image
        latents   do not decode them
        progress  told of every step of every batch
        """
        self.check_counts(n, seed=seed, batch=batch, first=first, variance=variance)
        sampler = sampler or self.sampler
        times = self.grid(steps, sampler)
        begin = image_start(n, self.shape, self.codec, images, mask, strength)
        check_noise(noise, n, self.shape)
        if images is not None:
            check_edit(sampler, masked=mask is not None)
            times = begin.grid(times, student=bool(self.times))
        model = self._guided(guidance_scale)
        cond = self._said(n, first, labels, prompts, encoder_hidden_states, guidance_scale)
        schedule, device = self.denoiser.schedule, self.device
        self.denoiser.eval()
        done, parts = [], batches(range(n), batch)
        progress = expected(progress, (len(times) - 1) * len(parts))
        for part in parts:
            rows = slice(part.start, part.stop)
            ids = range(first + part.start, first + part.stop)
            z = sample_noise(seed, ids, self.shape) if noise is None else noise[rows].float()
            z, shown = z.to(device), begin[rows].to(device)
            own = shown.of_model(self.codec)
            go = sampler_fn(
                sampler, seed, ids, self.shape, times, schedule, variance, own.around(z)
            )
            said = None if cond is None else cond[rows].to(device)
            z = own.begin(schedule, z, times[0])
            x = go(model, z, times, cond=said, clip=self.clip, progress=progress)
            if self.codec is not None and not latents:
                x, own = self.codec.decode(x), shown
            done.append(own.restore_unmasked(x).cpu())
        return torch.cat(done) if done else self._none(latents)

    def check_counts(
        self, n: int, *, seed: int = 0, batch: int = 256, first: int = 0, variance: float = 0.0
    ) -> None:
        """`ConfigError` for what `sample` cannot take of these, or no memory could hold."""
        factor = 1 if self.codec is None else self.codec.factor
        sides = (side * factor for side in self.shape[1:])
        check_counts(n, seed, batch, first, variance, (*self.shape[:1], *sides))

    def _none(self, latents: bool) -> Tensor:
        """No samples, in the shape that samples have."""
        one = torch.zeros(1, *self.shape, dtype=torch.float32)
        if self.codec is not None and not latents:
            one = self.codec.decode(one.to(self.device)).cpu()
        return one[:0]

    def encode(
        self,
        images: Tensor,
        *,
        steps: int | None = None,
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        encoder_hidden_states: Tensor | None = None,
        guidance_scale: float = 1.0,
        batch: int = 256,
        progress: Progress = SILENT,
    ) -> Tensor:
        """The noise of these images, float32 [n, *shape] on the CPU: `sample(n, noise=...)` decodes it.

        By DDIM from data to noise, of a teacher, or of a student made for it.  Another model, or the same
        with other labels, may decode it (Su et al. 2023).

        images  [n, C, H, W] in [-1, 1], or uint8; the rest is as `sample` has it.  Nothing is clipped
        """
        images = as_floats(images)
        n = len(images) if images.ndim else 0
        check_counts(n, 0, batch, 0)
        images = read_images(n, self.shape, self.codec, images)
        if self.times and self.direction != "invert":
            raise ConfigError(
                "this student was distilled to walk from noise to data: encode with its teacher, or with "
                "a student made for it (halfstep distill encoder)"
            )
        times = self._times(steps)
        refuse_blind_to_noise(self.denoiser, times[-1])
        model, cond = (
            self._guided(guidance_scale),
            self._said(n, 0, labels, prompts, encoder_hidden_states, guidance_scale),
        )
        device = self.device
        done = [torch.empty(0, *self.shape, dtype=torch.float32)]
        self.denoiser.eval()
        parts = batches(range(n), batch)
        progress = expected(progress, (len(times) - 1) * len(parts))
        for part in parts:
            rows = slice(part.start, part.stop)
            x0 = latents_of(self.codec, images[rows].to(device))
            said = None if cond is None else cond[rows].to(device)
            done.append(encode(model, x0, times, cond=said, progress=progress).cpu())
        return torch.cat(done)

    @property
    def reference_sampler(self) -> str:
        """The sampler that students are measured against: DDIM of a teacher, a student's own."""
        return self.sampler if self.times else "ddim"

    def grid(self, steps: int | None = None, sampler: str | None = None) -> Times:
        """The grid of so many steps; `ConfigError` lists a student's when it has none of that many.

        sampler  which is to walk on it, by default its own
        """
        sampler = sampler or self.sampler
        if self.times:
            check_student(sampler, self.sampler, self.direction)
        check_sampler(sampler)
        return self._times(steps, sampler)

    def _times(self, steps: int | None, sampler: str = "ddim") -> Times:
        schedule = self.denoiser.schedule
        if self.times:
            found = student_grid(self.times, self.sampler, steps, sampler)
        else:
            found = teacher_grid(self.steps if steps is None else steps, sampler, schedule)
        return on_schedule(found, schedule)

    def _said(
        self,
        n: int,
        first: int,
        labels: Sequence[int] | None,
        prompts: Sequence[str] | None,
        encoder_hidden_states: Tensor | None,
        guidance_scale: float,
    ) -> Cond | None:
        return condition(
            n, first, class_names=len(self.class_names), null=self.null, empty=self.empty, texts=self.texts,
            labels=labels, prompts=prompts, encoder_hidden_states=encoder_hidden_states,
            guidance_scale=None if self.guidance_range is None else guidance_scale,
        )  # fmt: skip

    @property
    def unconditional(self) -> int | Tensor | None:
        """The condition of no condition: the null label, or the states of the empty text; None without."""
        return self.null if self.empty is None else self.empty

    def _guided(self, guidance_scale: float) -> Denoises:
        if not is_valid(guidance_scale, float):
            raise ConfigError(
                f"guidance_scale is a finite number, got {shown(guidance_scale)}: write for example 2"
            )
        if self.guidance_range is not None:
            low, high = self.guidance_range
            if not low <= guidance_scale <= high:
                raise ConfigError(
                    f"this student takes guidance scales from {low:g} to {high:g}, asked for "
                    f"{guidance_scale:g}: write guidance_scale={min(max(guidance_scale, low), high):g}"
                )
            return self.denoiser
        if guidance_scale == 1:
            return self.denoiser
        if self.unconditional is None:
            raise ConfigError(
                "this pipeline has no null class and cannot be guided: write guidance_scale=1"
            )
        return Guided(self.denoiser, guidance_scale, self.unconditional)

    @property
    def device(self) -> torch.device:
        """Where its network is; the CPU where that has no parameters."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Itself, its networks moved to the device."""
        self.denoiser.to(device)
        if isinstance(self.codec, nn.Module):
            self.codec.to(device)
        return self

    def with_texts(self, texts: Texts) -> Self:
        """The same with an encoder of texts; one that it was not trained with is refused."""
        if self.empty is None:
            raise ConfigError("this pipeline reads no texts: leave the encoder out")
        if not same_states(texts.encode([""])[0], self.empty):
            raise ConfigError(
                "this encoder has other states for the empty text than the one that this model was "
                "trained with: give that one"
            )
        return replace(self, texts=texts)

    def at_size(self, height: int, width: int) -> Self:
        """The same for images of another size in pixels, untrained for it; U-ViT's position embedding
        is interpolated."""
        height, width = validate("height", height, Count), validate("width", width, Count)
        factor = 1 if self.codec is None else self.codec.factor
        odd = height % factor or width % factor
        if len(self.shape) != 3 or self.times or odd:
            whole = f", in multiples of {factor} pixels" if factor > 1 else ""
            raise ConfigError(
                f"another size is for a teacher of images{whole}, and this is asked for {height} x "
                f"{width}: leave the size out"
            )
        refuse_too_large(f"a size of {height} x {width}", (3, height, width), "write a smaller one")
        shape = self.shape[0], height // factor, width // factor
        denoiser = self.denoiser.trainable_copy()
        denoiser.net = resized(denoiser.net, shape[1:])
        return replace(self, denoiser=denoiser.freeze(), shape=shape)

    def save(self, folder: Path | str, *, dtype: torch.dtype | None = None) -> None:
        """Write FOLDER/pipeline.safetensors and FOLDER/pipeline.json, and its codec; all or nothing.

        dtype  of the weights in the file; they are read back into the network's own, float32
        """
        refuse_wrapped(self.denoiser)
        refuse_changed_net(self.denoiser.net)
        about = self.describe()
        folder = files.make_folder(Path(folder))
        if self.codec is not None:
            self.codec.save(folder)
        tensors = plain_tensors(self.denoiser)
        if dtype is not None:
            tensors = storage.rounded(tensors, dtype)
        if self.empty is not None:
            tensors["empty"] = self.empty
        if self.codec is not None:
            about["codec"] |= codec_file(folder)
        storage.save(folder / "pipeline", tensors, about)

    @classmethod
    def load(
        cls, folder: Path | str, *, net: Callable[..., nn.Module] | str | None = None
    ) -> "Pipeline":
        """Read what `save` wrote.  `net` builds the network of a pipeline around a user's own."""
        stem = Path(folder) / "pipeline"
        if not stem.with_suffix(".json").exists():
            raise CheckpointError(f"'{folder}' holds no pipeline: it has no pipeline.json")
        tensors, about = storage.load(stem, Description, format=FORMAT)
        pipeline = from_description(about, net=net, source=f"'{stem}.json'")
        pipeline = replace(pipeline, empty=tensors.pop("empty", None))
        if about.get("codec") is not None:
            from halfstep.models.autoencoder.kl import load_codec  # which needs diffusers

            if codec_file(Path(folder)) != {k: v for k, v in about["codec"].items() if k == "file"}:
                raise CheckpointError(
                    f"the codec in '{folder}' is not the one that this pipeline was saved with: copy its own "
                    "codec.json and codec.safetensors back"
                )
            pipeline = replace(pipeline, codec=load_codec(folder))
        fits = storage.load_into if about.get("quantised") is None else load_plain_tensors
        fits(pipeline.denoiser, tensors, f"'{stem}.safetensors'")
        pipeline.denoiser.eval()
        return pipeline

    def describe(self) -> JsonObject:
        """All but the weights, as json; what a pipeline of pixels with its own defaults has not is left
        out."""
        return describe(self)


def from_description(
    about: Mapping[str, Any],
    *,
    net: Callable[..., nn.Module] | str | None = None,
    source: str = "this description",
) -> Pipeline:
    """A pipeline with fresh weights and no codec, from what `Pipeline.describe` says."""
    fields = fields_from(about, net=net, source=source)
    with as_checkpoint_error(source):
        return Pipeline(**fields)
