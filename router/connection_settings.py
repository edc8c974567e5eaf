"""The table of the router's settings that bound connections and requests: sizes, numbers, times. Facts only; see
`settings`."""

from router.values import Kind, Scope, Setting, settings_of

_router = settings_of(Scope.ROUTER)

CONNECTION_SETTINGS: tuple[Setting, ...] = (
    _router(
        "max_payload_bytes",
        Kind.INT,
        "Largest request body, then 413.",
        unit="bytes",
        default=104_857_600,
        minimum=1,
        maximum=2**40,
    ),
    _router(
        "max_head_bytes",
        Kind.INT,
        "Largest request line and headers together, then 431.",
        unit="bytes",
        default=65_536,
        minimum=1024,
        maximum=2**24,
    ),
    _router("max_headers", Kind.INT, "Most headers, then 431.", default=100, minimum=1, maximum=10_000),
    _router(
        "max_client_connections",
        Kind.INT,
        "Client connections that each worker (not the router) holds open, TLS hand-shakes under way included.",
        default=20_000,
        minimum=1,
    ),
    _router(
        "client_head_timeout_seconds",
        Kind.FLOAT,
        "Longest time for a request's head to arrive, then 408.",
        unit="s",
        default=10.0,
        above=0,
    ),
    _router(
        "client_body_timeout_seconds",
        Kind.FLOAT,
        "Longest silence within a request's body, then 408.",
        unit="s",
        default=30.0,
        above=0,
    ),
    _router(
        "body_min_rate_bytes",
        Kind.INT,
        "Slowest upload: a body may take client_body_timeout_seconds and one second for each such number of bytes "
        "received, then 408.",
        unit="bytes/s",
        default=500,
        minimum=1,
    ),
    _router(
        "client_idle_timeout_seconds",
        Kind.FLOAT,
        "A client's connection without a request is closed after this time.",
        unit="s",
        default=75.0,
        above=0,
    ),
    _router(
        "connect_timeout_ms",
        Kind.INT,
        # Above one second, after which TCP sends a lost SYN once more.
        "Longest time to connect to a replica.",
        unit="ms",
        default=2000,
        minimum=1,
    ),
    _router(
        "replica_idle_connection_seconds",
        Kind.FLOAT,
        "An unused connection to a replica is closed after this time.",
        unit="s",
        default=60.0,
    ),
)
