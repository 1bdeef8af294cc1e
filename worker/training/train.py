"""Trains a job, top to bottom: base, rows, trainer, steps, result."""

import time
from pathlib import Path

from peft.optimizers import create_loraplus_optimizer
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerState
from trl import SFTTrainer

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec, LoraTuning, QloraTuning
from app.planning import recipes
from worker import messages
from worker.training import checkpoints, configs, device, model
from worker.training.base import parent_of, work_offline
from worker.training.callbacks import Pace, Progress
from worker.training.checkpoints import Checkpoint
from worker.training.child import Report, StopNow, StopRequest
from worker.training.data import rows_of
from worker.training.device import Device
from worker.training.preparation import prepare, write_last
from worker.training.result import Result


def train(work_dir: Path, report: Report, stop: StopRequest) -> messages.Done | messages.Stopped:
    """WORKDIR/job.json, prepared.json and the Arrow files → WORKDIR/result.

    Goes on from the newest checkpoint that verifies. Raises whatever loading, training and saving raise, and
    `StopNow` where it was told to stop outside of its steps.
    """
    report(messages.Phase(phase="loading"))
    began = time.perf_counter()
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    prepared = Prepared.model_validate_json((work_dir / "prepared.json").read_text())
    machine = device.find()
    base = model.require_same_base(prepared.base, work_dir)
    work_offline()
    base_model, tokenizer = model.load(base, spec, machine)
    trainer = build_trainer(work_dir, spec, machine, base_model, tokenizer)
    if (parent := parent_of(work_dir)) is not None and parent.kind == "adapter":
        model.go_on_from(trainer.model, work_dir / "parent")
    checkpoint = checkpoints.newest_verified(work_dir / "checkpoints")
    progress = Progress(report, machine, checkpoint)
    trainer.add_callback(progress)
    result = Result(trainer, tokenizer, spec, prepared, machine, base, progress)

    def offer(saved: Checkpoint) -> None:
        result.offer(saved, work_dir / messages.OFFERED / saved.path.name)

    evaluate = prepared.validation is not None
    trainer.add_callback(Pace(report, stop, spec.hyperparameters, progress, offer, evaluate=evaluate))
    loaded = time.perf_counter()

    if not run_steps(trainer, checkpoint, report, stop):
        return messages.Stopped(trainer.state.global_step)
    trained = time.perf_counter()

    report(messages.Phase(phase="saving"))
    result.write(work_dir / "result", phases={"load": loaded - began, "train": trained - loaded})
    return messages.Done()


def build_trainer(
    work_dir: Path,
    spec: JobSpec,
    machine: Device,
    base_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> SFTTrainer:
    """TRL's trainer, with nothing of ours in its arithmetic.

    Raises `TargetModulesUnusable`, and `PackingNotSupported` where the base would mix the rows of a pack.
    """
    if isinstance(spec.tuning, LoraTuning):
        model.require_target_modules(base_model, spec.tuning.target_modules)
    validation = work_dir / "validation.arrow"
    trainer = SFTTrainer(
        model=base_model,
        args=configs.sft_config(spec, machine, work_dir / "checkpoints"),
        train_dataset=rows_of(work_dir / "train.arrow"),
        eval_dataset=rows_of(validation) if validation.exists() else None,
        processing_class=tokenizer,
        peft_config=configs.lora_config(spec.tuning) if isinstance(spec.tuning, LoraTuning) else None,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, where the messages go by hand
    if isinstance(spec.tuning, QloraTuning):
        model.keep_adapter_in_fp32(trainer.model)
    if isinstance(spec.tuning, LoraTuning) and spec.tuning.loraplus_lr_ratio is not None:
        trainer.optimizer = loraplus_optimizer(trainer, spec.tuning.loraplus_lr_ratio)
    if spec.hyperparameters.packing:
        model.require_rows_kept_apart(trainer)
    return trainer


def loraplus_optimizer(trainer: SFTTrainer, ratio: float) -> Optimizer:
    """The optimizer that is asked for, with a rate of its own for the B matrices (LoRA+, Hayou et al. 2024)."""
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    decay = trainer.args.weight_decay
    made: Optimizer = create_loraplus_optimizer(
        trainer.model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **options
    )
    return made


def run_steps(trainer: SFTTrainer, checkpoint: Checkpoint | None, report: Report, stop: StopRequest) -> bool:
    """All steps that are left. False when it was told to stop, at the end of a step."""
    stop.deferred = True
    if checkpoint is not None and checkpoint.finished:
        report(messages.Phase("training", total_steps=checkpoint.step, resumed_from_step=checkpoint.step))
        restore(trainer, checkpoint)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        except StopNow:  # from the middle of an evaluation
            return False
    stop.deferred = False
    return stop.wish is None


def restore(trainer: SFTTrainer, checkpoint: Checkpoint) -> None:
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
