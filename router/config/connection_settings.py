"""Settings that bound requests and connections: sizes, counts and times."""

from dataclasses import dataclass

from router.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """Limits of requests, client connections and replica connections."""

    max_payload_bytes: int = setting(
        "Maximum size of a request body. A larger one gets 413.",
        unit="bytes",
        default=104_857_600,
        minimum=1,
        maximum=2**40,
        dynamic=True,
    )
    max_head_bytes: int = setting(
        "Maximum size of the request line and the headers together. Larger ones get 431.",
        unit="bytes",
        default=65_536,
        minimum=1024,
        maximum=2**24,
        dynamic=True,
    )
    max_headers: int = setting(
        "Maximum number of headers in a request. More get 431.",
        default=100,
        minimum=1,
        maximum=10_000,
        dynamic=True,
    )
    max_client_connections: int = setting(
        "Maximum number of open client connections of one worker, including those in a TLS handshake. The limit is per "
        "worker, not per router. At the limit, the connection that has been idle for longest is closed for a new one.",
        default=20_000,
        minimum=1,
        dynamic=True,
    )
    max_connections_per_client_address: int = setting(
        "Maximum number of open client connections of one worker from one IP address; 0 means no limit. Proxies in "
        "trusted_proxies are exempt. Name them before you set a limit: otherwise all clients behind a load balancer "
        "share its address.",
        default=0,
        minimum=0,
        dynamic=True,
    )
    client_head_timeout_seconds: float = setting(
        "Maximum time for the head of a request to arrive, then 408.",
        unit="s",
        default=10.0,
        above=0,
        dynamic=True,
    )
    client_body_timeout_seconds: float = setting(
        "Maximum pause while a request body arrives, then 408. Maximum time without progress while a client reads a "
        "response, then its connection is closed.",
        unit="s",
        default=30.0,
        above=0,
        dynamic=True,
    )
    body_min_rate_bytes: int = setting(
        "Minimum rate of an upload. A body may take client_body_timeout_seconds, plus one second for each such number "
        "of bytes received, then 408. The same holds for a client that reads a held response.",
        unit="bytes/s",
        default=500,
        minimum=1,
        dynamic=True,
    )
    request_buffer_bytes: int = setting(
        "Maximum size of a request body that is received completely before the request waits for a slot. A larger "
        "body, or one that exceeds buffer_budget_bytes, is streamed: the request holds a slot while the body arrives. "
        "With 0 all bodies are streamed. The default is enough for nearly all images, texts and tensors.",
        unit="bytes",
        default=33_554_432,
        minimum=0,
        maximum=2**40,
        dynamic=True,
    )
    response_buffer_bytes: int = setting(
        "Maximum size of a response body of known length that is read as fast as the replica sends it, even if the "
        "client reads slowly. A larger body, or one that exceeds buffer_budget_bytes, is streamed: the request holds a "
        "slot while the client reads. With 0 all bodies are streamed. The default is enough for a response of 30 MB.",
        unit="bytes",
        default=33_554_432,
        minimum=0,
        maximum=2**40,
        dynamic=True,
    )
    buffer_budget_bytes: int = setting(
        "Maximum total size of the bodies that one worker buffers for slow clients. While it is reached, bodies are "
        "streamed. The default is enough for two of the largest bodies, or a thousand of 64 KiB. Pods need this memory "
        "for each worker, and those of the chart have it.",
        unit="bytes",
        default=67_108_864,
        minimum=0,
        maximum=2**40,
        dynamic=True,
    )
    client_idle_timeout_seconds: float = setting(
        "Time after which a client connection without a request is closed.",
        unit="s",
        default=75.0,
        above=0,
        dynamic=True,
    )
    # nginx has 1 h and 1000 requests, Envoy and gRPC no limit. A handshake with TLS costs as much as some tens of
    # requests, so 10000 requests make it negligible.
    max_connection_age_seconds: float = setting(
        "Age after which a client connection is closed with its next response (`Connection: close`), so that clients "
        "which keep connections alive reach added router pods, too. It differs by up to 10 % between connections. "
        "0 means no limit.",
        unit="s",
        default=3600.0,
        dynamic=True,
    )
    max_connection_requests: int = setting(
        "Number of requests after which a client connection is closed in the same way. 0 means no limit.",
        default=10_000,
        minimum=0,
        maximum=2**40,
        dynamic=True,
    )
    balance_connections: bool = setting(
        "In a cluster: close some client connections in the same way while the CPU use of this router pod is well "
        "above that of the others, so that their clients move.",
        default=True,
        dynamic=True,
    )
    # Above one second, after which TCP retransmits a lost SYN.
    connect_timeout_ms: int = setting(
        "Timeout for connecting to a replica.", unit="ms", default=2000, minimum=1, dynamic=True
    )
    tcp_keepalive_seconds: float = setting(
        "Idle time after which a connection is probed with TCP keep-alive. With 0 it is never probed.",
        unit="s",
        default=60.0,
        maximum=7200,
        dynamic=True,
    )
    # Above client_body_timeout_seconds, so that a client that does not send or read gets the router's own error first.
    client_tcp_user_timeout_seconds: float = setting(
        "Maximum time without an acknowledgement of sent data or keep-alive probes, after which a client connection is "
        "closed (TCP_USER_TIMEOUT). A client that does not read for this time is disconnected, too. 0 means no limit.",
        unit="s",
        default=60.0,
        maximum=3600,
        dynamic=True,
    )
    # Above the largest scoring timeout: a busy replica with one thread may leave a large body unread for that long.
    replica_tcp_user_timeout_seconds: float = setting(
        "The same for replica connections. A request whose body the replica does not read for this time fails, too.",
        unit="s",
        default=330.0,
        maximum=3600,
        dynamic=True,
    )
    replica_idle_connection_seconds: float = setting(
        "Time after which an unused replica connection is closed.",
        unit="s",
        default=60.0,
        dynamic=True,
    )


@dataclass(frozen=True, kw_only=True)
class ShutdownSettings:
    """How the router stops."""

    drain_seconds: float = setting(
        "Maximum time for requests in flight to finish when the router stops.", unit="s", default=60.0
    )
    shutdown_delay_seconds: float = setting(
        "Time between becoming unready and closing the listeners when the router stops. Load balancers remove the "
        "router in this time.",
        unit="s",
        default=0.0,
        maximum=600,
    )
