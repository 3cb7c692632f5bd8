"""Pipeline: what a user holds in their hands.  A denoiser, and how it wants to be sampled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields as dataclass_fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn, Tensor

from halfstep import storage
from halfstep.batch import Cond
from halfstep.denoiser import Denoiser, Denoises, Guided, NetTime
from halfstep.errors import CheckpointError, ConfigError, unknown
from halfstep.nets import build, recipe
from halfstep.noise import key, sample_noise
from halfstep.prediction import PARAMETERISATIONS
from halfstep.samplers import ancestral, calls, PREFIX, sample, scheduled, STEPS
from halfstep.schedules import Schedule, SCHEDULES
from halfstep.timegrids import Times, uniform

FORMAT = 1


@dataclass(frozen=True)
class Pipeline:
    """A denoiser with all it needs to be sampled; describes itself on disk.

    denoiser  the network with its schedule and parameterisation
    shape     of one sample, for example (1, 8, 8)
    times     the grids it may be sampled on: a student's own; empty for a teacher, which takes any
    classes   names of the classes, empty if it has none
    null      the label that means "no class", or None if there is none: guidance needs it
    clip      clip predicted images to [-clip, clip] at every step, or None
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    times: tuple[Times, ...] = ()
    classes: tuple[str, ...] = ()
    null: int | None = None
    clip: float | None = None

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str = "ddim",
        labels: Sequence[int] | None = None,
        guidance: float = 1.0,
        variance: float = 0.0,
        batch: int = 256,
        first: int = 0,
        progress: Callable[[], object] | None = None,
    ) -> Tensor:
        """n samples, float32 [n, *shape] on the CPU.

        seed      image k of a seed is the same whatever n, batch and `first` are
        steps     sampler steps; a student's fewest by default, 64 for a teacher
        sampler   ddim, heun, dpmpp-2m or ancestral (`variance` 0 small to 1 large), or one of
                  diffusers' schedulers by the name of its class: "diffusers:UniPCMultistepScheduler"
        labels    one a sample; by default the classes in turn
        guidance  scale of classifier-free guidance, 1 is off
        first     number of the first image
        progress  called after every step of every batch
        """
        times = self.grid(steps)
        _check_counts(n, seed, batch, first)
        if sampler.startswith(PREFIX):
            calls(sampler, len(times) - 1)  # refuses a name that is none
        elif sampler != "ancestral" and sampler not in STEPS:
            raise unknown("sampler", sampler, [*STEPS, "ancestral", f"{PREFIX}NAME"])
        model, label = self._guided(guidance), self._labels(n, labels, first)
        device = next(self.denoiser.parameters()).device
        self.denoiser.eval()
        done = []
        for low in range(0, n, batch):
            ids = range(first + low, first + min(low + batch, n))
            walk = _walk(sampler, seed, ids, self.shape, variance)
            noise = sample_noise(seed, ids, self.shape).to(device)
            cond = None if label is None else Cond(label[low : low + batch].to(device))
            x = walk(model, noise, times, cond=cond, clip=self.clip, progress=progress)
            done.append(x.cpu())
        return torch.cat(done) if done else torch.empty(0, *self.shape)

    def grid(self, steps: int | None = None) -> Times:
        """The grid of so many steps; `ConfigError` lists a student's when it has none of that many."""
        if steps is not None and steps < 1:
            raise ConfigError(f"a walk takes at least one step, asked for {steps}: write steps=1")
        if not self.times:
            return uniform(64 if steps is None else steps)
        own = {len(times) - 1: times for times in self.times}
        if steps is None:
            return own[min(own)]
        if steps not in own:
            raise ConfigError(
                f"this student was not distilled for {steps} steps: it can take "
                f"{' or '.join(map(str, sorted(own)))}"
            )
        return own[steps]

    def _guided(self, guidance: float) -> Denoises:
        if guidance == 1:
            return self.denoiser
        if self.null is None:
            raise ConfigError(
                "this pipeline has no null class and cannot be guided: write guidance=1"
            )
        return Guided(self.denoiser, guidance, self.null)

    def _labels(self, n: int, labels: Sequence[int] | None, first: int) -> Tensor | None:
        if not self.classes:
            if labels is not None:
                raise ConfigError("this pipeline has no classes: leave labels out")
            return None
        if labels is None:
            return torch.arange(first, first + n) % len(self.classes)
        chosen, rows = list(labels), len(self.classes) + (self.null is not None)
        if len(chosen) != n or not all(0 <= label < rows for label in chosen):
            shown = ", ".join(map(str, chosen[:8])) + (", ..." if len(chosen) > 8 else "")
            raise ConfigError(
                f"{n} samples need {n} labels from 0 to {rows - 1}, got {len(chosen)}: ({shown})"
            )
        return torch.tensor(chosen, dtype=torch.int64)

    def to(self, device: torch.device | str) -> Self:
        """Itself, its network moved to the device."""
        self.denoiser.to(device)
        return self

    def with_student(self, denoiser: Denoiser, times: Times = ()) -> Self:
        """The same around another denoiser, sampled on `times`."""
        return replace(self, denoiser=denoiser, times=(times,) if times else ())

    def save(self, folder: Path | str) -> None:
        """Write FOLDER/pipeline.safetensors and FOLDER/pipeline.json; all or nothing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        storage.save(folder / "pipeline", self.denoiser.state_dict(), self.describe())

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
        storage.load_into(pipeline.denoiser, tensors, f"'{stem}.safetensors'")
        pipeline.denoiser.freeze()
        return pipeline

    def describe(self) -> dict[str, Any]:
        """All but the weights, as json."""
        denoiser = self.denoiser
        name, config = recipe(denoiser.net)
        schedule: Any = denoiser.schedule
        return {
            "format": FORMAT,
            "net": {"build": name, "config": config},
            "schedule": {"name": _name_of(type(schedule), SCHEDULES), **asdict(schedule)},
            "parameterisation": _name_of(denoiser.parameterisation, PARAMETERISATIONS),
            "time": asdict(denoiser.time),
            "shape": list(self.shape),
            "times": [list(times) for times in self.times],
            "classes": list(self.classes),
            "null": self.null,
            "clip": self.clip,
        }


def from_description(
    about: Mapping[str, Any],
    *,
    net: Callable[..., nn.Module] | str | None = None,
    source: str = "this description",
) -> Pipeline:
    """A pipeline with fresh weights, from what `Pipeline.describe` says."""
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{source} has format {about.get('format')} and this halfstep reads {FORMAT}: use the "
            "version that wrote it"
        )
    if about["parameterisation"] not in PARAMETERISATIONS:
        raise unknown("parameterisation", about["parameterisation"], PARAMETERISATIONS)
    denoiser = Denoiser(
        _net(about["net"]["build"], about["net"]["config"], net),
        schedule_from(about["schedule"]),
        PARAMETERISATIONS[about["parameterisation"]],
        time=NetTime(**about["time"]),
    )
    return Pipeline(
        denoiser,
        tuple(about["shape"]),
        tuple(tuple(times) for times in about["times"]),
        tuple(about["classes"]),
        about["null"],
        about["clip"],
    )


def _net(
    name: str, config: Mapping[str, Any], own: Callable[..., nn.Module] | str | None
) -> nn.Module:
    """A file never names code that is run: a network of the user's own is built by the user's word."""
    if own is None:
        if ":" in name:
            raise CheckpointError(
                f"this pipeline's network is built by '{name}', which is not halfstep's: say so with "
                f"net='{name}' (command line: --net {name})"
            )
        return build(name, config)
    if isinstance(own, str):
        return build(own, config)
    built = own(**config)
    built.recipe = name, dict(config)  # type: ignore[assignment]  # so that it can be saved again
    return built


def schedule_from(about: Mapping[str, Any]) -> Schedule:
    """The schedule that `{"name": ..., **fields}` describes."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items() if k != "name"}
    if about["name"] not in SCHEDULES:
        raise unknown("schedule", about["name"], SCHEDULES)
    kind: Any = SCHEDULES[about["name"]]
    known = {field.name: field.default for field in dataclass_fields(kind)}
    for name, value in fields.items():
        if name not in known:
            raise unknown(f"option of the schedule '{about['name']}' called", name, known)
        default = known[name]
        number = isinstance(default, float) and type(value) in (int, float)
        if type(value) is not type(default) and not number:
            raise ConfigError(
                f"{name} = {value!r} cannot be an option of the schedule '{about['name']}': write for "
                f"example {default!r}"
            )
    schedule: Schedule = kind(**fields)
    return schedule


def _check_counts(n: int, seed: int, batch: int, first: int) -> None:
    for name, value, least in (("n", n, 0), ("batch", batch, 1), ("first", first, 0)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed must lie in [0, 2^64), got {seed}: write for example seed=0")


def _name_of(value: object, names: Mapping[str, object]) -> str:
    for name, known in names.items():
        if known == value:
            return name
    raise ConfigError(f"{value!r} is not one that can be saved: use one of {', '.join(names)}")


def _walk(
    sampler: str, seed: int, ids: range, shape: tuple[int, ...], variance: float
) -> Callable[..., Tensor]:
    """`sample` or `scheduled`, told how to step; its noise depends on (seed, image) alone."""
    if sampler.startswith(PREFIX):
        own = [torch.Generator().manual_seed(key(seed, k)) for k in ids]
        return partial(scheduled, name=sampler.removeprefix(PREFIX), generators=own)
    if sampler == "ancestral":
        return partial(sample, step=ancestral(_fresh(seed, ids, shape), variance=variance))
    return partial(sample, step=STEPS[sampler])


def _fresh(seed: int, ids: range, shape: tuple[int, ...]) -> Callable[[Tensor, int], Tensor]:
    """Noise of a stochastic step: a function of (seed, image, step)."""

    def draw(like: Tensor, step: int) -> Tensor:
        return sample_noise(seed, ids, shape, step=step).to(like)

    return draw
