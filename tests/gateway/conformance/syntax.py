"""Request lines, fields and line ends (RFC 9112 sections 2 to 5), targets (section 3.2), `Host` (RFC 9110 section 7.2)."""

from tests.gateway.conformance.cases import (
    CHUNKED_POST_HEAD,
    POST_HEAD_START,
    POST_HEAD_START_WITHOUT_HOST,
    ReplicaRequest,
    forwarded_case,
    local_response_case,
)
from tests.gateway.http_connection import KEY

PATH = b"/api/v1/service/iris/"
REMAINING_HEADERS = f"Host: fe\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()


def with_request_line(line: bytes) -> bytes:
    return line + b"\r\n" + REMAINING_HEADERS


def with_fields(fields: bytes) -> bytes:
    return POST_HEAD_START + fields + b"\r\n\r\n"


def with_host(host: bytes, target: bytes = PATH + b"score") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost:" + host + f"\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()


def with_body(body: bytes) -> bytes:
    return POST_HEAD_START + b"Content-Length: %d\r\n\r\n" % len(body) + body


def with_chunk(data: bytes) -> bytes:
    """Return a request with one chunk. The trailers and the empty line are missing."""
    return CHUNKED_POST_HEAD + b"%x;a=b\r\n" % len(data) + data + b"\r\n0\r\n"


VALID_LINE = b"GET " + PATH + b"score HTTP/1.1"
INVALID_LINE = b"GET  " + PATH + b"score RTSP/1.1\r\n\r\n"
FORWARDED_GET = ReplicaRequest("GET /score HTTP/1.1")

REQUEST_LINES = [
    *(forwarded_case(f"{before!r} before the request", before + with_request_line(b"GET " + PATH + b"score HTTP/1.1"), FORWARDED_GET) for before in (
        b"\r\n", b"\r\n\r\n\r\n")),
    *(local_response_case(f"{before!r} before the request", before + with_request_line(b"GET " + PATH + b"score HTTP/1.1")) for before in (
        b" ", b"\t", b"\x00", b"\x0b", b"\xef\xbb\xbf", b"\r\n ", b"x")),
    *(local_response_case(f"request line {line!r}", with_request_line(line)) for line in (
        b"GET\t" + PATH + b"score HTTP/1.1", b"GET " + PATH + b"score\tHTTP/1.1",
        b"GET " + PATH + b"score HTTP/1.1 ", b"GET " + PATH + b"score HTTP/1.1\t", b"GET " + PATH + b"score http/1.1",
        b"GET " + PATH + b"score HTTP/1.10", b"GET " + PATH + b"score HTTP/01.1", b"GET " + PATH + b"score HTTP/1",
        b"GET " + PATH + b"score HTTP/1.", b"GET " + PATH + b"score HTTP/1,1", b"GET " + PATH + b"score HTTP/ 1.1",
        b"GET " + PATH + b"score HTTPS/1.1", b"GET " + PATH + b"score ICE/1.0",
        b"GET " + PATH + b"score HTTP/1.1 HTTP/1.1", b"GET " + PATH + b"score", b"GET", b"GET ", b"GET HTTP/1.1",
        b" GET " + PATH + b"score HTTP/1.1", b"GET\x00 " + PATH + b"score HTTP/1.1", b"G\xc3\x8bT " + PATH + b"score HTTP/1.1",
        b"GETX " + PATH + b"score HTTP/1.1", b"Get " + PATH + b"score HTTP/1.1", b"GET\r " + PATH + b"score HTTP/1.1",
        b"GET " + PATH + b"sc\rore HTTP/1.1", b"GET " + PATH + b"sc\nore HTTP/1.1", b"GET " + PATH + b"sc\x00ore HTTP/1.1",
        b"GET " + PATH + b"sc\x0bore HTTP/1.1", b"GET " + PATH + b"sc\x1fore HTTP/1.1", b"GET " + PATH + b"sc\x7fore HTTP/1.1",
        b"GET " + PATH + b"sc\xc3\xb6re HTTP/1.1", b"GET " + PATH + b"score HTTP/1.1\x00", b"GET " + PATH + b"score\x00HTTP/1.1",
    )),
    *(local_response_case(f"method {method} is not forwarded", with_request_line(method.encode() + b" " + PATH + b"score HTTP/1.1"), 405, closes=False)
      for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "PURGE", "QUERY")),
    *(local_response_case(f"spaces in request line {line!r}", with_request_line(line)) for line in (
        b"GET  " + PATH + b"score HTTP/1.1", b"GET " + PATH + b"score  HTTP/1.1", b"GET   " + PATH + b"score   HTTP/1.1", b"POST  " + PATH + b"score HTTP/1.0",
        b"GET  / HTTP/1.1", b"\r\nGET  " + PATH + b"score HTTP/1.1")),
    *(local_response_case(f"request line {line!r} of the second request after {kind}", first + with_request_line(line), 200, 400, forwarded_requests=(request,))
      for line in (b"GET  " + PATH + b"score HTTP/1.1", b"GET " + PATH + b"score  HTTP/1.1", b"GET " + PATH + b"score RTSP/1.1", b"SOURCE " + PATH + b"score ICE/1.1")
      for kind, first, request in (
          ("no body", POST_HEAD_START + b"\r\n", ReplicaRequest()),
          ("a body with a valid request line", with_body(VALID_LINE), ReplicaRequest(body=VALID_LINE)),
          ("chunks", with_chunk(b"\r\n\r\n") + b"X-A: b\r\n\r\n", ReplicaRequest(body=b"\r\n\r\n", trailers={"X-A": "b"})))),
    *(forwarded_case(f"a body {kind} that contains an invalid request line", first + with_request_line(VALID_LINE), ReplicaRequest(body=INVALID_LINE), FORWARDED_GET)
      for kind, first in (("with a length", with_body(INVALID_LINE)), ("in chunks", with_chunk(INVALID_LINE) + b"\r\n"))),
    local_response_case("a method of RTSP", with_request_line(b"DESCRIBE " + PATH + b"score HTTP/1.1")),
    *(local_response_case(f"protocol {name!r} of {method!r}", with_request_line(method + b" " + PATH + b"score" + name))
      for method in (b"GET", b"POST", b"OPTIONS", b"DESCRIBE", b"SETUP")
      for name in (b" RTSP/1.0", b"  RTSP/1.0", b" RTSP/1.1", b" RTSP/2.0")),
    local_response_case("protocol RTSP without a host", b"GET / RTSP/1.0\r\n\r\n"),
    local_response_case("protocol RTSP with the target *", b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
    local_response_case("protocol RTSP after empty lines", b"\r\n\r\nGET " + PATH + b"score RTSP/1.0\r\n\r\n"),
    local_response_case("protocol RTSP after an HTTP request", POST_HEAD_START + b"Content-Length: 0\r\n\r\n" + with_request_line(b"GET " + PATH + b"score RTSP/1.0"),
                        200, 400, forwarded_requests=(ReplicaRequest(),)),
    local_response_case("protocol ICE", with_request_line(b"SOURCE " + PATH + b"score ICE/1.0")),
    forwarded_case("a body that contains an RTSP request", POST_HEAD_START + b"Connection: close\r\nContent-Length: 21\r\n\r\nGET /score RTSP/1.0\r\n",
                   ReplicaRequest(body=b"GET /score RTSP/1.0\r\n"), closes=True),
]  # fmt: skip

FIELDS = [
    *(forwarded_case(f"name with {chr(byte)}", with_fields(b"X" + bytes([byte]) + b"Y: z"), ReplicaRequest(headers={f"x{chr(byte)}y": "z"}))
      for byte in b"!#$%&'*+-.^`|~0"),
    *(local_response_case(f"name with {bytes([byte])!r}", with_fields(b"X" + bytes([byte]) + b"Y: z"))
      for byte in b'"(),/;<=>?@[\\]{} \t\x00\x0b\x1f\x7f\x80\xff'),
    *(local_response_case(f"value with {bytes([byte])!r}", with_fields(b"X: y" + bytes([byte]) + b"z"))
      for byte in [*range(9), *range(11, 13), *range(14, 32), 127]),
    forwarded_case("value with a tab", with_fields(b"X: y\tz"), ReplicaRequest(headers={"x": "y\tz"})),
    forwarded_case("value with bytes above ASCII", with_fields(b"X: \xff\x80\xc3\xa4"), ReplicaRequest(headers={"x": "\xff\x80\xc3\xa4"})),
    forwarded_case("empty value", with_fields(b"X:"), ReplicaRequest(headers={"x": ""})),
    forwarded_case("value of spaces", with_fields(b"X: \t  "), ReplicaRequest(headers={"x": ""})),
    forwarded_case("spaces in front of a value", with_fields(b"X:\t y z"), ReplicaRequest(headers={"x": "y z"})),
    forwarded_case("value with colons", with_fields(b"X: a:b: c"), ReplicaRequest(headers={"x": "a:b: c"})),
    forwarded_case("long name", with_fields(b"X" * 300 + b": y"), ReplicaRequest(headers={"x" * 300: "y"})),
    *(local_response_case(f"header line {fields!r}", with_fields(fields)) for fields in (
        b": y", b" : y", b"X", b"X y", b" X: y", b"\tX: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X:\r\n y", b"X: y\r\n ", b"X: y\n z",
        b"X: y\rZ: w", b"X: y\nZ: w", b"X: y\n\nZ: w", b"X: y\r\r", b"X\r: y", b"X\n: y", b"X: y\r\n\x00", b"\r", b"X: y\x00\r\nZ: w",
        b"X: y\r\nGET / HTTP/1.1")),
    local_response_case("LF instead of all CR LF", POST_HEAD_START.replace(b"\r\n", b"\n") + b"\n"),
    local_response_case("a head that ends in LF LF", POST_HEAD_START + b"X: y\n\n"),
    local_response_case("a head that ends in CR CR", POST_HEAD_START + b"X: y\r\rZ"),
    local_response_case("a head that ends in CR LF LF", POST_HEAD_START + b"X: y\r\n\n"),
    local_response_case("a head that ends in CR LF CR Z", POST_HEAD_START + b"X: y\r\n\rZ"),
    forwarded_case("the same field twice", with_fields(b"X: 1\r\nX: 2"), ReplicaRequest()),
]  # fmt: skip

TARGETS = [
    *(forwarded_case(f"path {rest!r} is forwarded unchanged", with_request_line(b"GET " + PATH + rest + b" HTTP/1.1"),
                     ReplicaRequest(f"GET /{rest.decode()} HTTP/1.1"))
      for rest in (b"", b"score?a=b", b"score?", b"score?a=b?c=d&e", b"a/b/c", b"//x", b"../x", b"..%2fx", b"%2e%2e/x", b"a%00b",
                   b"a%0d%0ab", b"a%20b", b";p=1", b"a;b", b"@x", b"a:b", b"~a!$&'()*+,=", b"score?x=http://other/", b"*",
                   b"a\\b", b"a|b", b'a"b', b"a<b>c", b"a^b`c{d}")),
    local_response_case("a fragment", with_request_line(b"GET " + PATH + b"score#part HTTP/1.1"), 400, closes=False),
    local_response_case("a fragment after a query", with_request_line(b"GET " + PATH + b"score?a#part HTTP/1.1"), 400, closes=False),
    local_response_case("an unknown service", with_request_line(b"GET /api/v1/service/other/score HTTP/1.1"), 404, closes=False),
    local_response_case("a percent-encoded service name", with_request_line(b"GET /api/v1/service/%69ris/score HTTP/1.1"), 404, closes=False),
    local_response_case("a percent-encoded prefix", with_request_line(b"GET /api/v1/%73ervice/iris/score HTTP/1.1"), 404, closes=False),
    local_response_case("a prefix in upper case", with_request_line(b"GET /API/v1/service/iris/score HTTP/1.1"), 404, closes=False),
    *(forwarded_case(f"{slashes!r} at the start", with_request_line(b"GET " + slashes + b"api/v1/service/iris/score HTTP/1.1"), FORWARDED_GET)
      for slashes in (b"//", b"///", b"////////")),
    *(local_response_case(f"target {target!r} after its first slashes", with_request_line(b"GET " + target + b" HTTP/1.1"), status, closes=False)
      for target, status in ((b"//", 200), (b"//fe/api/v1/service/iris/score", 404), (b"/.//api/v1/service/iris/score", 404), (b"//api//v1/service/iris/score", 404))),
    local_response_case("dot segments before the prefix", with_request_line(b"GET /x/../api/v1/service/iris/score HTTP/1.1"), 404, closes=False),
    local_response_case("a service without a slash", with_request_line(b"GET /api/v1/service/iris HTTP/1.1"), 404, closes=False),
    local_response_case("a query without a slash", with_request_line(b"GET /api/v1/service/iris?x HTTP/1.1"), 404, closes=False),
    local_response_case("no path", with_request_line(b"GET api/v1/service/iris/score HTTP/1.1")),
    local_response_case("asterisk", with_request_line(b"OPTIONS * HTTP/1.1"), 400, closes=False),
    local_response_case("asterisk for GET", with_request_line(b"GET * HTTP/1.1"), 400, closes=False),
    local_response_case("authority", with_request_line(b"CONNECT fe:443 HTTP/1.1"), 400, closes=False),
    local_response_case("authority for GET", with_request_line(b"GET fe:443 HTTP/1.1")),
    local_response_case("health path", with_request_line(b"GET / HTTP/1.1"), 200, closes=False),
    local_response_case("health path with a query", with_request_line(b"GET /?x HTTP/1.1"), 404, closes=False),
]  # fmt: skip

ABSOLUTE = b"http://fe" + PATH + b"score"
HOSTS = [
    forwarded_case("absolute form", with_host(b" fe", ABSOLUTE), FORWARDED_GET),
    forwarded_case("absolute form with scheme https", with_host(b" fe", b"https://fe" + PATH + b"score"), FORWARDED_GET),
    forwarded_case("absolute form in mixed case", with_host(b" FE", b"HTTP://fE" + PATH + b"score"), FORWARDED_GET),
    forwarded_case("absolute form with a port", with_host(b" fe:80", b"http://fe:80" + PATH + b"score"), FORWARDED_GET),
    forwarded_case("absolute form with a query", with_host(b" fe", ABSOLUTE + b"?a=b"), ReplicaRequest("GET /score?a=b HTTP/1.1")),
    local_response_case("absolute form without a path", with_host(b" fe", b"http://fe"), 200, closes=False),
    local_response_case("absolute form of another host", with_host(b" fe", b"http://other" + PATH + b"score"), 400),
    local_response_case("absolute form with a user", with_host(b" fe", b"http://u:p@fe" + PATH + b"score"), 400),
    local_response_case("absolute form with a port that is not in Host", with_host(b" fe", b"http://fe:80" + PATH + b"score"), 400),
    local_response_case("absolute form with an empty port", with_host(b" fe", b"http://fe:" + PATH + b"score"), 400),
    *(local_response_case(f"absolute form {target!r}", with_host(b" fe", target + PATH + b"score")) for target in (
        b"http://fe@fe", b"http://@fe", b"http://fe.", b"HTTPS://other", b"http://fe,fe", b"http://fe%00", b"http://[::1]")),
    forwarded_case("absolute form with two slashes", with_host(b" fe", b"http://fe/" + PATH + b"score"), FORWARDED_GET),
    local_response_case("absolute form without a host, and an empty Host", with_host(b"", b"http://" + PATH + b"score")),
    local_response_case("absolute form without a host", with_host(b" fe", b"http://" + PATH + b"score"), 400),
    local_response_case("absolute form with another scheme", with_host(b" fe", b"ws://fe" + PATH + b"score"), 400, closes=False),
    local_response_case("absolute form with scheme file", with_host(b" fe", b"file:///etc/passwd"), 400, closes=False),
    *(forwarded_case(f"Host {host!r}", with_host(host), ReplicaRequest("GET /score HTTP/1.1", headers={"host": host.strip().decode()})) for host in (
        b" fe", b"fe", b" fe:8080", b" 127.0.0.1", b" 127.0.0.1:80", b" [::1]", b" [::1]:80", b" [fe80::1%25eth0]", b" a.b-c.d_e.",
        b" FE", b" xn--bcher-kva.example", b" a%20b", b"\tfe", b"")),
    *(local_response_case(f"Host {host!r}", with_host(host)) for host in (
        b" fe,fe", b" fe, other", b" fe fe", b" fe\tfe", b" http://fe", b" fe/", b" fe/x", b" fe?x", b" fe#x", b" u@fe", b" fe:80:80",
        b" fe:x", b" fe:-1", b" fe: 80", b" [::1", b" ::1]", b" fe\\x", b' "fe"', b" <fe>", b" f\xc3\xa9", b" fe;x", b" fe\x00",
        b" fe\x7f", b" {fe}", b" fe|x", b" fe^x", b" fe`x")),
    local_response_case("two Hosts", POST_HEAD_START_WITHOUT_HOST + b"Host: fe\r\nHost: fe\r\n\r\n"),
    local_response_case("two Hosts, one empty", POST_HEAD_START_WITHOUT_HOST + b"Host: fe\r\nHost:\r\n\r\n"),
    local_response_case("folded Host", POST_HEAD_START_WITHOUT_HOST + b"Host: fe\r\n .other\r\n\r\n"),
    local_response_case("no Host", POST_HEAD_START_WITHOUT_HOST + b"\r\n"),
    local_response_case("a space before Host's colon", POST_HEAD_START_WITHOUT_HOST + b"Host : fe\r\n\r\n"),
]  # fmt: skip

CASES = [*REQUEST_LINES, *FIELDS, *TARGETS, *HOSTS]
