"""RUN/stages/NAME/stage.json: the cost of a finished stage, its run, and checksums of the files beside it."""

from pathlib import Path

from halfstep import storage
from halfstep.errors import CheckpointError
from halfstep.training.metrics_log import RunCost


class StageRecord(RunCost):
    """Content of a stage.json.

    run    the id of the run that trained the stage
    files  sha256 of the other json files in the folder, by name
    """

    run: str
    stage: str
    files: dict[str, str]


def write_stage_record(folder: Path, name: str, run_id: str, cost: RunCost) -> None:
    """Write FOLDER/stage.json with the checksums of the json files beside it."""
    sums = {path.name: storage.checksum(path) for path in sorted(folder.glob("*.json"))}
    storage.write_json(folder / "stage.json", {**cost, "run": run_id, "stage": name, "files": sums})


def read_stage_record(run: Path, name: str, run_id: str) -> StageRecord:
    """Read RUN/stages/NAME/stage.json; `CheckpointError` for a stage of another name or another run.

    Files of another stage are refused too: stage.json has the names and sha256 of all json files, and those
    have the sha256 of the weights.
    """
    folder = run / "stages" / name
    record = storage.read_json(folder / "stage.json", StageRecord)
    if record["run"] != run_id:
        raise CheckpointError(
            f"'{folder}' is a stage of another run than '{run}': copy the run's own stage back"
        )
    if record["stage"] != name:
        raise CheckpointError(
            f"'{folder}' holds the stage '{record['stage']}': copy the run's own stage back"
        )
    for file, sha256 in record["files"].items():
        if storage.checksum(folder / Path(file).name) != sha256:
            raise CheckpointError(
                f"'{folder / file}' is not the one that was written with '{folder / 'stage.json'}': copy "
                "the run's own file back"
            )
    return record
