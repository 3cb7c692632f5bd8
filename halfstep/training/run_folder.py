"""The folder of a run: options, metrics, finished stages, checkpoints.

RUN/run.json        command, resolved options, versions, and later changes of them
RUN/config.toml     the command's options as they were typed; of a run from Python the data's name
RUN/metrics.jsonl   one line every few updates
RUN/stages/NAME/    each finished stage's student, a pipeline of its own; stage.json has its updates
RUN/checkpoints/    the checkpoints of the present stage
RUN/samples/        pictures of the averaged student's samples, STAGE-UPDATE.png
RUN/tensorboard/    the events of TensorBoard; wandb/ those of Weights & Biases
RUN/walks/          the teacher's kept walks, of a run that learns from them
RUN/latents/        images as latents of the teacher's codec, encoded before the run began
RUN/gate.json       the decisions of the run's gate
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.diffusion.time_grids import Times
from halfstep.errors import CheckpointError, ConfigError
from halfstep.folder_lock import FolderLock
from halfstep.methods.diffusion.shrink import SHRUNK
from halfstep.methods.stages import StagePlan
from halfstep.pipeline import Pipeline
from halfstep.training import checkpoint
from halfstep.training.gate_record import GateRecord, read_gate
from halfstep.training.metrics_log import LoggedLoss, MetricsLog, RunCost
from halfstep.training.option_changes import changeable, changed, OptionChange, Place
from halfstep.training.run_config import read_config
from halfstep.training.run_identity import (
    compare,
    environment,
    new_record,
    plan_record,
    RunRecord,
    RunRequest,
)
from halfstep.training.run_repair import refuse_foreign, remove_unfinished
from halfstep.training.stage_record import read_stage_record, StageRecord, write_stage_record
from halfstep.training.students import (
    folder_passed,
    folder_with_steps,
    refuse_changed,
    steps_passed,
)


class RunFolder:
    """A run, finished or not. `open` reads one; `begin` also writes it, and locks out other processes.

    Each file is read once, when it is first needed. `notes` has changes of versions, device or threads
    since the run began, in words.

    Args:
        folder: the run's folder.

    Raises:
        ConfigError: no run is there, in `open`.
        CheckpointError: a file of it is damaged, or it is another run's.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.notes: list[str] = []
        self.checkpoints = self.folder / "checkpoints"
        self.log_file = MetricsLog(self.folder / "metrics.jsonl")
        self._lock: FolderLock | None = None
        self._records: dict[str, StageRecord] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "RunFolder":
        """Open a run for reading.

        Args:
            folder: the run's folder.

        Raises:
            ConfigError: no run is there.
            CheckpointError: run.json or config.toml is damaged.
        """
        run = cls(folder)
        if not run.exists:
            raise ConfigError(
                f"'{run.folder}' holds no run: give the --out of a 'halfstep train' or 'halfstep distill'"
            )
        _ = run.config, run.about
        return run

    @classmethod
    def begin(
        cls,
        folder: Path,
        command: str,
        options: JsonObject,
        *,
        plan: Sequence[StagePlan] = (),
        device: str = "cpu",
        processes: int = 1,
        extend: bool = False,
    ) -> "RunFolder":
        """Make the folder, or go on with the run that is there if it was made with the same options.

        Args:
            folder: the run's folder.
            command: the verb, such as "distill progressive".
            options: the options that change the result, as JSON.
            plan: the stages.
            device: type of the device.
            processes: number of processes.
            extend: allow more updates or halvings.

        Raises:
            ConfigError: the folder cannot be made, is used by another process, or was made with other
                options.
        """
        run, request = cls(folder), _request(command, options, plan)
        try:
            refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            run._lock = FolderLock(folder)
        except OSError as error:
            raise _no_folder(folder, error) from None
        try:
            before = run.about if run.exists else None
            now = environment(device, processes)
            record, changes = new_record(folder, before, request, now, extend=extend)
            if before is not None and extend:
                with suppress(CheckpointError):  # told where the stage is read
                    run._refuse_longer(plan)
            if record is not before:
                storage.write_json(folder / "run.json", record)
            run.about = record
            run.notes = [*run._lock.notes, *changes]
            run.log_file.mend()
            remove_unfinished(folder)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def check_begin(
        cls,
        folder: Path,
        command: str,
        options: JsonObject,
        *,
        plan: Sequence[StagePlan] = (),
        extend: bool = False,
    ) -> None:
        """Refuse a folder that `begin` would refuse; nothing is written.

        Args:
            folder: the run's folder.
            command: as of `begin`.
            options: as of `begin`.
            plan: as of `begin`.
            extend: as of `begin`.

        Raises:
            ConfigError: as of `begin`.
        """
        run = cls(folder)
        try:
            refuse_foreign(folder)
            has_lock = os.path.lexists(folder / files.LOCK)
            with FolderLock(folder) if has_lock else nullcontext():
                if run.exists:
                    compare(folder, run.about, _request(command, options), extend=extend)
                for stage in sorted(folder.glob("stages/[!.]*")):
                    run.record(stage.name)
                run._refuse_longer(plan)
        except OSError as error:
            raise _no_folder(folder, error) from None

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.folder / "run.json").exists()

    @cached_property
    def about(self) -> RunRecord:
        """Content of run.json: command, resolved options, environment and changes."""
        return storage.read_json(self.folder / "run.json", RunRecord)

    @cached_property
    def config(self) -> JsonObject:
        """The options in config.toml: those of the command, or the data's name; {} without the file."""
        return read_config(self.folder)

    @cached_property
    def gate(self) -> GateRecord | None:
        """The decisions of the gate; None for a run without one."""
        path = self.folder / "gate.json"
        return read_gate(path) if path.exists() else None

    @property
    def id(self) -> str:
        """The run's own id, which its stages and checkpoints have too."""
        return self.about["id"]

    @property
    def options(self) -> JsonObject:
        """The options that the run was made with, resolved."""
        return self.about["options"]

    @property
    def teacher_times(self) -> Times:
        """The grid that the first halved student's teacher is sampled on; empty where nothing is halved."""
        return tuple(self.about["plan"]["teacher_times"])

    @property
    def halved(self) -> frozenset[int] | None:
        """Steps of the students that halve the steps of the one before; None if the run does not say."""
        stages = self.about["plan"]["stages"]
        if any("teacher_steps" not in stage for stage in stages):
            return None
        halves = [s["steps"] for s in stages if s["steps"] and s["teacher_steps"] == 2 * s["steps"]]
        return frozenset(steps for steps in halves if steps is not None)

    @property
    def metrics(self) -> list[JsonObject]:
        """All whole lines of metrics.jsonl."""
        return self.log_file.lines

    @property
    def cost(self) -> RunCost | None:
        """Seconds, forwards (a forward 1, forward and backward 3) and updates of all finished stages."""
        return self.log_file.cost

    @property
    def losses(self) -> list[LoggedLoss]:
        """Loss and learning rate of every logged update, over all stages."""
        return self.log_file.losses

    @property
    def stages(self) -> list[Path]:
        """Folders of the finished stages with a pipeline, the most steps first; another run's are refused."""
        folders = sorted(path.parent for path in self.folder.glob("stages/[!.]*/pipeline.json"))
        for folder in folders if self.exists else ():
            self.record(folder.name)
        return folders[::-1]

    def record(self, name: str) -> StageRecord:
        """Content of a finished stage's stage.json.

        Args:
            name: the stage.

        Raises:
            CheckpointError: the stage is another run's, or damaged.
        """
        if name not in self._records:
            self._records[name] = read_stage_record(self.folder, name, self.id)
        return self._records[name]

    def finished(self, name: str) -> StageRecord | None:
        """`record`; None if the stage is not finished.

        Args:
            name: the stage.

        Raises:
            CheckpointError: as of `record`.
        """
        return self.record(name) if self.stage_folder(name).exists() else None

    def refuse_longer(self, index: int, name: str, updates: int) -> None:
        """Refuse more updates of a finished stage that is not the run's last.

        Args:
            index: the stage's number.
            name: its name.
            updates: that it is to have.

        Raises:
            ConfigError: the stage has fewer, and no checkpoint to go on from, or a later stage has begun.
            CheckpointError: as of `record`.
        """
        record = self.finished(name)
        if record is None or record["updates"] >= updates:
            return
        followed = checkpoint.is_followed(self.checkpoints, index)
        if followed or not checkpoint.stems(self.checkpoints, index):
            raise ConfigError(
                f"{name} was finished with {record['updates']:,} updates and only a run's last stage can be "
                f"extended: ask for {record['updates']:,} of it, or choose another --out"
            )

    def _refuse_longer(self, plan: Sequence[StagePlan]) -> None:
        for index, stage in enumerate(plan):
            self.refuse_longer(index, stage.name, stage.updates)

    def stage_folder(self, name: str) -> Path:
        """The folder of a finished stage; it exists only when it is whole.

        Args:
            name: the stage.
        """
        return self.folder / "stages" / name

    def stage(self, name: str, *, net: str | None = None) -> Pipeline | None:
        """The pipeline of a finished stage; None where no stage has this name.

        Args:
            name: the stage.
            net: as of `Pipeline.load`.
        """
        named = [folder for folder in self.stages if folder.name == name]
        return Pipeline.load(named[0], net=net) if named else None

    def student(
        self, steps: int | None = None, *, net: str | None = None, base: str | None = None
    ) -> Pipeline:
        """The student of so many steps, by default of the fewest; with a gate, the last that passed.

        A student of several grids has these steps as its default.

        Args:
            steps: the student's steps.
            net: as of `Pipeline.load`.
            base: as of `Pipeline.load`.

        Raises:
            ConfigError: no student takes so many steps, or none passed the gate.
        """
        student = Pipeline.load(self.student_folder(steps), net=net, base=base)
        if steps is None and self.gate is not None:
            refuse_changed(self.folder, self.gate, student)
            steps = steps_passed(self.folder, self.gate)
        if steps is not None and student.fine_times:
            student = replace(student, steps=steps)
        return student

    def student_folder(self, steps: int | None = None) -> Path:
        """The stage that `student` loads.

        Args:
            steps: the student's steps.

        Raises:
            ConfigError: as of `student`.
        """
        folders = self.stages
        if not folders:
            raise ConfigError(
                f"'{self.folder}' holds neither a pipeline nor a run with a finished stage: give the folder "
                "that has a pipeline.json, or the --out of a run"
            )
        if steps is None and self.gate is not None:
            return folder_passed(self.folder, self.gate)
        return folder_with_steps(self.folder, folders[::-1], steps)

    def first_student(self, *, net: str | None = None) -> Pipeline | None:
        """The stage that the halved students were made from: a guided run's first, or a plan's shrunk one.

        Args:
            net: as of `Pipeline.load`.
        """
        return self.stage("guided", net=net) or self.stage(SHRUNK, net=net)

    def students(self, *, full: int = 64, net: str | None = None) -> list[Pipeline]:
        """All finished students, the most steps first; before the first halving, the first student.

        A student of several grids is there at each of their numbers of steps, on the same network.

        Args:
            full: steps of a first student that is not halved.
            net: as of `Pipeline.load`.
        """
        loaded = [Pipeline.load(folder, net=net) for folder in self.stages]
        if halved := [pipeline for pipeline in loaded if pipeline.times]:
            return [one for pipeline in halved for one in pipeline.at_each_count]
        if (first := self.first_student(net=net)) is None:
            return []
        return [first.on_grids(self.teacher_times or first.grid(full, "ddim"))]

    def finish(self, name: str, write: Callable[[Path], None], cost: RunCost) -> None:
        """Let `write` fill a folder, then give it the stage's name: all or nothing.

        Args:
            name: the stage.
            write: fills a folder.
            cost: what the stage cost.
        """
        self.check()
        stages, final = files.subfolder(self.folder, "stages"), self.stage_folder(name)
        part, old = final.with_name(f".{name}.part"), final.with_name(f".{name}.old")
        with files.writing(final):
            files.remove(part)
            part.mkdir()
            write(part)
            write_stage_record(part, name, self.id, cost)
            self._check_written(part)
            if final.exists():
                final.replace(old)
            part.replace(final)
            files.flush_folder(stages)
        files.remove(old)
        self._records.pop(name, None)

    def change_options(
        self, values: JsonObject, place: Place, name: str
    ) -> tuple[JsonObject, list[OptionChange], list[str]]:
        """Record which changeable options have other values from this place on.

        Args:
            values: the changeable options as they are now.
            place: stage and update from which they hold.
            name: the name of the stage.

        Returns:
            The values that the run began with, all changes, and the new one in words.

        Raises:
            CheckpointError: the folder went away, or is another run's by now.
        """
        about = self.about
        begun = changeable(about["options"])
        changes, words = changed(begun, about["changed_options"], values, place, name)
        if words:
            self.check()
            history = [*about["changes"], *words]
            self.about = {**about, "changes": history, "changed_options": changes}
            storage.write_json(self.folder / "run.json", self.about)
        return begun, changes, words

    def log_finished(self, name: str) -> None:
        """Add the line of a finished stage to metrics.jsonl, unless it is there.

        Args:
            name: the stage.
        """
        if not self.log_file.has_stage(name):
            record = self.record(name)
            cost = {"updates": record["updates"], "seconds": record["seconds"]}
            self.log({"stage": name, **cost, "forwards": record["forwards"]})

    def log(self, line: JsonObject) -> None:
        """Add a line to metrics.jsonl; a measure that is not finite is null there.

        Args:
            line: the measures by name.
        """
        self.check()
        self.log_file.add(line)

    def check(self) -> None:
        """Refuse a folder that changed under the run.

        Raises:
            CheckpointError: the folder went away, or is another run's by now.
        """
        if self._lock is not None:
            self._lock.check()

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            self._lock.close()

    def _check_written(self, part: Path) -> None:
        """As `check`; also remove the folder, if writing the part has made it anew."""
        try:
            self.check()
        except CheckpointError:
            files.remove(part)
            with suppress(OSError):
                part.parent.rmdir()  # fails unless the folder is empty
                self.folder.rmdir()
            raise


def _request(command: str, options: JsonObject, plan: Sequence[StagePlan] = ()) -> RunRequest:
    """A command, its options and its plan as run.json has them."""
    plain = json.loads(json.dumps(options))
    return {"command": command, "options": plain, "plan": plan_record(plan)}


def _no_folder(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"'{folder}' cannot be a run's folder ({error.strerror}): choose another --out"
    )
