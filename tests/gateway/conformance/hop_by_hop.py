"""Hop-by-hop headers (RFC 9110 sections 7.6 to 7.8), and headers that only the router may set."""

from tests.gateway.conformance.cases import POST_HEAD_START, ReplicaRequest, forwarded_case, local_response_case


def with_fields(fields: bytes, body: bytes = b"") -> bytes:
    return POST_HEAD_START + fields + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


HOP_BY_HOP_NAMES = ("connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")

CONNECTION = [
    forwarded_case("Connection: keep-alive", with_fields(b"Connection: keep-alive\r\nKeep-Alive: timeout=5"), ReplicaRequest(absent=HOP_BY_HOP_NAMES)),
    forwarded_case("Connection: close", with_fields(b"Connection: close"), ReplicaRequest(absent=HOP_BY_HOP_NAMES), closes=True),
    forwarded_case("Connection: CLOSE", with_fields(b"Connection: CLOSE"), ReplicaRequest(absent=HOP_BY_HOP_NAMES), closes=True),
    forwarded_case("close and another option", with_fields(b"Connection: x-a, close\r\nX-A: 1"), ReplicaRequest(absent=(*HOP_BY_HOP_NAMES, "x-a")), closes=True),
    forwarded_case("close in a second Connection line", with_fields(b"Connection: x-a\r\nConnection: close"), ReplicaRequest(absent=HOP_BY_HOP_NAMES), closes=True),
    forwarded_case("a list with empty elements", with_fields(b"Connection: , ,x-a,,\r\nX-A: 1\r\nX-B: 2"), ReplicaRequest(headers={"x-b": "2"}, absent=("x-a",))),
    forwarded_case("an empty list", with_fields(b"Connection:\r\nX-A: 1"), ReplicaRequest(headers={"x-a": "1"}, absent=HOP_BY_HOP_NAMES)),
    forwarded_case("two lists", with_fields(b"Connection: x-a\r\nConnection: x-b\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3"),
                   ReplicaRequest(headers={"x-c": "3"}, absent=("x-a", "x-b"))),
    forwarded_case("a list in mixed case", with_fields(b"CONNECTION: X-a\r\nx-A: 1"), ReplicaRequest(absent=("x-a",))),
    forwarded_case("a named field with two lines", with_fields(b"Connection: x-a\r\nX-A: 1\r\nX-A: 2"), ReplicaRequest(absent=("x-a",))),
    *(forwarded_case(f"Connection cannot remove {name}", with_fields(b"Connection: " + name.encode(), b"abcde"),
                     ReplicaRequest(body=b"abcde", headers=has, absent=("connection",)))
      for name, has in {
          "Content-Length": {"content-length": "5"}, "Host": {"host": "fe"}, "X-Forwarded-For": {"x-forwarded-for": "127.0.0.1"},
          "X-Forwarded-Proto": {"x-forwarded-proto": "http"}, "X-Forwarded-Host": {"x-forwarded-host": "fe"}}.items()),
    forwarded_case("Connection cannot remove the request id", with_fields(b"Connection: x-request-id, x-ms-request-id"), ReplicaRequest()),
    forwarded_case("list elements that are not tokens", with_fields(b'Connection: "x-a", (x)\r\nX-A: 1'), ReplicaRequest(headers={"x-a": "1"})),
]  # fmt: skip

HOP_BY_HOP = [
    *(forwarded_case(f"{name} is not forwarded", with_fields(name.encode() + b": " + value), ReplicaRequest(absent=(name.lower(),))) for name, value in {
        "TE": b"trailers", "Keep-Alive": b"timeout=5, max=100", "Proxy-Connection": b"keep-alive",
        "Proxy-Authorization": b"Basic eDp5", "Proxy-Authenticate": b"Basic", "Upgrade": b"h2c"}.items()),
    forwarded_case("TE with weights", with_fields(b"TE: trailers, deflate;q=0.5\r\nConnection: TE"), ReplicaRequest(absent=("te", "connection"))),
    forwarded_case("an upgrade to h2c is not forwarded", with_fields(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA"),
                   ReplicaRequest(absent=(*HOP_BY_HOP_NAMES, "http2-settings"))),
    forwarded_case("an upgrade to an unknown protocol", with_fields(b"Connection: upgrade\r\nUpgrade: foo/2"), ReplicaRequest(absent=HOP_BY_HOP_NAMES)),
    forwarded_case("an upgrade to TLS", with_fields(b"Connection: upgrade\r\nUpgrade: TLS/1.2"), ReplicaRequest(absent=HOP_BY_HOP_NAMES)),
    forwarded_case("an upgrade that Connection does not name", with_fields(b"Upgrade: websocket"), ReplicaRequest(absent=HOP_BY_HOP_NAMES)),
    forwarded_case("an upgrade to websocket with a body is not forwarded", with_fields(b"Connection: upgrade\r\nUpgrade: websocket", b"abcde"),
                   ReplicaRequest(body=b"abcde", absent=HOP_BY_HOP_NAMES)),
    forwarded_case("two upgrades", with_fields(b"Connection: upgrade\r\nUpgrade: websocket, h2c"), ReplicaRequest(absent=HOP_BY_HOP_NAMES)),
]  # fmt: skip

ROUTER_HEADERS = [
    *(forwarded_case(f"{name} is replaced", with_fields(name.encode() + b": spoofed"), ReplicaRequest(headers=has)) for name, has in {
        "X-Forwarded-Proto": {"x-forwarded-proto": "http"}, "X-Forwarded-Host": {"x-forwarded-host": "fe"},
        "x-forwarded-PROTO": {"x-forwarded-proto": "http"}, "X-Forwarded-For": {"x-forwarded-for": "127.0.0.1"}}.items()),
    *(forwarded_case(f"{name} is dropped", with_fields(name.encode() + b": spoofed"), ReplicaRequest(absent=(name.lower(),)))
      for name in ("X_Forwarded_For", "X_Forwarded-Proto", "x_request_id", "X_Ms_Request_Id", "AUTHORIZATION_", "Authorization_X",
                   "Content_Type", "Host_")),
    forwarded_case("end-to-end fields are forwarded", with_fields(b"Content-Type: a/b\r\nCookie: a=b\r\nX-A: 1\r\nAccept: */*"),
                   ReplicaRequest(headers={"content-type": "a/b", "cookie": "a=b", "x-a": "1", "accept": "*/*"})),
    forwarded_case("Trailer is forwarded", with_fields(b"Trailer: X-Sum"), ReplicaRequest()),
    forwarded_case("Max-Forwards is forwarded", with_fields(b"Max-Forwards: 0"), ReplicaRequest(headers={"max-forwards": "0"})),
    local_response_case("two keys", with_fields(b"Authorization: Bearer other")),
    local_response_case("two keys, one empty", with_fields(b"Authorization:")),
]  # fmt: skip

CASES = [*CONNECTION, *HOP_BY_HOP, *ROUTER_HEADERS]
