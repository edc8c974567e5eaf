"""The names of all metrics: kind, labels, help text. `docs/metrics.md` is made from this table.

Lives here: what a metric is called and means. Must not live here: where its numbers come from (`metrics` for the data
plane's counts, a `Sample` of whichever part knows for the rest). A part that has something to tell returns samples;
one whose name or labels are not in this table is a fault of the program, found by its tests.

Names begin with `azureml_fe_` and use base units (seconds, bytes, cores, ratios). Labels are bounded: `LABELS` says by
what. A path, a key, a client's address or a name that a client asks for is never one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

PREFIX = "azureml_fe_"


class Kind(StrEnum):
    """What a metric's numbers are, in the words of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `name` is without the prefix, and for a counter without `_total`."""

    name: str
    kind: Kind
    about: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus knows it."""
        ending = {Kind.COUNTER: "_total", Kind.INFO: "_info"}.get(self.kind, "")
        return PREFIX + self.name + ending


class Sample(NamedTuple):
    """What a part of the router tells of one counter or gauge: `labels` in the order of the table."""

    metric: str
    value: float
    labels: tuple[str, ...] = ()


LABELS = {
    "service": "a service that is configured; empty for requests that matched none",
    "version": "a version of that service; empty where a request was answered before a version was chosen",
    "code": "the status that the client got, or would have got",
    "code_class": "`1xx` to `5xx`",
    "answered_by": "`replica`, `router`, or `nobody` where the client had left",
    "error": "the slug of the header `azureml-fe-error`; empty for a replica's own answer",
    "cause": "`connect` (the replica refused the connection) or `stale` (a kept connection had just been closed)",
    "kind": "`queue`, `connect`, `scoring` or `request` (a client too slow with its request)",
    "reason": "one of a few constants of the metric at hand",
    "state": "`starting`, `ready` or `draining`",
    "direction": "`up` or `down`; of messages `sent` or `received`",
    "message": "the words of holders and ledgers, see architecture.md",
    "process": "`supervisor` or `worker` (all workers together)",
    "standing": "`live`, `gone` or `unreachable`",
    "verb": "a verb of the Kubernetes API",
    "resource": "a kind of object of the Kubernetes API",
    "certificate": "`server`, `client-ca`, `peer` or `peer-ca`",
    "issuer": "a token issuer that is configured, or `router` itself",
    "result": "`hit` or `miss`; `ok` or `failed`",
    "hot_path": "`compiled` or `interpreted`, see architecture.md",
    "action": "`cpu-up`, `cpu-down`, `pods-up` or `pods-down`",
}
"""What each label's values are, and so how many there can be."""

_VERSION = ("service", "version")
_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

GROUPS: dict[str, tuple[MetricSpec, ...]] = {
    "Requests": (
        MetricSpec(
            "requests", _COUNTER, "Requests that have ended, by what the client got.",
            (*_VERSION, "code", "code_class", "answered_by", "error"),
        ),
        MetricSpec("request_duration_seconds", _HISTOGRAM, "Head read to last byte of the answer.", _VERSION),
        MetricSpec("queue_wait_seconds", _HISTOGRAM, "Time waited for a slot, 0 when one was free.", _VERSION),
        MetricSpec(
            "route_time_seconds", _HISTOGRAM,
            "What the router adds: head read to first byte sent to the replica, less the queue wait.", _VERSION,
        ),
        MetricSpec(
            "replica_first_byte_seconds", _HISTOGRAM,
            "First byte sent to the replica to first byte of its answer.", _VERSION,
        ),
        MetricSpec("request_body_bytes", _COUNTER, "Bytes of request bodies read from clients.", _VERSION),
        MetricSpec("response_body_bytes", _COUNTER, "Bytes of answer bodies sent to clients.", _VERSION),
        MetricSpec("requests_in_flight", _GAUGE, "Requests at replicas now, of this pod.", _VERSION),
        MetricSpec("requests_queued", _GAUGE, "Requests that wait for a slot now, in this pod.", _VERSION),
        MetricSpec("retries", _COUNTER, "Requests sent once more.", (*_VERSION, "cause")),
        MetricSpec("timeouts", _COUNTER, "Limits of time that were reached.", (*_VERSION, "kind")),
        MetricSpec("client_aborts", _COUNTER, "Requests whose client left before the end.", _VERSION),
        MetricSpec(
            "auth_failures", _COUNTER, "Requests without a valid key or token.", ("service", "reason")
        ),
    ),
    "Connections": (
        MetricSpec("client_connections", _COUNTER, "Client connections accepted."),
        MetricSpec("client_connections_open", _GAUGE, "Client connections open now."),
        MetricSpec("client_connections_refused", _COUNTER, "Client connections refused at a limit."),
        MetricSpec("tls_handshakes", _COUNTER, "TLS hand-shakes with clients that were completed."),
        MetricSpec("tls_sessions_resumed", _COUNTER, "TLS hand-shakes that resumed a session."),
        MetricSpec("tls_handshake_failures", _COUNTER, "TLS hand-shakes with clients that came to nothing."),
        MetricSpec("accept_pauses", _COUNTER, "Times that a worker stopped accepting clients for want of file "
                   "descriptors."),
        MetricSpec("parse_errors", _COUNTER, "Client connections closed over malformed HTTP."),
        MetricSpec(
            "replica_connect_seconds", _HISTOGRAM, "Time to open a connection to a replica; its count is how many "
            "were opened, as opposed to taken from the pool.", _VERSION,
        ),
        MetricSpec(
            "replica_connect_failures", _COUNTER, "Connections to replicas that could not be opened: `refused`, "
            "`timeout` or `other`.", (*_VERSION, "reason"),
        ),
        MetricSpec("replica_connections_idle", _GAUGE, "Connections to replicas that rest in pools now."),
    ),
    "Slots": (
        MetricSpec("slots", _GAUGE, "Requests that ready replicas may have in flight; absent when not limited.",
                   _VERSION),
        MetricSpec("slots_in_use", _GAUGE, "Slots that carry a request of this pod now.", _VERSION),
        MetricSpec("leases_idle", _GAUGE, "Slots granted to a worker of this pod that carry no request now.",
                   _VERSION),
        MetricSpec("slot_messages", _COUNTER, "Messages between this pod's ledgers and the holders of all pods: "
                   "grants, recalls, revocations, wants, returns and the rest.", ("message",)),
        MetricSpec("slot_leaks_repaired", _COUNTER, "Slots found out of step and repaired; must stay 0."),
        MetricSpec("degraded_services", _GAUGE, "Services of whose replicas only a fair share is granted, as pods "
                   "that may live cannot be reached."),
    ),
    "Replicas and scaling": (
        MetricSpec("replicas", _GAUGE, "Replicas by state.", (*_VERSION, "state")),
        MetricSpec("replicas_desired", _GAUGE, "Replicas that the autoscaler wants.", _VERSION),
        MetricSpec("utilization_ratio", _GAUGE, "In flight and queued per slot, as scaling sees it.", _VERSION),
        MetricSpec("utilization_target_ratio", _GAUGE, "The target of that ratio.", _VERSION),
        MetricSpec(
            "scaling_decisions", _COUNTER, "Changes of the wanted number of replicas; the reason is what bounded it: "
            "`demand`, `window` (needed a while ago), `minimum`, `maximum`, `fixed` (not autoscaled) or `silence` "
            "(nobody reported).", (*_VERSION, "direction", "reason"),
        ),
        MetricSpec("autoscaler_conflicts", _GAUGE, "1 where something else also scales this Deployment, which is "
                   "then left alone.", _VERSION),
    ),
    "The router's processes": (
        MetricSpec("build", Kind.INFO, "Release of the router, and how its hot path runs.", ("version", "hot_path")),
        MetricSpec("workers", _GAUGE, "Worker processes that serve clients."),
        MetricSpec("workers_stuck", _GAUGE, "Worker processes that say nothing, though they report several times a "
                   "second: others accept clients in their place, and after 30 s they are killed."),
        MetricSpec("worker_restarts", _COUNTER, "Workers that ended unasked."),
        MetricSpec("worker_cpu_seconds", _COUNTER, "CPU time of all workers there were."),
        MetricSpec("worker_resident_memory_bytes", _GAUGE, "Resident memory of all workers together."),
        MetricSpec("cpu_quota_cores", _GAUGE, "CPU that this pod may use."),
        MetricSpec("event_loop_lag_seconds", _HISTOGRAM, "How late the event loops were, sampled several times a "
                   "second.", ("process",)),
        MetricSpec("access_log_lines_dropped", _COUNTER, "Lines the access log could not write."),
        MetricSpec("spans_dropped", _COUNTER, "Spans of traces that could not be exported."),
        MetricSpec("config_errors", _COUNTER, "Settings that were refused."),
        MetricSpec("config_last_reload_success", _GAUGE, "1 when the latest settings are in force."),
    ),
    "Pods of the router": (
        MetricSpec("peers", _GAUGE, "Other router pods, by what is known of them.", ("standing",)),
        MetricSpec("peers_unencrypted", _GAUGE, "Other router pods that are linked without TLS."),
        MetricSpec("leader", _GAUGE, "1 in the pod whose control loop scales."),
        MetricSpec("service_owned", _GAUGE, "1 in the pod whose ledger grants the slots of this service.",
                   ("service",)),
        MetricSpec("peer_messages", _COUNTER, "Messages about slots with other pods.", ("direction",)),
        MetricSpec("peer_refusals", _COUNTER, "Connections of pods that were refused or broken off.", ("reason",)),
    ),
    "Sizing of the router itself": (
        MetricSpec("self_scaling_cpu_cores", _GAUGE, "CPUs (locally: workers) of each pod, as sized."),
        MetricSpec("self_scaling_pods", _GAUGE, "Router pods, as sized."),
        MetricSpec("self_scaling_at_limit", _GAUGE, "1 while the router is too slow and may not grow."),
        MetricSpec("self_scaling_actions", _COUNTER, "What the self-scaler did.", ("action",)),
        MetricSpec("self_scaling_cpu_use_ratio", _GAUGE, "CPU in use of what there is, as the self-scaler sees it."),
        MetricSpec("self_scaling_route_time_seconds", _GAUGE, "The percentile of the route time that the self-scaler "
                   "compares with its threshold."),
        MetricSpec("self_scaling_loop_lag_seconds", _GAUGE, "The same of the event loops' lag."),
    ),
    "Kubernetes API": (
        MetricSpec("api_requests", _COUNTER, "Requests to the API server.", ("verb", "code")),
        MetricSpec("api_watch_restarts", _COUNTER, "Watches that had to begin anew.", ("resource",)),
        MetricSpec("api_staleness_seconds", _GAUGE, "Time since the API server was last heard of.", ("resource",)),
        MetricSpec("deployment_problems", _GAUGE, "Deployments whose annotations, name, version or keys are refused; "
                   "Events of theirs say what is wrong.", ("reason",)),
    ),
    "Certificates and tokens": (
        MetricSpec("certificate_expiry_timestamp_seconds", _GAUGE, "When a certificate in use expires, seconds since "
                   "the epoch.", ("certificate",)),
        MetricSpec("certificate_errors", _COUNTER, "New certificates that were refused.", ("certificate",)),
        MetricSpec("certificate_last_reload_success", _GAUGE, "1 when the certificate in the files is in force.",
                   ("certificate",)),
        MetricSpec("token_cache_lookups", _COUNTER, "Tokens that were, or were not, checked before.", ("result",)),
        MetricSpec("token_cache_entries", _GAUGE, "Checked tokens that workers remember."),
        MetricSpec("jwks_keys", _GAUGE, "Keys of an issuer that its tokens are checked against; 0 where none are "
                   "known, or only ones that are too old.", ("issuer",)),
        MetricSpec("jwks_age_seconds", _GAUGE, "Time since an issuer's keys were last fetched.", ("issuer",)),
        MetricSpec("jwks_fetches", _COUNTER, "Fetches of issuers' keys.", ("issuer", "result")),
    ),
}  # fmt: skip
"""All metrics, as docs/metrics.md shows them. `process_*` of the supervisor's process come from prometheus-client."""

METRICS: dict[str, MetricSpec] = {spec.name: spec for group in GROUPS.values() for spec in group}


def checked(sample: Sample) -> Sample:
    """The sample itself. Raises `ValueError` for one that the table does not know, or knows otherwise."""
    spec = METRICS.get(sample.metric)
    if spec is None:
        raise ValueError(f"there is no metric {sample.metric}")
    if len(sample.labels) != len(spec.labels) or spec.kind not in (Kind.COUNTER, Kind.GAUGE):
        raise ValueError(f"{sample.metric} is a {spec.kind} with labels {spec.labels}, not {sample.labels}")
    return sample
