"""First lines, fields and line ends (RFC 9112 sections 2 to 5), targets and hosts (sections 3.2 and 7.2 of RFC 9110)."""

from tests.gateway.conformance.cases import HEAD, OPEN, Seen, forwarded, refused
from tests.gateway.wire import KEY

PATH = b"/api/v1/service/iris/"
END = b"\r\n"
REST = f"Host: fe\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()


def line(first: bytes) -> bytes:
    return first + b"\r\n" + REST


def field(whole: bytes) -> bytes:
    return HEAD + whole + b"\r\n\r\n"


def hosted(host: bytes, target: bytes = PATH + b"score") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost:" + host + f"\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()


GOT = Seen("GET /score HTTP/1.1")

FIRST_LINES = [
    *(forwarded(f"{before!r} in front", before + line(b"GET " + PATH + b"score HTTP/1.1"), GOT) for before in (
        b"\r\n", b"\r\n\r\n\r\n")),
    *(refused(f"{before!r} in front", before + line(b"GET " + PATH + b"score HTTP/1.1")) for before in (
        b" ", b"\t", b"\x00", b"\x0b", b"\xef\xbb\xbf", b"\r\n ", b"x")),
    *(refused(f"first line {first!r}", line(first)) for first in (
        b"GET\t" + PATH + b"score HTTP/1.1", b"GET " + PATH + b"score\tHTTP/1.1",
        b"GET " + PATH + b"score HTTP/1.1 ", b"GET " + PATH + b"score HTTP/1.1\t", b"GET " + PATH + b"score http/1.1",
        b"GET " + PATH + b"score HTTP/1.10", b"GET " + PATH + b"score HTTP/01.1", b"GET " + PATH + b"score HTTP/1",
        b"GET " + PATH + b"score HTTP/1.", b"GET " + PATH + b"score HTTP/1,1", b"GET " + PATH + b"score HTTP/ 1.1",
        b"GET " + PATH + b"score HTTPS/1.1", b"GET " + PATH + b"score ICE/1.0",
        b"GET " + PATH + b"score HTTP/1.1 HTTP/1.1", b"GET " + PATH + b"score", b"GET", b"GET ", b"", b"GET HTTP/1.1",
        b" GET " + PATH + b"score HTTP/1.1", b"GET\x00 " + PATH + b"score HTTP/1.1", b"G\xc3\x8bT " + PATH + b"score HTTP/1.1",
        b"GETX " + PATH + b"score HTTP/1.1", b"Get " + PATH + b"score HTTP/1.1", b"GET\r " + PATH + b"score HTTP/1.1",
        b"GET " + PATH + b"sc\rore HTTP/1.1", b"GET " + PATH + b"sc\nore HTTP/1.1", b"GET " + PATH + b"sc\x00ore HTTP/1.1",
        b"GET " + PATH + b"sc\x0bore HTTP/1.1", b"GET " + PATH + b"sc\x1fore HTTP/1.1", b"GET " + PATH + b"sc\x7fore HTTP/1.1",
        b"GET " + PATH + b"sc\xc3\xb6re HTTP/1.1", b"GET " + PATH + b"score HTTP/1.1\x00", b"GET " + PATH + b"score\x00HTTP/1.1",
    ) if first),
    *(refused(f"method {method} is not for replicas", line(method.encode() + b" " + PATH + b"score HTTP/1.1"), 405, closes=False)
      for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "PURGE", "QUERY")),
    forwarded("two spaces in a first line become one", line(b"GET  " + PATH + b"score HTTP/1.1"), GOT),
    refused("a method that only RTSP has", line(b"DESCRIBE " + PATH + b"score HTTP/1.1")),
    *(refused(f"protocol {name!r} of {method!r}", line(method + b" " + PATH + b"score" + name))
      for method in (b"GET", b"POST", b"OPTIONS", b"DESCRIBE", b"SETUP")
      for name in (b" RTSP/1.0", b"  RTSP/1.0", b" RTSP/1.1", b" RTSP/2.0")),
    refused("protocol RTSP without a host", b"GET / RTSP/1.0\r\n\r\n"),
    refused("protocol RTSP and its own target", b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
    refused("protocol RTSP after empty lines", b"\r\n\r\nGET " + PATH + b"score RTSP/1.0\r\n\r\n"),
    refused("protocol RTSP after HTTP", HEAD + b"Content-Length: 0\r\n\r\n" + line(b"GET " + PATH + b"score RTSP/1.0"),
            200, 400, seen=(Seen(),)),
    refused("protocol ICE", line(b"SOURCE " + PATH + b"score ICE/1.0")),
    forwarded("a body that is a request of another protocol", HEAD + b"Connection: close\r\nContent-Length: 21\r\n\r\nGET /score RTSP/1.0\r\n",
              Seen(body=b"GET /score RTSP/1.0\r\n"), closes=True),
]  # fmt: skip

FIELDS = [
    *(forwarded(f"name with {chr(byte)}", field(b"X" + bytes([byte]) + b"Y: z"), Seen(has={f"x{chr(byte)}y": "z"}))
      for byte in b"!#$%&'*+-.^`|~0"),
    *(refused(f"name with {bytes([byte])!r}", field(b"X" + bytes([byte]) + b"Y: z"))
      for byte in b'"(),/;<=>?@[\\]{} \t\x00\x0b\x1f\x7f\x80\xff'),
    *(refused(f"value with {bytes([byte])!r}", field(b"X: y" + bytes([byte]) + b"z"))
      for byte in [*range(9), *range(11, 13), *range(14, 32), 127]),
    forwarded("value with a tab", field(b"X: y\tz"), Seen(has={"x": "y\tz"})),
    forwarded("value with bytes above ASCII", field(b"X: \xff\x80\xc3\xa4"), Seen(has={"x": "\xff\x80\xc3\xa4"})),
    forwarded("empty value", field(b"X:"), Seen(has={"x": ""})),
    forwarded("value of spaces", field(b"X: \t  "), Seen(has={"x": ""})),
    forwarded("spaces in front of a value", field(b"X:\t y z"), Seen(has={"x": "y z"})),
    forwarded("a value with colons", field(b"X: a:b: c"), Seen(has={"x": "a:b: c"})),
    forwarded("a long name", field(b"X" * 300 + b": y"), Seen(has={"x" * 300: "y"})),
    *(refused(f"line {whole!r}", field(whole)) for whole in (
        b": y", b" : y", b"X", b"X y", b" X: y", b"\tX: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X:\r\n y", b"X: y\r\n ", b"X: y\n z",
        b"X: y\rZ: w", b"X: y\nZ: w", b"X: y\n\nZ: w", b"X: y\r\r", b"X\r: y", b"X\n: y", b"X: y\r\n\x00", b"\r", b"X: y\x00\r\nZ: w",
        b"X: y\r\nGET / HTTP/1.1")),
    refused("a line end of LF alone, everywhere", HEAD.replace(b"\r\n", b"\n") + b"\n"),
    refused("a head that ends in LF LF", HEAD + b"X: y\n\n"),
    refused("a head that ends in CR CR", HEAD + b"X: y\r\rZ"),
    refused("a head that ends in CR LF LF", HEAD + b"X: y\r\n\n"),
    refused("a head that ends in CR LF CR and more", HEAD + b"X: y\r\n\rZ"),
    forwarded("the same field twice", field(b"X: 1\r\nX: 2"), Seen()),
]  # fmt: skip

TARGETS = [
    *(forwarded(f"path {rest!r} passes as it is", line(b"GET " + PATH + rest + b" HTTP/1.1"),
                Seen(f"GET /{rest.decode()} HTTP/1.1"))
      for rest in (b"", b"score?a=b", b"score?", b"score?a=b?c=d&e", b"a/b/c", b"//x", b"../x", b"..%2fx", b"%2e%2e/x", b"a%00b",
                   b"a%0d%0ab", b"a%20b", b";p=1", b"a;b", b"@x", b"a:b", b"~a!$&'()*+,=", b"score?x=http://other/", b"*",
                   b"a\\b", b"a|b", b'a"b', b"a<b>c", b"a^b`c{d}")),
    refused("a fragment", line(b"GET " + PATH + b"score#part HTTP/1.1"), 400, closes=False),
    refused("a fragment behind a query", line(b"GET " + PATH + b"score?a#part HTTP/1.1"), 400, closes=False),
    refused("a service that is not there", line(b"GET /api/v1/service/other/score HTTP/1.1"), 404, closes=False),
    refused("a service in percent signs", line(b"GET /api/v1/service/%69ris/score HTTP/1.1"), 404, closes=False),
    refused("a prefix in percent signs", line(b"GET /api/v1/%73ervice/iris/score HTTP/1.1"), 404, closes=False),
    refused("a prefix in capitals", line(b"GET /API/v1/service/iris/score HTTP/1.1"), 404, closes=False),
    refused("a doubled slash", line(b"GET //api/v1/service/iris/score HTTP/1.1"), 404, closes=False),
    refused("dots in front", line(b"GET /x/../api/v1/service/iris/score HTTP/1.1"), 404, closes=False),
    refused("a service and no slash", line(b"GET /api/v1/service/iris HTTP/1.1"), 404, closes=False),
    refused("a query and no slash", line(b"GET /api/v1/service/iris?x HTTP/1.1"), 404, closes=False),
    refused("no path", line(b"GET api/v1/service/iris/score HTTP/1.1")),
    refused("asterisk", line(b"OPTIONS * HTTP/1.1"), 400, closes=False),
    refused("asterisk for GET", line(b"GET * HTTP/1.1"), 400, closes=False),
    refused("authority", line(b"CONNECT fe:443 HTTP/1.1"), 400, closes=False),
    refused("authority for GET", line(b"GET fe:443 HTTP/1.1")),
    refused("health", line(b"GET / HTTP/1.1"), 200, closes=False),
    refused("health with a query", line(b"GET /?x HTTP/1.1"), 404, closes=False),
]  # fmt: skip

ABSOLUTE = b"http://fe" + PATH + b"score"
HOSTS = [
    forwarded("absolute form", hosted(b" fe", ABSOLUTE), GOT),
    forwarded("absolute form of https", hosted(b" fe", b"https://fe" + PATH + b"score"), GOT),
    forwarded("absolute form in capitals", hosted(b" FE", b"HTTP://fE" + PATH + b"score"), GOT),
    forwarded("absolute form with a port", hosted(b" fe:80", b"http://fe:80" + PATH + b"score"), GOT),
    forwarded("absolute form with a query", hosted(b" fe", ABSOLUTE + b"?a=b"), Seen("GET /score?a=b HTTP/1.1")),
    refused("absolute form without a path", hosted(b" fe", b"http://fe"), 200, closes=False),
    refused("absolute form of another host", hosted(b" fe", b"http://other" + PATH + b"score"), 400, closes=False),
    refused("absolute form with a user", hosted(b" fe", b"http://u:p@fe" + PATH + b"score"), 400, closes=False),
    refused("absolute form with a port that Host has not", hosted(b" fe", b"http://fe:80" + PATH + b"score"), 400, closes=False),
    refused("absolute form with an empty port", hosted(b" fe", b"http://fe:" + PATH + b"score"), 400, closes=False),
    refused("absolute form of no host", hosted(b" fe", b"http://" + PATH + b"score"), 400, closes=False),
    refused("absolute form of another scheme", hosted(b" fe", b"ws://fe" + PATH + b"score"), 400, closes=False),
    refused("absolute form of a file", hosted(b" fe", b"file:///etc/passwd"), 400, closes=False),
    *(forwarded(f"Host {host!r}", hosted(host), Seen("GET /score HTTP/1.1", has={"host": host.strip().decode()})) for host in (
        b" fe", b"fe", b" fe:8080", b" 127.0.0.1", b" 127.0.0.1:80", b" [::1]", b" [::1]:80", b" [fe80::1%25eth0]", b" a.b-c.d_e.",
        b" FE", b" xn--bcher-kva.example", b" a%20b", b"\tfe", b"")),
    *(refused(f"Host {host!r}", hosted(host)) for host in (
        b" fe,fe", b" fe, other", b" fe fe", b" fe\tfe", b" http://fe", b" fe/", b" fe/x", b" fe?x", b" fe#x", b" u@fe", b" fe:80:80",
        b" fe:x", b" fe:-1", b" fe: 80", b" [::1", b" ::1]", b" fe\\x", b' "fe"', b" <fe>", b" f\xc3\xa9", b" fe;x", b" fe\x00",
        b" fe\x7f", b" {fe}", b" fe|x", b" fe^x", b" fe`x")),
    refused("Host twice", OPEN + b"Host: fe\r\nHost: fe\r\n\r\n"),
    refused("Host twice, once empty", OPEN + b"Host: fe\r\nHost:\r\n\r\n"),
    refused("Host folded", OPEN + b"Host: fe\r\n .other\r\n\r\n"),
    refused("no Host", OPEN + b"\r\n"),
    refused("a space before Host's colon", OPEN + b"Host : fe\r\n\r\n"),
]  # fmt: skip

CASES = [*FIRST_LINES, *FIELDS, *TARGETS, *HOSTS]
