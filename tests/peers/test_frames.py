"""Frames are decoded from any stream, and accepted only from the peer and in order."""

import contextlib
import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.peers.close_reason import CloseReason
from router.peers.frames import KEY_BYTES, FrameDecoder, FrameSigner, FrameVerifier, WireError, encode_frame

KEY = bytes(range(KEY_BYTES))
bodies = st.lists(st.binary(max_size=300), max_size=20)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Split `data` at these positions, taken modulo its length."""
    positions = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(positions)]


@given(bodies, st.lists(st.integers(0, 10**6), max_size=30))
def test_frames_are_decoded_however_the_stream_is_split(sent: list[bytes], cuts: list[int]) -> None:
    decoder = FrameDecoder()
    stream = b"".join(map(encode_frame, sent))
    assert [body for piece in split(stream, cuts) for body in decoder.feed(piece)] == sent


@given(st.binary(max_size=500), st.lists(st.integers(0, 10**6), max_size=10), st.integers(0, 300))
def test_garbage_is_split_into_frames_or_rejected(garbage: bytes, cuts: list[int], limit: int) -> None:
    decoder = FrameDecoder(limit)
    decoded: list[bytes] = []
    with contextlib.suppress(WireError):
        for piece in split(garbage, cuts):
            decoded += decoder.feed(piece)
    assert garbage.startswith(b"".join(map(encode_frame, decoded)))


def test_frame_at_the_limit_is_accepted_and_larger_one_is_refused_by_its_length() -> None:
    decoder = FrameDecoder(limit=10)
    assert decoder.feed(encode_frame(b"0123456789")) == [b"0123456789"]
    with pytest.raises(WireError, match="11 bytes, limit is 10"):
        decoder.feed(b"\0\0\0\x0b")


def test_limit_can_be_raised_between_two_calls() -> None:
    decoder = FrameDecoder(limit=1)
    assert decoder.feed(encode_frame(b"a") + b"\0\0") == [b"a"]
    decoder.limit = 5
    assert decoder.feed(b"\0\x05hello") == [b"hello"]


def test_large_frame_in_small_pieces_is_buffered_once() -> None:
    body = bytes(4 * 1024 * 1024)
    stream = encode_frame(body)
    decoder = FrameDecoder()
    decoded: list[bytes] = []
    tracemalloc.start()
    try:
        for start in range(0, len(stream), 4096):
            decoded += decoder.feed(stream[start : start + 4096])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded == [body]
    assert peak < 3 * len(body)  # the buffer, which grows by an eighth at a time, and the body copied from it


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_signed_frames_are_verified(payloads: list[bytes]) -> None:
    signer, verifier, decoder = FrameSigner(KEY), FrameVerifier(KEY), FrameDecoder()
    stream = b"".join(map(signer.sign, payloads))
    assert [verifier.verify(body) for body in decoder.feed(stream)] == payloads


@given(st.binary(max_size=60), st.data())
def test_altered_byte_is_detected(payload: bytes, data: st.DataObject) -> None:
    body = bytearray(FrameSigner(KEY).sign(payload)[4:])
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError) as caught:
        FrameVerifier(KEY).verify(bytes(body))
    assert caught.value.close_reason is CloseReason.FORGED


@given(st.binary(max_size=60))
def test_garbage_fails_verification(body: bytes) -> None:
    with pytest.raises(WireError):
        FrameVerifier(KEY).verify(body)


def test_repeated_omitted_and_reflected_frames_are_detected() -> None:
    signer = FrameSigner(KEY)
    first, second = (signer.sign(b"same")[4:] for _ in range(2))
    verifier = FrameVerifier(KEY)
    assert verifier.verify(first) == b"same"
    with pytest.raises(WireError):
        verifier.verify(first)
    with pytest.raises(WireError):
        FrameVerifier(KEY).verify(second)
    with pytest.raises(WireError):
        FrameVerifier(KEY[::-1]).verify(first)


def test_frame_over_the_limit_is_not_signed() -> None:
    signer = FrameSigner(KEY)
    assert len(signer.sign(b"1234", limit=20)) == 24
    with pytest.raises(WireError) as caught:
        signer.sign(b"12345", limit=20)
    assert caught.value.close_reason is CloseReason.OVERSIZED
