"""What a collector got of OpenTelemetry's protocol."""

from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.monitoring.otel import ids_of
from tests.receiver import Receiver


def of_job(collector: Receiver, job_id: str) -> list[dict[str, Any]]:
    """The spans of a job's trace, the earliest first: `name`, `id`, `parent`, `begin`, `end` and attributes by name."""
    found = []
    for received in list(collector.received):
        request = ExportTraceServiceRequest()
        request.ParseFromString(received.body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                found += [span for span in scope.spans if int.from_bytes(span.trace_id) == ids_of(job_id).trace_id]
    return [
        {
            "name": span.name,
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "begin": span.start_time_unix_nano / 1e9,
            "end": span.end_time_unix_nano / 1e9,
            "links": [link.trace_id.hex() for link in span.links],
            **{one.key: next(iter(MessageToDict(one.value).values())) for one in span.attributes},
        }
        for span in sorted(found, key=lambda span: span.start_time_unix_nano)
    ]
