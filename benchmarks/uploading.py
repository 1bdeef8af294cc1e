"""How long an uploader waits after the last byte: `python -m benchmarks.uploading [--rows N] [--megabytes-a-second M]`.

A file of chat rows goes to a running server: good, with an error on its third line, with one on nine tenths of the way,
once as fast as it is taken and once at the speed of a line. Rows are read while they arrive, so what is waited for is
what was not read by then; a file with an error is read on for half a second.
"""

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from benchmarks.data import write_rows
from tests import running
from tests.running import Service

BOUNDARY = "finetuned-benchmark"
CHUNK = 256 * 1024
BAD = b'{"messages": [{"role": "user", "content": "What now?"}, {"role": "assistant"}]}\n'

console = Console(width=120)


def with_error(source: Path, line: int) -> Path:
    """The file with another line in the place of one of its own."""
    target = source.with_name(f"error-{line}.jsonl")
    with source.open("rb") as rows, target.open("wb") as file:
        for number, row in enumerate(rows, start=1):
            file.write(BAD if number == line else row)
    return target


def upload(service: Service, path: Path, bytes_a_second: float | None) -> tuple[float, float, dict[str, object]]:
    """Seconds of sending, seconds from the last byte to the answer, and the answer."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=600)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Authorization", f"Bearer {service.key}")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Content-Length", str(len(head) + path.stat().st_size + len(tail)))
    connection.endheaders()
    began = time.perf_counter()
    connection.send(head)
    for chunk in _at_speed(path, bytes_a_second):
        connection.send(chunk)
    connection.send(tail)
    sent = time.perf_counter()
    answer = json.loads(connection.getresponse().read())
    answered = time.perf_counter()
    connection.close()
    return sent - began, answered - sent, answer


def _at_speed(path: Path, bytes_a_second: float | None) -> Iterator[bytes]:
    began, sent = time.perf_counter(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            sent += len(chunk)
            if bytes_a_second is not None:
                time.sleep(max(0.0, began + sent / bytes_a_second - time.perf_counter()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--megabytes-a-second", type=float, default=25.0, help="the slower speed")
    arguments = parser.parse_args()
    table = Table("file", "sent in", "answered after", "status", "what it says")
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        path = Path(folder) / "good.jsonl"
        write_rows(path, arguments.rows)
        files = [path, with_error(path, 3), with_error(path, arguments.rows * 9 // 10)]
        with running.up(Path(folder) / "home", FINETUNED_STANDBY="0") as service:
            for speed in (None, arguments.megabytes_a_second * 1e6):
                for file in files:
                    sending, waiting, answer = upload(service, file, speed)
                    said = str(answer.get("status_details") or answer.get("error") or "")
                    table.add_row(
                        file.name, f"{sending:.2f} s", f"{waiting:.2f} s", str(answer.get("status")), said[:60]
                    )
    console.print(f"{arguments.rows} rows, {path.name}: unbounded, then {arguments.megabytes_a_second:g} MB/s")
    console.print(table)


if __name__ == "__main__":
    main()
