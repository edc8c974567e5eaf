"""What goes from hop to hop only (RFC 9110 sections 7.6 to 7.8), and what only the router may say."""

from tests.gateway.conformance.cases import HEAD, Seen, forwarded, refused


def field(whole: bytes, body: bytes = b"") -> bytes:
    return HEAD + whole + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


HOP = ("connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")

CONNECTION = [
    forwarded("Connection: keep-alive", field(b"Connection: keep-alive\r\nKeep-Alive: timeout=5"), Seen(lacks=HOP)),
    forwarded("Connection: close", field(b"Connection: close"), Seen(lacks=HOP), closes=True),
    forwarded("Connection: CLOSE", field(b"Connection: CLOSE"), Seen(lacks=HOP), closes=True),
    forwarded("close among others", field(b"Connection: x-a, close\r\nX-A: 1"), Seen(lacks=(*HOP, "x-a")), closes=True),
    forwarded("close in a second line", field(b"Connection: x-a\r\nConnection: close"), Seen(lacks=HOP), closes=True),
    forwarded("a list with holes", field(b"Connection: , ,x-a,,\r\nX-A: 1\r\nX-B: 2"), Seen(has={"x-b": "2"}, lacks=("x-a",))),
    forwarded("an empty list", field(b"Connection:\r\nX-A: 1"), Seen(has={"x-a": "1"}, lacks=HOP)),
    forwarded("two lists", field(b"Connection: x-a\r\nConnection: x-b\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3"),
              Seen(has={"x-c": "3"}, lacks=("x-a", "x-b"))),
    forwarded("a list in other letters", field(b"CONNECTION: X-a\r\nx-A: 1"), Seen(lacks=("x-a",))),
    forwarded("every line of a field that is named", field(b"Connection: x-a\r\nX-A: 1\r\nX-A: 2"), Seen(lacks=("x-a",))),
    *(forwarded(f"Connection cannot name {name} away", field(b"Connection: " + name.encode(), b"abcde"),
                Seen(body=b"abcde", has=has, lacks=("connection",)))
      for name, has in {
          "Content-Length": {"content-length": "5"}, "Host": {"host": "fe"}, "X-Forwarded-For": {"x-forwarded-for": "127.0.0.1"},
          "X-Forwarded-Proto": {"x-forwarded-proto": "http"}, "X-Forwarded-Host": {"x-forwarded-host": "fe"}}.items()),
    forwarded("Connection cannot name the request's id away", field(b"Connection: x-request-id, x-ms-request-id"), Seen()),
    forwarded("a field that is no token in the list", field(b'Connection: "x-a", (x)\r\nX-A: 1'), Seen(has={"x-a": "1"})),
]  # fmt: skip

HOP_BY_HOP = [
    *(forwarded(f"{name} stops here", field(name.encode() + b": " + value), Seen(lacks=(name.lower(),))) for name, value in {
        "TE": b"trailers", "Keep-Alive": b"timeout=5, max=100", "Proxy-Connection": b"keep-alive",
        "Proxy-Authorization": b"Basic eDp5", "Proxy-Authenticate": b"Basic", "Upgrade": b"h2c"}.items()),
    forwarded("TE with weights", field(b"TE: trailers, deflate;q=0.5\r\nConnection: TE"), Seen(lacks=("te", "connection"))),
    forwarded("an upgrade to h2c is not passed on", field(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA"),
              Seen(lacks=(*HOP, "http2-settings"))),
    forwarded("an upgrade to something unknown", field(b"Connection: upgrade\r\nUpgrade: foo/2"), Seen(lacks=HOP)),
    forwarded("an upgrade to TLS", field(b"Connection: upgrade\r\nUpgrade: TLS/1.2"), Seen(lacks=HOP)),
    forwarded("an upgrade that Connection does not name", field(b"Upgrade: websocket"), Seen(lacks=HOP)),
    forwarded("a websocket with a body is none", field(b"Connection: upgrade\r\nUpgrade: websocket", b"abcde"),
              Seen(body=b"abcde", lacks=HOP)),
    forwarded("two upgrades", field(b"Connection: upgrade\r\nUpgrade: websocket, h2c"), Seen(lacks=HOP)),
]  # fmt: skip

OURS = [
    *(forwarded(f"{name} is the router's", field(name.encode() + b": spoofed"), Seen(has=has)) for name, has in {
        "X-Forwarded-Proto": {"x-forwarded-proto": "http"}, "X-Forwarded-Host": {"x-forwarded-host": "fe"},
        "x-forwarded-PROTO": {"x-forwarded-proto": "http"}, "X-Forwarded-For": {"x-forwarded-for": "spoofed, 127.0.0.1"}}.items()),
    *(forwarded(f"{name} cannot pass for the router's", field(name.encode() + b": spoofed"), Seen(lacks=(name.lower(),)))
      for name in ("X_Forwarded_For", "X_Forwarded-Proto", "x_request_id", "X_Ms_Request_Id", "AUTHORIZATION_", "Authorization_X",
                   "Content_Type", "Host_")),
    forwarded("end-to-end fields pass", field(b"Content-Type: a/b\r\nCookie: a=b\r\nX-A: 1\r\nAccept: */*"),
              Seen(has={"content-type": "a/b", "cookie": "a=b", "x-a": "1", "accept": "*/*"})),
    forwarded("Trailer passes", field(b"Trailer: X-Sum"), Seen()),
    forwarded("Max-Forwards passes", field(b"Max-Forwards: 0"), Seen(has={"max-forwards": "0"})),
    refused("two keys", field(b"Authorization: Bearer other")),
    refused("two keys, one empty", field(b"Authorization:")),
]  # fmt: skip

CASES = [*CONNECTION, *HOP_BY_HOP, *OURS]
