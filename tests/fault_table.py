"""`pytest -p tests.fault_table`: at the end a table of the faults, how often each was tried and how often it held."""

from collections import Counter

import pytest

FAULTS = {
    1: "the worker's main process is killed in training",
    2: "the worker's pool child is killed",
    3: "the trainer is killed",
    4: "the trainer has a segmentation fault",
    5: "the kernel kills the trainer for want of memory",
    6: "the GPU runs out of memory (simulated by the machine's own)",
    7: "the trainer hangs",
    8: "the worker is stopped past its lease, and wakes",
    9: "a worker that lost its lease reaches publication",
    10: "a trainer of nobody's holds the device",
    11: "the broker is emptied",
    12: "there is no broker for a while",
    13: "the broker takes connections and never answers",
    14: "a ring is delivered eight times",
    15: "two workers claim the same work",
    16: "the api dies before the commit of a create",
    17: "the api dies between the commit and the ring",
    18: "the database restarts in training",
    19: "connections to the database are cut again and again",
    20: "a worker's clock is two hours off",
    21: "no space while a checkpoint is saved",
    22: "no space while a result is published",
    23: "the worker dies between a result's manifest and its registry row",
    24: "a checkpoint is torn or altered",
    25: "a byte of a published model is flipped",
    26: "a cancel races with a claim",
    27: "a cancel races with the end of a job",
    28: "cancelled twice, paused twice, resumed while it runs",
    29: "the trainer ignores TERM",
    30: "paused, and resumed on another worker",
    31: "the worker is told to end",
    32: "a job kills every trainer",
    33: "the answer to a create is lost",
    34: "10,000 jobs wait",
    35: "10,000 clients poll",
    36: "old files are deleted while they are read",
    52: "a ring is forged",
}
"""By their numbers."""
MEASURED = {34: "make bench-queue", 35: "make bench-api"}
"""What shows those that are a matter of speed."""
PROPERTY = "fault"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The numbers travel with a test's reports, from another process as well."""
    for item in items:
        for marker in item.iter_markers("fault"):
            item.user_properties += [(PROPERTY, number) for number in marker.args]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table."""
    tried, held, skipped = Counter[int](), Counter[int](), Counter[int]()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            numbers = [number for name, number in getattr(report, "user_properties", []) if name == PROPERTY]
            if outcome == "skipped":
                skipped.update(numbers)
            elif getattr(report, "when", None) == "call" or outcome == "error":
                tried.update(numbers)
                held.update(numbers if outcome == "passed" else [])
    terminalreporter.section("faults")
    terminalreporter.line(f"{'case':>4}  {'what happens':<68}{'tried':>7}{'held':>7}")
    for number, what in FAULTS.items():
        if tried[number]:
            said = f"{tried[number]:>7}{held[number]:>7}"
        else:
            said = "  " + ("skipped" if skipped[number] else MEASURED.get(number, "not tried"))
        terminalreporter.line(f"{number:>4}  {what:<68}{said}")
