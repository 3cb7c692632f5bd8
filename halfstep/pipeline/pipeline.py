"""A denoiser, and how it wants to be sampled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn, Tensor

from halfstep import storage
from halfstep.codec import Codec, Texts
from halfstep.denoiser import Denoiser, Denoises, Guided
from halfstep.errors import CheckpointError, ConfigError
from halfstep.nets.resizing import resized
from halfstep.noise import sample_noise
from halfstep.pipeline.conditions import condition, same_states
from halfstep.pipeline.description import denoiser_from, described
from halfstep.pipeline.walks import check_counts, check_sampler, walk
from halfstep.samplers.published import WALKS
from halfstep.timegrids import Times, uniform


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A denoiser with all it needs to be sampled; describes itself on disk.

    denoiser  the network with its schedule and parameterisation
    shape     of one sample, for example (1, 8, 8): a latent's where there is a codec
    times     the grids it may be sampled on: a student's own; empty for a teacher, which takes any
    classes   names of the classes, empty if it has none
    null      the label that means "no class", or None if there is none: guidance needs it
    clip      clip predicted images to [-clip, clip] at every step, or None
    sampler   a teacher's own, where none is named; a student's is DDIM
    steps     a teacher's own number of steps
    codec     turns latents into images; None for a model of pixels
    empty     the states of the empty text, [tokens, D], of a network that reads texts
    texts     what turns texts into such states; it is not saved
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    times: tuple[Times, ...] = ()
    classes: tuple[str, ...] = ()
    null: int | None = None
    clip: float | None = None
    sampler: str = "ddim"
    steps: int = 64
    codec: Codec | None = None
    empty: Tensor | None = None
    texts: Texts | None = None

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        context: Tensor | None = None,
        guidance: float = 1.0,
        variance: float = 0.0,
        batch: int = 256,
        first: int = 0,
        latents: bool = False,
        progress: Callable[[], object] | None = None,
    ) -> Tensor:
        """n samples, float32 [n, ...] on the CPU: images, or what the model is a model of.

        seed      image k of a seed is the same whatever n, batch and `first` are
        steps     sampler steps; a student's fewest, or a teacher's own, by default
        sampler   ddim, heun, dpmpp-2m or ancestral (`variance` 0 small to 1 large); dpmpp-3s, dpm-fast
                  or euler-maruyama, each on a grid of its own; or one of diffusers' schedulers by the
                  name of its class: "diffusers:UniPCMultistepScheduler"
        labels    one a sample; by default the classes in turn
        prompts   one text a sample, for a network that reads texts, by default the empty one; or
                  `context`, their states
        guidance  scale of classifier-free guidance, 1 is off
        first     number of the first image
        latents   do not decode them
        progress  called after every step of every batch
        """
        check_counts(n, seed, batch, first)
        sampler = sampler or ("ddim" if self.times else self.sampler)
        times = self.grid(steps, sampler)
        model = self._guided(guidance)
        cond = condition(
            n, first, classes=len(self.classes), null=self.null, empty=self.empty, texts=self.texts,
            labels=labels, prompts=prompts, context=context,
        )  # fmt: skip
        device = next(self.denoiser.parameters()).device
        self.denoiser.eval()
        done = []
        for low in range(0, n, batch):
            ids = range(first + low, first + min(low + batch, n))
            go = walk(sampler, seed, ids, self.shape, times, self.denoiser.schedule, variance)
            noise = sample_noise(seed, ids, self.shape).to(device)
            said = None if cond is None else cond[low : low + batch].to(device)
            x = go(model, noise, times, cond=said, clip=self.clip, progress=progress)
            if self.codec is not None and not latents:
                x = self.codec.decode(x)
            done.append(x.cpu())
        return torch.cat(done) if done else self._none(latents)

    def _none(self, latents: bool) -> Tensor:
        """No samples, in the shape that samples have."""
        one = torch.zeros(1, *self.shape)
        if self.codec is not None and not latents:
            one = self.codec.decode(one.to(next(self.denoiser.parameters()).device)).cpu()
        return one[:0]

    def grid(self, steps: int | None = None, sampler: str = "ddim") -> Times:
        """The grid of so many steps; `ConfigError` lists a student's when it has none of that many."""
        check_sampler(sampler)
        if steps is not None and steps < 1:
            raise ConfigError(f"a walk takes at least one step, asked for {steps}: write steps=1")
        if sampler in WALKS and self.times:
            raise ConfigError(
                f"'{sampler}' walks on a grid of its own, and a student on its own: write "
                "sampler='ddim'"
            )
        if sampler in WALKS:
            count = self.steps if steps is None else steps
            return WALKS[sampler].grid(count, self.denoiser.schedule)
        if not self.times:
            return uniform(self.steps if steps is None else steps)
        own = {len(times) - 1: times for times in self.times}
        if steps is None:
            return own[min(own)]
        if steps not in own:
            raise ConfigError(
                f"this student was not distilled for {steps} steps: it can take "
                f"{' or '.join(map(str, sorted(own)))}"
            )
        return own[steps]

    @property
    def nothing(self) -> int | Tensor | None:
        """What the network is told when it is told nothing: the null label, or the empty text."""
        return self.null if self.empty is None else self.empty

    def _guided(self, guidance: float) -> Denoises:
        if guidance == 1:
            return self.denoiser
        if self.nothing is None:
            raise ConfigError(
                "this pipeline has no null class and cannot be guided: write guidance=1"
            )
        return Guided(self.denoiser, guidance, self.nothing)

    def to(self, device: torch.device | str) -> Self:
        """Itself, its networks moved to the device."""
        self.denoiser.to(device)
        if isinstance(self.codec, nn.Module):
            self.codec.to(device)
        return self

    def with_student(self, denoiser: Denoiser, times: Times = ()) -> Self:
        """The same around another denoiser, sampled on `times`."""
        return replace(self, denoiser=denoiser, times=(times,) if times else ())

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
        factor = 1 if self.codec is None else self.codec.factor
        if len(self.shape) != 3 or self.times or height % factor or width % factor:
            whole = f", in multiples of {factor} pixels" if factor > 1 else ""
            raise ConfigError(
                f"another size is for a teacher of images{whole}, and this is asked for {height} x "
                f"{width}: leave the size out"
            )
        shape = self.shape[0], height // factor, width // factor
        denoiser = self.denoiser.twin()
        denoiser.net = resized(denoiser.net, shape[1:])
        return replace(self, denoiser=denoiser.freeze(), shape=shape)

    def save(self, folder: Path | str) -> None:
        """Write FOLDER/pipeline.safetensors and FOLDER/pipeline.json, and its codec; all or nothing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.codec is not None:
            self.codec.save(folder)
        tensors = self.denoiser.state_dict()
        if self.empty is not None:
            tensors["empty"] = self.empty
        storage.save(folder / "pipeline", tensors, self.describe())

    @classmethod
    def load(
        cls, folder: Path | str, *, net: Callable[..., nn.Module] | str | None = None
    ) -> "Pipeline":
        """Read what `save` wrote.  `net` builds the network of a pipeline around a user's own."""
        stem = Path(folder) / "pipeline"
        if not stem.with_suffix(".json").exists():
            raise CheckpointError(f"'{folder}' holds no pipeline: it has no pipeline.json")
        tensors, about = storage.load(stem)
        try:
            pipeline = from_description(about, net=net, source=f"'{stem}.json'")
        except KeyError as error:
            raise CheckpointError(f"'{stem}.json' is damaged: it lacks {error}") from None
        pipeline = replace(pipeline, empty=tensors.pop("empty", None))
        if about.get("codec") is not None:
            from halfstep.nets.autoencoder import load_codec  # which needs diffusers

            pipeline = replace(pipeline, codec=load_codec(folder))
        storage.load_into(pipeline.denoiser, tensors, f"'{stem}.safetensors'")
        pipeline.denoiser.freeze()
        return pipeline

    def describe(self) -> dict[str, Any]:
        """All but the weights, as json; what a pipeline of pixels with its own defaults has not is left
        out."""
        codec = self.codec
        parts = {"scale": codec.scale, "factor": codec.factor} if codec is not None else None
        rest = {"sampler": self.sampler, "steps": self.steps, "codec": parts}
        usual = {"sampler": "ddim", "steps": 64, "codec": None}
        return {
            **described(self.denoiser),
            "shape": list(self.shape),
            "times": [list(times) for times in self.times],
            "classes": list(self.classes),
            "null": self.null,
            "clip": self.clip,
            **{name: value for name, value in rest.items() if value != usual[name]},
        }


def from_description(
    about: Mapping[str, Any],
    *,
    net: Callable[..., nn.Module] | str | None = None,
    source: str = "this description",
) -> Pipeline:
    """A pipeline with fresh weights and no codec, from what `Pipeline.describe` says."""
    return Pipeline(
        denoiser_from(about, net=net, source=source),
        tuple(about["shape"]),
        tuple(tuple(times) for times in about["times"]),
        tuple(about["classes"]),
        about["null"],
        about["clip"],
        about.get("sampler", "ddim"),
        about.get("steps", 64),
    )
