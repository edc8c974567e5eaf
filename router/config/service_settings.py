"""The declarations of the settings of a service and of a version: name, kind, unit, default, limits, description.

`model.services` has a field for each setting, with the type that its kind implies. `model` must not import `config`, so
a test compares the two (`tests/config/test_service.py`). Does not contain: rules between two settings
(`config.service`).

Names, units, defaults and limits are those of Azure ML's `AksWebservice` and `AksEndpoint`; settings beyond them are
marked "Extension.". `readiness_*` are those of the second SDK's `readiness_probe`; the first SDK has none, so their
defaults are those of its liveness probe, without a delay. Where the SDK says "> 0" of a whole number, the minimum is 1.
"""

from collections.abc import Mapping

from router.config.data_collector import parse_data_collector
from router.config.schema import Setting, SettingKind

CANCELLATIONS = ("on_close", "none", "unknown")
"""The values of `cancellation`."""
HALF_CLOSES = ("cancel", "deliver")
"""The values of `half_close`."""

OBJECTIVES = ("latency", "cost")
"""The values of `autoscale_objective`."""

_ORIGIN = r"\*|[a-z][a-z0-9+.-]*://[^\s/,A-Z*]+"
_KEY = r"[\x21-\x7e]{1,256}"
_KEY_TEXT = "1 to 256 visible ASCII characters without spaces"
_LABEL = r".{1,256}"
_LABEL_TEXT = "names of up to 256 characters"

SERVICE_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "auth_enabled",
        SettingKind.BOOL,
        "Clients must send one of the service's keys; excludes token_auth_enabled.",
        default=True,
        default_text="true unless token_auth_enabled",
    ),
    Setting("token_auth_enabled", SettingKind.BOOL, "Clients must send a token; excludes auth_enabled.", default=False),
    Setting(
        "primary_key",
        SettingKind.TEXT,
        "First of two equally valid keys. With two keys, one can be replaced while clients use the other.",
        default_text="generated",
        pattern=_KEY,
        pattern_text=_KEY_TEXT,
        secret=True,
    ),
    Setting(
        "secondary_key",
        SettingKind.TEXT,
        "Second of the two keys.",
        default_text="generated",
        pattern=_KEY,
        pattern_text=_KEY_TEXT,
        secret=True,
    ),
    Setting(
        "forward_authorization",
        SettingKind.BOOL,
        "Extension. Forward the client's Authorization header to the replica; it is removed otherwise.",
        default=False,
    ),
    Setting(
        "keep_underscore_headers",
        SettingKind.BOOL,
        "Extension. Forward headers with '_' in their name; they are removed otherwise, because WSGI and ASGI servers "
        "cannot distinguish X_Auth from X-Auth.",
        default=False,
    ),
    Setting(
        "cors_allowed_origins",
        SettingKind.LIST,
        "Extension. Browser origins whose CORS preflight the router accepts, or '*' alone for all. Commas separate "
        "them in a single text.",
        default=(),
        pattern=_ORIGIN,
        pattern_text="origins such as https://example.com (lower case, no path), or '*' alone",
    ),
    Setting(
        "allowed_methods",
        SettingKind.LIST,
        "Extension. Methods of requests that are forwarded; others get 405. The router itself responds to a CORS "
        "preflight from one of cors_allowed_origins, and needs no OPTIONS for it.",
        default=("GET", "POST"),
        choices=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"),
    ),
    Setting(
        "key_headers",
        SettingKind.LIST,
        "Extension. Headers that may have the key or token of a request: in authorization after 'Bearer ', in the "
        "others alone. A request with two of them gets 400. They are not forwarded, except as forward_authorization "
        "says.",
        default=("authorization",),
        choices=("authorization", "api-key", "x-api-key"),
    ),
)

VERSION_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "autoscale_enabled",
        SettingKind.BOOL,
        "Adapt the number of replicas to the load. Otherwise it is num_replicas.",
        default=True,
        default_text="true unless num_replicas",
        dynamic=True,
    ),
    Setting(
        "autoscale_min_replicas",
        SettingKind.INT,
        "Minimum number of replicas. Extension: with 0, the first request is queued until a replica has started.",
        unit="replicas",
        default=1,
        dynamic=True,
    ),
    Setting(
        "autoscale_max_replicas",
        SettingKind.INT,
        "Maximum number of replicas.",
        unit="replicas",
        default=10,
        minimum=1,
        dynamic=True,
    ),
    Setting(
        "autoscale_refresh_seconds",
        SettingKind.FLOAT,
        "Time between two decisions of the autoscaler.",
        unit="s",
        default=1.0,
        above=0,
        dynamic=True,
    ),
    Setting(
        "autoscale_target_utilization",
        SettingKind.INT,
        "Target of the autoscaler for the share of slots in use.",
        unit="percent",
        default=70,
        minimum=1,
        maximum=100,
        dynamic=True,
    ),
    Setting(
        "autoscale_scale_down_seconds",
        SettingKind.FLOAT,
        "Extension. Replicas are removed only down to the highest number needed within this time.",
        unit="s",
        default=60.0,
        above=0,
        dynamic=True,
    ),
    Setting(
        "autoscale_objective",
        SettingKind.TEXT,
        "Extension. latency: enough replicas for the busiest second within autoscale_scale_down_seconds at the target. "
        "cost: enough for the busiest 10 s at the target, and for the busiest second without headroom. It takes about "
        "a quarter fewer replicas under a steady load, and refuses more requests, above all slow ones.",
        default="latency",
        choices=OBJECTIVES,
        dynamic=True,
    ),
    Setting(
        "num_replicas",
        SettingKind.INT,
        "Fixed number of replicas; no autoscaling. Extension: with 0, all requests are refused.",
        unit="replicas",
        dynamic=True,
    ),
    Setting(
        "replica_max_concurrent_requests",
        SettingKind.INT,
        "Maximum number of requests that one replica handles at a time. Extension: 0 means no limit.",
        unit="requests",
        default=1,
        dynamic=True,
    ),
    Setting(
        "max_request_wait_time",
        SettingKind.INT,
        "Maximum time that a request waits for a free replica, then 503.",
        unit="ms",
        default=500,
        minimum=1,
        dynamic=True,
    ),
    Setting(
        "max_queue_length",
        SettingKind.INT,
        "Extension. Maximum number of requests that wait for a free replica. Further ones get 503 at once.",
        unit="requests",
        default=1000,
        dynamic=True,
    ),
    Setting(
        "scoring_timeout_ms",
        SettingKind.INT,
        "Maximum time for a replica to respond, then 504.",
        unit="ms",
        default=60_000,
        minimum=1,
        maximum=300_000,
        dynamic=True,
    ),
    Setting(
        "request_buffering",
        SettingKind.BOOL,
        "Extension. Receive request bodies of up to request_buffer_bytes completely before their requests wait for a "
        "slot, so that slow clients hold no slots. With false all bodies are streamed, for models that respond to "
        "parts of a body.",
        default=True,
        dynamic=True,
    ),
    Setting(
        "retry_on_reset",
        SettingKind.BOOL,
        "Extension. Send a request once more if its connection was reset or closed before the response, though it may "
        "have run: for scoring without side effects. Otherwise only a request that no program has read is sent again.",
        default=False,
        dynamic=True,
    ),
    Setting(
        "rewrite_location",
        SettingKind.BOOL,
        "Extension. Put the path of the service in front of a path in the Location of a response, and of a URL that "
        "names the replica. Other URLs, relative references, and paths that have it already, are forwarded unchanged.",
        default=True,
        dynamic=True,
    ),
    Setting(
        "scoring_path",
        SettingKind.TEXT,
        "Path at the replicas that the scoring address stands for, such as /v1/models/iris:predict. The rest of the "
        "service's paths are forwarded unchanged.",
        default="/score",
        pattern=r"/[!\"$->@-~]*",
        pattern_text="a path that begins with '/', without '?' and '#'",
    ),
    Setting(
        "tunnel_idle_timeout_seconds",
        SettingKind.FLOAT,
        "Extension. Time without data in either direction after which a WebSocket is closed; 0 means no limit.",
        unit="s",
        default=0.0,
        dynamic=True,
    ),
    Setting(
        "max_stream_seconds",
        SettingKind.FLOAT,
        "Extension. Maximum duration of a WebSocket, and of a response whose length is not known in advance, such as a "
        "stream of events; 0 means no limit.",
        unit="s",
        default=0.0,
        dynamic=True,
    ),
    Setting(
        "enable_app_insights",
        SettingKind.BOOL,
        "Send the requests of this version, and the router's requests to its replicas as dependencies, to Application "
        "Insights. Needs the extra azure-monitor and a connection string, see app_insights_connection_string_file.",
        default=False,
    ),
    Setting(
        "replica_drain_seconds",
        SettingKind.FLOAT,
        "Extension. Maximum time for a replica to finish its requests before it is removed. Then the router aborts "
        "them. Must be at least scoring_timeout_ms. In Kubernetes it applies only if the router removes the replica. "
        "Otherwise the pod's terminationGracePeriodSeconds applies.",
        unit="s",
        default=600.0,
        above=0,
        maximum=86_400,
        dynamic=True,
    ),
    Setting(
        "cancellation",
        SettingKind.TEXT,
        "Extension. Whether replicas stop processing a request whose client has disconnected or got a 504. on_close: "
        "when the connection is closed (async servers, vLLM, Triton). none: never (Azure's server, Flask, gunicorn's "
        "sync workers, MLflow); the response is read and discarded, and the slot is in use until then. unknown: the "
        "connection is closed, and the slot is used last.",
        default="unknown",
        default_text="none with entry_script, else unknown",
        choices=CANCELLATIONS,
        dynamic=True,
    ),
    Setting(
        "abandoned_request_timeout_ms",
        SettingKind.INT,
        "Extension. Maximum time for which a slot stays in use or is used last, because the replica may still process "
        "a request whose client has disconnected or got a 504.",
        unit="ms",
        default_text="scoring_timeout_ms",
        minimum=1,
        maximum=3_600_000,
        dynamic=True,
    ),
    Setting(
        "half_close",
        SettingKind.TEXT,
        "Extension. What a client's FIN after a complete request means. TCP cannot distinguish a client that has left "
        "from one that still waits for its response. deliver: it may wait; the response is sent, and the router "
        "detects by writing whether the client has left. cancel: the client has disconnected. TLS has no half-close: "
        "cancel.",
        default_text="cancel with cancellation on_close, else deliver",
        choices=HALF_CLOSES,
        dynamic=True,
    ),
    Setting(
        "outlier_detection",
        SettingKind.BOOL,
        "Extension. Send a replica that fails more than the others no requests for a while.",
        default=True,
        dynamic=True,
    ),
    Setting(
        "outlier_consecutive_failures",
        SettingKind.INT,
        "Extension. Failures in a row until a replica is ejected: closed connections, invalid responses, timeouts, "
        "502, 503 and 504.",
        unit="requests",
        default=5,
        minimum=1,
        dynamic=True,
    ),
    Setting(
        "outlier_consecutive_timeouts",
        SettingKind.INT,
        "Extension. Of these failures, scoring timeouts until a replica is ejected.",
        unit="requests",
        default=3,
        minimum=1,
        dynamic=True,
    ),
    Setting(
        "outlier_ejection_seconds",
        SettingKind.FLOAT,
        "Extension. Duration of the first ejection. Each further ejection in a row doubles it, up to 300 s.",
        unit="s",
        default=10.0,
        above=0,
        dynamic=True,
    ),
    Setting(
        "outlier_max_ejected_percent",
        SettingKind.INT,
        "Extension. Largest share of the ready replicas that is ejected: at least one replica unless it is 0, and "
        "never the last one.",
        unit="percent",
        default=50,
        maximum=100,
        dynamic=True,
    ),
    Setting(
        "collect_model_data",
        SettingKind.BOOL,
        "Store all requests and responses where the router's collection_... settings say; data_collector has details.",
        default=False,
    ),
    Setting(
        "data_collector",
        SettingKind.OBJECT,
        "What is stored, as in Azure ML's deployments (v2); replaces collect_model_data. collections: request and "
        "response are stored by the router, all other names by the entry script; each with enabled and data.path, the "
        "folder. sampling_rate: share of the requests, from 0 to 1 (default 1). rolling_rate: period of a folder, one "
        "of minute, hour, day, month, year (default hour). request_logging.capture_headers: headers that are stored "
        "with a request, without credentials.",
        pattern_text="collections, sampling_rate, rolling_rate, request_logging",
        parser=parse_data_collector,
    ),
    Setting("cpu_cores", SettingKind.FLOAT, "CPU that a replica requests.", unit="cores", default=0.1, above=0),
    Setting("cpu_cores_limit", SettingKind.FLOAT, "Maximum CPU that a replica may use.", unit="cores", above=0),
    Setting("memory_gb", SettingKind.FLOAT, "Memory that a replica requests.", unit="GB", default=0.5, above=0),
    Setting("memory_gb_limit", SettingKind.FLOAT, "Maximum memory that a replica may use.", unit="GB", above=0),
    Setting("gpu_cores", SettingKind.INT, "GPUs of a replica.", unit="GPUs", default=0),
    Setting("period_seconds", SettingKind.INT, "Time between two liveness probes.", unit="s", default=10, minimum=1),
    Setting(
        "initial_delay_seconds",
        SettingKind.INT,
        "Time from a replica's start to its first liveness probe.",
        unit="s",
        default=310,
        minimum=1,
    ),
    Setting("timeout_seconds", SettingKind.INT, "Timeout of a liveness probe.", unit="s", default=2, minimum=1),
    Setting(
        "success_threshold",
        SettingKind.INT,
        "No effect: Kubernetes allows only 1 for a liveness probe, and a replica that fails it is replaced.",
        unit="probes",
        default=1,
        minimum=1,
    ),
    Setting(
        "failure_threshold",
        SettingKind.INT,
        "Liveness probes that fail in a row before a replica is replaced.",
        unit="probes",
        default=3,
        minimum=1,
    ),
    Setting(
        "readiness_period_seconds",
        SettingKind.INT,
        "Time between two readiness probes. A local replica that is not ready is probed more often: ten times a second "
        "until it was ready once, then once a second.",
        unit="s",
        default=10,
        minimum=1,
    ),
    Setting(
        "readiness_initial_delay_seconds",
        SettingKind.INT,
        "Time from a replica's start to its first readiness probe.",
        unit="s",
        default=0,
    ),
    Setting(
        "readiness_timeout_seconds",
        SettingKind.INT,
        "Timeout of a readiness probe.",
        unit="s",
        default=2,
        minimum=1,
    ),
    Setting(
        "readiness_success_threshold",
        SettingKind.INT,
        "Readiness probes that must succeed in a row before a replica gets requests.",
        unit="probes",
        default=1,
        minimum=1,
    ),
    Setting(
        "readiness_failure_threshold",
        SettingKind.INT,
        "Readiness probes that fail in a row before a replica gets no more requests. It is not replaced.",
        unit="probes",
        default=3,
        minimum=1,
    ),
    Setting(
        "traffic_percentile",
        SettingKind.INT,
        "Share of the service's traffic. The default version gets the rest.",
        unit="percent",
        default=0,
        maximum=100,
        dynamic=True,
    ),
    Setting(
        "is_default",
        SettingKind.BOOL,
        "Make this version the default version of its service.",
        default=False,
        default_text="true for the first version",
        dynamic=True,
    ),
    Setting(
        "description",
        SettingKind.TEXT,
        "Text about this version for people. The status document has it, and the router does not use it.",
        default="",
        default_text="none",
        pattern=r"(?s:.{0,5000})",
        pattern_text="text of up to 5000 characters",
    ),
    Setting(
        "tags",
        SettingKind.MAPPING,
        "Tags of this version. The status document has them, and the router does not use them.",
        default={},
        default_text="none",
        pattern=_LABEL,
        pattern_text=_LABEL_TEXT,
    ),
    Setting(
        "properties",
        SettingKind.MAPPING,
        "Properties of this version, which Azure ML does not allow to change later. The router treats them as tags.",
        default={},
        default_text="none",
        pattern=_LABEL,
        pattern_text=_LABEL_TEXT,
    ),
)

SECRET_SETTINGS = ("primary_key", "secondary_key")
"""Settings of the local file that are in a Secret in Kubernetes."""
POD_TEMPLATE_SETTINGS = (
    "cpu_cores", "cpu_cores_limit", "memory_gb", "memory_gb_limit", "gpu_cores", "period_seconds",
    "initial_delay_seconds", "timeout_seconds", "success_threshold", "failure_threshold", "readiness_period_seconds",
    "readiness_initial_delay_seconds", "readiness_timeout_seconds", "readiness_success_threshold",
    "readiness_failure_threshold",
)  # fmt: skip
"""Settings of the local file that are in the Deployment's pod template in Kubernetes."""

COMPATIBILITY_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "v1": {},
    "v2": {
        "autoscale_max_replicas": 1,
        "scoring_timeout_ms": 5_000,
        # `ProbeSettings` of azure-ai-ml: the same for both probes.
        "initial_delay_seconds": 10,
        "failure_threshold": 30,
        "readiness_initial_delay_seconds": 10,
        "readiness_failure_threshold": 30,
    },
}
"""Defaults of versions that replace the declared ones, by the router's `compatibility`."""
