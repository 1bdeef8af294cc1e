"""The model card: a README.md made from what the registry knows of a result, so that it cannot say anything else."""

from app.jobs.spec import LoraTuning
from app.registry.manifest import Manifest, TrainingReport


def render(manifest: Manifest) -> str:
    """The card of a result, with the front matter that the model hub reads."""
    return "\n".join([*_front_matter(manifest), *_summary(manifest), *_training(manifest), *_use(manifest)]) + "\n"


def _front_matter(manifest: Manifest) -> list[str]:
    kind = ["library_name: peft"] if manifest.kind == "adapter" else ["library_name: transformers"]
    return ["---", f"base_model: {manifest.base.id}", *kind, "tags: [finetuned]", "---", ""]


def _summary(manifest: Manifest) -> list[str]:
    report, base = manifest.report, manifest.base
    share = 100 * report.trained_parameters / report.all_parameters
    what = "An adapter for" if manifest.kind == "adapter" else "A full fine-tune of"
    return [
        f"# {manifest.id}",
        "",
        (
            f"{what} `{base.id}`: {report.trained_parameters:,} of {report.all_parameters:,} parameters trained"
            f" ({share:.2f} %)."
        ),
        "",
        "## Base",
        "",
        "It belongs to exactly this base, by SHA-256:",
        "",
        "| | |",
        "| --- | --- |",
        f"| id | `{base.id}` |",
        f"| revision | `{base.revision}` |",
        f"| weights | `{base.weights_sha256}` |",
        f"| tokenizer | `{base.tokenizer_sha256}` |",
        f"| chat template | `{base.chat_template_sha256 or 'none'}` |",
        "",
    ]


def _training(manifest: Manifest) -> list[str]:
    spec, report, given = manifest.spec, manifest.report, manifest.spec.hyperparameters
    shape = ""
    if isinstance(spec.tuning, LoraTuning):
        result = spec.tuning.published
        shape = f", r = {result.r}, alpha = {result.lora_alpha}, on {result.target_modules}"
        if spec.tuning.takes_from_base:
            shape += f" ({spec.tuning.init_lora_weights} of r = {spec.tuning.r}, converted to the untouched base)"
        if result.modules_to_save:
            shape += f", with {', '.join(result.modules_to_save)} trained whole"
    rows = [
        ("method", f"{spec.method.type}, {spec.tuning.type}{shape}"),
        ("job", f"`{manifest.job_id}`"),
        ("training file", f"`{manifest.training_file.id}`, SHA-256 `{manifest.training_file.sha256}`"),
        (
            "learning rate",
            f"{given.learning_rate:g}, {given.lr_scheduler_type}, warm-up {given.warmup_ratio}",
        ),
        ("rows a step", f"{given.batch_size}"),
        ("steps", f"{report.steps}"),
        ("tokens seen", f"{report.tokens:,}, of which {report.trained_tokens:,} trained on"),
        ("loss", f"{report.loss_first:.4f} at the first step, {report.loss_last:.4f} at the last"),
        *_rewards(report),
        ("validation loss", f"{report.eval_loss:.4f}" if report.eval_loss is not None else "not measured"),
        *_weights(report),
        ("seed", f"{spec.seed}"),
        ("device", f"{report.device}, {report.precision}"),
        ("time", f"{report.train_seconds:.1f} s of training"),
        ("peak memory", f"{report.peak_memory_bytes / 1024**2:,.0f} MiB"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))),
    ]
    return [
        "## Training",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]


def _weights(report: TrainingReport) -> list[tuple[str, str]]:
    """Which step's they are, where there was a choice."""
    if report.best is None or report.last is None or report.best.step == report.last.step:
        return []
    by = "validation loss" if report.best.eval_reward is None else "validation reward"
    best, last = (
        f"step {one.step} ({'not evaluated' if one.measured is None else f'{one.measured:.4f}'})"
        for one in (report.best, report.last)
    )
    if report.published == "best":
        return [("weights", f"of {best}, the best by {by}; the last was {last}")]
    return [("weights", f"of the last {last}; {best} was the best by {by}, and its checkpoint is lost")]


def _rewards(report: TrainingReport) -> list[tuple[str, str]]:
    """What answers were worth, where they were graded."""
    if report.reward_first is None or report.reward_last is None:
        return []
    rows = [("mean reward", f"{report.reward_first:.4f} at the first step, {report.reward_last:.4f} at the last")]
    if report.eval_reward is not None:
        rows.append(("validation reward", f"{report.eval_reward:.4f}"))
    return rows


def _use(manifest: Manifest) -> list[str]:
    if manifest.kind == "full":
        code = ['model = AutoModelForCausalLM.from_pretrained("this folder")']
    else:
        code = [
            f'base = AutoModelForCausalLM.from_pretrained("{manifest.base.id}")',
            'model = PeftModel.from_pretrained(base, "this folder")',
        ]
    imports = "from transformers import AutoModelForCausalLM"
    peft = ["from peft import PeftModel"] if manifest.kind == "adapter" else []
    return ["## Use", "", "```python", *peft, imports, "", *code, "```"]
