"""`python -m tests.chaos --kills 200 [--seed S]`: kills parts of a running service while jobs come and run.

A client keeps six small jobs going on two slots, pauses and cancels some, and asks again where it is not answered. Who
is killed when, and how, is drawn from the seed, which is printed. At the end every submitted job must have ended as its
owner wished, with one result and no step told twice without need; see `checks`. Failed attempts are no reason to give a
job up here (FINETUNED_MAX_RETRIES=1000): each kill of its worker counts as one. Ends with 1, names what did not hold,
and keeps the service's home, where it did not.
"""

import argparse
import json
import logging
import secrets
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from tests import tiny
from tests.chaos import checks, histories, report
from tests.chaos.histories import History
from tests.chaos.plan import SLOTS, kills, submissions
from tests.chaos.stream import Prober, Stream
from tests.chaos.strikes import OF_SLOTS, Strike, Striker
from tests.running import SHORT, Service, up, wait_for

SETTINGS = {"FINETUNED_MAX_RETRIES": "1000"}
STUCK = 300.0
"""Seconds without any news of any job after which those that have not ended never will."""
ENDS_WITHIN = 60.0
"""Seconds for the service to end, of which it promises 20 where it has cores to itself."""
SILENT = 1.0
"""Seconds without an answer that count as downtime; an answer takes milliseconds, and a question comes each 0.25 s."""

console = Console(width=130)


def main() -> None:
    """Kill, wait for the jobs, look, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills, on average")
    parser.add_argument("--minutes", type=float, default=36.0, help="after which nobody is killed any more")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    console.print(f"seed {arguments.seed}, {arguments.kills} kills: SEED={arguments.seed} has the same ones again")
    home = Path(tempfile.mkdtemp(prefix="ft-"))
    found = run(home, arguments)
    if not found:
        shutil.rmtree(home)
        console.print("everything held")
        return
    for violation in found:
        console.print(f"violated: {violation}", markup=False, style="red")
    console.print(f"{len(found)} violations with seed {arguments.seed}; the service's logs are in {home}/logs")
    sys.exit(1)


def run(home: Path, arguments: argparse.Namespace) -> list[str]:
    """The violations."""
    tiny.make_base(home / "models" / "tiny")
    began = time.monotonic()
    with up(home, "--workers", str(SLOTS), **SETTINGS) as service:
        lines = threading.Thread(target=_keep_lines, args=(service,), name="lines of up")
        lines.start()
        with Prober(service) as prober:
            with Stream(service, submissions(arguments.seed)) as stream:
                striker = Striker(service)
                strikes = _strike(striker, arguments, began)
                striker.wake()
            struck_for = time.monotonic() - began
            found = _wait_for_the_jobs(service, stream)
            ended_after = time.monotonic() - began
        jobs = _read(service)
        kept = {"strikes": [asdict(one) for one in strikes], "jobs": [asdict(one) for one in jobs]}
        (home / "logs" / "chaos.json").write_text(json.dumps({"answers": stream.answers, **kept}, indent=1))
        found += stream.refusals + checks.violations(jobs, stream.answers, stream.cancelled)
        found += _damaged(service, jobs)
        ending = time.monotonic()
        service.process.terminate()
        service.process.wait(ENDS_WITHIN)
        lines.join()
        ending = time.monotonic() - ending
        found += [f"of the ended service there is still {process}" for process in _left(service)]
    if len(strikes) < arguments.kills:
        found.append(f"there was time for {len(strikes)} kills of {arguments.kills}")
    silences = checks.silences(prober.answered_at, least=SILENT)
    others = {
        "paused and resumed by wish": str(len(stream.paused)),
        "cancelled by wish": str(len(stream.cancelled)),
        "api silent for more than a second": f"{len(silences)} times, {sum(silences):.1f} s of {ended_after:.0f} s,"
        f" at most {max(silences, default=0.0):.1f} s",
        "time of the kills, and with the jobs left": f"{struck_for:.0f} s, {ended_after:.0f} s",
        "end of the service": f"{ending:.1f} s",
    }
    report.show(console, strikes, jobs, others)
    return found


def _strike(striker: Striker, arguments: argparse.Namespace, began: float) -> list[Strike]:
    """As many as were asked for, as long as there is time; says each."""
    strikes: list[Strike] = []
    plan = kills(arguments.seed, every=arguments.every, lease=float(SHORT["FINETUNED_LEASE_TIMEOUT"]))
    for number in count(1):
        if len(strikes) == arguments.kills or time.monotonic() - began > 60 * arguments.minutes:
            return strikes
        kill = next(plan)
        strike = striker.strike(kill)
        if strike is not None:
            strikes.append(strike)
        what = "nobody there" if strike is None else f"in {strike.job_id}" if strike.job_id else ""
        kill = strike.kill if strike is not None else kill
        slot = f" of slot {kill.slot}" if kill.victim in OF_SLOTS else ""
        console.print(f"{time.monotonic() - began:6.1f} s  {number:3d}  {kill.how} {kill.victim}{slot} {what}")
    raise AssertionError("the plan has no end")


def _wait_for_the_jobs(service: Service, stream: Stream) -> list[str]:
    """Until all have ended, or nothing is heard of any for so long."""
    last, heard_at = None, time.monotonic()
    while unfinished := stream.unfinished():
        events = sum(len(history.events) for history in _read(service))
        if events != last:
            last, heard_at = events, time.monotonic()
        elif time.monotonic() - heard_at > STUCK:
            return [f"nothing was heard of any job for {STUCK:.0f} s, and these have not ended: {unfinished}"]
        time.sleep(2)
    return []


def _read(service: Service) -> list[History]:
    """Once the database answers."""

    def answered() -> list[History] | None:
        try:
            with service.database() as database:
                return histories.read(database)
        except psycopg.OperationalError:
            return None

    return wait_for(answered, 120, every=0.5)


def _damaged(service: Service, jobs: list[History]) -> list[str]:
    """Results of which a byte is not as it was published."""
    verified: list[dict[str, Any]] = [
        service.get(f"/v1/registry/models/{job.result}/verify") for job in jobs if job.result is not None
    ]
    return [f"{one['model']} is damaged: {one['files']}" for one in verified if not one["ok"]]


def _left(service: Service) -> list[str]:
    """Of the ended service's processes, once those that were killed with it have had the time to go."""
    deadline = time.monotonic() + 10
    while (left := service.processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [str(process) for process in left]


def _keep_lines(service: Service) -> None:
    """What `up` prints, which would wait for who reads it."""
    assert service.process.stdout is not None
    with (service.home / "logs" / "up.log").open("w") as log:
        for line in service.process.stdout:
            log.write(line)
            log.flush()


if __name__ == "__main__":
    main()
