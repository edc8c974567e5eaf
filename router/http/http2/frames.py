"""Cuts what a client sends into slices of whole frames, and limits what it may send beside requests. No I/O.

The codec parses a slice at once, so the slice bounds the work in a turn of the event loop. A header block is only
released when it is complete: the codec never holds a part of one, and what an incomplete block takes is known.

Frames other than requests and their bodies cost the router work and the client little (floods of PING, SETTINGS,
WINDOW_UPDATE, PRIORITY, of unknown frames, and of DATA frames with less data than their header has bytes; CVE-2019-9511
to 9518). Each such frame takes one credit. Requests and data of both sides earn credits, and each second does.

Source: RFC 9113 sections 4, 6 and 10.5.
"""

from __future__ import annotations

from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES: Final = 16384  # SETTINGS_MAX_FRAME_SIZE is not raised

PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
ENHANCE_YOUR_CALM: Final = 11
NO_ERROR: Final = 0

# A busy client that measures the round-trip time sends some frames for each response; browsers send a few at the start.
MAX_CREDIT: Final = 1000
CREDIT_PER_REQUEST: Final = 10
CREDIT_PER_SECOND: Final = 10
_KIBIBYTE_SHIFT: Final = 10  # one credit for each KiB that is received
# The specification has no limit. Clients fill one frame before they send the next.
_MIN_CONTINUATIONS: Final = 8

_HEADER_BYTES: Final = 9
_DATA: Final = 0
_HEADERS: Final = 1
_CONTINUATION: Final = 9
_GOAWAY: Final = 7
_END_STREAM: Final = 1
_END_HEADERS: Final = 4
_PADDED: Final = 8

# The work of frames, in bytes of a head of HTTP/1.1 that would cost as much.
_HEADERS_WORK: Final = 400
_WORK_PER_BLOCK_BYTE: Final = 4  # a byte of a header block may be a whole header
_FRAME_WORK: Final = 32
_DATA_SHIFT: Final = 6  # 64 bytes of data cost as much as one of a head


class Http2Error(Exception):
    """The connection must be closed with this error code (RFC 9113 section 7)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def max_continuations(max_block_bytes: int) -> int:
    """Return the maximum number of CONTINUATION frames in a header block of this size (CVE-2024-27316)."""
    return max(_MIN_CONTINUATIONS, max_block_bytes // MAX_FRAME_BYTES + 1)


class FrameReader:
    """Cuts the bytes of one connection. `append` adds bytes, `next_slice` returns what may be parsed now."""

    __slots__ = (
        "_at", "_data", "_data_left", "_max_block_bytes", "_max_block_frames", "_preface_left", "credit", "is_cut",
    )  # fmt: skip

    def __init__(self, max_block_bytes: int) -> None:
        """`max_block_bytes`: of one header block as it is sent, compressed."""
        self._max_block_bytes = max_block_bytes
        self._max_block_frames = 1 + max_continuations(max_block_bytes)
        self._data = b""
        self._at = 0  # where in `_data` the next slice starts
        self._data_left = 0  # bytes of the current DATA frame that are not released yet
        self._preface_left = len(PREFACE)
        self.credit = MAX_CREDIT
        """Credits for frames that are no progress; negative if the client must be disconnected."""
        self.is_cut = False
        """True if the last slice ended because of the work in it, so that more may be parsed without new bytes."""

    def append(self, data: bytes) -> None:
        """Add received bytes."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of frames and header blocks that are not released."""
        return len(self._data) - self._at

    def earn(self, credit: int) -> None:
        """Add credit, up to the limit."""
        self.credit = min(self.credit + credit, MAX_CREDIT)

    def next_slice(self, max_work: int) -> bytes:
        """Return the next frames, up to the one that exceeds this work. Return b"" if none is complete.

        Parts of DATA frames are released as they arrive. Raises `Http2Error`.
        """
        data, at = self._data, self._at
        end = len(data)
        work = 0
        if self._preface_left:
            skipped = min(self._preface_left, end - at)
            self._preface_left -= skipped
            at += skipped
        while at < end and work < max_work:
            if self._data_left:
                released = min(self._data_left, end - at)
                self._data_left -= released
                at += released
                work += released >> _DATA_SHIFT
                continue
            if end - at < _HEADER_BYTES:
                break
            length = int.from_bytes(data[at : at + 3], "big")
            if length > MAX_FRAME_BYTES:
                raise Http2Error(FRAME_SIZE_ERROR, "a frame is too long")
            kind, flags = data[at + 3], data[at + 4]
            if kind == _DATA:
                at += _HEADER_BYTES
                self._data_left = length
                work += _FRAME_WORK
                if flags & _PADDED and at < end:
                    length -= 1 + data[at]
                if length >= _HEADER_BYTES:
                    self.earn(length >> _KIBIBYTE_SHIFT)
                elif not flags & _END_STREAM:
                    self._spend()
                continue
            if kind == _HEADERS:
                after = self._end_of_block(at)
                if after < 0:
                    break
                self.earn(CREDIT_PER_REQUEST)
                work += _HEADERS_WORK + _WORK_PER_BLOCK_BYTE * (after - at)
            else:
                after = at + _HEADER_BYTES + length
                if after > end:
                    break
                self._spend()
                work += _FRAME_WORK
            at = after
        piece = data[self._at : at]
        self.is_cut = at < end and work >= max_work
        if at == end:
            self._data, self._at = b"", 0
        else:
            self._at = at
        return piece

    def _end_of_block(self, start: int) -> int:
        """Return the position after the header block that starts here, -1 if it is incomplete.

        Another frame within the block ends it: the codec treats that as an error.
        """
        data, at = self._data, start
        end = len(data)
        frames = 0
        while end - at >= _HEADER_BYTES:
            length = int.from_bytes(data[at : at + 3], "big")
            is_continuation = data[at + 3] == _CONTINUATION
            if frames and not is_continuation:
                return at
            frames += 1
            at += _HEADER_BYTES + length
            if length > MAX_FRAME_BYTES:
                raise Http2Error(FRAME_SIZE_ERROR, "a frame is too long")
            if at - start > self._max_block_bytes or frames > self._max_block_frames:
                raise Http2Error(ENHANCE_YOUR_CALM, "a header block is too long")
            if at > end:
                return -1
            if data[at - length - _HEADER_BYTES + 4] & _END_HEADERS:
                return at
        return -1

    def _spend(self) -> None:
        self.credit -= 1
        if self.credit < 0:
            raise Http2Error(ENHANCE_YOUR_CALM, "too many frames that are neither requests nor data")


def goaway(last_stream_id: int, error: Http2Error) -> bytes:
    """Return a GOAWAY frame, for a connection whose codec cannot make one any more."""
    text = error.reason.encode()
    payload = last_stream_id.to_bytes(4, "big") + error.code.to_bytes(4, "big") + text
    return len(payload).to_bytes(3, "big") + bytes((_GOAWAY, 0)) + bytes(4) + payload
