"""What an attempt at a job starts from."""

from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.db import new_session
from app.files import service as files
from app.files.models import File
from app.jobs.models import Job
from app.registry import names
from app.registry import service as registry
from app.registry.models import RegisteredModel
from app.work.lifecycle import Claim
from worker.patience import patient


@dataclass(frozen=True, slots=True)
class Given:
    """What an attempt starts from."""

    job: Job
    files: dict[str, File]
    """By the spec's names for them."""
    parent: RegisteredModel | None
    """The registry model that the job starts from."""
    base: RegisteredModel | None
    """Of a parent that is an adapter, where its base is a registry model too."""


class OfNewerVersion(Exception):
    """The job asks for something that this worker's version does not know; a newer one will."""


@patient
def given(claim: Claim) -> Given:
    """Read from the database, in a transaction of its own. Raises `OfNewerVersion`."""
    with new_session() as session, session.begin():
        job = session.get_one(Job, claim.subject)
        try:
            spec = job.current_spec
        except ValidationError as error:
            fields = {".".join(map(str, one["loc"])) or one["msg"] for one in error.errors(include_url=False)}
            raise OfNewerVersion("; ".join(sorted(fields))) from error
        given = {"training_file": files.used(session, job.project_id, spec.training_file)}
        if spec.validation_file is not None:
            given["validation_file"] = files.used(session, job.project_id, spec.validation_file)
        return Given(job, given, *models(session, spec.model))


def models(session: Session, model: str) -> tuple[RegisteredModel | None, RegisteredModel | None]:
    """The registry model of a name, and its base where that is one too; None for what the registry does not have."""
    if not names.is_registered(model):
        return None, None
    parent = registry.used(session, model)
    return parent, registry.base_of(session, parent) if parent.kind == "adapter" else None
