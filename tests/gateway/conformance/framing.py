"""Ends of request bodies (RFC 9112 sections 6 and 7), and the known ways to make two parsers disagree about them."""

from tests.gateway.conformance.cases import (
    CHUNKED_POST_HEAD,
    POST_HEAD_START,
    POST_HEAD_START_WITHOUT_HOST,
    SCORE_LINE,
    SMUGGLED_REQUEST,
    ReplicaRequest,
    forwarded_case,
    local_response_case,
)
from tests.gateway.http_connection import KEY

GET_HEAD_START = f"GET /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\nAuthorization: Bearer {KEY}\r\n".encode()
UNKNOWN_SERVICE_HEAD_START = b"POST /api/v1/service/none/score HTTP/1.1\r\nHost: fe\r\n"
POST_HEAD_START_WITHOUT_KEY = b"POST /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n"


def with_length(value: bytes = b"5") -> bytes:
    """Return a request with this Content-Length and a body of five bytes."""
    return POST_HEAD_START + b"Content-Length: " + value + b"\r\n\r\nabcde"


def with_request_as_body(head: bytes) -> bytes:
    """Return a request whose body is another request."""
    return head + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED_REQUEST) + SMUGGLED_REQUEST


def with_coding(value: bytes) -> bytes:
    """Return a request with this Transfer-Encoding and a chunked body of five bytes."""
    return POST_HEAD_START + b"Transfer-Encoding:" + value + b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"


def with_size_line(line: bytes) -> bytes:
    """Return a request whose only chunk has this size line and five bytes."""
    return CHUNKED_POST_HEAD + line + b"\r\nabcde\r\n0\r\n\r\n"


LENGTH_REQUEST = ReplicaRequest(body=b"abcde", headers={"content-length": "5"}, absent=("transfer-encoding",))
CHUNKED_REQUEST = ReplicaRequest(body=b"abcde", headers={"transfer-encoding": "chunked"}, absent=("content-length",))
EMPTY_POST = ReplicaRequest(headers={"content-length": "0"}, absent=("transfer-encoding",))
EMPTY_GET = ReplicaRequest("GET /score HTTP/1.1", absent=("content-length", "transfer-encoding"))

LENGTHS = [
    forwarded_case("POST without a body", POST_HEAD_START + b"\r\n", EMPTY_POST),
    forwarded_case("POST with length 0", POST_HEAD_START + b"Content-Length: 0\r\n\r\n", EMPTY_POST),
    forwarded_case("GET without a body", GET_HEAD_START + b"\r\n", EMPTY_GET),
    forwarded_case("GET with length 0", GET_HEAD_START + b"Content-Length: 0\r\n\r\n", EMPTY_GET),
    forwarded_case(
        "GET with a body",
        GET_HEAD_START + b"Content-Length: 5\r\n\r\nabcde",
        ReplicaRequest("GET /score HTTP/1.1", b"abcde", {"content-length": "5"}),
    ),
    forwarded_case(
        "GET with a chunked body",
        GET_HEAD_START + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        ReplicaRequest("GET /score HTTP/1.1", b"abcde", {"transfer-encoding": "chunked"}),
    ),
    forwarded_case(
        "length with leading zeros is forwarded without them", with_length(b"00000000000000000005"), LENGTH_REQUEST
    ),
    forwarded_case("two requests in one piece", with_length() + with_length(), LENGTH_REQUEST, LENGTH_REQUEST),
    forwarded_case(
        "a body that contains a request",
        with_request_as_body(POST_HEAD_START),
        ReplicaRequest(body=SMUGGLED_REQUEST),
    ),
    forwarded_case(
        "GET with a body that contains a request (CL.0)",
        with_request_as_body(GET_HEAD_START),
        ReplicaRequest("GET /score HTTP/1.1", SMUGGLED_REQUEST, {"content-length": str(len(SMUGGLED_REQUEST))}),
    ),
    local_response_case(
        "body longer than its length",
        POST_HEAD_START + b"Content-Length: 3\r\n\r\nabc\x01\x02",
        200,
        400,
        forwarded_requests=(ReplicaRequest(body=b"abc"),),
    ),
    local_response_case(
        "garbage after the body", with_length() + b"garbage\r\n\r\n", 200, 400, forwarded_requests=(LENGTH_REQUEST,)
    ),
    *(
        local_response_case(f"length {value!r}", with_length(value))
        for value in (
            b"5;",
            b"5 5",
            b"5,",
            b",5",
            b"5\x00",
            b"\x0b5",
            b"5\x0c",
            b"5\x0b",
            b"5e0",
            b'"5"',
            b"0b101",
            b"0o5",
            b"V",
            b"5\xa0",
            b"\xef\xbc\x95",
            b"\xd9\xa5",
            b"\xb2",
            b"5\xff",
            b"- 5",
            b"+0",
            b"-0",
            b"0x",
            b"1" * 400,
            b"5\t5",
            b"99999999999999999999",
            b"18446744073709551616",
            b"infinity",
            b"nan",
            b"5\r6",
        )
    ),
    local_response_case("the longest length that 64 bits hold", with_length(b"18446744073709551615"), 413),
    local_response_case("a length over the limit", with_length(b"104857601"), 413),
    local_response_case(
        "two lengths, one in mixed case", POST_HEAD_START + b"Content-Length: 5\r\ncontent-LENGTH: 6\r\n\r\nabcdef"
    ),
    local_response_case(
        "length 0 and another length", POST_HEAD_START + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nabcde"
    ),
    local_response_case(
        "two lengths with a header between",
        POST_HEAD_START + b"Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n\r\nabcde",
    ),
    forwarded_case("Content_Length is not a length", POST_HEAD_START + b"Content_Length: 500\r\n\r\n", EMPTY_POST),
    forwarded_case(
        "Content-Length and Content_Length",
        POST_HEAD_START + b"Content-Length: 5\r\nContent_Length: 50\r\n\r\nabcde",
        LENGTH_REQUEST,
    ),
]

CODINGS = [
    *(forwarded_case(f"coding {value!r}", with_coding(value), CHUNKED_REQUEST) for value in (
        b" chunked", b"chunked", b"\tchunked", b" chunked ", b" CHUNKED", b" cHuNkEd")),
    *(local_response_case(f"coding {value!r}", with_coding(value)) for value in (
        b" chunked\x00", b" \x00chunked", b" chunked\x0b", b" chunked\x0c", b" chunked,", b" ,chunked", b" chunked,chunked",
        b" 'chunked'", b" chunkedx", b" chunk", b" chunked\xa0", b" \xc2\xa0chunked", b" ch\xc3\xbcnked", b" chunked;q=1",
        b" deflate", b" compress, chunked", b" gzip", b" x-gzip,chunked", b" identity, chunked", b" chunked, identity",
        b" trailers", b" chun ked", b" chunked\r\n ,x", b"\r\n chunked", b" chunked\rX: y", b" chunked\nX: y", b" none", b"")),
    *(local_response_case(f"name {name!r}", POST_HEAD_START + name + b" chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n") for name in (
        b"Transfer-Encoding :", b"Transfer-Encoding\t:", b" Transfer-Encoding:", b"\tTransfer-Encoding:",
        b"Transfer Encoding:", b"Transfer-Encoding\x00:", b"Transfer-Encoding\x0b:", b"Transfer-Encoding\xa0:",
        b"Transfer-Encoding;:", b"Transfer-Encoding,:", b"X: y\rTransfer-Encoding:", b"X: y\nTransfer-Encoding:",
        b"X: y\n\rTransfer-Encoding:", b"X:\nTransfer-Encoding:", b"X: y\r\r\nTransfer-Encoding:", b"\x00Transfer-Encoding:",
        b"Transfer\xadEncoding:", b'"Transfer-Encoding":', b"Transfer-Encoding=")),
    forwarded_case("Transfer_Encoding is not a coding (TE.CL)",
                   POST_HEAD_START + b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", ReplicaRequest(body=b"0\r\n\r\n")),
    forwarded_case("Transfer.Encoding is not a coding",
                   POST_HEAD_START + b"Transfer.Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", ReplicaRequest(body=b"0\r\n\r\n")),
    forwarded_case("Content-Encoding is not a transfer coding", POST_HEAD_START + b"Content-Encoding: chunked\r\nContent-Length: 5\r\n\r\nabcde",
                   ReplicaRequest(body=b"abcde", headers={"content-encoding": "chunked"})),
    local_response_case("length and coding (CL.TE)", POST_HEAD_START + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
    local_response_case("length 0 and coding", POST_HEAD_START + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED_REQUEST),
    local_response_case("coding and length (TE.CL)", POST_HEAD_START + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + SMUGGLED_REQUEST),
    local_response_case("two codings, the second unknown (TE.TE)",
                        POST_HEAD_START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + SMUGGLED_REQUEST),
    local_response_case("two codings, the second empty", POST_HEAD_START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n"),
    local_response_case("length and coding, the coding named by Connection",
                        POST_HEAD_START + b"Connection: Transfer-Encoding\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
    local_response_case("coding in HTTP/1.0", CHUNKED_POST_HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n"),
]  # fmt: skip

CHUNK_SYNTAX = [
    forwarded_case("chunks", CHUNKED_POST_HEAD + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", CHUNKED_REQUEST),
    forwarded_case("an empty chunked body", CHUNKED_POST_HEAD + b"0\r\n\r\n", ReplicaRequest(headers={"transfer-encoding": "chunked"})),
    forwarded_case("a last chunk with several zeros", CHUNKED_POST_HEAD + b"5\r\nabcde\r\n00000000\r\n\r\n", CHUNKED_REQUEST),
    *(forwarded_case(f"size line {line!r}", with_size_line(line), CHUNKED_REQUEST) for line in (
        b"5", b"05", b"0000000000005", b"5;a", b"5;a=b", b'5;a="b"', b'5;a="b c"', b"5;a=b;c=d", b"5;ieof", b"5;a;b",
        b'5;a="\\"b"', b'5;a="; 7"', b"5;=b")),
    forwarded_case("an extension of the last chunk", CHUNKED_POST_HEAD + b"5\r\nabcde\r\n0;a=b\r\n\r\n", CHUNKED_REQUEST),
    *(local_response_case(f"size line {line!r}", with_size_line(line)) for line in (
        b"5 ", b"5\t", b" 5", b"\t5", b"+5", b"-5", b"0x5", b"0X5", b"5h", b"5_", b"5.0", b"5,", b"5:", b"g", b"", b"\x00", b"5\x00",
        b"5\r", b"5\r\r", b"5\n", b"\n5", b"5\xa0", b"\xef\xbc\x95", b"5;a\n", b"5;a\rb", b"5;\x00", b"5;a=\x01", b"5;a=\"b\r",
        b"FFFFFFFFFFFFFFFFF", b"10000000000000005", b"100000000000000000000000000000005", b"FFFFFFFFFFFFFFFF5", b"1" * 30,
        b"5 ;a", b"5; a=b", b"5;a =b", b"5;a= b", b"5;a=\"b", b"5;;", b"5;a=b c")),
    *(local_response_case(f"size {size!r} is over the limit before the data arrives", CHUNKED_POST_HEAD + size + b"\r\nabc", 413) for size in (
        b"6400001", b"100000005", b"8000000000000000", b"FFFFFFFFFFFFFFFF", b"7fffffff", b"80000000", b"ffffffff;a=b", b"0000000006400001")),
    *(local_response_case(f"second size {size!r} is over the rest of the limit", CHUNKED_POST_HEAD + b"5\r\nabcde\r\n" + size + b"\r\n", 413, forwarded_requests=())
      for size in (b"63ffffc", b"6400000", b"fffffffffffffffb", b"63ffffc;a=\"b\"")),
    *(local_response_case(f"size {size!r}", CHUNKED_POST_HEAD + size + b"\r\nabc") for size in (b"-1", b"-0", b"--1", b"-FFFFFFFF", b"10000000000000000")),
    local_response_case("a chunk that ends in LF", CHUNKED_POST_HEAD + b"5\r\nabcde\n0\r\n\r\n"),
    local_response_case("a chunk that ends in CR", CHUNKED_POST_HEAD + b"5\r\nabcde\r0\r\n\r\n"),
    local_response_case("a chunk that ends in two other bytes", CHUNKED_POST_HEAD + b"5\r\nabcdeXX0\r\n\r\n"),
    local_response_case("a chunk that ends in LF CR", CHUNKED_POST_HEAD + b"5\r\nabcde\n\r0\r\n\r\n"),
    local_response_case("a chunk longer than its size", CHUNKED_POST_HEAD + b"5\r\nabcdef\r\n0\r\n\r\n"),
    local_response_case("a last chunk that ends in LF", CHUNKED_POST_HEAD + b"5\r\nabcde\r\n0\n\n"),
    local_response_case("a last chunk and a bare CR", CHUNKED_POST_HEAD + b"5\r\nabcde\r\n0\r\n\rX"),
    local_response_case("an empty line between chunks", CHUNKED_POST_HEAD + b"5\r\nabcde\r\n\r\n0\r\n\r\n"),
    local_response_case("LF before the chunks", CHUNKED_POST_HEAD + b"\n5\r\nabcde\r\n0\r\n\r\n"),
    forwarded_case("a request after the last chunk", CHUNKED_POST_HEAD + b"5\r\nabcde\r\n0\r\n\r\n" + with_length(), CHUNKED_REQUEST, LENGTH_REQUEST),
    forwarded_case("a chunk that contains a request", CHUNKED_POST_HEAD + b"%x\r\n" % len(SMUGGLED_REQUEST) + SMUGGLED_REQUEST + b"\r\n0\r\n\r\n",
                   ReplicaRequest(body=SMUGGLED_REQUEST, headers={"transfer-encoding": "chunked"})),
]  # fmt: skip

HEAD_AND_CHUNKS = CHUNKED_POST_HEAD + b"5\r\nabcde\r\n0\r\n"
TRAILERS = [
    forwarded_case("a trailer", HEAD_AND_CHUNKS + b"X-Sum: 1\r\n\r\n", ReplicaRequest(body=b"abcde", trailers={"X-Sum": "1"})),
    forwarded_case("two trailers", HEAD_AND_CHUNKS + b"X-Sum: 1\r\nX-Time: 2\r\n\r\n",
                   ReplicaRequest(body=b"abcde", trailers={"X-Sum": "1", "X-Time": "2"})),
    *(forwarded_case(f"trailer {name} is not forwarded", HEAD_AND_CHUNKS + name.encode() + b": x\r\n\r\n", CHUNKED_REQUEST) for name in (
        "Host", "Authorization", "Content-Type", "Content-Encoding", "Connection", "TE", "Trailer", "X-Forwarded-For",
        "X-Request-Id", "Cache-Control", "Set-Cookie", "Expect", "Upgrade", "Proxy-Authorization", "X_Under")),
    *(forwarded_case(f"trailer {trailer!r} changes nothing for the next request", HEAD_AND_CHUNKS + trailer + b"\r\n\r\n" + with_length(), CHUNKED_REQUEST, LENGTH_REQUEST)
      for trailer in (b"Connection: close", b"connection: CLOSE", b"Connection: upgrade\r\nUpgrade: websocket", b"Proxy-Connection: close", b"Connection: keep-alive, close",
                      b"Content-Type: y\r\nConnection: close\r\nConnection: close", b"Host: other", b"Host: a\r\nHost: b", b"Expect: 100-continue", b"Keep-Alive: timeout=1")),
    local_response_case("trailer with a length", HEAD_AND_CHUNKS + b"Content-Length: 5\r\n\r\n"),
    local_response_case("trailer with a coding", HEAD_AND_CHUNKS + b"Transfer-Encoding: chunked\r\n\r\n"),
    local_response_case("trailer that is folded", HEAD_AND_CHUNKS + b"X: y\r\n\tz\r\n\r\n"),
    local_response_case("trailer with a space before the colon", HEAD_AND_CHUNKS + b"X : y\r\n\r\n"),
    local_response_case("trailer with NUL", HEAD_AND_CHUNKS + b"X: y\x00\r\n\r\n"),
    local_response_case("trailer with a bare CR", HEAD_AND_CHUNKS + b"X: y\rz\r\n\r\n"),
    local_response_case("trailer that ends in LF", HEAD_AND_CHUNKS + b"X: y\n\r\n"),
    local_response_case("trailer without a name", HEAD_AND_CHUNKS + b": y\r\n\r\n"),
    local_response_case("request instead of a trailer", HEAD_AND_CHUNKS + SMUGGLED_REQUEST),
]  # fmt: skip

REFUSED_BODIES = [
    local_response_case("OPTIONS: its body is not parsed as a request", with_request_as_body(b"OPTIONS" + UNKNOWN_SERVICE_HEAD_START[4:]), 404, closes=False),
    local_response_case("PUT: its body is not parsed as a request", with_request_as_body(b"PUT" + POST_HEAD_START[4:]), 405, closes=False),
    local_response_case("HEAD: its body is not parsed as a request", with_request_as_body(b"HEAD" + UNKNOWN_SERVICE_HEAD_START[4:]), 404, closes=False),
    local_response_case("unknown service: its body is not parsed as a request", with_request_as_body(UNKNOWN_SERVICE_HEAD_START), 404, closes=False),
    local_response_case("no key: its body is not parsed as a request", with_request_as_body(POST_HEAD_START_WITHOUT_KEY), 401, closes=False),
    local_response_case("no key, body too long to be discarded", POST_HEAD_START_WITHOUT_KEY + b"Content-Length: 100000\r\n\r\n" + SMUGGLED_REQUEST * 5, 401),
    local_response_case("no key, incomplete chunk", POST_HEAD_START_WITHOUT_KEY + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n" + SMUGGLED_REQUEST, 401),
]  # fmt: skip

CONTINUE = [
    forwarded_case("Expect, with the body sent immediately", POST_HEAD_START + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
                   ReplicaRequest(body=b"abcde", absent=("expect",))),
    forwarded_case("Expect in mixed case", POST_HEAD_START + b"expect: 100-Continue\r\nContent-Length: 5\r\n\r\nabcde",
                   ReplicaRequest(body=b"abcde", absent=("expect",))),
    forwarded_case("Expect without a body", POST_HEAD_START + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", ReplicaRequest(absent=("expect",))),
    forwarded_case("an unknown expectation", POST_HEAD_START + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nabcde",
                   ReplicaRequest(body=b"abcde", absent=("expect",))),
]  # fmt: skip

HTTP_1_0 = [
    forwarded_case("HTTP/1.0", POST_HEAD_START_WITHOUT_HOST.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\nabcde", ReplicaRequest(SCORE_LINE, b"abcde"), closes=True),
    forwarded_case("HTTP/1.0 with keep-alive",
                   POST_HEAD_START_WITHOUT_HOST.replace(b"1.1", b"1.0") + b"Host: fe\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nabcde",
                   ReplicaRequest(SCORE_LINE, b"abcde", absent=("connection",))),
]  # fmt: skip

CASES = [*LENGTHS, *CODINGS, *CHUNK_SYNTAX, *TRAILERS, *REFUSED_BODIES, *CONTINUE, *HTTP_1_0]
