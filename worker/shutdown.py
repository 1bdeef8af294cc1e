"""Whether this worker is shutting down: said in Celery's main process, heard in its pool child.

That is shared memory from before the fork, so that hearing it costs nothing and needs no message.
"""

import time
from multiprocessing.sharedctypes import RawValue

_began_at = RawValue("d", 0.0)


def begin() -> None:
    """Say it; there is no way back."""
    _began_at.value = _began_at.value or time.monotonic()


def shutting_down() -> bool:
    """Whether it was said."""
    return bool(_began_at.value)


def began_at() -> float:
    """When it was said first, by the monotonic clock, which is the same for all of this machine's processes."""
    return float(_began_at.value)
