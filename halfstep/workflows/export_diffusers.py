"""Write a student as a folder of diffusers, and keep it only if diffusers draws the student's samples."""

from dataclasses import replace

from halfstep import files
from halfstep.pipeline import Pipeline
from halfstep.pipeline.to_diffusers.folder import find_source, round_weights, write_folder
from halfstep.pipeline.to_diffusers.target import target_of
from halfstep.workflows.diffusers_card import write_diffusers_card
from halfstep.workflows.diffusers_proof import DRAWN, measure, prove
from halfstep.workflows.exported import DTYPES, ExportConfig, Exported


def write_diffusers(pipeline: Pipeline, config: ExportConfig) -> Exported:
    """Write a folder that `DiffusionPipeline.from_pretrained` reads, and prove it in a fresh process.

    Other types than float32 are written after the proof; the result then has what rounding changes.

    `ConfigError` where diffusers has nothing that samples as the student does, `CheckpointError` where its
    samples differ by more than 1e-4 of the largest value.
    """
    target = target_of(pipeline, steps=config.steps, scale=config.guidance_scale)
    source = find_source(pipeline, target, config.source)
    if (
        config.source is not None
    ):  # the text encoders too, since the student's own place may be gone
        pipeline = replace(pipeline, texts=None)
    out = files.make_folder(config.out)
    write_folder(pipeline, target, out, source=source)
    difference = proved = prove(pipeline, target, out)
    if (dtype := DTYPES[config.dtype]) is not None:
        round_weights(pipeline, target, out, dtype)
        difference = measure(pipeline, target, out)
    write_diffusers_card(pipeline, target, config, proved)
    return Exported(files=(), compared=DRAWN, difference=difference, relative=True)
