"""The parser's side of a client connection: from bytes to requests.

Lives here: the callbacks of llhttp, in the order in which data arrives, and the rules that llhttp leaves to the router
(a second `Host`, codings other than chunked, protocols, versions, sizes of heads). Must not live here: what becomes of
a request (`exchange`) and of the connection (`downstream`).
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

import httptools

from router.gateway.exchange import Exchange
from router.gateway.request import CHUNKED_BODY, DONE
from router.http import answers
from router.http.answers import Answer
from router.http.headers import (
    DROP,
    FIRST_NAME,
    PASS,
    READ,
    UNDERSCORE,
    connection_options,
    is_chunked,
    may_be_trailer,
)
from router.http.target import is_host

if TYPE_CHECKING:
    from router.gateway.gateway import Gateway

# Of what a client sends ahead, this much is parsed at a time: bounds the requests that one read can bring.
SLICE_BYTES: Final = 16384
# Headers of which there can be only one: with two, who reads which would be a matter of taste.
_SINGLE: Final = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding"))

# Protocols besides HTTP whose requests llhttp takes for HTTP's, and does not tell.
_OTHER_PROTOCOLS: Final = (b"RTSP/", b"ICE/")

# While a body comes in chunks: what follows it is no header but a trailer, whatever its name.
_NONE_KNOWN: Final[dict[bytes, bytes]] = {}


class Refusal(Exception):
    """Raised in a parser's callback: the request is refused with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.slug)
        self.answer = answer


class RequestReader:
    """What a client connection knows of the requests that it has read and those that it is reading."""

    __slots__ = (
        "_barren_bytes",
        "_begun",
        "_current",
        "_fruitful_bytes",
        "_head_bytes",
        "_head_since",
        "_host",
        "_kept",
        "_known_kinds",
        "_parser",
        "_parsing",
        "_parts",
        "_paused_seconds",
        "_pending",
        "_piece",
        "_rest",
        "_served",
        "_target",
        "_underscored",
        "gateway",
    )

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._known_kinds = gateway.request_kinds.known
        self._parser = httptools.HttpRequestParser(self)
        self._current: Exchange | None = None  # the one that is being answered
        self._parsing: Exchange | None = None  # the one whose body is arriving
        self._pending: deque[Exchange] = deque()
        self._parts: list[bytes] = [b""]
        self._kept: dict[bytes, bytes] = {}
        self._underscored: list[bytes] = []
        self._target = b""
        self._host = b""  # the last one that was found to be one
        self._served = False  # whether a head has ever come whole
        self._head_since = 0.0  # 0: no head is on its way
        self._head_bytes = 0
        self._begun = b""  # what has come of a head that is on its way
        self._piece = b""  # what is being parsed
        self._paused_seconds = 0.0  # for which this body was not read, through no fault of the client's
        self._rest: bytes | None = None  # received and not parsed yet; None: what comes is parsed at once
        self._fruitful_bytes = 0  # of a body in chunks, when last looked at
        self._barren_bytes = 0  # that came since it grew

    def malformed(self, answer: Answer) -> None:
        """What it leads to: see `ClientConnection`."""
        raise NotImplementedError

    def _parse(self, data: bytes) -> None:
        self._piece = data
        try:
            self._parser.feed_data(data)
            self._piece = b""
            return
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            answer = None
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refusal):
                raise
            answer = error.__context__.answer
        except httptools.HttpParserError as error:
            answer = answers.bad_request(str(error))
        self._piece = b""
        if answer is None:
            self._after_upgrade(rest)
        else:
            self.malformed(answer)

    def _after_upgrade(self, rest: bytes) -> None:
        """llhttp stops after the head of a request that asks for an upgrade.

        Without a body, what follows is a tunnel's or the next request, and only the answer can tell. With one, the
        upgrade is out of the question and the body is parsed as any other.
        """
        self._parser = httptools.HttpRequestParser(self)
        exchange = self._pending[-1] if self._pending else self._current
        assert exchange is not None
        if exchange.length == 0:
            self._rest = rest
            return
        exchange.body_complete = False
        self._parsing = exchange
        self._known_kinds = _NONE_KNOWN
        framing = b"Transfer-Encoding: chunked" if exchange.length < 0 else b"Content-Length: %d" % exchange.length
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        if rest:
            self._parse(rest)

    def on_url(self, url: bytes) -> None:
        self._target = self._target + url if self._target else url

    # The same as `ReplicaConnection.on_header`: shared by two classes it would be slower by a fifth, as the interpreter
    # fits the look-ups of attributes within a method to one class at a time (PEP 659).
    def on_header(self, name: bytes, value: bytes) -> None:
        kind = self._known_kinds.get(name)
        if not kind:
            if kind is None:
                self._on_other_header(name, value)
            else:  # PASS, which is empty
                self._parts.append(name + b": " + value)
        elif kind >= FIRST_NAME and kind not in self._kept:
            self._kept[kind] = value
        else:
            self._sort(kind, name, value)

    def _on_other_header(self, name: bytes, value: bytes) -> None:
        """A name that is not remembered, or a field that follows the body."""
        if self._parsing is not None:
            self._on_trailer(self._parsing, name, value)
        else:
            self._sort(self.gateway.request_kinds.classify(name), name, value)

    def _sort(self, kind: bytes, name: bytes, value: bytes) -> None:
        """Put a header where those of its kind belong."""
        if kind == PASS:
            self._parts.append(name + b": " + value)
        elif kind == UNDERSCORE:
            self._underscored.append(name + b": " + value)
        elif kind != DROP:
            if kind.startswith(READ):
                self._parts.append(name + b": " + value)
                kind = kind[len(READ) :]
            if kind in self._kept:
                if kind in _SINGLE:
                    raise Refusal(answers.bad_request(f"more than one {kind.decode()} header"))
                value = self._kept[kind] + b", " + value
            self._kept[kind] = value

    def _on_trailer(self, exchange: Exchange, name: bytes, value: bytes) -> None:
        if may_be_trailer(name):
            exchange.trailers += (name, b": ", value, b"\r\n")
            if len(exchange.trailers) > 4 * self.gateway.settings.max_headers:
                raise self._head_too_large()

    def on_headers_complete(self) -> None:
        if self._parsing is not None:  # made up in `_after_upgrade`
            self._target = b""
            return
        parts, self._parts = self._parts, [b""]
        kept, self._kept = self._kept, {}
        target, self._target = self._target, b""
        self._served = True
        begun = b""
        if self._head_since:  # it came in pieces
            self._head_since = 0.0
            begun, self._begun = self._begun, b""
        received, self._head_bytes = self._head_bytes, 0  # with what came of the body in the same piece
        self._paused_seconds = 0.0
        if received > self.gateway.small_head_bytes and self._is_large(received, target, parts, kept):
            raise self._head_too_large()
        if (host := kept.get(b"host", b"")) != self._host:
            if not is_host(host.rstrip(b" \t")):
                raise Refusal(answers.bad_request("a Host header that names no host"))
            self._check_protocol(begun + self._piece, target, 1)
            self._host = host
        parser = self._parser
        length = 0
        if b"content-length" in kept:
            length = int(kept[b"content-length"])
        elif b"transfer-encoding" in kept:
            if not is_chunked(kept[b"transfer-encoding"]):
                raise Refusal(answers.bad_request("a transfer coding other than chunked"))
            length = CHUNKED_BODY
            self._known_kinds = _NONE_KNOWN
            self._fruitful_bytes = self._barren_bytes = 0
        exchange = Exchange(self, parser.get_method(), target, parts, kept, length)  # type: ignore[arg-type]
        if self._underscored:
            exchange.underscored, self._underscored = self._underscored, []
        if not parser.should_keep_alive():
            exchange.keep_alive = False
        if not exchange.keep_alive or b"connection" in kept or b"host" not in kept:
            self._check_version(exchange, kept)
            if not exchange.http11:
                self._check_protocol(begun + self._piece, target)
        if b"expect" in kept:
            exchange.expects_continue = exchange.http11 and kept[b"expect"].lower() == b"100-continue"
        self._parsing = exchange
        if self._current is None:
            self._current = exchange
        else:
            self._pending.append(exchange)

    def _is_large(self, received: int, target: bytes, parts: list[bytes], kept: dict[bytes, bytes]) -> bool:
        """Whether a head is over a limit, of which the piece that ended it may have held more than the head."""
        settings = self.gateway.settings
        if len(parts) - 1 + len(kept) + len(self._underscored) > settings.max_headers:
            return True
        if received <= settings.max_head_bytes:
            return False
        if received > settings.max_head_bytes + SLICE_BYTES:  # some of it dropped
            return True
        return sum(map(len, (target, *parts, *kept.values(), *self._underscored))) > settings.max_head_bytes

    def _check_version(self, exchange: Exchange, kept: dict[bytes, bytes]) -> None:
        """What depends on the version of HTTP, which costs a look that most requests need not pay."""
        version = self._parser.get_http_version()
        if version == "1.0":
            exchange.http11 = False
            if exchange.length == CHUNKED_BODY:
                raise Refusal(answers.bad_request("Transfer-Encoding in HTTP/1.0"))
        elif version != "1.1":
            raise Refusal(answers.bad_request(f"HTTP/{version}; allowed: 1.0 and 1.1"))
        elif b"host" not in kept:
            raise Refusal(answers.bad_request("no Host header"))
        if exchange.http11 and b"upgrade" in kept and b"upgrade" in connection_options(kept.get(b"connection", b"")):
            exchange.upgrade = kept[b"upgrade"].strip().lower() == b"websocket" and exchange.length == 0

    @staticmethod
    def _check_protocol(raw: bytes, target: bytes, most: int = -1) -> None:
        """Refuse RTSP and ICE, by the bytes of the head and what came with them, where `most` first lines like it are
        looked at; -1: all.

        To be called for each head of version 1.0, which is theirs, and for a connection's first one: nobody begins with
        HTTP and goes on with a version 1.1 of those, which does not exist. Most requests need not pay for it.
        """
        after_target = raw.split(b" " + target + b" ", most)[1:]
        if any(rest.lstrip(b" ").startswith(_OTHER_PROTOCOLS) for rest in after_target):
            raise Refusal(answers.bad_request("a protocol other than HTTP"))

    def on_body(self, data: bytes) -> None:
        exchange = self._parsing
        if exchange is None:
            return
        exchange.body_bytes += len(data)
        if exchange.length == CHUNKED_BODY and exchange.body_bytes > self.gateway.settings.max_payload_bytes:
            raise Refusal(answers.payload_too_large(self.gateway.settings.max_payload_bytes))
        if exchange.state != DONE:
            exchange.body.append(data)

    def on_message_complete(self) -> None:
        if self._parsing is not None:
            self._parsing.body_complete = True
            self._parsing = None
            if not self._known_kinds:
                self._known_kinds = self.gateway.request_kinds.known

    # Sizes.

    def _watch_head(self, piece: bytes) -> None:
        """A head is on its way and not complete."""
        if not self._head_since:
            if not piece.strip(b"\r\n"):
                return  # empty lines before a request mean nothing (RFC 9112 section 2.2)
            self._head_since = monotonic()
        self._begun += piece
        if self._head_bytes > self.gateway.settings.max_head_bytes:
            self.malformed(self._head_too_large().answer)

    def _is_barren(self, exchange: Exchange, piece: bytes) -> bool:
        """Whether a body in chunks has gone on for longer than a head may be without a byte of body."""
        if exchange.body_bytes != self._fruitful_bytes:
            self._fruitful_bytes = exchange.body_bytes
            self._barren_bytes = 0
            return False
        self._barren_bytes += len(piece)
        return self._barren_bytes > self.gateway.settings.max_head_bytes

    def _head_too_large(self) -> Refusal:
        settings = self.gateway.settings
        return Refusal(answers.head_too_large(settings.max_head_bytes, settings.max_headers))
