"""How few logits TRL's loss computes at a time, and of which tokens."""

import trl.kernels.chunked_logprob
import trl.trainer.utils

from app.planning.setups import LOSS_TILE
from worker.training.device import Device


def spare_logits(machine: Device) -> None:
    """Have TRL (1.16) compute logits only where there is a label, on a CPU as on a GPU, and of few tokens at a time.

    It leaves that to devices with Triton, because elsewhere a number of tokens that is never the same would have each
    batch compiled anew; a CPU compiles nothing. Where the names it has for it are gone, all stays as TRL has it.
    """
    utils, kernel = trl.trainer.utils, trl.kernels.chunked_logprob
    if machine.kind == "cpu" and hasattr(utils, "_use_triton") and hasattr(kernel, "TOKEN_CHUNK_SIZE"):
        utils._use_triton = lambda _: True
        kernel.TOKEN_CHUNK_SIZE = LOSS_TILE["cpu"][0]
