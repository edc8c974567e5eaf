"""Where a request's body ends (RFC 9112 sections 6 and 7), and every known way to have two readers disagree on it."""

from tests.gateway.conformance.cases import CHUNKED, HEAD, OPEN, SCORE, SMUGGLED, Seen, forwarded, refused
from tests.gateway.wire import KEY

GET = f"GET /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\nAuthorization: Bearer {KEY}\r\n".encode()
OTHER = b"POST /api/v1/service/none/score HTTP/1.1\r\nHost: fe\r\n"
WITHOUT_KEY = b"POST /api/v1/service/iris/score HTTP/1.1\r\nHost: fe\r\n"


def five(value: bytes = b"5") -> bytes:
    return HEAD + b"Content-Length: " + value + b"\r\n\r\nabcde"


def coded(value: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding:" + value + b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"


def sized(line: bytes) -> bytes:
    return CHUNKED + line + b"\r\nabcde\r\n0\r\n\r\n"


FIVE = Seen(body=b"abcde", has={"content-length": "5"}, lacks=("transfer-encoding",))
CHUNKS = Seen(body=b"abcde", has={"transfer-encoding": "chunked"}, lacks=("content-length",))
EMPTY_POST = Seen(has={"content-length": "0"}, lacks=("transfer-encoding",))
EMPTY_GET = Seen("GET /score HTTP/1.1", lacks=("content-length", "transfer-encoding"))

LENGTHS = [
    forwarded("POST without a body", HEAD + b"\r\n", EMPTY_POST),
    forwarded("POST with length 0", HEAD + b"Content-Length: 0\r\n\r\n", EMPTY_POST),
    forwarded("GET without a body", GET + b"\r\n", EMPTY_GET),
    forwarded("GET with length 0", GET + b"Content-Length: 0\r\n\r\n", EMPTY_GET),
    forwarded(
        "GET with a body",
        GET + b"Content-Length: 5\r\n\r\nabcde",
        Seen("GET /score HTTP/1.1", b"abcde", {"content-length": "5"}),
    ),
    forwarded(
        "GET with a body in chunks",
        GET + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        Seen("GET /score HTTP/1.1", b"abcde", {"transfer-encoding": "chunked"}),
    ),
    forwarded("length is a canonical number for the replica", five(b"00000000000000000005"), FIVE),
    forwarded("two requests in one piece", five() + five(), FIVE, FIVE),
    forwarded(
        "a body that looks like a request",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        Seen(body=SMUGGLED),
    ),
    forwarded(
        "GET whose body looks like a request (CL.0)",
        GET + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        Seen("GET /score HTTP/1.1", SMUGGLED, {"content-length": str(len(SMUGGLED))}),
    ),
    refused(
        "a body longer than it says",
        HEAD + b"Content-Length: 3\r\n\r\nabc\x01\x02",
        200,
        400,
        seen=(Seen(body=b"abc"),),
    ),
    refused("a length and then garbage", five() + b"garbage\r\n\r\n", 200, 400, seen=(FIVE,)),
    *(
        refused(f"length {value!r}", five(value))
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
            b"18446744073709551615",
            b"18446744073709551616",
            b"infinity",
            b"nan",
            b"5\r6",
        )
        if value != b"18446744073709551615"
    ),
    refused("the longest length that 64 bits hold", five(b"18446744073709551615"), 413),
    refused("a length over the limit", five(b"104857601"), 413),
    refused("two lengths, one spelt otherwise", HEAD + b"Content-Length: 5\r\ncontent-LENGTH: 6\r\n\r\nabcdef"),
    refused("length 0 and another", HEAD + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nabcde"),
    refused("two lengths with a header between", HEAD + b"Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n\r\nabcde"),
    forwarded("a length whose name has an underscore is no length", HEAD + b"Content_Length: 500\r\n\r\n", EMPTY_POST),
    forwarded(
        "a length beside one whose name has an underscore",
        HEAD + b"Content-Length: 5\r\nContent_Length: 50\r\n\r\nabcde",
        FIVE,
    ),
]

CODINGS = [
    *(forwarded(f"coding {value!r}", coded(value), CHUNKS) for value in (
        b" chunked", b"chunked", b"\tchunked", b" chunked ", b" CHUNKED", b" cHuNkEd")),
    *(refused(f"coding {value!r}", coded(value)) for value in (
        b" chunked\x00", b" \x00chunked", b" chunked\x0b", b" chunked\x0c", b" chunked,", b" ,chunked", b" chunked,chunked",
        b" 'chunked'", b" chunkedx", b" chunk", b" chunked\xa0", b" \xc2\xa0chunked", b" ch\xc3\xbcnked", b" chunked;q=1",
        b" deflate", b" compress, chunked", b" gzip", b" x-gzip,chunked", b" identity, chunked", b" chunked, identity",
        b" trailers", b" chun ked", b" chunked\r\n ,x", b"\r\n chunked", b" chunked\rX: y", b" chunked\nX: y", b" none", b"")),
    *(refused(f"name {name!r}", HEAD + name + b" chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n") for name in (
        b"Transfer-Encoding :", b"Transfer-Encoding\t:", b" Transfer-Encoding:", b"\tTransfer-Encoding:",
        b"Transfer Encoding:", b"Transfer-Encoding\x00:", b"Transfer-Encoding\x0b:", b"Transfer-Encoding\xa0:",
        b"Transfer-Encoding;:", b"Transfer-Encoding,:", b"X: y\rTransfer-Encoding:", b"X: y\nTransfer-Encoding:",
        b"X: y\n\rTransfer-Encoding:", b"X:\nTransfer-Encoding:", b"X: y\r\r\nTransfer-Encoding:", b"\x00Transfer-Encoding:",
        b"Transfer\xadEncoding:", b'"Transfer-Encoding":', b"Transfer-Encoding=")),
    forwarded("a coding whose name has an underscore is none (TE.CL)",
              HEAD + b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Seen(body=b"0\r\n\r\n")),
    forwarded("a coding whose name has a dot is none",
              HEAD + b"Transfer.Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Seen(body=b"0\r\n\r\n")),
    forwarded("a coding of the content is another matter", HEAD + b"Content-Encoding: chunked\r\nContent-Length: 5\r\n\r\nabcde",
              Seen(body=b"abcde", has={"content-encoding": "chunked"})),
    refused("length and coding (CL.TE)", HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
    refused("length 0 and coding", HEAD + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED),
    refused("coding and length (TE.CL)", HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + SMUGGLED),
    refused("coding twice, once hidden (TE.TE)",
            HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + SMUGGLED),
    refused("coding twice, the second empty", HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n"),
    refused("length and coding that Connection names",
            HEAD + b"Connection: Transfer-Encoding\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
    refused("coding in HTTP/1.0", CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n"),
]  # fmt: skip

CHUNK_SYNTAX = [
    forwarded("chunks", CHUNKED + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", CHUNKS),
    forwarded("an empty body in chunks", CHUNKED + b"0\r\n\r\n", Seen(has={"transfer-encoding": "chunked"})),
    forwarded("a last chunk of many zeros", CHUNKED + b"5\r\nabcde\r\n00000000\r\n\r\n", CHUNKS),
    *(forwarded(f"size line {line!r}", sized(line), CHUNKS) for line in (
        b"5", b"05", b"0000000000005", b"5;a", b"5;a=b", b'5;a="b"', b'5;a="b c"', b"5;a=b;c=d", b"5;ieof", b"5;a;b",
        b'5;a="\\"b"', b'5;a="; 7"', b"5;=b")),
    forwarded("an extension of the last chunk", CHUNKED + b"5\r\nabcde\r\n0;a=b\r\n\r\n", CHUNKS),
    *(refused(f"size line {line!r}", sized(line)) for line in (
        b"5 ", b"5\t", b" 5", b"\t5", b"+5", b"-5", b"0x5", b"0X5", b"5h", b"5_", b"5.0", b"5,", b"5:", b"g", b"", b"\x00", b"5\x00",
        b"5\r", b"5\r\r", b"5\n", b"\n5", b"5\xa0", b"\xef\xbc\x95", b"5;a\n", b"5;a\rb", b"5;\x00", b"5;a=\x01", b"5;a=\"b\r",
        b"FFFFFFFFFFFFFFFFF", b"10000000000000005", b"100000000000000000000000000000005", b"FFFFFFFFFFFFFFFF5", b"1" * 30,
        b"5 ;a", b"5; a=b", b"5;a =b", b"5;a= b", b"5;a=\"b", b"5;;", b"5;a=b c")),
    refused("a chunk that ends in LF", CHUNKED + b"5\r\nabcde\n0\r\n\r\n"),
    refused("a chunk that ends in CR", CHUNKED + b"5\r\nabcde\r0\r\n\r\n"),
    refused("a chunk that ends in two bytes of its own", CHUNKED + b"5\r\nabcdeXX0\r\n\r\n"),
    refused("a chunk that ends in LF CR", CHUNKED + b"5\r\nabcde\n\r0\r\n\r\n"),
    refused("a chunk that is longer", CHUNKED + b"5\r\nabcdef\r\n0\r\n\r\n"),
    refused("a last chunk that ends in LF", CHUNKED + b"5\r\nabcde\r\n0\n\n"),
    refused("a last chunk and a bare CR", CHUNKED + b"5\r\nabcde\r\n0\r\n\rX"),
    refused("an empty chunk line within", CHUNKED + b"5\r\nabcde\r\n\r\n0\r\n\r\n"),
    refused("LF in front of the chunks", CHUNKED + b"\n5\r\nabcde\r\n0\r\n\r\n"),
    forwarded("what follows the last chunk is the next request", CHUNKED + b"5\r\nabcde\r\n0\r\n\r\n" + five(), CHUNKS, FIVE),
    forwarded("chunks that hold a request", CHUNKED + b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n",
              Seen(body=SMUGGLED, has={"transfer-encoding": "chunked"})),
]  # fmt: skip

TRAILED = CHUNKED + b"5\r\nabcde\r\n0\r\n"
TRAILERS = [
    forwarded("a trailer", TRAILED + b"X-Sum: 1\r\n\r\n", Seen(body=b"abcde", trailers={"X-Sum": "1"})),
    forwarded("two trailers", TRAILED + b"X-Sum: 1\r\nX-Time: 2\r\n\r\n",
              Seen(body=b"abcde", trailers={"X-Sum": "1", "X-Time": "2"})),
    *(forwarded(f"trailer {name} stops here", TRAILED + name.encode() + b": x\r\n\r\n", CHUNKS) for name in (
        "Host", "Authorization", "Content-Type", "Content-Encoding", "Connection", "TE", "Trailer", "X-Forwarded-For",
        "X-Request-Id", "Cache-Control", "Set-Cookie", "Expect", "Upgrade", "Proxy-Authorization", "X_Under")),
    refused("trailer with a length", TRAILED + b"Content-Length: 5\r\n\r\n"),
    refused("trailer with a coding", TRAILED + b"Transfer-Encoding: chunked\r\n\r\n"),
    refused("trailer that is folded", TRAILED + b"X: y\r\n\tz\r\n\r\n"),
    refused("trailer with a space before the colon", TRAILED + b"X : y\r\n\r\n"),
    refused("trailer with NUL", TRAILED + b"X: y\x00\r\n\r\n"),
    refused("trailer with a bare CR", TRAILED + b"X: y\rz\r\n\r\n"),
    refused("trailer that ends in LF", TRAILED + b"X: y\n\r\n"),
    refused("trailer without a name", TRAILED + b": y\r\n\r\n"),
    refused("trailer that is a request", TRAILED + SMUGGLED),
]  # fmt: skip

REFUSED_BODIES = [
    refused("another method: its body is no request", b"OPTIONS" + OTHER[4:] + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
            + SMUGGLED, 404, closes=False),
    refused("PUT: its body is no request", b"PUT" + HEAD[4:] + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, 405,
            closes=False),
    refused("HEAD: its body is no request", b"HEAD" + OTHER[4:] + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
            404, closes=False),
    refused("no such service: its body is no request", OTHER + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, 404,
            closes=False),
    refused("no key: its body is no request", WITHOUT_KEY + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, 401,
            closes=False),
    refused("no key, and more than is drained", WITHOUT_KEY + b"Content-Length: 100000\r\n\r\n" + SMUGGLED * 5, 401),
    refused("no key, chunks not whole", WITHOUT_KEY + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n" + SMUGGLED, 401),
]  # fmt: skip

CONTINUE = [
    forwarded("Expect with the body at hand", HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
              Seen(body=b"abcde", lacks=("expect",))),
    forwarded("Expect in other letters", HEAD + b"expect: 100-Continue\r\nContent-Length: 5\r\n\r\nabcde",
              Seen(body=b"abcde", lacks=("expect",))),
    forwarded("Expect without a body", HEAD + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", Seen(lacks=("expect",))),
    forwarded("an expectation that is unknown", HEAD + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nabcde",
              Seen(body=b"abcde", lacks=("expect",))),
]  # fmt: skip

OLD = [
    forwarded("HTTP/1.0", OPEN.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\nabcde", Seen(SCORE, b"abcde"), closes=True),
    forwarded("HTTP/1.0 that keeps the connection",
              OPEN.replace(b"1.1", b"1.0") + b"Host: fe\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nabcde",
              Seen(SCORE, b"abcde", lacks=("connection",))),
]  # fmt: skip

CASES = [*LENGTHS, *CODINGS, *CHUNK_SYNTAX, *TRAILERS, *REFUSED_BODIES, *CONTINUE, *OLD]
