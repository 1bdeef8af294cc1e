"""Trains a job, top to bottom: base, rows, trainer, steps, result."""

import time
from pathlib import Path

from transformers import Trainer, TrainerState

from app import disks
from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.planning import recipes
from worker import checkpoints, messages
from worker.checkpoints import Checkpoint
from worker.training import device, initial, model, probe, remedies, room, trainers
from worker.training.base import parent_of, work_offline
from worker.training.callbacks import NoLongerImproving, Pace, Progress
from worker.training.child import Report, StopNow, StopRequest
from worker.training.choice import choose
from worker.training.failures import is_out_of_memory
from worker.training.grading import Answers
from worker.training.health import Health
from worker.training.preparation import prepare, write_last
from worker.training.result import Result
from worker.training.room import Room


def train(work_dir: Path, report: Report, stop: StopRequest) -> messages.Done | messages.Stopped:
    """WORKDIR/job.json, prepared.json and the Arrow files → WORKDIR/result.

    Goes on from the newest checkpoint that verifies, and is of the same base, rows and settings. Raises whatever
    loading, training and saving raise, and `StopNow` where it was told to stop outside of its steps.
    """
    report(messages.Phase(phase="loading"))
    began = time.perf_counter()
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    prepared = Prepared.model_validate_json((work_dir / "prepared.json").read_text())
    machine = device.find()
    base = model.require_same_base(prepared.base, work_dir)
    work_offline()
    base_model, tokenizer = model.load(base, spec, machine)
    parent = parent_of(work_dir)
    adapter = work_dir / "parent" if parent is not None and parent.kind == "adapter" else None
    course = checkpoints.course_of(spec, prepared)
    checkpoint = checkpoints.newest_verified(
        work_dir / "checkpoints", course, lambda told: report(messages.Notice("warn", told))
    )
    if checkpoint is not None:
        initial.bring_back(checkpoint.path, work_dir / "checkpoints")
    trainer = trainers.build(work_dir, spec, machine, base_model, tokenizer, adapter)
    if checkpoint is None:

        def smaller(too_large: JobSpec) -> JobSpec:
            fewer = remedies.shrink(work_dir, too_large, report)
            if fewer is None:
                raise remedies.does_not_fit(too_large, prepared, base, machine, "before the first step")
            return fewer

        spec = probe.probe(trainer, spec, machine, report, smaller)
    progress = Progress(report, machine, checkpoint)
    trainer.add_callback(progress)
    result = Result(trainer, tokenizer, spec, prepared, machine, base, progress)

    def offer(saved: Checkpoint) -> None:
        result.offer(saved, work_dir / messages.OFFERED / saved.path.name)

    evaluate = trainer.evaluate if prepared.validation is not None else None
    pace = Pace(report, stop, spec.hyperparameters, progress, course, offer, evaluate)
    trainer.add_callback(Health(spec.method.type))
    for reward in getattr(trainer, "reward_funcs", ()):
        trainer.add_callback(Answers(report, reward))
    trainer.add_callback(pace)
    trainer.add_callback(Room(trainer, work_dir / "checkpoints"))
    loaded = time.perf_counter()

    try:
        if not run_steps(trainer, checkpoint, pace, report, stop):
            return messages.Stopped(trainer.state.global_step)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        explained = remedies.in_training(work_dir, spec, prepared, base, machine, report)
        if explained is None:
            raise
        raise explained from error
    trained = time.perf_counter()

    report(messages.Phase(phase="saving"))
    disks.require("scratch", work_dir, room.result_bytes(trainer))
    choice = choose(trainer, work_dir / "checkpoints", report)
    result.write(work_dir / "result", choice, phases={"load": loaded - began, "train": trained - loaded})
    return messages.Done()


def run_steps(trainer: Trainer, checkpoint: Checkpoint | None, pace: Pace, report: Report, stop: StopRequest) -> bool:
    """All steps that are left. False when it was told to stop, at the end of a step."""
    stop.deferred = True
    try:
        if checkpoint is not None and checkpoint.finished:
            report(messages.Phase("training", total_steps=checkpoint.step, resumed_from_step=checkpoint.step))
            restore(trainer, checkpoint)
            pace.catch_up(trainer.state)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    except NoLongerImproving:
        pass
    except StopNow:  # from the middle of an evaluation
        return False
    stop.deferred = False
    return stop.wish is None


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """The weights and the history of a run whose last step is done, where `train` may take one step too many.

    It looks whether all steps are done at the end of a step only, and `max_steps` may end in the middle of an epoch.
    """
    trainer._load_from_checkpoint(str(checkpoint.path))
    trainer.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))


def make_ready(work_dir: Path, report: Report) -> None:
    """What a service has done already: prepare the files, and write the resolved spec over the one asked for.

    Each where it is not done, so that it can be broken off anywhere.
    """
    if not (work_dir / "prepared.json").exists():
        prepare(work_dir, report)
    prepared = Prepared.model_validate_json((work_dir / "prepared.json").read_text())
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    resolved = recipes.resolve(spec, recipes.facts_of(prepared, device=device.kind()))
    if resolved.seed is None:
        resolved = resolved.model_copy(update={"seed": 0})
    if resolved != spec:
        write_last(work_dir / "job.json", resolved.model_dump_json(indent=2))
