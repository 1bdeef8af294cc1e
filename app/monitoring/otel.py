"""Spans as OpenTelemetry's SDK sends them; imported only where there is an endpoint. Its own variables configure it."""

import hashlib
import os
import threading

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.monitoring.traces import Span


def ids_of(job_id: str) -> SpanContext:
    """The trace of a job and its first span."""
    digest = hashlib.sha256(job_id.encode()).digest()
    trace_id, span_id = int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class _Ids(RandomIdGenerator):
    """Random ones, but for the first span of a job."""

    def __init__(self) -> None:
        self.given = threading.local()

    def generate_trace_id(self) -> int:
        """Asked for a span without a parent alone."""
        first: SpanContext | None = getattr(self.given, "first", None)
        return first.trace_id if first else super().generate_trace_id()

    def generate_span_id(self) -> int:
        """Asked for each."""
        first: SpanContext | None = getattr(self.given, "first", None)
        return first.span_id if first else super().generate_span_id()


class Otel:
    """One provider for this process, whose thread sends a batch every few seconds."""

    def __init__(self) -> None:
        self._ids = _Ids()
        named = {} if OTEL_SERVICE_NAME in os.environ else {SERVICE_NAME: "finetuned"}
        # Not shut down at the exit, which would wait for an endpoint that hangs.
        self._provider = TracerProvider(resource=Resource.create(named), id_generator=self._ids, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("finetuned")

    def send(self, job_id: str, span: Span, *, is_first: bool = False, caller: str | None = None) -> None:
        """Hand a span and its parts to the thread."""
        ids = ids_of(job_id)
        if not is_first:
            self._write(span, set_span_in_context(NonRecordingSpan(ids), Context()), [])
            return
        self._ids.given.first = ids
        try:
            self._write(span, Context(), _links(caller))
        finally:
            self._ids.given.first = None

    def close(self, seconds: float) -> None:
        """The SDK's own flush waits as long as its exporter tries, and its shutdown half a minute."""
        flushing = threading.Thread(target=self._provider.force_flush, name="last traces", daemon=True)
        flushing.start()
        flushing.join(seconds)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # OpenTelemetry's is untyped

    def _write(self, span: Span, parent: Context, links: list[Link]) -> None:
        written = self._tracer.start_span(
            span.name, parent, attributes=dict(span.attributes), links=links, start_time=_nanoseconds(span.begin)
        )
        for part in span.parts:
            self._write(part, set_span_in_context(written, Context()), [])
        written.end(_nanoseconds(span.end))


def _links(caller: str | None) -> list[Link]:
    """What the caller was at: its trace goes on without the job, which may take days."""
    context = TraceContextTextMapPropagator().extract({"traceparent": caller} if caller else {}, Context())
    found = get_current_span(context).get_span_context()
    return [Link(found)] if found.is_valid else []


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
