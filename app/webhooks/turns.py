"""Whose turn it is to wait for a stranger's server, on a thread that other requests want too."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import TooMany


class Turns:
    """So many at once, and so few of them one project's that it takes several to keep the others out."""

    def __init__(self, at_once: int, *, per_project: int) -> None:
        self._at_once = at_once
        self._per_project = per_project
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, project_id: str) -> Iterator[None]:
        """Until the block ends. Raises `TooMany` where there is none: to wait for one would hold a thread as well."""
        with self._lock:
            if self._taken.total() >= self._at_once or self._taken[project_id] >= self._per_project:
                raise TooMany("Too many endpoints are being looked up or tested just now. Try again.")
            self._taken[project_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= Counter({project_id: 1})  # which strikes off what comes to 0
