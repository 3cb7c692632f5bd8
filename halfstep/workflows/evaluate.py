"""Evaluate the students of a run: against their teacher, its samplers, and the data."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from halfstep import files
from halfstep.data import Data, Latents
from halfstep.division import Division
from halfstep.errors import ConfigError
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.guided_comparison import scales_of
from halfstep.evaluation.metrics.memorisation import TrainingImages
from halfstep.evaluation.report_data import AnyReport
from halfstep.evaluation.report_rows import Comparison
from halfstep.evaluation.scorer import (
    captions_beside,
    chosen_features,
    load_features,
    real_features,
    real_images,
    real_labels,
    scorer_for,
)
from halfstep.evaluation.setups import Candidates, Evaluation, OtherSize, refuse_sampler
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng
from halfstep.training.checks.data import read_by
from halfstep.training.distributed import Processes
from halfstep.training.divided import Divided
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.evaluate_encoders import evaluate_encoders
from halfstep.workflows.evaluation_inputs import Against, EvaluationInputs, Networks, parts_of
from halfstep.workflows.locate import DiffusersOptions
from halfstep.workflows.report import provenance_of, report_on, save, summary_of, updates_of

DEFAULT, OWN = Evaluation(), DiffusersOptions()


@fork_rng()
def evaluate(
    run: Path | str,
    config: Evaluation = DEFAULT,
    *,
    data: Data | str | None = None,
    teacher: Path | str | None = None,
    diffusers: DiffusersOptions = OWN,
    features: str = "auto",
    held_out: str | None = None,
    against: Against = "data",
    beside: Sequence[Path | str] = (),
    net: str | None = None,
    verify: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> AnyReport:
    """Evaluate the students of a run, and write its report into the run's folder.

    Under torchrun the processes divide the samples; the first one reads the data, measures and writes,
    and all return the report.

    Args:
        run: the run's folder: report.json, report.npz, report.html and, of a guided run, slider.html are
            written into it.
        config: measurements, and how many samples they take.
        data: the real data, if not the run's: data, images [N, C, H, W] or samples [N, ...], or words as
            `load_data` takes them.
        teacher: the teacher's folder, file or name, if it was moved.
        diffusers: how a teacher of diffusers is read, if not as in the run.
        features: auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE or
            package.module:function.
        held_out: data that no network was trained on, to measure memorisation; of Fashion-MNIST and
            CIFAR-10 the test images.
        against: the real images that Fréchet distance, KID, precision and recall are measured to: data,
            or held-out.
        beside: runs of the same teacher, for a table of sizes.
        net: package.module:function that builds a network of your own.
        verify: of latents: compare the checksums of all files first.
        device: auto (CUDA, then MPS, then CPU), or one by name.
        progress: advances with every step of sampling and every timing.

    Raises:
        ConfigError: runs, data and options that cannot be evaluated, before anything is sampled.
        DataError: data that cannot be read.
        CheckpointError: a damaged file of the run.
    """
    processes = Processes(device)
    with processes.together():
        inputs = EvaluationInputs(
            run=RunFolder.open(Path(run)), data=data, teacher=teacher, diffusers=diffusers,
            held_out=held_out, against=against, beside=beside, net=net, verify=verify,
        )  # fmt: skip
        files.check_writable(inputs.run.folder, "copy the run to where the report can lie in it")
        networks = inputs.networks()
        config = replace(config, full=config.full or inputs.full_steps(networks.teacher))
        if processes.world > 1:
            processes.compare({**asdict(config), "weights": networks.digests()})
        if networks.encode:
            return _encoder_report(inputs, networks, config, processes, progress)
        return _sample_report(inputs, networks, config, features, processes, progress)


def _encoder_report(
    inputs: EvaluationInputs, networks: Networks, config: Evaluation, processes: Processes,
    progress: Progress,
) -> AnyReport:  # fmt: skip
    """The report of students that encode."""
    division, run = Divided(processes), inputs.run

    def measured() -> AnyReport:
        real = inputs.real(progress)
        networks.to(processes.device)
        report = evaluate_encoders(
            run, networks.teacher, networks.students, real, config,
            held_out=inputs.unseen(real, networks.teacher, encode=True), division=division, progress=progress,
        )  # fmt: skip
        save(report, run.folder)
        return report

    if not processes.first:
        networks.to(processes.device)
    return division.lead(measured, *parts_of(networks.pipelines))


def _sample_report(
    inputs: EvaluationInputs, networks: Networks, config: Evaluation, features: str,
    processes: Processes, progress: Progress,
) -> AnyReport:  # fmt: skip
    """The report of students that sample; the first process alone reads the data."""
    teacher, division, read = networks.teacher, Divided(processes), list[Data]()
    refuse_sampler(teacher, config.full_sampler, config.full_steps)

    def features_name() -> str:
        read.append(inputs.real(progress))
        return chosen_features(features, read[0])

    name = processes.run_on_first(features_name)
    networks.to(processes.device)
    others = inputs.others(networks, config)
    for _, pipeline, _ in others:
        pipeline.to(processes.device)
    config = replace(config, guidance_scales=scales_of(config, teacher, networks.students))
    network = load_features(name)
    processes.compare({"features": network.digest})

    def measured() -> AnyReport:
        comparison = _comparison(
            inputs, networks, read[0], others, network, config, division, progress
        )
        report = report_on(
            comparison,
            provenance=provenance_of(inputs.run),
            run=summary_of(inputs.run, teacher=inputs.teacher_folder),
            training=updates_of(inputs.run.folder),
            progress=progress,
        )
        save(report, inputs.run.folder)
        return report

    pipelines = [*networks.pipelines, *(pipeline for _, pipeline, _ in others)]
    return division.lead(measured, network, *parts_of(pipelines))


def _comparison(
    inputs: EvaluationInputs, networks: Networks, data: Data, others: list[OtherSize],
    network: Features, config: Evaluation, division: Division, progress: Progress,
) -> Comparison:  # fmt: skip
    """The candidates and their scorer, on the first process."""
    teacher, students = networks.teacher, networks.students
    unseen, apart = inputs.unseen(data, teacher), inputs.against == "held-out"
    if isinstance(data, Latents):
        data = read_by(teacher, data)
    if apart and isinstance(unseen, Latents) and unseen.contexts is not None:
        unseen = read_by(teacher, unseen)  # for its captions
    real = real_images(data, teacher, division=division, progress=progress)
    held_out = None if unseen is None else _held_out(unseen, real, teacher, division, progress)
    progress.note(f"{inputs.run.folder}: {len(students)} student{'s' * (len(students) != 1)}")
    progress.note(f"features {network.name} ({network.preprocessing})")
    compared, reference = (held_out, unseen) if apart else (real, data)
    assert compared is not None and reference is not None  # `EvaluationInputs` refuses it
    scorer = scorer_for(
        network, compared, config, captions_beside(data, reference, teacher), division,
        teacher=teacher, labels=real_labels(reference),
    )  # fmt: skip
    training = None
    if held_out is not None:
        other = real_features(network, real if apart else held_out, division)
        learnt, new = (other, scorer.real_features) if apart else (scorer.real_features, other)
        training = TrainingImages.beside(learnt, new)
    candidates = Candidates(
        teacher, students, data, inputs.run.teacher_times, training, networks.first_teacher, others,
        networks.variants, inputs.run.halved, unseen if apart else None,
    )  # fmt: skip
    for sentence in candidates.left_out(config):
        progress.note(sentence)
    return Comparison(candidates, scorer, config)


def _held_out(
    data: Data, real: Data | Tensor, teacher: Pipeline, division: Division, progress: Progress
) -> Tensor:
    """Images that were held out, latents decoded; refused unless they have the shape of the run's own."""
    images = real_images(data, teacher, division=division, progress=progress)
    shape = real.shape[1:] if isinstance(real, Tensor) else real.shape
    unseen = images.shape[1:] if isinstance(images, Tensor) else images.shape
    if tuple(unseen) != tuple(shape):
        raise ConfigError(
            f"the held-out data has samples of shape {list(unseen)} and the run's data {list(shape)}: give "
            "data of that shape as --held-out"
        )
    return images if isinstance(images, Tensor) else images.batch(torch.arange(len(images))).x0
