"""`finetuned init`: an example spec, commented, and rows to go with it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.cli.client import CommandFailed
from app.cli.support_messages import rows

SPEC = """\
# A fine-tuning job. Submit it with: finetuned submit job.yaml --watch
# What you leave out is 'auto': the recipe for the tuning. All fields are described at /docs of the server.

model: smollm2-135m-instruct     # a base model of the server, a hub id (org/name), or a model that a job has made
training_file: rows.jsonl        # a path beside this file, uploaded once, or the id of a file on the server
# validation_file: held-out.jsonl
suffix: support-json             # a word for the result's name
seed: 7
metadata:
  team: support                  # find the job again: finetuned jobs --search support

method:
  type: supervised
  supervised:
    hyperparameters:
      n_epochs: 3
      # batch_size: 16                  # rows a step
      # learning_rate_multiplier: 1.0   # scales the recipe's rate; learning_rate sets it

tuning:
  type: lora                     # full, lora or qlora; or in one word, 'tuning: auto', and the server recommends one
  # r: 16

# evaluation:
#   holdout: 0.1                 # share of the rows kept for validation, from 100 rows on by itself; 0: none

# resources:
#   gpu_memory_gb: 24            # at least so much
#   priority: normal             # low, normal, high
"""
ROWS = 32


def init(folder: Annotated[Path, typer.Argument(help="Where to write; made if it is not there.")] = Path()) -> None:
    """Write job.yaml, an example spec with comments, and rows.jsonl beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows(ROWS, seed=1))
    written = {folder / "job.yaml": SPEC, folder / "rows.jsonl": lines}
    if there := [path for path in written if path.exists()]:
        raise CommandFailed(f"{there[0]} is there already. Name another folder: finetuned init FOLDER")
    for path, text in written.items():
        path.write_text(text)
        print(path)
