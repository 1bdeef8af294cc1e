"""Places where a fault test may let a process die: `FINETUNED_FAIL_AT=name` kills it there, as the kernel would."""

import os
import signal

from app.settings import get_settings


def failpoint(name: str) -> None:
    """Die here if the settings name this place."""
    if get_settings().fail_at == name:
        os.kill(os.getpid(), signal.SIGKILL)
