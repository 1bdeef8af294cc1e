"""A file's copy from where its owner has it: read once, digested on its way, judged by its rows like an upload."""

from contextlib import closing

import fsspec

from app.db import new_session
from app.files import service as files
from app.files import sources
from app.files.judging import UNJUDGED, judge
from app.files.models import File
from app.settings import get_settings
from app.storage import CHUNK, Incoming, get_storage
from app.work.lifecycle import Claim
from worker.lease import Lease, Wish
from worker.outcomes import Arrived, Cancelled, Failed, Interrupted, Outcome, TakenOver
from worker.patience import patient


class _Stopped(Exception):
    """The lease says so."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def fetch(claim: Claim, lease: Lease) -> Outcome:
    """Copy a file's source into storage."""
    announced = _announced(claim)
    if announced is None:
        return Cancelled()  # deleted meanwhile
    source, purpose = announced
    storage = get_storage()
    try:
        with storage.incoming() as incoming:
            _copy(source, incoming, lease)
            incoming.sync()
            judgement = judge(incoming.path) if purpose == files.FINE_TUNE else UNJUDGED
            return Arrived(storage.commit(incoming), judgement)
    except _Stopped as stopped:
        return stopped.outcome
    except files.SourceUnusable as error:
        return Failed("invalid_source", str(error), "source")
    except (FileNotFoundError, IsADirectoryError) as error:
        return Failed("invalid_source", f"'{source}' is not there: {_said(error)}", "source")
    except PermissionError as error:
        said = f"This server may not read '{source}': {_said(error)}. Its operator sets FINETUNED_SOURCE_OPTIONS."
        return Failed("invalid_source", said, "source")
    except ImportError as error:
        return Failed("invalid_source", f"This server's workers cannot read '{source}': {_said(error)}", "source")
    except Exception as error:  # noqa: BLE001  of the clients of hubs and buckets anything may come
        return Failed("source_unavailable", f"'{source}' could not be read: {_said(error)}", "source", retryable=True)


@patient
def _announced(claim: Claim) -> tuple[str, str] | None:
    """The source and the purpose of a file."""
    with new_session() as session, session.begin():
        file = session.get(File, claim.subject)
        return (str(file.source), file.purpose) if file is not None and file.deleted_at is None else None


def _copy(source: str, incoming: Incoming, lease: Lease) -> None:
    files_there, path = fsspec.core.url_to_fs(source, **sources.options(source))
    path = _one_file(files_there, str(path), source)
    most = get_settings().max_file_bytes
    with closing(files_there.open(path, "rb")) as remote:
        while chunk := remote.read(CHUNK):
            if (wish := lease.wish) is not None:
                raise _Stopped(_ended_by(wish))
            if incoming.bytes + len(chunk) > most:
                raise files.SourceUnusable(f"'{source}' is larger than {most} bytes, which a file may have.")
            incoming.write(chunk)
    if incoming.bytes == 0:
        raise files.SourceUnusable(f"'{source}' is empty.")


def _one_file(files_there: fsspec.AbstractFileSystem, path: str, source: str) -> str:
    """The file at an address; of a folder, the only file in it whose name says that it has rows."""
    if files_there.isfile(path):
        return path
    endings = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
    found = [str(one) for one in files_there.find(path) if str(one).endswith(endings)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise files.SourceUnusable(f"There is no file at '{source}', nor rows in a folder of that name.")
    root = source.rstrip("/")
    named = ", ".join(f"{root}/{one.removeprefix(path).lstrip('/')}" for one in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise files.SourceUnusable(f"'{source}' has {len(found)} files of rows. Name one of them: {named}{more}.")


def _ended_by(wish: Wish) -> Outcome:
    match wish:
        case Wish.SHUTDOWN | Wish.PAUSE:
            return Interrupted()
        case Wish.CANCEL:
            return Cancelled()
        case Wish.TAKEN_OVER:
            return TakenOver()


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
