"""Lenient parsers of HTTP/1.1 requests, with errors that real servers have had.

Request smuggling requires two parsers that disagree. The router serializes each request again, so all parsers must find
the same requests in the bytes that it writes, for any bytes from a client. The input is all bytes of a connection.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

Request = tuple[bytes, bytes, bytes]
"""Method, target, body."""


@dataclass(frozen=True, slots=True)
class LenientParser:
    """A parser. Each field that is True is one error."""

    bare_lf: bool  # LF without CR ends a line
    length_first: bool  # Content-Length wins over Transfer-Encoding
    last_length: bool  # the last of two lengths is used, else the first
    loose_names: bool  # accepts spaces before the colon, and underscores as dashes
    loose_coding: bool  # a coding that contains "chunked" is chunked
    loose_numbers: bool  # parses numbers by int()
    loose_chunk_ends: bool  # skips any two bytes after a chunk

    def parse(self, data: bytes) -> list[Request]:
        """Return the requests in `data`. An incomplete request at the end has the method `?`."""
        found: list[Request] = []
        while data.strip(b"\r\n"):
            head, data = self._split_head(data.lstrip(b"\r\n"))
            lines = re.split(rb"\r?\n" if self.bare_lf else rb"\r\n", head)
            words = lines[0].split(b" ")
            if len(words) != 3:
                return [*found, (b"?", lines[0], b"")]
            body, data = self._split_body(self._fields(lines[1:]), data)
            found.append((words[0], words[1], body))
        return found

    def _split_head(self, data: bytes) -> tuple[bytes, bytes]:
        parts = re.split(rb"\r?\n\r?\n" if self.bare_lf else rb"\r\n\r\n", data, maxsplit=1)
        return parts[0], parts[1] if len(parts) == 2 else b""

    def _fields(self, lines: list[bytes]) -> dict[bytes, list[bytes]]:
        fields: dict[bytes, list[bytes]] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            if self.loose_names:
                name = name.strip().replace(b"_", b"-")
            fields.setdefault(name.lower(), []).append(value.strip())
        return fields

    def _split_body(self, fields: dict[bytes, list[bytes]], data: bytes) -> tuple[bytes, bytes]:
        codings = fields.get(b"transfer-encoding", [])
        chunked = any(
            b"chunked" in coding.lower() if self.loose_coding else coding.lower() == b"chunked" for coding in codings
        )
        lengths = fields.get(b"content-length", [])
        if chunked and not (self.length_first and lengths):
            return self._split_chunks(data)
        if lengths:
            length = self._number(lengths[-1 if self.last_length else 0], 10)
            return data[:length], data[length:]
        return b"", data

    def _number(self, text: bytes, base: int) -> int:
        if self.loose_numbers:
            try:
                return int(text, base)
            except ValueError:
                return 0
        match = re.match(rb"[0-9a-fA-F]+" if base == 16 else rb"[0-9]+", text)
        return int(match[0], base) if match else 0

    def _split_chunks(self, data: bytes) -> tuple[bytes, bytes]:
        body = b""
        while True:
            line, _, data = data.partition(b"\n")
            size = self._number(line.partition(b";")[0].strip(), 16)
            if not size:
                break
            body += data[:size]
            data = data[size + 2 :] if self.loose_chunk_ends else data[size:].removeprefix(b"\r").removeprefix(b"\n")
        while True:  # trailers
            line, _, data = data.partition(b"\n")
            if not line.strip():
                return body, data


LENIENT_PARSERS = [LenientParser(*errors) for errors in itertools.product((False, True), repeat=7)]
