"""The access log: what a line has, and that writing never waits, whatever the output does."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.telemetry.access_log import AccessLog, AccessRecord

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def record(request_id: str = "r-1", *, traceparent: str | None = TRACEPARENT) -> AccessRecord:
    return AccessRecord(
        time=1714564800.25,
        request_id=request_id,
        client_request_id="mine",
        traceparent=traceparent,
        service="iris",
        version="default",
        replica="iris-0",
        method="POST",
        status=200,
        error=None,
        request_bytes=10,
        response_bytes=20,
        queue=0.0,
        route=0.0000804,
        replica_time=0.0021,
        duration=0.0025,
        attempt=1,
    )


class Pipe:
    """A pipe whose reader reads only when told to."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()

    def fileno(self) -> int:
        return self._writer

    def read_all(self) -> bytes:
        os.set_blocking(self.reader, False)
        read = b""
        try:
            while more := os.read(self.reader, 1 << 20):
                read += more
        except BlockingIOError:
            pass
        return read

    def fill(self) -> None:
        os.set_blocking(self._writer, False)
        try:
            while True:
                os.write(self._writer, b"x")
        except BlockingIOError:
            os.set_blocking(self._writer, True)

    def close_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        if self.reader >= 0:
            self.close_reader()
        os.close(self._writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def lines(written: bytes) -> list[dict[str, object]]:
    assert written == b"" or written.endswith(b"\n")
    return [json.loads(line) for line in written.splitlines()]


def test_a_line_tells_of_a_request_in_milliseconds(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record())
    assert log.flush() is False
    assert lines(pipe.read_all()) == [
        {
            "time": "2024-05-01T12:00:00.250Z",
            "level": "info",
            "logger": "router.access",
            "message": "request",
            "request_id": "r-1",
            "client_request_id": "mine",
            "traceparent": TRACEPARENT,
            "service": "iris",
            "version": "default",
            "replica": "iris-0",
            "method": "POST",
            "status": 200,
            "error": None,
            "request_bytes": 10,
            "response_bytes": 20,
            "queue_ms": 0.0,
            "route_ms": 0.08,
            "replica_ms": 2.1,
            "duration_ms": 2.5,
            "attempt": 1,
        }
    ]


def test_what_a_request_did_not_have_is_null(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record()._replace(client_request_id=None, traceparent=None, service=None, queue=None, route=None))
    log.flush()
    (line,) = lines(pipe.read_all())
    assert [line[name] for name in ("client_request_id", "traceparent", "service", "queue_ms", "route_ms")] == [
        None
    ] * 5


def test_text_of_the_client_is_cut(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record(traceparent="0" * 100_000))
    log.flush()
    (line,) = lines(pipe.read_all())
    assert line["traceparent"] == "0" * 128


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 1000)])
def test_rate_0_is_off_and_rate_1_is_all(pipe: Pipe, rate: float, expected: int) -> None:
    log = AccessLog(rate, pipe)
    assert sum(log.wanted() for _ in range(1000)) == expected


def test_a_rate_between_takes_its_share(pipe: Pipe) -> None:
    log = AccessLog(0.25, pipe)
    assert 2000 < sum(log.wanted() for _ in range(10_000)) < 3000


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_is_refused(pipe: Pipe, rate: float) -> None:
    with pytest.raises(ValueError, match=r"access_log: .*; allowed: "):
        AccessLog(rate, pipe)


def test_a_full_pipe_delays_lines_and_drops_those_beyond_the_bound(pipe: Pipe) -> None:
    log = AccessLog(1, pipe, capacity=2)
    pipe.fill()
    for number in range(5):
        log.add(record(f"r-{number}"))
    assert log.flush() is True
    assert log.dropped == 3
    assert set(pipe.read_all()) == {ord("x")}
    assert log.flush() is False
    assert [line["request_id"] for line in lines(pipe.read_all())] == ["r-0", "r-1"]


def test_a_blocking_pipe_that_fills_up_midway_gets_every_line_once_and_whole(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    for number in range(2000):
        log.add(record(f"r-{number}"))
    seen: list[object] = []
    for _ in range(200):
        more = log.flush()
        seen += [line["request_id"] for line in lines(pipe.read_all())]
        if not more:
            break
    assert seen == [f"r-{number}" for number in range(2000)]
    assert log.dropped == 0


def test_a_non_blocking_pipe_is_written_the_same_way(pipe: Pipe) -> None:
    os.set_blocking(pipe.fileno(), False)
    log = AccessLog(1, pipe)
    for number in range(1000):
        log.add(record(f"r-{number}"))
    assert log.flush() is True
    written = lines(pipe.read_all())
    assert 0 < len(written) < 1000


def test_one_flush_takes_a_bounded_number_of_lines(tmp_path: Path) -> None:
    with (tmp_path / "access.log").open("wb") as stream:
        log = AccessLog(1, stream)
        for _ in range(1200):
            log.add(record())
        assert log.flush() is True
        assert 0 < len(lines((tmp_path / "access.log").read_bytes())) <= 500
        while log.flush():
            pass
    assert len(lines((tmp_path / "access.log").read_bytes())) == 1200


def test_a_reader_that_is_gone_costs_lines_but_no_request(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    pipe.close_reader()
    log.add(record())
    log.add(record())
    assert log.flush() is False
    assert log.dropped == 2


def test_a_record_without_a_json_form_does_not_take_others_with_it(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record(traceparent="\ud800"))
    log.add(record("r-2"))
    assert log.flush() is False
    assert [line["request_id"] for line in lines(pipe.read_all())] == ["r-2"]
    assert log.dropped == 1


def test_close_writes_what_it_can_and_counts_the_rest(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    for _ in range(1000):
        log.add(record())
    log.close()
    written = lines(pipe.read_all())
    assert len(written) > 0
    assert len(written) + log.dropped == 1000
    assert log.flush() is False


def test_a_stream_without_a_descriptor_is_refused() -> None:
    with pytest.raises(io.UnsupportedOperation):
        AccessLog(1, io.BytesIO())
