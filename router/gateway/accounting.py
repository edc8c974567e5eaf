"""What remains of an exchange after its end: counters, journal, trace and access log."""

from __future__ import annotations

from router.gateway.context import GatewayContext
from router.gateway.request import Request
from router.telemetry.counters import NO_VERSION
from router.telemetry.tracing import TracedRequest, Tracer


def record(context: GatewayContext, request: Request, now: float) -> None:
    """Count and log a request whose exchange has ended at `now`."""
    version = request.version
    if version is not None:
        counters = version.counters
        counters.responses[request.status, request.error_code] += 1
        counters.duration.observe(now - request.started_at)
        queued = request.queued_seconds
        if queued or request.error_code or request.retries or not request.sent_at:
            counters.queue_wait.observe(queued)
            context.journal.notable.append(request.journal_entry(now))
        else:
            counters.queue_wait.counts[0] += 1
            journal = context.journal
            if journal.budget:
                journal.budget -= 1
                journal.routine.append(request.journal_entry(now))
        counters.request_bytes += request.body_bytes
        counters.response_bytes += request.response_bytes
    else:
        _record_unrouted(context, request, now)
    if context.tracer is not None:
        _trace(context.tracer, request, now)
    log = context.access_log
    if log.rate and log.should_log():
        log.add(request.access_record(now, context.wall_clock()))


def _trace(tracer: Tracer, request: Request, now: float) -> None:
    service, version = request.service, request.version
    if service is None:  # any client can cause such requests
        return
    trace = request.trace
    if trace is None and not request.sent_at:  # it was not sent to a replica
        uses_app_insights = service.uses_app_insights if version is None else version.settings.enable_app_insights
        trace = tracer.context_for(request.captured.get(b"traceparent"), app_insights=uses_app_insights)
    if trace is not None and (trace.sampled or trace.app_insights):
        tracer.record(TracedRequest(trace, request.method.decode(), request.journal_entry(now)))


def _record_unrouted(context: GatewayContext, request: Request, now: float) -> None:
    """Count a request that got a response before a version was chosen."""
    if request.service is not None:
        key = (request.service.name, NO_VERSION)
        context.counters.version(key).count_response(request.status, request.error_code)
    else:
        context.counters.responses[request.status, request.error_code] += 1
    if request.error_code:  # without one: probes of load balancers and preflights of browsers
        context.journal.unrouted.append(request.journal_entry(now))
