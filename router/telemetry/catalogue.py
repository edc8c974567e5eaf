"""All metrics: name, kind, labels, help text. `docs/metrics.md` is generated from this table.

Contains: names and meanings. Does not contain: where the values come from. `metrics` renders the workers' counters
(`counters`). Other parts of the router contribute `Sample`s, for example `cluster.kubernetes.metrics`. A sample whose
name or labels are not in this table is a bug, which the tests find.

Names begin with `azureml_fe_` and use base units (seconds, bytes, cores, ratios). The values of all labels are bounded,
see `LABELS`. A path, a key, a client's address or a name from a request is never a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

PREFIX = "azureml_fe_"


class MetricKind(StrEnum):
    """A metric type of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `name` has neither the prefix nor, for a counter, `_total`."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name in the Prometheus text format."""
        ending = {MetricKind.COUNTER: "_total", MetricKind.INFO: "_info"}.get(self.kind, "")
        return PREFIX + self.name + ending


class Sample(NamedTuple):
    """One value of a counter or gauge; `labels` are in the order of the table."""

    metric: str
    value: float
    labels: tuple[str, ...] = ()


LABELS = {
    "service": "a configured service; empty for requests that matched none",
    "version": "a version of the service; empty for responses sent before a version was chosen",
    "code": "the status sent to the client, or that would have been sent if the client had not left",
    "code_class": "`1xx` to `5xx`",
    "answered_by": "the sender of the response: `replica`, `router`, or `nobody` if the client had left",
    "error": "the value of the header `azureml-fe-error`; empty for a replica's own response",
    "cause": "`connect` (the replica refused the connection) or `stale` (a reused connection had just been closed)",
    "kind": "`queue`, `connect`, `scoring`, `request` (the client sent its request too slowly) or `abandoned` (the "
    "response to an abandoned request)",
    "handling": "`closed` (the connection, and the slot was free), `kept` (the response was awaited, and the slot in "
    "use) or `suspect` (the connection was closed, and the slot used last)",
    "reason": "a fixed set for each metric, listed at the metric",
    "state": "`starting`, `ready` or `draining`",
    "direction": "`up` or `down`; for messages `sent` or `received`",
    "message": "to a ledger `wants` (waiting requests), `return` (leases), `avoid` (excluded replicas) or `hello` "
    "(registration); to a lease cache `welcome` (registered), `sayhello` (must register), `grant`, `recall` or "
    "`revoke`",
    "protocol": "`http1` or `h2`",
    "process": "`supervisor` or `worker` (the sum of all workers)",
    "standing": "status of a peer: `live`, `gone` or `unreachable`",
    "verb": "a verb of the Kubernetes API",
    "resource": "a kind of object of the Kubernetes API",
    "certificate": "`server`, `client-ca`, `peer` or `peer-ca`",
    "issuer": "a configured token issuer, or `router` for the router itself",
    "result": "`hit` or `miss`; `ok` or `failed`",
    "model_namespace": "a namespace with models",
    "holder": "a release of the router: its namespace and name",
    "waiting": "a release of the router: its namespace and name; at most eight",
    "hot_path": "`compiled` or `interpreted`, see design.md",
    "collection": "a collection of a version's `data_collector`: `request`, `response` or the entry script's own",
    "action": "`cpu-up`, `cpu-down`, `pods-up` or `pods-down`",
}
"""The possible values of each label. Each set is bounded."""

_VERSION = ("service", "version")
_COUNTER, _GAUGE, _HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

GROUPS: dict[str, tuple[MetricSpec, ...]] = {
    "Requests": (
        MetricSpec(
            "requests", _COUNTER, "Requests that have ended, by the response to the client.",
            (*_VERSION, "code", "code_class", "answered_by", "error"),
        ),
        MetricSpec(
            "request_duration_seconds", _HISTOGRAM,
            "Time from the end of the request's head to the last byte of the response.", _VERSION,
        ),
        MetricSpec("queue_wait_seconds", _HISTOGRAM, "Time waited for a slot; 0 if one was free.", _VERSION),
        MetricSpec(
            "route_time_seconds", _HISTOGRAM,
            "Latency added by the router: time from the end of the request's head to the first byte sent to the "
            "replica, without the queue wait.", _VERSION,
        ),
        MetricSpec(
            "replica_first_byte_seconds", _HISTOGRAM,
            "Time from the first byte sent to the replica to the first byte of its response.", _VERSION,
        ),
        MetricSpec("request_body_bytes", _COUNTER, "Bytes of request bodies read from clients.", _VERSION),
        MetricSpec("response_body_bytes", _COUNTER, "Bytes of response bodies sent to clients.", _VERSION),
        MetricSpec("requests_in_flight", _GAUGE, "Requests of this pod at replicas now, without abandoned ones.",
                   _VERSION),
        MetricSpec("abandoned_requests", _GAUGE, "Abandoned requests of this pod whose response is awaited now, as "
                   "their replica works on them all the same.", _VERSION),
        MetricSpec("abandonments", _COUNTER, "Requests that were abandoned at their replica, as their client left or "
                   "got 504.", (*_VERSION, "handling")),
        MetricSpec("requests_queued", _GAUGE, "Requests of this pod that wait for a slot now.", _VERSION),
        MetricSpec("retries", _COUNTER, "Retries of requests.", (*_VERSION, "cause")),
        MetricSpec("timeouts", _COUNTER, "Timeouts that were reached.", (*_VERSION, "kind")),
        MetricSpec("client_aborts", _COUNTER, "Requests whose client left before the response was complete.", _VERSION),
        MetricSpec("requests_by_protocol", _COUNTER, "Requests whose version was chosen, by the client's protocol.",
                   (*_VERSION, "protocol")),
        MetricSpec(
            "auth_failures", _COUNTER, "Requests without a valid key or token. Reasons: `missing` (neither key nor "
            "token); for keys `invalid`; for tokens `malformed`, `unknown-issuer`, `unknown-key`, `no-keys`, "
            "`wrong-algorithm`, `wrong-signature`, `wrong-audience`, `expired`, `not-yet-valid` or `missing-claim`.",
            ("service", "reason"),
        ),
    ),
    "Connections": (
        MetricSpec("client_connections", _COUNTER, "Client connections accepted."),
        MetricSpec("client_connections_open", _GAUGE, "Client connections open now."),
        MetricSpec("client_connections_refused", _COUNTER, "Client connections refused at a limit."),
        MetricSpec("client_connections_evicted", _COUNTER, "Idle client connections closed at a limit, for new ones."),
        MetricSpec("client_connections_retired", _COUNTER, "Client connections closed with a response because of their "
                   "age, their number of requests, or less load at other pods."),
        MetricSpec("http2_connections", _COUNTER, "Client connections accepted that use HTTP/2."),
        MetricSpec("http2_connections_open", _GAUGE, "Client connections open now that use HTTP/2."),
        MetricSpec("http2_floods", _COUNTER, "HTTP/2 connections closed because of a flood: streams reset again and "
                   "again, frames that are no requests, header blocks without end, or no memory for what waits."),
        MetricSpec("tls_handshakes", _COUNTER, "Completed TLS handshakes with clients."),
        MetricSpec("tls_sessions_resumed", _COUNTER, "TLS handshakes that resumed a session."),
        MetricSpec("tls_handshake_failures", _COUNTER, "TLS handshakes with clients that failed."),
        MetricSpec("accept_pauses", _COUNTER, "Times that a worker paused accepting clients because it ran out "
                   "of file descriptors."),
        MetricSpec("buffered_bytes", _GAUGE, "Bytes of bodies that workers hold for slow clients now; the limit per "
                   "worker is `buffer_budget_bytes`."),
        MetricSpec("buffer_budget_exceeded", _COUNTER, "Times that `buffer_budget_bytes` had no room for a body, which "
                   "was then streamed."),
        MetricSpec("parse_errors", _COUNTER, "Client connections closed because of malformed HTTP."),
        MetricSpec(
            "replica_connect_seconds", _HISTOGRAM, "Time to open a connection to a replica; the count is the number "
            "of opened connections, without those reused from the pool.", _VERSION,
        ),
        MetricSpec(
            "replica_connect_failures", _COUNTER, "Connections to replicas that could not be opened. Reasons: "
            "`refused`, `timeout` or `other`.", (*_VERSION, "reason"),
        ),
        MetricSpec(
            "replica_failures", _COUNTER, "Attempts that a replica failed after the connection was open: `closed`, "
            "`invalid`, `timeout`, or `unavailable` (it responded with 502, 503 or 504).", (*_VERSION, "reason"),
        ),
        MetricSpec(
            "replica_ejections", _COUNTER, "Ejections of replicas by workers of this pod, see operations.md: for "
            "`failures` in a row, or for the `rate` of failures.", (*_VERSION, "reason"),
        ),
        MetricSpec(
            "replicas_ejected", _GAUGE, "Replicas that a worker of this pod has ejected now; absent for versions "
            "without a failure so far.", _VERSION,
        ),
        MetricSpec("replica_connections_idle", _GAUGE, "Idle connections to replicas in the pools now."),
    ),
    "Slots": (
        MetricSpec("slots", _GAUGE, "Requests that the ready replicas may have in flight; absent if not limited.",
                   _VERSION),
        MetricSpec("slots_in_use", _GAUGE, "Slots in use by a request of this pod now, abandoned ones included.",
                   _VERSION),
        MetricSpec("suspect_slots", _GAUGE, "Slots that are used last now, as an abandoned request may be running "
                   "there; in the pod that owns the service.", _VERSION),
        MetricSpec("leases_idle", _GAUGE, "Slots granted to a worker of this pod and not in use now.",
                   _VERSION),
        MetricSpec("slot_messages", _COUNTER, "Messages between the ledgers of this pod and the lease caches "
                   "of all pods: grants, recalls, revocations, demands, returns and others.", ("message",)),
        MetricSpec("slot_leaks_repaired", _COUNTER, "Leases that a ledger and a worker recorded differently, and "
                   "that were repaired; should always be 0."),
        MetricSpec("degraded_services", _GAUGE, "Services of which this pod grants only a part of the slots, because "
                   "an unreachable pod may be running."),
    ),
    "Replicas and scaling": (
        MetricSpec("replicas", _GAUGE, "Replicas by state.", (*_VERSION, "state")),
        MetricSpec("replicas_desired", _GAUGE, "Replicas desired by the autoscaler.", _VERSION),
        MetricSpec("utilization_ratio", _GAUGE, "Requests in flight, abandoned and queued per slot, as used for "
                   "scaling.", _VERSION),
        MetricSpec("utilization_target_ratio", _GAUGE, "The target of `utilization_ratio`.", _VERSION),
        MetricSpec(
            "scaling_decisions", _COUNTER, "Changes of the desired number of replicas. Reasons: `demand`, `window` "
            "(the demand of the recent past), `minimum`, `maximum`, `fixed` (not autoscaled) or `silence` (no "
            "reports).", (*_VERSION, "direction", "reason"),
        ),
        MetricSpec("autoscaler_conflicts", _GAUGE, "1 while another controller also scales this Deployment; the "
                   "router then does not scale it.", _VERSION),
    ),
    "The router's processes": (
        MetricSpec("build", MetricKind.INFO, "Release of the router; whether its hot path is compiled.",
                   ("version", "hot_path")),
        MetricSpec("workers", _GAUGE, "Worker processes that serve clients."),
        MetricSpec("workers_stuck", _GAUGE, "Worker processes that do not report (they normally report several "
                   "times a second). Other workers accept clients in their place. A worker that has not reported for "
                   "30 s is killed."),
        MetricSpec("worker_restarts", _COUNTER, "Workers that ended unexpectedly."),
        MetricSpec("worker_cpu_seconds", _COUNTER, "CPU time of all workers, including those that have ended."),
        MetricSpec("worker_resident_memory_bytes", _GAUGE, "Resident memory of all workers."),
        MetricSpec("cpu_quota_cores", _GAUGE, "CPU that this pod may use."),
        MetricSpec("event_loop_lag_seconds", _HISTOGRAM, "Lag of the event loops, sampled several times a second.",
                   ("process",)),
        MetricSpec("access_log_lines_dropped", _COUNTER, "Access log lines that could not be written."),
        MetricSpec("log_lines_dropped", _COUNTER, "Lines of the application log that could not be written."),
        MetricSpec("spans_dropped", _COUNTER, "Requests whose spans could not be exported (`traces`)."),
        MetricSpec("app_insights_requests_dropped", _COUNTER, "Requests of versions with `enable_app_insights` that "
                   "were not sent to Application Insights."),
        MetricSpec("metrics_pushes", _COUNTER, "Pushes of metrics (`metrics_push`). One that must wait for the "
                   "last one is left out, and counts as `failed`.", ("result",)),
        MetricSpec("config_errors", _COUNTER, "Settings that were rejected."),
        MetricSpec("config_last_reload_success", _GAUGE, "1 if the latest settings are in effect."),
        MetricSpec("dynamic_config_unreadable_seconds", _GAUGE, "Time since the source of the dynamic configuration "
                   "cannot be read; 0 while it can, absent without a dynamic configuration."),
    ),
    "Pods of the router": (
        MetricSpec("peers", _GAUGE, "Other router pods by status.", ("standing",)),
        MetricSpec("peers_unencrypted", _GAUGE, "Other router pods linked without TLS."),
        MetricSpec("leader", _GAUGE, "1 in the pod that scales the models."),
        MetricSpec("observing", _GAUGE, "1 if the router only observes (`mode: observe`)."),
        MetricSpec("service_owned", _GAUGE, "1 in the pod whose ledger grants the slots of the service.",
                   ("service",)),
        MetricSpec("peer_messages", _COUNTER, "Messages about slots with other pods.", ("direction",)),
        MetricSpec("peer_refusals", _COUNTER, "Connections of other pods that were refused or closed on an error. "
                   "Reasons: `garbage`, `oversized`, `secret`, `forged`, `version`, `stale`, `same-id`, `timeout`, "
                   "`crowded`, `tls`, `unencrypted` or `refused`.", ("reason",)),
    ),
    "Sizing of the router itself": (
        MetricSpec("self_scaling_cpu_cores", _GAUGE, "CPUs (locally: workers) of each pod, as set by the self-scaler."),
        MetricSpec("self_scaling_pods", _GAUGE, "Router pods, as set by the self-scaler."),
        MetricSpec("self_scaling_at_limit", _GAUGE, "1 while the router is too slow but has its maximum size."),
        MetricSpec("self_scaling_actions", _COUNTER, "Actions of the self-scaler.", ("action",)),
        MetricSpec("self_scaling_cpu_use_ratio", _GAUGE, "Share of the CPU in use, as measured by the self-scaler."),
        MetricSpec("self_scaling_throttled_ratio", _GAUGE, "Share of the periods of the CPU quota in which router pods "
                   "were throttled, as measured by the self-scaler."),
        MetricSpec("self_scaling_route_time_seconds", _GAUGE, "Percentile of the route time, as measured by the "
                   "self-scaler."),
        MetricSpec("self_scaling_loop_lag_seconds", _GAUGE, "Percentile of the lag of the event loops, as measured by "
                   "the self-scaler."),
    ),
    "Kubernetes API": (
        MetricSpec("api_requests", _COUNTER, "Requests to the API server.", ("verb", "code")),
        MetricSpec("api_watch_restarts", _COUNTER, "Watches that were restarted.", ("resource",)),
        MetricSpec("api_staleness_seconds", _GAUGE, "Time since the last data from the API server, 0 while "
                   "its watch is established; of `leases` also the time for which the Lease cannot be written.",
                   ("resource",)),
        MetricSpec("release_conflicts", _GAUGE, "1 for each namespace that two releases of the router are configured "
                   "for. The holder serves and scales its models, the waiting one does neither.",
                   ("model_namespace", "holder", "waiting")),
        MetricSpec("deployment_problems", _GAUGE, "Deployments with rejected annotations, name, version or keys, or "
                   "whose pods cannot start. Their Events have details. Reasons: `SettingsRefused`, `ReplicasRefused`, "
                   "`ServiceNameRefused`, `ServiceNameTaken`, `ServiceNameUnclaimed`, `VersionTaken`, `KeysRefused` or "
                   "`PodsCannotStart`.",
                   ("reason",)),
    ),
    "Data collection": (
        MetricSpec("collection_events", _COUNTER, "Events of data collection that were stored.",
                   (*_VERSION, "collection")),
        MetricSpec("collection_bytes", _COUNTER, "Bytes that were stored, with bodies of their own.",
                   (*_VERSION, "collection")),
        MetricSpec("collection_dropped", _COUNTER, "Events that were not stored. Reasons: `worker-buffer` (the "
                   "collector took them too slowly, or the path and captured headers are longer than 60 kB), `buffer` "
                   "(`collection_buffer_bytes`), `folder-full`, `shutdown`, `worker-ended` or "
                   "`collector-ended` (they ended unexpectedly).",
                   (*_VERSION, "reason")),
        MetricSpec("collection_truncated", _COUNTER, "Events that were stored without their body, as there was no room "
                   "for it.", (*_VERSION, "collection")),
        MetricSpec("collection_lag_seconds", _GAUGE, "Age of the oldest event that is not stored yet."),
        MetricSpec("collection_buffered_bytes", _GAUGE, "Memory of the collector for data that is not stored yet."),
        MetricSpec("collection_storage_failures", _COUNTER, "Writes that failed and are repeated. Reasons: "
                   "`unreachable`, `throttled`, `timeout`, `missing` (the container), `denied` or `failed`.",
                   ("reason",)),
        MetricSpec("collector_restarts", _COUNTER, "Collector processes that ended unexpectedly."),
    ),
    "Certificates and tokens": (
        MetricSpec("certificate_expiry_timestamp_seconds", _GAUGE, "When a certificate in use expires, seconds since "
                   "the epoch.", ("certificate",)),
        MetricSpec("certificate_errors", _COUNTER, "New certificates that were rejected.", ("certificate",)),
        MetricSpec("certificate_last_reload_success", _GAUGE, "1 if the certificate in the files is in use.",
                   ("certificate",)),
        MetricSpec("token_cache_lookups", _COUNTER, "Lookups of tokens in the workers' caches.", ("result",)),
        MetricSpec("token_cache_entries", _GAUGE, "Tokens in the workers' caches."),
        MetricSpec("jwks_keys", _GAUGE, "Keys of an issuer that tokens are verified with; 0 if none are known or "
                   "all are too old.", ("issuer",)),
        MetricSpec("jwks_age_seconds", _GAUGE, "Time since an issuer's keys were last fetched.", ("issuer",)),
        MetricSpec("jwks_fetches", _COUNTER, "Fetches of issuers' keys.", ("issuer", "result")),
    ),
}  # fmt: skip
"""All metrics by the headings of docs/metrics.md. prometheus-client adds `process_*` of the supervisor's process."""

METRICS: dict[str, MetricSpec] = {spec.name: spec for group in GROUPS.values() for spec in group}


def validate_sample(sample: Sample) -> Sample:
    """Return `sample`. Raises ValueError if its name or labels do not match the table."""
    spec = METRICS.get(sample.metric)
    if spec is None:
        raise ValueError(f"there is no metric {sample.metric}")
    if len(sample.labels) != len(spec.labels) or spec.kind not in (MetricKind.COUNTER, MetricKind.GAUGE):
        raise ValueError(f"{sample.metric} is a {spec.kind} with labels {spec.labels}, not {sample.labels}")
    return sample
