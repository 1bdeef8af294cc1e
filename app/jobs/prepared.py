"""What preparing a job found: the facts that resolve its spec, and the rows as the trainer will see them.

Fields that this version does not know are ignored: a newer one may have prepared the job.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.files.report import PreparedFile, Resolved


class BaseIdentity(BaseModel):
    """What a base model is, by hashes; `app/registry/identity.py` computes it."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="A folder's name in the models directory, or a hub id; never a path.")
    revision: str = Field(
        description="Commit of a hub snapshot, or `sha256:` and the content digest of a local folder."
    )
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str | None = Field(description="None where the base has no chat template.")


class Parent(BaseModel):
    """The registry model that a job starts from: `WORKDIR/parent.json`, its files in `WORKDIR/parent`.

    Where it is an adapter on a full model of the registry, that one's files are in `WORKDIR/base`.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Literal["adapter", "full"]
    base: BaseIdentity = Field(description="What it was trained on; an adapter goes on training on this and no other.")


class Prepared(BaseModel):
    """The whole of it: `WORKDIR/prepared.json`, and a JSONB column of the job."""

    model_config = ConfigDict(frozen=True)

    base: BaseIdentity
    parent: Parent | None = None
    model_type: str = Field(description="`config.json`'s, such as `llama`; the family whose rates a recipe knows.")
    hidden_size: int
    context_length: int
    resolved: Resolved | None = Field(None, description="What `auto` became; None: from before there was a choice.")
    train: PreparedFile
    validation: PreparedFile | None = Field(None, description="Of the validation file, or of the rows held out.")
