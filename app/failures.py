"""Why work can fail: each code, and what its owner can try."""

from typing import Literal

Code = Literal[
    "base_model_changed",
    "device_failed",
    "does_not_fit",
    "gradient_exploded",
    "hub_unavailable",
    "hung",
    "internal_error",
    "invalid_chat_template",
    "invalid_source",
    "invalid_target_modules",
    "invalid_training_file",
    "invalid_validation_file",
    "invalid_value",
    "loss_diverged",
    "loss_is_zero",
    "loss_not_finite",
    "method_not_supported",
    "model_not_found",
    "model_not_usable",
    "no_dry_run",
    "no_space",
    "out_of_host_memory",
    "out_of_memory",
    "packing_not_supported",
    "source_unavailable",
    "storage_damaged",
    "storage_unavailable",
    "unsafe_weights",
    "worker_lost",
]
"""That a `Failed` can have. Jobs that ended under another version may have others."""

_ROWS = "Mend the rows that the file's report names (GET /v1/files/{id}/report), and send the job with the new file."
_RATE = "Lower the learning rate, to a tenth first."

SUGGESTIONS: dict[str, str | None] = {
    "base_model_changed": "Send the job again, to train on the base as it is now.",
    "device_failed": "Have the operator look at that worker's GPU and its driver, then send the job again.",
    "does_not_fit": "Ask POST /v1/fine_tuning/plans which changes would make it fit.",
    "gradient_exploded": _RATE,
    "hub_unavailable": "Send the job again once the hub answers, or have the base put into the workers' models folder.",
    "hung": "Send the job again; where it hangs again, have the operator look at the last lines and at the device.",
    "internal_error": None,  # nobody has foreseen it
    "invalid_chat_template": "Take a base made for chat, or rows of prompt and completion.",
    "invalid_source": None,  # of files, which show the message alone; it says what to do
    "invalid_target_modules": "Name layers that the base has, or send tuning.target_modules 'all-linear'.",
    "invalid_training_file": _ROWS,
    "invalid_validation_file": _ROWS,
    "invalid_value": "Change the field that `param` names, and send the job again.",
    "loss_diverged": _RATE,
    "loss_is_zero": "Look whether the rows have answers to train on, and whether the base knows them already.",
    "loss_not_finite": "Lower the learning rate, or look for broken rows.",
    "method_not_supported": "Take another method, or have the operator install a TRL that has this one.",
    "model_not_found": "Take a model that GET /v1/models lists, or the id of one on the hub that is not gated.",
    "model_not_usable": "Take another base, or have its folder put right.",
    "no_dry_run": None,  # of plans, which go on with the formula
    "no_space": None,  # of files, reports and plans, which show the message alone; a job is paused instead
    "out_of_host_memory": "Try tuning qlora, a smaller max_length, or a larger machine.",
    "out_of_memory": (
        "Try, in this order: per_device_train_batch_size 1, gradient_checkpointing true, tuning qlora, a smaller"
        " max_length, a larger GPU (resources.gpu_memory_gb)."
    ),
    "packing_not_supported": "Send packing false.",
    "source_unavailable": None,  # of files, which show the message alone
    "storage_damaged": "Have the operator look at the storage; upload again what it has lost.",
    "storage_unavailable": "Have the operator look at the worker's disks and at the storage, then send the job again.",
    "unsafe_weights": "Take a base with safetensors, of an architecture that transformers has built in.",
    "worker_lost": "Send the job again; where it is lost again, have the operator look at the worker and its log.",
}
"""For each code, where the failure itself does not say better; None where nobody can say."""
