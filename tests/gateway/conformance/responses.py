"""Valid and hostile responses of replicas (RFC 9112 section 6.3, RFC 9110 section 15), and what clients get."""

from tests.gateway.conformance.cases import ResponseCase, invalid_response_case
from tests.gateway.http_connection import get

INJECTED_RESPONSE = b"HTTP/1.1 200 OK\r\nSet-Cookie: evil=1\r\nContent-Length: 4\r\n\r\nevil"


def ok(fields: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body


def with_length(fields: bytes = b"") -> bytes:
    return ok(b"Content-Length: 5\r\n" + fields, b"abcde")


def with_chunks(data: bytes, fields: bytes = b"") -> bytes:
    return ok(b"Transfer-Encoding: chunked\r\n" + fields, data)


FRAMING = [
    ResponseCase("length", with_length(), body=b"abcde", headers={"content-length": "5"}, replica_connection_reused=True),
    ResponseCase("length 0", ok(b"Content-Length: 0\r\n"), headers={"content-length": "0"}, replica_connection_reused=True),
    ResponseCase("length with leading zeros", ok(b"Content-Length: 0005\r\n", b"abcde"), body=b"abcde", headers={"content-length": "5"}, replica_connection_reused=True),
    ResponseCase("chunks", with_chunks(b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"), body=b"abcde", absent=("content-length",), replica_connection_reused=True),
    ResponseCase("only the last chunk", with_chunks(b"0\r\n\r\n"), replica_connection_reused=True),
    ResponseCase("an extension is not forwarded", with_chunks(b"5;a=b\r\nabcde\r\n0;c\r\n\r\n"), body=b"abcde", replica_connection_reused=True),
    ResponseCase("a coding in mixed case", ok(b"Transfer-Encoding: Chunked\r\n", b"5\r\nabcde\r\n0\r\n\r\n"), body=b"abcde", replica_connection_reused=True),
    ResponseCase("a trailer", with_chunks(b"5\r\nabcde\r\n0\r\nX-Sum: 1\r\n\r\n"), body=b"abcde", trailers={"X-Sum": "1"}, replica_connection_reused=True),
    *(ResponseCase(f"trailer {name} is not forwarded", with_chunks(b"5\r\nabcde\r\n0\r\n" + name.encode() + b": x\r\n\r\n"), body=b"abcde", replica_connection_reused=True)
      for name in ("Set-Cookie", "Content-Type", "azureml-fe-error", "x-request-id", "WWW-Authenticate", "Connection")),
    ResponseCase("until the end of the connection", ok(b"", b"abcde"), body=b"abcde", replica_closes=True),
    ResponseCase("no body until the end of the connection", ok(b""), replica_closes=True),
    ResponseCase("length and close", with_length(b"Connection: close\r\n"), body=b"abcde", absent=("connection",)),
    ResponseCase("HTTP/1.0", with_length().replace(b"1.1", b"1.0"), body=b"abcde"),
    ResponseCase("HTTP/1.0 with keep-alive", with_length(b"Connection: keep-alive\r\n").replace(b"1.1", b"1.0"), body=b"abcde",
                 absent=("connection",), replica_connection_reused=True),
    ResponseCase("HTTP/1.0 until the end", ok(b"", b"abcde").replace(b"1.1", b"1.0"), body=b"abcde", replica_closes=True),
    ResponseCase("body shorter than its length", ok(b"Content-Length: 9\r\n", b"abcde"), body=b"abcde", truncated=True, client_connection_reused=False, replica_closes=True),
    ResponseCase("chunks without the last", with_chunks(b"5\r\nabcde\r\n"), body=b"abcde", truncated=True, client_connection_reused=False, replica_closes=True),
    ResponseCase("body longer than its length", ok(b"Content-Length: 5\r\n", b"abcdefghi"), body=b"abcde"),
    ResponseCase("garbage after the last chunk", with_chunks(b"5\r\nabcde\r\n0\r\n\r\nxyz"), body=b"abcde"),
]  # fmt: skip

BODILESS = [
    ResponseCase("204", b"HTTP/1.1 204 No Content\r\n\r\n", 204, absent=("content-length", "transfer-encoding"), replica_connection_reused=True),
    ResponseCase("204 with a length", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, absent=("content-length",), replica_connection_reused=True),
    ResponseCase("204 with a body", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde", 204,
                 absent=("content-length", "transfer-encoding")),
    ResponseCase("204 with chunks", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 204,
                 absent=("transfer-encoding",)),
    ResponseCase("304", b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", 304, headers={"etag": '"a"'}, replica_connection_reused=True),
    ResponseCase("304 with a length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304,
                 headers={"content-length": "5"}, replica_connection_reused=True),
    ResponseCase("304 followed by another response", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\n\r\n" + INJECTED_RESPONSE, 304),
    ResponseCase("205", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", 205, replica_connection_reused=True),
]  # fmt: skip

INTERIM = [
    ResponseCase("100 is not forwarded", b"HTTP/1.1 100 Continue\r\n\r\n" + with_length(), body=b"abcde", replica_connection_reused=True),
    ResponseCase("100 with fields is not forwarded", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" + with_length(), body=b"abcde", absent=("x",), replica_connection_reused=True),
    ResponseCase("103 is forwarded", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + with_length(), body=b"abcde", interim=(103,), absent=("link",),
                 replica_connection_reused=True),
    ResponseCase("several interim responses", b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + with_length(),
                 body=b"abcde", interim=(102, 103), replica_connection_reused=True),
    ResponseCase("an unknown interim response is forwarded", b"HTTP/1.1 199 What\r\n\r\n" + with_length(), body=b"abcde", interim=(199,), replica_connection_reused=True),
    ResponseCase("an interim response of length 0", b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n" + with_length(), body=b"abcde",
                 interim=(103,), absent=("link",), replica_connection_reused=True),
    *(invalid_response_case(f"status {status} with a body", b"HTTP/1.1 %d What\r\nContent-Length: %d\r\n\r\n" % (status, len(INJECTED_RESPONSE)) + INJECTED_RESPONSE)
      for status in (100, 102, 103, 199)),
    invalid_response_case("an interim response with a chunked body",
                          b"HTTP/1.1 199 What\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(INJECTED_RESPONSE) + INJECTED_RESPONSE + b"\r\n0\r\n\r\n"),
    invalid_response_case("an interim response with a body, and an upgrade",
                          b"HTTP/1.1 199 OK\r\nContent-Length: %d\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" % len(INJECTED_RESPONSE) + INJECTED_RESPONSE),
    invalid_response_case("only an interim response", b"HTTP/1.1 100 Continue\r\n\r\n", replica_closes=True),
    invalid_response_case("101 without an upgrade request", b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + INJECTED_RESPONSE),
    invalid_response_case("101 without Upgrade", b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + INJECTED_RESPONSE),
]  # fmt: skip

STATUSES = [
    *(ResponseCase(f"status {status}", f"HTTP/1.1 {status} Some Reason\r\nContent-Length: 0\r\n\r\n".encode(), status, replica_connection_reused=True)
      for status in (201, 206, 226, 299, 301, 307, 400, 401, 404, 418, 429, 451, 499, 501, 503, 504, 511, 599, 600, 999)),
    ResponseCase("500 becomes 502", b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nabcde", 502, b"abcde",
                 headers={"azureml-fe-error": "replica-error"}, replica_connection_reused=True),
    ResponseCase("empty reason", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", replica_connection_reused=True),
    ResponseCase("neither reason nor space", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", replica_connection_reused=True),
    ResponseCase("non-ASCII reason", b"HTTP/1.1 200 \xc3\xa9\r\nContent-Length: 0\r\n\r\n", replica_connection_reused=True),
    *(invalid_response_case(f"status line {line!r}", line + b"\r\nContent-Length: 5\r\n\r\nabcde") for line in (
        b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 2OO OK", b"HTTP/1.1 -200 OK", b"HTTP/1.1 +200 OK", b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK", b"http/1.1 200 OK", b"HTTP/1.2 200 OK", b"HTTP/0.9 200 OK", b"HTTP/2 200 OK", b"HTTP/2.0 200 OK",
        b"HTTP/1.10 200 OK", b"ICY 200 OK", b"RTSP/1.0 200 OK", b"RTSP/1.1 200 OK", b"ICE/1.0 200 OK",
        b"ICE/1.1 200 OK", b"rtsp/1.0 200 OK", b"\r\nRTSP/1.1 200 OK", b"HTTP/1.1 100 Continue\r\n\r\nRTSP/1.1 200 OK", b"RTSP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", b"HTTP 200 OK", b"200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1 099 OK",
        b"HTTP/1.1 200 O\x00K", b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 OK\r", b"HTTP/1.1 200 O\x01K", b"HTTP/1.1 200 O\x7fK",
        b"\x00HTTP/1.1 200 OK", b"POST / HTTP/1.1")),
]  # fmt: skip

HOSTILE = [
    *(invalid_response_case(f"framing {fields!r}", ok(fields + b"\r\n", b"abcde")) for fields in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5,5",
        b"Content-Length: -5", b"Content-Length: +5", b"Content-Length: 0x5", b"Content-Length: 5 5", b"Content-Length: ",
        b"Content-Length: 18446744073709551621", b"Content-Length: 5\x00", b"Content-Length : 5", b" Content-Length: 5",
        b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\r\n chunked")),
    *(invalid_response_case(f"field {field!r}", with_length(field + b"\r\n")) for field in (
        b"X: y\x00", b"X: y\x01", b"X: y\x7f", b"X: y\rSet-Cookie: evil=1", b"X: y\nSet-Cookie: evil=1", b"X: y\r\r", b"X\x00: y", b"X : y",
        b"X y: z", b": y", b"X", b" X: y", b"X: y\r\n z", b"X: y\r\n\tSet-Cookie: evil=1", b"X\xff: y", b"(X): y", b"X@: y")),
    invalid_response_case("lines that end in LF", with_length().replace(b"\r\n", b"\n")),
    invalid_response_case("lines that end in CR", with_length().replace(b"\r\n", b"\r")),
    invalid_response_case("no bytes", b"", replica_closes=True),
    invalid_response_case("incomplete status line", b"HTTP/1.1 20", replica_closes=True),
    invalid_response_case("incomplete head", b"HTTP/1.1 200 OK\r\nContent-", replica_closes=True),
    invalid_response_case("text", b"hello, world\r\n\r\n", replica_closes=True),
    invalid_response_case("TLS", b"\x15\x03\x01\x00\x02\x02\x46", replica_closes=True),
    ResponseCase("a second response after the first", with_length() + INJECTED_RESPONSE, body=b"abcde"),
    ResponseCase("a second response after chunks", with_chunks(b"5\r\nabcde\r\n0\r\n\r\n") + INJECTED_RESPONSE, body=b"abcde"),
    ResponseCase("a response inside the body", ok(b"Content-Length: %d\r\n" % len(INJECTED_RESPONSE), INJECTED_RESPONSE), body=INJECTED_RESPONSE, replica_connection_reused=True),
    ResponseCase("an interim response after the response", with_length() + b"HTTP/1.1 103 Early Hints\r\n\r\n", body=b"abcde"),
    *(ResponseCase(f"invalid chunk {data!r}", with_chunks(b"3\r\nabc\r\n" + data), body=b"abc", truncated=True, client_connection_reused=False) for data in (
        b"zz\r\n", b"-1\r\nx\r\n", b"0x1\r\nx\r\n", b"1 \r\nx\r\n", b"1\nx\r\n", b"FFFFFFFFFFFFFFFFF\r\n")),
    *(ResponseCase(f"trailer {trailer!r} changes no framing", with_chunks(b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n\r\n"), body=b"abc", replica_connection_reused=True) for trailer in (
        b"Connection: close", b"connection: Close", b"Proxy-Connection: close", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Connection: upgrade\r\nUpgrade: x")),
    *(ResponseCase(f"trailer {trailer!r} truncates nothing", with_chunks(b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n\r\n"), body=b"abc") for trailer in (
        b"Content-Length: 3", b"content-length: 99999", b"Content-Length: x", b"Content-Length: 3\r\nContent-Length: 4")),
    ResponseCase("a folded trailer", with_chunks(b"3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n"), body=b"abc", truncated=True, client_connection_reused=False),
    ResponseCase("a trailer with a bare CR", with_chunks(b"3\r\nabc\r\n0\r\nX: y\rSet-Cookie: evil=1\r\n\r\n"), body=b"abc", truncated=True,
                 client_connection_reused=False),
]  # fmt: skip

FIELDS = [
    *(ResponseCase(f"{name} is not forwarded", with_length(name.encode() + b": x\r\n"), body=b"abcde", absent=(name.lower(),), replica_connection_reused=True) for name in (
        "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "TE", "Upgrade", "azureml-fe-error")),
    ResponseCase("fields named by Connection are not forwarded", with_length(b"Connection: x-a\r\nX-A: 1\r\nX-B: 2\r\n"), body=b"abcde", headers={"x-b": "2"},
                 absent=("x-a", "connection"), replica_connection_reused=True),
    ResponseCase("Connection cannot remove the length", with_length(b"Connection: content-length\r\n"), body=b"abcde",
                 headers={"content-length": "5"}, replica_connection_reused=True),
    ResponseCase("Server and Date of the replica are forwarded", with_length(b"Server: model\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"), body=b"abcde",
                 headers={"server": "model", "date": "Thu, 01 Jan 1970 00:00:00 GMT"}, replica_connection_reused=True),
    ResponseCase("a non-ASCII value is forwarded", with_length(b"X: \xc3\xa4\r\n"), body=b"abcde", headers={"x": "\xc3\xa4"}, replica_connection_reused=True),
    ResponseCase("an empty value is forwarded", with_length(b"X:\r\n"), body=b"abcde", headers={"x": ""}, replica_connection_reused=True),
    ResponseCase("a percent-encoded line end stays encoded", with_length(b"Location: /a%0d%0aSet-Cookie:%20evil=1\r\n"), body=b"abcde",
                 headers={"location": "/api/v1/service/iris/a%0d%0aSet-Cookie:%20evil=1"}, replica_connection_reused=True),
    ResponseCase("response to GET", with_length(), body=b"abcde", request=get(), replica_connection_reused=True),
]  # fmt: skip

CASES = [*FRAMING, *BODILESS, *INTERIM, *STATUSES, *HOSTILE, *FIELDS]
