"""Evaluate the students of a run: against their teacher, its samplers, and the data."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from halfstep import files
from halfstep.data import Data, Latents
from halfstep.errors import ConfigError
from halfstep.evaluation.guided_comparison import scales_of
from halfstep.evaluation.report_data import AnyReport
from halfstep.evaluation.report_rows import Comparison
from halfstep.evaluation.scorer import captions_of, features_for, real_images, scorer_for
from halfstep.evaluation.setups import (
    Candidates,
    Evaluation,
    refuse_sampler,
)
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng
from halfstep.training.checks.data import read_by
from halfstep.training.distributed import pick_device
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.evaluate_encoders import evaluate_encoders
from halfstep.workflows.evaluation_inputs import EvaluationInputs, Networks
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
    beside: Sequence[Path | str] = (),
    net: str | None = None,
    verify: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> AnyReport:
    """Evaluate the students of a run, and write its report into the run's folder.

    run       the run's folder: report.json, report.npz, report.html and, of a guided run, slider.html are
              written into it
    config    measurements, and how many samples they take
    data      the real data, if not the run's: data, or words as `load_data` takes them
    teacher   the teacher's folder, file or name, if it was moved
    diffusers how a teacher of diffusers is read, if not as in the run
    features  auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE or
              package.module:function
    held_out  data that no network was trained on, to measure memorisation
    beside    runs of the same teacher, for a table of sizes
    net       package.module:function that builds a network of your own
    verify    of latents: compare the checksums of all files first

    `ConfigError` and `DataError` for runs, data and options that cannot be evaluated, before anything is
    sampled.
    """
    inputs = EvaluationInputs(
        run=RunFolder.open(Path(run)), data=data, teacher=teacher, diffusers=diffusers,
        held_out=held_out, beside=beside, net=net, verify=verify,
    )  # fmt: skip
    folder = inputs.run.folder
    files.check_writable(folder, "copy the run to where the report can lie in it")
    networks = inputs.networks()
    config = replace(config, full=config.full or inputs.full_steps(networks.teacher))
    target = pick_device(device)
    if networks.encode:
        report: AnyReport = _encoder_report(inputs, networks, config, target, progress)
    else:
        report = _sample_report(inputs, networks, config, features, target, progress)
    save(report, folder)
    return report


def _encoder_report(
    inputs: EvaluationInputs, networks: Networks, config: Evaluation, device: torch.device,
    progress: Progress,
) -> AnyReport:  # fmt: skip
    """The report of students that encode."""
    real = inputs.real(progress)
    networks.to(device)
    return evaluate_encoders(
        inputs.run, networks.teacher, networks.students, real, config,
        held_out=inputs.unseen(real, networks.teacher), progress=progress,
    )  # fmt: skip


def _sample_report(
    inputs: EvaluationInputs, networks: Networks, config: Evaluation, features: str,
    device: torch.device, progress: Progress,
) -> AnyReport:  # fmt: skip
    """The report of students that sample."""
    teacher, students = networks.teacher, networks.students
    refuse_sampler(teacher, config.full_sampler, config.full_steps)
    data = inputs.real(progress)
    networks.to(device)
    unseen = inputs.unseen(data, teacher)
    others = inputs.others(networks, config)
    config = replace(config, guidance_scales=scales_of(config, teacher, students))
    if isinstance(data, Latents):
        data = read_by(teacher, data)
    network = features_for(features, data)
    real = real_images(data, teacher, progress=progress)
    candidates = Candidates(
        teacher, students, data, inputs.run.teacher_times,
        None if unseen is None else _held_out(unseen, real, teacher, progress),
        networks.first_teacher, others, networks.variants,
    )  # fmt: skip
    for _, pipeline, _ in others:
        pipeline.to(device)
    progress.note(f"{inputs.run.folder}: {len(students)} student{'s' * (len(students) != 1)}")
    progress.note(f"features {network.name} ({network.preprocessing})")
    for sentence in candidates.left_out(config):
        progress.note(sentence)
    scorer = scorer_for(network, real, config, captions=captions_of(data, teacher))
    return report_on(
        Comparison(candidates, scorer, config),
        provenance=provenance_of(inputs.run),
        run=summary_of(inputs.run, teacher=inputs.teacher_folder),
        training=updates_of(inputs.run.folder),
        progress=progress,
    )


def _held_out(data: Data, real: Data | Tensor, teacher: Pipeline, progress: Progress) -> Tensor:
    """Images that were held out, latents decoded; refused unless they have the shape of the run's own."""
    images = real_images(data, teacher, progress=progress)
    shape = real.shape[1:] if isinstance(real, Tensor) else real.shape
    unseen = images.shape[1:] if isinstance(images, Tensor) else images.shape
    if tuple(unseen) != tuple(shape):
        raise ConfigError(
            f"the held-out data has samples of shape {list(unseen)} and the run's data {list(shape)}: give "
            "data of that shape as --held-out"
        )
    return images if isinstance(images, Tensor) else images.batch(torch.arange(len(images))).x0
