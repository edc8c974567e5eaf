"""What replicas may say (RFC 9112 section 6.3, RFC 9110 section 15), what hostile ones try, and what clients get of it."""

from tests.gateway.conformance.cases import AnswerCase, invalid
from tests.gateway.wire import get

EVIL = b"HTTP/1.1 200 OK\r\nSet-Cookie: evil=1\r\nContent-Length: 4\r\n\r\nevil"


def ok(fields: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body


def sized(fields: bytes = b"") -> bytes:
    return ok(b"Content-Length: 5\r\n" + fields, b"abcde")


def chunks(data: bytes, fields: bytes = b"") -> bytes:
    return ok(b"Transfer-Encoding: chunked\r\n" + fields, data)


FRAMING = [
    AnswerCase("length", sized(), body=b"abcde", has={"content-length": "5"}, reused=True),
    AnswerCase("length 0", ok(b"Content-Length: 0\r\n"), has={"content-length": "0"}, reused=True),
    AnswerCase("length with zeros", ok(b"Content-Length: 0005\r\n", b"abcde"), body=b"abcde", has={"content-length": "5"}, reused=True),
    AnswerCase("chunks", chunks(b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"), body=b"abcde", lacks=("content-length",), reused=True),
    AnswerCase("no chunk but the last", chunks(b"0\r\n\r\n"), reused=True),
    AnswerCase("an extension stops here", chunks(b"5;a=b\r\nabcde\r\n0;c\r\n\r\n"), body=b"abcde", reused=True),
    AnswerCase("a coding in capitals", ok(b"Transfer-Encoding: Chunked\r\n", b"5\r\nabcde\r\n0\r\n\r\n"), body=b"abcde", reused=True),
    AnswerCase("a trailer", chunks(b"5\r\nabcde\r\n0\r\nX-Sum: 1\r\n\r\n"), body=b"abcde", trailers={"X-Sum": "1"}, reused=True),
    *(AnswerCase(f"trailer {name} stops here", chunks(b"5\r\nabcde\r\n0\r\n" + name.encode() + b": x\r\n\r\n"), body=b"abcde", reused=True)
      for name in ("Set-Cookie", "Content-Type", "azureml-fe-error", "x-request-id", "WWW-Authenticate", "Connection")),
    AnswerCase("until the end of the connection", ok(b"", b"abcde"), body=b"abcde", ends=True),
    AnswerCase("nothing until the end of the connection", ok(b""), ends=True),
    AnswerCase("length and close", sized(b"Connection: close\r\n"), body=b"abcde", lacks=("connection",)),
    AnswerCase("HTTP/1.0", sized().replace(b"1.1", b"1.0"), body=b"abcde"),
    AnswerCase("HTTP/1.0 that keeps its connection", sized(b"Connection: keep-alive\r\n").replace(b"1.1", b"1.0"), body=b"abcde",
               lacks=("connection",), reused=True),
    AnswerCase("HTTP/1.0 until the end", ok(b"", b"abcde").replace(b"1.1", b"1.0"), body=b"abcde", ends=True),
    AnswerCase("less than the length", ok(b"Content-Length: 9\r\n", b"abcde"), body=b"abcde", cut=True, kept=False, ends=True),
    AnswerCase("chunks without the last", chunks(b"5\r\nabcde\r\n"), body=b"abcde", cut=True, kept=False, ends=True),
    AnswerCase("more than the length", ok(b"Content-Length: 5\r\n", b"abcdefghi"), body=b"abcde"),
    AnswerCase("garbage after the last chunk", chunks(b"5\r\nabcde\r\n0\r\n\r\nxyz"), body=b"abcde"),
]  # fmt: skip

BODILESS = [
    AnswerCase("204", b"HTTP/1.1 204 No Content\r\n\r\n", 204, lacks=("content-length", "transfer-encoding"), reused=True),
    AnswerCase("204 with a length", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, lacks=("content-length",), reused=True),
    AnswerCase("204 with a body", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde", 204,
               lacks=("content-length", "transfer-encoding")),
    AnswerCase("204 with chunks", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 204,
               lacks=("transfer-encoding",)),
    AnswerCase("304", b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", 304, has={"etag": '"a"'}, reused=True),
    AnswerCase("304 with the length of what it stands for", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304,
               has={"content-length": "5"}, reused=True),
    AnswerCase("304 with an answer hidden behind it", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\n\r\n" + EVIL, 304),
    AnswerCase("205", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", 205, reused=True),
]  # fmt: skip

INTERIM = [
    AnswerCase("100 stops here", b"HTTP/1.1 100 Continue\r\n\r\n" + sized(), body=b"abcde", reused=True),
    AnswerCase("100 with fields stops here", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" + sized(), body=b"abcde", lacks=("x",), reused=True),
    AnswerCase("103 passes", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + sized(), body=b"abcde", interim=(103,), lacks=("link",),
               reused=True),
    AnswerCase("several", b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + sized(),
               body=b"abcde", interim=(102, 103), reused=True),
    AnswerCase("an unknown one passes", b"HTTP/1.1 199 What\r\n\r\n" + sized(), body=b"abcde", interim=(199,), reused=True),
    AnswerCase("an interim answer of length 0", b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n" + sized(), body=b"abcde",
               interim=(103,), lacks=("link",), reused=True),
    *(invalid(f"status {status} with a body", b"HTTP/1.1 %d What\r\nContent-Length: %d\r\n\r\n" % (status, len(EVIL)) + EVIL)
      for status in (100, 102, 103, 199)),
    invalid("an interim answer with a body in chunks",
            b"HTTP/1.1 199 What\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(EVIL) + EVIL + b"\r\n0\r\n\r\n"),
    invalid("an interim answer with a body, and an upgrade",
            b"HTTP/1.1 199 OK\r\nContent-Length: %d\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" % len(EVIL) + EVIL),
    invalid("only an interim answer", b"HTTP/1.1 100 Continue\r\n\r\n", ends=True),
    invalid("101 that nobody asked for", b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + EVIL),
    invalid("101 without Upgrade", b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + EVIL),
]  # fmt: skip

STATUSES = [
    *(AnswerCase(f"status {status}", f"HTTP/1.1 {status} Some Reason\r\nContent-Length: 0\r\n\r\n".encode(), status, reused=True)
      for status in (201, 206, 226, 299, 301, 307, 400, 401, 404, 418, 429, 451, 499, 501, 503, 504, 511, 599, 600, 999)),
    AnswerCase("500 becomes 502", b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nabcde", 502, b"abcde",
               has={"azureml-fe-error": "replica-error"}, reused=True),
    AnswerCase("no reason", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", reused=True),
    AnswerCase("neither reason nor space", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", reused=True),
    AnswerCase("a reason above ASCII", b"HTTP/1.1 200 \xc3\xa9\r\nContent-Length: 0\r\n\r\n", reused=True),
    *(invalid(f"first line {first!r}", first + b"\r\nContent-Length: 5\r\n\r\nabcde") for first in (
        b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 2OO OK", b"HTTP/1.1 -200 OK", b"HTTP/1.1 +200 OK", b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK", b"http/1.1 200 OK", b"HTTP/1.2 200 OK", b"HTTP/0.9 200 OK", b"HTTP/2 200 OK", b"HTTP/2.0 200 OK",
        b"HTTP/1.10 200 OK", b"ICY 200 OK", b"HTTP 200 OK", b"200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1 099 OK",
        b"HTTP/1.1 200 O\x00K", b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 OK\r", b"HTTP/1.1 200 O\x01K", b"HTTP/1.1 200 O\x7fK",
        b"\x00HTTP/1.1 200 OK", b"POST / HTTP/1.1")),
]  # fmt: skip

HOSTILE = [
    *(invalid(f"framing {fields!r}", ok(fields + b"\r\n", b"abcde")) for fields in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5,5",
        b"Content-Length: -5", b"Content-Length: +5", b"Content-Length: 0x5", b"Content-Length: 5 5", b"Content-Length: ",
        b"Content-Length: 18446744073709551621", b"Content-Length: 5\x00", b"Content-Length : 5", b" Content-Length: 5",
        b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\r\n chunked")),
    *(invalid(f"field {field!r}", sized(field + b"\r\n")) for field in (
        b"X: y\x00", b"X: y\x01", b"X: y\x7f", b"X: y\rSet-Cookie: evil=1", b"X: y\nSet-Cookie: evil=1", b"X: y\r\r", b"X\x00: y", b"X : y",
        b"X y: z", b": y", b"X", b" X: y", b"X: y\r\n z", b"X: y\r\n\tSet-Cookie: evil=1", b"X\xff: y", b"(X): y", b"X@: y")),
    invalid("lines that end in LF", sized().replace(b"\r\n", b"\n")),
    invalid("lines that end in CR", sized().replace(b"\r\n", b"\r")),
    invalid("nothing", b"", ends=True),
    invalid("half a first line", b"HTTP/1.1 20", ends=True),
    invalid("half a head", b"HTTP/1.1 200 OK\r\nContent-", ends=True),
    invalid("text", b"hello, world\r\n\r\n", ends=True),
    invalid("TLS", b"\x15\x03\x01\x00\x02\x02\x46", ends=True),
    AnswerCase("a second answer behind the first", sized() + EVIL, body=b"abcde"),
    AnswerCase("a second answer behind chunks", chunks(b"5\r\nabcde\r\n0\r\n\r\n") + EVIL, body=b"abcde"),
    AnswerCase("an answer within the body", ok(b"Content-Length: %d\r\n" % len(EVIL), EVIL), body=EVIL, reused=True),
    AnswerCase("an interim answer behind the answer", sized() + b"HTTP/1.1 103 Early Hints\r\n\r\n", body=b"abcde"),
    *(AnswerCase(f"chunks that break: {data!r}", chunks(b"3\r\nabc\r\n" + data), body=b"abc", cut=True, kept=False) for data in (
        b"zz\r\n", b"-1\r\nx\r\n", b"0x1\r\nx\r\n", b"1 \r\nx\r\n", b"1\nx\r\n", b"FFFFFFFFFFFFFFFFF\r\n")),
    AnswerCase("a folded trailer", chunks(b"3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n"), body=b"abc", cut=True, kept=False),
    AnswerCase("a trailer with a line end", chunks(b"3\r\nabc\r\n0\r\nX: y\rSet-Cookie: evil=1\r\n\r\n"), body=b"abc", cut=True,
               kept=False),
]  # fmt: skip

FIELDS = [
    *(AnswerCase(f"{name} stops here", sized(name.encode() + b": x\r\n"), body=b"abcde", lacks=(name.lower(),), reused=True) for name in (
        "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "TE", "Upgrade", "azureml-fe-error")),
    AnswerCase("fields that Connection names stop here", sized(b"Connection: x-a\r\nX-A: 1\r\nX-B: 2\r\n"), body=b"abcde", has={"x-b": "2"},
               lacks=("x-a", "connection"), reused=True),
    AnswerCase("Connection cannot name the length away", sized(b"Connection: content-length\r\n"), body=b"abcde",
               has={"content-length": "5"}, reused=True),
    AnswerCase("Server and Date are the model's", sized(b"Server: model\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"), body=b"abcde",
               has={"server": "model", "date": "Thu, 01 Jan 1970 00:00:00 GMT"}, reused=True),
    AnswerCase("a value above ASCII passes", sized(b"X: \xc3\xa4\r\n"), body=b"abcde", has={"x": "\xc3\xa4"}, reused=True),
    AnswerCase("an empty value passes", sized(b"X:\r\n"), body=b"abcde", has={"x": ""}, reused=True),
    AnswerCase("a line end in percent signs stays one", sized(b"Location: /a%0d%0aSet-Cookie:%20evil=1\r\n"), body=b"abcde",
               has={"location": "/a%0d%0aSet-Cookie:%20evil=1"}, reused=True),
    AnswerCase("for a GET", sized(), body=b"abcde", request=get(), reused=True),
]  # fmt: skip

CASES = [*FRAMING, *BODILESS, *INTERIM, *STATUSES, *HOSTILE, *FIELDS]
