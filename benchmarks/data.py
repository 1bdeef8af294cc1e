"""How fast a file is checked, in how much memory, and how fast it is tokenised: `python -m benchmarks.data`.

The structural pass over chat rows as the service makes it while an upload arrives, beside the same checks on what the
standard `json` module reads; each in a process of its own. Prints a table, and the ratios that are promised.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.files import formats
from app.files.containers import MAX_ROW_BYTES

ROLES = {"system", "developer", "user", "assistant", "tool", "function"}

console = Console(width=120)


def write_rows(path: Path, count: int) -> None:
    """Chat rows of three turns, some 400 bytes each, no two alike."""
    with path.open("w") as file:
        for number in range(count):
            turns = [
                {"role": "system", "content": "You file support messages. Answer with JSON and nothing else."},
                {
                    "role": "user",
                    "content": f"Order {number} came on Tuesday with two of its five lamps broken. What now?",
                },
                {
                    "role": "assistant",
                    "content": json.dumps({"order": number, "topic": "damage", "urgent": number % 2 == 0}),
                },
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def check_by_json(path: Path) -> int:
    """The rows that are good, by the standard library: what `formats.check` asks of a chat row."""
    good = 0
    with path.open("rb") as file:
        for line in file:
            if b"\0" in line or len(line) > MAX_ROW_BYTES:
                continue
            row = json.loads(line)
            messages = row.get("messages") if isinstance(row, dict) else None
            good += isinstance(messages, list) and all(map(_is_message, messages)) and _is_learnt_from(messages)
    return good


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ROLES
        and (message.get("content") is None or isinstance(message["content"], str) or _are_parts(message["content"]))
        and message.get("weight") in (None, 0, 1)
        and isinstance(message.get("name"), str | None)
        and isinstance(message.get("tool_calls"), list | None)
        and isinstance(message.get("tool_call_id"), str | None)
    )


def _are_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    )


def _is_learnt_from(messages: list[dict[str, Any]]) -> bool:
    trained = [message for message in messages if message["role"] == "assistant" and message.get("weight") != 0]
    return bool(trained) and all(message.get("content") or message.get("tool_calls") for message in trained)


def measure(way: str, path: Path) -> dict[str, float]:
    """Seconds, rows that are good, and the peak of memory, all of it, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--measure", way, str(path)]
    said: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


def _measured(way: str, path: Path) -> dict[str, float]:
    began = time.perf_counter()
    if way == "formats.check":
        with path.open("rb") as file:
            rows = formats.check(file).rows
    else:
        rows = check_by_json(path)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": rows, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def main() -> None:
    """All sizes, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--tokenise", type=int, default=20_000, help="Rows that are tokenised.")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(_measured(arguments.measure[0], Path(arguments.measure[1]))))
        return
    table = Table(title="the structural pass over chat rows")
    for column in ("rows", "MB", "by", "seconds", "rows/s", "MiB, the process"):
        table.add_column(column, justify="left" if column == "by" else "right")
    found: dict[tuple[str, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for rows in arguments.rows:
            path = Path(scratch, f"{rows}.jsonl")
            write_rows(path, rows)
            for way in ("formats.check", "json"):
                found[way, rows] = one = measure(way, path)
                assert one["rows"] == rows
                megabytes = path.stat().st_size / 1e6
                numbers = (f"{one['seconds']:.2f}", f"{rows / one['seconds']:,.0f}", f"{one['kib'] / 1024:.1f}")
                table.add_row(f"{rows:,}", f"{megabytes:,.0f}", way, *numbers)
    console.print(table)
    few, many = min(arguments.rows), max(arguments.rows)
    ours = {rows: found["formats.check", rows]["seconds"] for rows in arguments.rows}
    console.print(
        f"json / formats.check at {many:,} rows: {found['json', many]['seconds'] / ours[many]:.2f} (at least 1.4)"
    )
    console.print(f"seconds a row, {many:,} / {few:,} rows: {ours[many] / many / (ours[few] / few):.2f} (1 is linear)")
    most = max(one["kib"] for (way, _), one in found.items() if way != "json") / 1024
    console.print(f"most memory: {most:.1f} MiB (at most 100)")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "rows.jsonl")
        write_rows(path, arguments.tokenise)
        subprocess.run([sys.executable, "-m", "benchmarks.tokenising", str(path)], check=True)


if __name__ == "__main__":
    main()
