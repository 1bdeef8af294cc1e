"""A worker whose disks run full: what it clears, what it asks for, and what it goes on without."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy.orm import Session

from app import disks
from app.auth import Project
from app.disks import NoSpace
from app.storage import Storage, get_storage
from app.work.lifecycle import Claim
from tests import small_disk
from tests.conftest import SetSettings
from tests.factories import make_queued_job, take
from worker import checkpoints, messages, outcomes, room, workspace
from worker.checkpoints import Checkpoint
from worker.training import failures


@pytest.fixture
def claim(session: Session, project: Project) -> Claim:
    with session.begin():
        make_queued_job(session, project)
        return take(session)


@pytest.fixture
def folder(claim: Claim, tmp_path: Path, set_settings: SetSettings) -> Path:
    """An attempt's, on a disk of this test alone."""
    set_settings(home=tmp_path)
    return workspace.opened(claim)


def save(folder: Path, step: int, content: bytes = b"state") -> Path:
    path = checkpoints.path_of(folder / "checkpoints", step)
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(content)
    checkpoints.commit(Checkpoint(path, step=step, total_steps=9, tokens=1, seconds=1.0))
    return path


@pytest.mark.fault(21)
def test_what_was_half_written_goes_and_the_last_checkpoint_stays(claim: Claim, folder: Path) -> None:
    whole = save(folder, 1)
    offered = folder / messages.OFFERED / whole.name
    begun = [folder / "checkpoints" / name for name in ("checkpoint-2", "aside-checkpoint-1-0", "arriving-x")]
    begun += [folder / messages.OFFERED / "checkpoint-2.arriving", folder / "uploading", folder / "result"]
    for path in (offered, *begun):
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"half")

    found = room.without(claim, NoSpace("scratch"))

    assert isinstance(found, outcomes.NoSpace)
    assert [path for path in begun if path.exists()] == []
    assert checkpoints.newest_verified(folder / "checkpoints") is not None
    assert offered.exists()
    assert found.lack.needed_bytes >= found.lack.free_bytes + disks.MARGIN  # or it would fail again at once


def test_what_was_asked_for_is_what_a_job_waits_for(claim: Claim, folder: Path) -> None:
    found = room.without(claim, NoSpace("scratch", 5))
    assert isinstance(found, outcomes.NoSpace)
    assert (found.lack.disk, found.lack.needed_bytes) == ("scratch", 5)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk.mounted(tmp_path / "small", megabytes=4) as folder:
        yield folder


@pytest.mark.fault(21)
def test_a_full_disk_is_known_by_whatever_its_writers_say_of_it(small: Path) -> None:
    tensor = {"weight": torch.zeros(2_000_000)}
    writers: dict[str, Callable[[Path], object]] = {
        "torch": lambda path: torch.save(tensor, path),
        "safetensors": lambda path: save_file(tensor, path),
        "Python": lambda path: path.write_bytes(bytes(8_000_000)),
    }
    for name, write in writers.items():
        with pytest.raises(Exception) as caught:
            write(small / name)
        assert failures.last_word(caught.value, small) == messages.NoSpace(), name
        (small / name).unlink(missing_ok=True)
    assert isinstance(failures.last_word(RuntimeError("iostream error"), small.parent), messages.Failed)


@pytest.mark.fault(22)
def test_a_full_storage_says_so_and_keeps_nothing_of_what_was_arriving(small: Path) -> None:
    storage = Storage(f"file://{small}")
    kept = storage.put_bytes(b"before")
    with pytest.raises(NoSpace) as caught:
        storage.put_bytes(bytes(8_000_000))
    assert (caught.value.errno, caught.value.disk) == (errno.ENOSPC, "storage")
    assert list((small / "tmp").iterdir()) == []
    assert storage.problem(*kept) is None
    storage.put_bytes(bytes(1_000_000))


def test_room_is_reported_of_both_disks(folder: Path, set_settings: SetSettings) -> None:
    set_settings(home=folder, storage_url=f"file://{folder / 'storage'}")
    get_storage.cache_clear()
    try:
        found = room.reported()
    finally:
        get_storage.cache_clear()
    assert found.keys() == {"scratch_free_bytes", "storage_free_bytes"}
    assert found["scratch_free_bytes"] > 0
