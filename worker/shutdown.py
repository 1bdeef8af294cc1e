"""Whether this worker is shutting down: said in Celery's main process, heard in its pool child.

The flag is shared memory from before the fork, so that hearing it costs nothing and needs no message.
"""

import multiprocessing

_flag = multiprocessing.get_context("fork").Event()


def begin() -> None:
    """Say it; there is no way back."""
    _flag.set()


def shutting_down() -> bool:
    """Whether it was said."""
    return _flag.is_set()
