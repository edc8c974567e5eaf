"""The table of every setting of a service and of a version: name, kind, unit, default, limits, meaning.

Lives here: facts only. Must not live here: rules that relate two settings (`services`), parsing (`values`).

Names, units, defaults and limits are those of Azure ML's `AksWebservice` and `AksEndpoint`; what goes beyond them is
marked "Extension.". Where the SDK says "> 0" of a whole number, the minimum is 1.
"""

from collections.abc import Mapping

from router.values import Kind, Scope, Setting, settings_of

_ORIGIN = r"\*|[a-z][a-z0-9+.-]*://[^\s/,A-Z*]+"
_KEY = r"[\x21-\x7e]{1,256}"
_KEY_MEANS = "1 to 256 visible ASCII characters without spaces"

_service = settings_of(Scope.SERVICE)

_version = settings_of(Scope.VERSION)

SERVICE_SETTINGS: tuple[Setting, ...] = (
    _service(
        "auth_enabled",
        Kind.BOOL,
        "Clients must send one of the service's keys; excludes token_auth_enabled.",
        default=True,
        default_means="true unless token_auth_enabled",
    ),
    _service("token_auth_enabled", Kind.BOOL, "Clients must send a token; excludes auth_enabled.", default=False),
    _service(
        "primary_key",
        Kind.TEXT,
        "First of two keys that are equally valid, so that one can be replaced while the other is in use.",
        default_means="generated",
        pattern=_KEY,
        pattern_means=_KEY_MEANS,
        secret=True,
    ),
    _service(
        "secondary_key",
        Kind.TEXT,
        "Second of the two keys.",
        default_means="generated",
        pattern=_KEY,
        pattern_means=_KEY_MEANS,
        secret=True,
    ),
    _service(
        "forward_authorization",
        Kind.BOOL,
        "Extension. The replica receives the client's Authorization header, which is dropped otherwise.",
        default=False,
    ),
    _service(
        "keep_underscore_headers",
        Kind.BOOL,
        "Extension. Headers with '_' in their name reach the replica; dropped otherwise, as WSGI and ASGI servers "
        "cannot tell X_Auth from X-Auth.",
        default=False,
    ),
    _service(
        "cors_allowed_origins",
        Kind.LIST,
        "Extension. Browser origins to which the router answers a CORS preflight, or '*' alone for all; in one text, "
        "commas separate them.",
        default=(),
        pattern=_ORIGIN,
        pattern_means="origins such as https://example.com (lower case, no path), or '*' alone",
    ),
)

VERSION_SETTINGS: tuple[Setting, ...] = (
    _version(
        "autoscale_enabled",
        Kind.BOOL,
        "The number of replicas follows the load; otherwise it is num_replicas.",
        default=True,
        default_means="true unless num_replicas",
    ),
    _version(
        "autoscale_min_replicas",
        Kind.INT,
        "Fewest replicas. Extension: with 0 the first request waits in the queue while a replica starts.",
        unit="replicas",
        default=1,
    ),
    _version("autoscale_max_replicas", Kind.INT, "Most replicas.", unit="replicas", default=10, minimum=1),
    _version(
        "autoscale_refresh_seconds",
        Kind.FLOAT,
        "Time between two decisions of the autoscaler.",
        unit="s",
        default=1.0,
        above=0,
    ),
    _version(
        "autoscale_target_utilization",
        Kind.INT,
        "Share of the slots that the autoscaler keeps busy.",
        unit="percent",
        default=70,
        minimum=1,
        maximum=100,
    ),
    _version(
        "autoscale_scale_down_seconds",
        Kind.FLOAT,
        "Extension. Replicas are removed only down to the highest need within this time.",
        unit="s",
        default=60.0,
        above=0,
    ),
    _version("num_replicas", Kind.INT, "Fixed number of replicas; no autoscaling.", unit="replicas", minimum=1),
    _version(
        "replica_max_concurrent_requests",
        Kind.INT,
        "Requests that one replica handles at a time. Extension: 0 means no limit.",
        unit="requests",
        default=1,
    ),
    _version(
        "max_request_wait_time",
        Kind.INT,
        "Longest wait for a free replica, then 503.",
        unit="ms",
        default=500,
        minimum=1,
    ),
    _version(
        "max_queue_length",
        Kind.INT,
        "Extension. Requests that may wait for a free replica; one more is answered 503 at once.",
        unit="requests",
        default=1000,
    ),
    _version(
        "scoring_timeout_ms",
        Kind.INT,
        "Longest time a replica may take to answer, then 504.",
        unit="ms",
        default=60_000,
        minimum=1,
        maximum=300_000,
    ),
    _version("cpu_cores", Kind.FLOAT, "CPU that a replica requests.", unit="cores", default=0.1, above=0),
    _version("cpu_cores_limit", Kind.FLOAT, "CPU that a replica may use at most.", unit="cores", above=0),
    _version("memory_gb", Kind.FLOAT, "Memory that a replica requests.", unit="GB", default=0.5, above=0),
    _version("memory_gb_limit", Kind.FLOAT, "Memory that a replica may use at most.", unit="GB", above=0),
    _version("gpu_cores", Kind.INT, "GPUs of a replica.", unit="GPUs", default=0),
    _version("period_seconds", Kind.INT, "Time between two liveness probes.", unit="s", default=10, minimum=1),
    _version(
        "initial_delay_seconds",
        Kind.INT,
        "Time from a replica's start to its first liveness probe.",
        unit="s",
        default=310,
        minimum=1,
    ),
    _version("timeout_seconds", Kind.INT, "Longest answer to a liveness probe.", unit="s", default=2, minimum=1),
    _version(
        "success_threshold",
        Kind.INT,
        "Probes that must succeed in a row after a failure.",
        unit="probes",
        default=1,
        minimum=1,
    ),
    _version(
        "failure_threshold",
        Kind.INT,
        "Probes that fail in a row before a replica is replaced.",
        unit="probes",
        default=3,
        minimum=1,
    ),
    _version(
        "traffic_percentile",
        Kind.INT,
        "Share of the traffic; the default version gets what the others leave.",
        unit="percent",
        default=0,
        maximum=100,
    ),
    _version(
        "is_default",
        Kind.BOOL,
        "Makes this version the default one.",
        default=False,
        default_means="true for the first version",
    ),
)

COMPATIBLE_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "v1": {},
    "v2": {"autoscale_max_replicas": 1, "scoring_timeout_ms": 5_000},
}
"""By the router's `compatibility`: defaults other than those of the table."""
