"""A worker: one Celery process with one pool child, which is one slot. `python -m worker.main --slot 0`"""

import argparse
import socket
from typing import Any

from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down

from app.monitoring import lines
from app.queue import PREPARE, get_celery
from app.settings import get_settings
from app.work.lifecycle import Who
from worker import shutdown, tasks
from worker.devices import Device, device_of
from worker.slots import Occupied, Place


def main() -> None:
    """Serve one queue until told to stop; SIGTERM hands a running job back first."""
    lines.configure()
    setup_logging.connect(_log_as_configured)
    place = _place(_arguments())
    celery = get_celery()
    _occupy_after_fork(place)
    celery.worker_main(
        [
            "--quiet",  # its banner is no line of a log
            "worker",
            "--concurrency=1",
            "--pool=prefork",
            f"--queues={place.queue}",
            f"--hostname={place.lock_name}@%h",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


def _log_as_configured(**_: Any) -> None:
    """Celery leaves handlers and levels alone once somebody says that they are set up."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="finetuned worker", description=__doc__)
    parser.add_argument("--queue", help="`prepare`, or a worker class; absent: the class of the slot's device")
    parser.add_argument("--slot", type=int, default=0, help="which of this machine's slots: the GPU's index")
    return parser.parse_args()


def _place(arguments: argparse.Namespace) -> Place:
    """Preparing needs no GPU, and gets to see none."""
    settings = get_settings()
    device = Device.cpu() if arguments.queue == PREPARE else device_of(arguments.slot)
    queue_name = arguments.queue or settings.worker_class or device.worker_class
    host, home = socket.gethostname(), settings.home.absolute()
    return Place(
        who=Who(f"{host}:{home}:{queue_name}:{arguments.slot}", host, device.as_json()),
        queue=queue_name,
        device=device,
        lock_name=device.uuid or f"{queue_name}-{arguments.slot}",
    )


def _occupy_after_fork(place: Place) -> None:
    """The pool child, not this process, holds connections, threads and trainers: none of them outlive a fork."""
    occupied: list[Occupied] = []

    def enter(**_: Any) -> None:
        occupied.append(Occupied(place))
        occupied[-1].enter()

    def leave(**_: Any) -> None:
        for one in occupied:
            one.leave()

    def run(queue_name: str) -> None:
        occupied[-1].run(queue_name)

    def say_so(**_: Any) -> None:
        shutdown.begin()

    worker_process_init.connect(enter, weak=False)
    worker_process_shutdown.connect(leave, weak=False)
    worker_shutting_down.connect(say_so, weak=False)
    tasks.register(get_celery(), run)


if __name__ == "__main__":
    main()
