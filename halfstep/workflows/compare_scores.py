"""Measure the finished runs of a comparison, decide which method is best, and write what was found."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from halfstep.config import JsonObject
from halfstep.config.fields import flat
from halfstep.data import Data, Latents
from halfstep.errors import ConfigError
from halfstep.evaluation.features.cache import fingerprint
from halfstep.evaluation.method_data import ComparedMethod, ComparedRun, MethodComparison
from halfstep.evaluation.method_files import save_comparison
from halfstep.evaluation.method_scores import MethodScorer, Scored, TrainedMethod
from halfstep.evaluation.method_verdicts import verdict_at
from halfstep.evaluation.report_data import Measurement
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.evaluation.scorer import (
    captions_of,
    features_for,
    real_images,
    real_labels,
    scorer_for,
)
from halfstep.evaluation.setups import Evaluation
from halfstep.evaluation.verdicts import AT
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress
from halfstep.report.words.methods import summarised
from halfstep.rng import fork_rng
from halfstep.schema import plain
from halfstep.training import TrainingConfig
from halfstep.training.checks.data import read_by
from halfstep.training.distributed import Processes
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_identity import environment
from halfstep.workflows.compare_beside import options_shown
from halfstep.workflows.compare_config import PAGE, SAMPLES
from halfstep.workflows.compare_entries import in_words
from halfstep.workflows.compare_runs import PreparedComparison
from halfstep.workflows.report import machine, provenance, training_cost

ALSO = {"euler": "ddim"}
"""Names of the same steps: parallel decoding calls DDIM's Euler's."""
APART = ("batch_size", "seed")
"""Options of training that a comparison has beside them, or that differ from run to run."""


@fork_rng()
def evaluated(prepared: PreparedComparison, progress: Progress) -> MethodComparison:
    """Measure all runs and write compare.json, compare.npz and compare.html into the comparison's folder.

    Under torchrun the first process measures and writes, and all return what it found.

    Args:
        prepared: the comparison; its runs are finished.
        progress: advances with every step of sampling.
    """
    processes = Processes(prepared.config.folder.device)
    with processes.together():
        return processes.run_on_first(lambda: _measured(prepared, processes, progress))


def _measured(
    prepared: PreparedComparison, processes: Processes, progress: Progress
) -> MethodComparison:
    from halfstep.report.methods_page import write_methods_page  # which imports jinja2

    config, teacher = prepared.config, prepared.teacher.to(processes.device)
    scorer = _scorer(prepared, teacher, progress)
    full = "ddim", config.evaluation.full
    found = MethodScorer(
        teacher, scorer, full, config.compare.target,
        cache=config.folder.out / SAMPLES, shown=config.evaluation.shown,
    ).measure(_trained(prepared), config.compare.counts, progress=progress)  # fmt: skip
    comparison = summarised(_composed(prepared, scorer, found, str(processes.device)))
    save_comparison(comparison, config.folder.out)
    write_methods_page(comparison, config.folder.out / PAGE)
    return comparison


def _scorer(prepared: PreparedComparison, teacher: Pipeline, progress: Progress) -> SampleScorer:
    measures, data = prepared.config.evaluation, prepared.data
    features = features_for(measures.features, data)
    if isinstance(data, Latents):
        data = read_by(teacher, data)
    real = real_images(data, teacher, progress=progress)
    settings = Evaluation(
        samples=measures.samples, seed=measures.noise_seed, full=measures.full, split_samples=0,
        guidance_scales=(measures.guidance_scale,),
    )  # fmt: skip
    captions = captions_of(data, teacher)
    return scorer_for(features, real, settings, captions, teacher=teacher, labels=real_labels(data))


def _trained(prepared: PreparedComparison) -> list[TrainedMethod]:
    """The methods with their runs' students, each loaded when it is sampled."""
    planned = {
        entry.name: {part.seed: part.folder for part in prepared.parts if part.entry is entry}
        for entry in prepared.entries
    }
    existing = {method.name: method.runs for method in prepared.beside}
    net = prepared.config.teacher.net
    return [_trained_in(name, runs, net) for name, runs in (planned | existing).items()]


def _trained_in(name: str, runs: Mapping[int, Path], net: str | None) -> TrainedMethod:
    def student(seed: int, steps: int) -> Pipeline | None:
        return _student(runs[seed], steps, net)

    return TrainedMethod(name, list(runs), student)


def _student(run: Path, steps: int, net: str | None) -> Pipeline | None:
    """The student of a run that takes so many steps; None where none does."""
    try:
        folder = RunFolder.open(run).student_folder(steps)
    except ConfigError:
        return None
    return Pipeline.load(folder, net=net)


def _composed(
    prepared: PreparedComparison, scorer: SampleScorer, found: Scored, device: str
) -> MethodComparison:
    options, trained = prepared.config.compare, bool(prepared.entries)
    if not found.means:
        counts = in_words(options.counts)
        raise ConfigError(f"no run beside has a student of {counts}: give other --counts")
    verdicts = tuple(
        verdict_at(count, at, *found.shared[count])
        for count in options.counts
        if (at := [mean for mean in found.means if mean.steps == count])
    )
    return MethodComparison(
        provenance=provenance(environment(device), sys.argv),
        measure=_measurement(prepared.data, scorer, device),
        budget=options.budget if trained else None,
        batch=prepared.training.batch_size if trained else None,
        training=_training(prepared.training) if trained else None,
        counts=options.counts,
        seeds=options.seeds if trained else max(len(method.runs) for method in prepared.beside),
        teacher=found.teacher,
        target=found.target,
        methods=tuple(_methods(prepared)),
        runs=tuple(_runs(prepared)),
        rows=found.rows,
        means=found.means,
        verdicts=verdicts,
        pictures=found.pictures,
    )


def _training(training: TrainingConfig) -> JsonObject:
    """The options that all runs were trained with."""
    return {name: plain(value) for name, value in vars(training).items() if name not in APART}


def _methods(prepared: PreparedComparison) -> Iterator[ComparedMethod]:
    """Those that were trained, then the runs beside."""
    costs = {part.entry.name: part.forwards for part in prepared.parts}
    for entry in prepared.entries:
        values = flat(entry.method).items()
        options = {name: plain(value) for name, value in values if value not in (None, ())}
        yield ComparedMethod(
            name=entry.name, command=f"distill {entry.verb}", options=options,
            planned=costs[entry.name], learns=learnt(options),
        )  # fmt: skip
    for method in prepared.beside:
        yield ComparedMethod(
            name=method.name, command=method.command, options=options_shown(method.options),
            learns=learnt(method.options),
        )  # fmt: skip


def learnt(options: JsonObject) -> tuple[str, int] | None:
    """Sampler and steps of the teacher that a method with these options learns; None without steps."""
    start, solver = options.get("start"), str(options.get("solver", "ddim"))
    return (ALSO.get(solver, solver), start) if isinstance(start, int) else None


def _runs(prepared: PreparedComparison) -> Iterator[ComparedRun]:
    """All runs, with the cost of their training."""
    for part in prepared.parts:
        folder = part.folder.relative_to(prepared.config.folder.out).as_posix()
        cost = training_cost(part.folder)
        yield ComparedRun(method=part.entry.name, seed=part.seed, folder=folder, cost=cost)
    for method in prepared.beside:
        for seed, run in method.runs.items():
            cost = training_cost(run)
            yield ComparedRun(method=method.name, seed=seed, folder=run.as_posix(), cost=cost)


def _measurement(data: Data, scorer: SampleScorer, device: str) -> Measurement:
    """The settings of all measurements."""
    return Measurement(
        features=scorer.features.name,
        preprocessing=scorer.features.preprocessing,
        digest=scorer.features.digest,
        data=fingerprint(data),
        samples=scorer.n,
        real=len(scorer.real),
        real_few=len(scorer.real_few),
        seed=scorer.seed,
        guidance_scale=scorer.guidance_scale,
        floor=scorer.floor,
        floor_at_2000=scorer.floor_of(AT),
        floor_note=scorer.floor_note,
        left_out=(),
        machine=machine(device),
    )
