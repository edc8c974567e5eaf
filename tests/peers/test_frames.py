"""Frames: cut out of any stream, and nobody's but the peer's."""

import contextlib
import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.peers.endings import Ending
from router.peers.frames import KEY_BYTES, FrameDecoder, Opener, Sealer, WireError, frame

KEY = bytes(range(KEY_BYTES))
bodies = st.lists(st.binary(max_size=300), max_size=20)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data`, cut at these places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(bodies, st.lists(st.integers(0, 10**6), max_size=30))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(sent: list[bytes], cuts: list[int]) -> None:
    decoder = FrameDecoder()
    stream = b"".join(map(frame, sent))
    assert [body for piece in pieces(stream, cuts) for body in decoder.feed(piece)] == sent


@given(st.binary(max_size=500), st.lists(st.integers(0, 10**6), max_size=10), st.integers(0, 300))
def test_garbage_is_cut_or_refused_and_nothing_else(garbage: bytes, cuts: list[int], limit: int) -> None:
    decoder = FrameDecoder(limit)
    found: list[bytes] = []
    with contextlib.suppress(WireError):
        for piece in pieces(garbage, cuts):
            found += decoder.feed(piece)
    assert garbage.startswith(b"".join(map(frame, found)))


def test_a_frame_at_the_limit_passes_and_a_larger_one_is_refused_by_its_length_alone() -> None:
    decoder = FrameDecoder(limit=10)
    assert decoder.feed(frame(b"0123456789")) == [b"0123456789"]
    with pytest.raises(WireError, match="11 bytes, at most 10"):
        decoder.feed(b"\0\0\0\x0b")


def test_the_limit_can_be_raised_between_two_calls() -> None:
    decoder = FrameDecoder(limit=1)
    assert decoder.feed(frame(b"a") + b"\0\0") == [b"a"]
    decoder.limit = 5
    assert decoder.feed(b"\0\x05hello") == [b"hello"]


def test_a_large_frame_in_small_pieces_is_held_once() -> None:
    body = bytes(4 * 1024 * 1024)
    stream = frame(body)
    decoder = FrameDecoder()
    found: list[bytes] = []
    tracemalloc.start()
    try:
        for start in range(0, len(stream), 4096):
            found += decoder.feed(stream[start : start + 4096])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [body]
    assert peak < 3 * len(body)  # the buffer, which grows by an eighth when it must, and the body cut out of it


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_what_is_sealed_is_opened(payloads: list[bytes]) -> None:
    sealer, opener, decoder = Sealer(KEY), Opener(KEY), FrameDecoder()
    stream = b"".join(map(sealer.seal, payloads))
    assert [opener.open(body) for body in decoder.feed(stream)] == payloads


@given(st.binary(max_size=60), st.data())
def test_an_altered_byte_is_noticed(payload: bytes, data: st.DataObject) -> None:
    body = bytearray(Sealer(KEY).seal(payload)[4:])
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError) as caught:
        Opener(KEY).open(bytes(body))
    assert caught.value.ending is Ending.FORGED


@given(st.binary(max_size=60))
def test_garbage_is_never_opened(body: bytes) -> None:
    with pytest.raises(WireError):
        Opener(KEY).open(body)


def test_a_frame_repeated_left_out_or_of_the_other_direction_is_noticed() -> None:
    sealer = Sealer(KEY)
    first, second = (sealer.seal(b"same")[4:] for _ in range(2))
    opener = Opener(KEY)
    assert opener.open(first) == b"same"
    with pytest.raises(WireError):
        opener.open(first)
    with pytest.raises(WireError):
        Opener(KEY).open(second)
    with pytest.raises(WireError):
        Opener(KEY[::-1]).open(first)


def test_nothing_is_sealed_that_the_other_end_would_refuse() -> None:
    sealer = Sealer(KEY)
    assert len(sealer.seal(b"1234", limit=20)) == 24
    with pytest.raises(WireError) as caught:
        sealer.seal(b"12345", limit=20)
    assert caught.value.ending is Ending.OVERSIZED
