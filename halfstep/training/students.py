"""Find a student of a run by its number of steps, or the one that passed the gate."""

from collections.abc import Sequence
from pathlib import Path

from halfstep.diffusion.time_grids import in_spans
from halfstep.errors import ConfigError
from halfstep.identity import digest_of
from halfstep.pipeline import Pipeline
from halfstep.pipeline.lora_file import digest_of_adapter, is_lora, read_lora
from halfstep.pipeline.samplers import finest
from halfstep.pipeline.saving import read_description
from halfstep.training.gate_record import DecisionRecord, GateRecord

ANY = 2**31
"""Stands for any number of steps, of a teacher; larger than every number."""


def folder_with_steps(run: Path, stages: Sequence[Path], steps: int | None) -> Path:
    """The first stage for this number of steps; None for the one of the fewest steps.

    `ConfigError` if no stage has this number of steps.
    """
    takes = {folder: _steps_of(folder) for folder in stages}
    if steps is None:
        return min(stages, key=lambda folder: takes[folder][0])
    counts = sorted({count for each in takes.values() for count in each} - {ANY})
    for folder in stages:  # a stage of every time stands for a student only where none was halved
        if steps in takes[folder] or (not counts and ANY in takes[folder]):
            return folder
    raise ConfigError(
        f"no student of '{run}' was distilled for {steps} steps: they take "
        f"{' or '.join(map(str, counts))}"
    )


def folder_passed(run: Path, gate: GateRecord) -> Path:
    """The stage of the last student that passed the gate; `ConfigError` if none did."""
    return run / "stages" / _passed(run, gate)["stage"]


def steps_passed(run: Path, gate: GateRecord) -> int:
    """The steps of the last student that passed the gate; `ConfigError` if none did."""
    return _passed(run, gate)["steps"]


def refuse_changed(run: Path, gate: GateRecord, student: Pipeline) -> None:
    """`ConfigError` if the weights of the last student that passed the gate have changed since."""
    decision, folder = _passed(run, gate), folder_passed(run, gate)
    # The gate sees the adapter of a LoRA before it is merged.
    lora = read_lora(folder) if is_lora(folder) else None
    weights = digest_of(student.denoiser) if lora is None else digest_of_adapter(lora)
    if weights != decision["weights"]:
        raise ConfigError(
            f"the gate of '{run}' saw other weights of {decision['stage']} than are there: run the same "
            "halfstep distill again, or say which student you mean with steps (command line: --steps)"
        )


def _passed(run: Path, gate: GateRecord) -> DecisionRecord:
    decisions = [record for record in gate["decisions"] if record["stage"] == gate["best"]]
    if not decisions:
        raise ConfigError(
            f"no student of '{run}' passed its gate: say which one you mean with steps (command line: "
            "--steps), or give the folder of a stage"
        )
    steps = gate.get("best_steps")
    return next((record for record in decisions if record["steps"] == steps), decisions[-1])


def _steps_of(folder: Path) -> list[int]:
    """The numbers of steps that a stage's pipeline can take."""
    about = read_description(folder)
    if fine := tuple(about.get("fine_times", ())):
        grids = tuple(tuple(times) for times in about["times"])
        fine = finest(grids, about.get("sampler", "ddim"), fine)
        fewest = min(len(times) - 1 for times in grids)
        return [n for n in range(fewest, len(fine)) if in_spans(fine, n)]
    counts = [len(times) - 1 for times in about["times"]]
    if about.get("sampler") == "stochastic" and 2 in counts:
        counts.append(1)  # one call at t = 1 spans both
    return counts or [ANY]
