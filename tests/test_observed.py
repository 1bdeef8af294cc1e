"""One job of the whole service, as whoever runs it sees it: in the figures, in the lines of the logs, as a trace."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.monitoring.otel import ids_of
from tests import spans, tiny
from tests.receiver import Receiver
from tests.running import Service, wait_for

README = Path(__file__).parents[1] / "README.md"
PARTS = ("api", "prepare", "worker-0", "sweeper")


def scraped(service: Service) -> str:
    headers = {"Authorization": f"Bearer {service.key}"}
    return httpx.get(f"{service.url}/metrics", headers=headers, trust_env=False, timeout=30).raise_for_status().text


def figures(service: Service) -> dict[str, float]:
    """By name and labels, but for those that name a worker."""
    return {
        " ".join(
            [sample.name, *(value for name, value in sorted(sample.labels.items()) if name not in ("worker", "host"))]
        ): (sample.value)
        for family in text_string_to_metric_families(scraped(service))
        for sample in family.samples
    }


def said(service: Service) -> list[dict[str, Any]]:
    """Every line of the service's own processes, but for what is printed by those that other tests have killed."""
    logs = [service.home / "logs" / f"{part}.log" for part in PARTS]
    return [
        json.loads(line) for log in logs if log.exists() for line in log.read_text().splitlines() if line[:1] == "{"
    ]


@pytest.mark.long
def test_a_job_is_seen_in_figures_lines_and_a_trace(service: Service, collector: Receiver) -> None:
    key = "finetuned_attempts_total train succeeded cpu"
    before = figures(service)
    job_id = service.submit(service.upload(tiny.chat_rows(8)), max_steps=2, batch_size=4)
    assert service.finished(job_id).status == "succeeded"

    # The figures are remembered for some seconds.
    after = wait_for(
        lambda: found if (found := figures(service)).get(key, 0) > before.get(key, 0) else None, 60, every=0.5
    )
    for phase in ("waiting", "loading", "training", "saving", "publishing"):
        name = f"finetuned_phase_seconds_count train {phase} cpu"
        assert after[name] > before.get(name, 0), phase
    assert after["finetuned_device_memory_used_bytes cpu"] > 0

    named = [line for line in said(service) if line.get("job") == job_id]
    begun = [
        line for line in named if line["message"].startswith("attempt 1 at") and line["message"].endswith("begins")
    ]
    assert sorted(line["work"] for line in begun) == ["prepare", "train"]
    assert all(line["attempt"] == 1 for line in begun)
    assert service.key not in json.dumps(said(service))

    wanted = {"submit", "wait", "prepare", "train", "loading", "training", "saving", "publish"}

    def whole() -> list[dict[str, Any]] | None:
        found = spans.of_job(collector, job_id)
        return found if wanted <= {span["name"] for span in found} else None

    trace = wait_for(whole, 60, every=0.5)
    (train,) = [span for span in trace if span["name"] == "train"]
    assert (train["finetuned.outcome"], int(train["parent"], 16)) == ("succeeded", ids_of(job_id).span_id)
    assert {span["name"] for span in trace if span["parent"] == train["id"]} == {
        "loading",
        "training",
        "saving",
        "publish",
    }


def test_what_the_readme_watches_is_there(service: Service) -> None:
    chapter = README.read_text().split("\n### Watching it\n")[1].split("\n### ")[0]
    scrape, alerts = (
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    )
    known = re.findall(r"^# TYPE (\w+) ", scraped(service), re.MULTILINE)

    assert [one["job_name"] for one in scrape["scrape_configs"]] == ["finetuned"]
    assert all({"alert", "expr"} <= set(rule) for group in alerts["groups"] for rule in group["rules"])
    named = re.findall(r"\bfinetuned_\w+", chapter) + [f"finetuned{name}" for name in re.findall(r"`(_\w+)`", chapter)]
    assert len(named) > 20
    assert set(named) <= set(known)
