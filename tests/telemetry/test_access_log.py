"""The access log: the fields of a line, and that writing never blocks."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.telemetry import access_log
from router.telemetry.access_log import _LINES_PER_FLUSH, _MAX_PENDING_BYTES, AccessLog, AccessRecord
from tests.telemetry.pipes import Pipe

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
        client="192.0.2.7",
        method="POST",
        path="/api/v1/service/iris/score",
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


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def lines(written: list[bytes]) -> list[dict[str, object]]:
    return [json.loads(line) for line in written]


def test_line_has_all_fields_with_durations_in_milliseconds(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record())
    assert log.flush() is False
    assert lines(pipe.read_lines(1)) == [
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
            "client": "192.0.2.7",
            "protocol": "http/1.1",
            "method": "POST",
            "path": "/api/v1/service/iris/score",
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


def test_missing_values_are_null(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record()._replace(client_request_id=None, traceparent=None, service=None, queue=None, route=None))
    log.flush()
    (line,) = lines(pipe.read_lines(1))
    assert [line[name] for name in ("client_request_id", "traceparent", "service", "queue_ms", "route_ms")] == [
        None
    ] * 5


def test_text_of_the_client_is_truncated(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record(traceparent="0" * 100_000))
    log.flush()
    (line,) = lines(pipe.read_lines(1))
    assert line["traceparent"] == "0" * 128


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 1000)])
def test_rate_0_logs_none_and_rate_1_logs_all(pipe: Pipe, rate: float, expected: int) -> None:
    log = AccessLog(rate, pipe)
    assert sum(log.should_log() for _ in range(1000)) == expected


def test_rate_between_0_and_1_samples_requests(pipe: Pipe) -> None:
    log = AccessLog(0.25, pipe)
    assert 2000 < sum(log.should_log() for _ in range(10_000)) < 3000


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rate_out_of_range_is_an_error(pipe: Pipe, rate: float) -> None:
    with pytest.raises(ValueError, match=r"access_log: .*; allowed: "):
        AccessLog(rate, pipe)


def test_full_pipe_delays_lines_and_drops_those_beyond_the_capacity(pipe: Pipe) -> None:
    log = AccessLog(1, pipe, capacity=2)
    pipe.fill()
    for number in range(5):
        log.add(record(f"r-{number}"))
    assert log.dropped == 3
    log.flush()  # does not block
    pipe.discard_filling()
    assert [line["request_id"] for line in lines(pipe.read_lines(2))] == ["r-0", "r-1"]
    assert log.dropped == 3


def test_pipe_that_fills_up_keeps_lines_in_the_backlog_and_gets_each_once(pipe: Pipe) -> None:
    log = AccessLog(1, pipe, capacity=5000)
    for number in range(5000):
        log.add(record(f"r-{number}"))
    flushes = 0
    while log.flush():
        flushes += 1
        assert flushes <= 5000 / _LINES_PER_FLUSH
        if log._writer.pending_bytes >= _MAX_PENDING_BYTES:
            break
    assert log.flush() is True  # the writer takes no more
    received: list[object] = []
    while len(received) < 5000:
        received += [line["request_id"] for line in lines(pipe.read_lines(10))]
        log.flush()
    assert received == [f"r-{number}" for number in range(5000)]
    assert log.dropped == 0


def test_one_flush_passes_on_a_bounded_number_of_lines(tmp_path: Path) -> None:
    record_count = 2 * _LINES_PER_FLUSH + 1
    with (tmp_path / "access.log").open("wb") as stream:
        log = AccessLog(1, stream)
        for _ in range(record_count):
            log.add(record())
        assert log.flush() is True
        assert len(log._backlog) == record_count - _LINES_PER_FLUSH
        log.close()
    assert len(lines((tmp_path / "access.log").read_bytes().splitlines())) == record_count


def test_closed_reader_drops_lines_without_an_error(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    pipe.close_reader()
    log.add(record())
    log.add(record())
    assert log.flush() is False
    log.close()
    assert log.dropped == 2


def test_record_that_json_cannot_encode_does_not_affect_others(pipe: Pipe) -> None:
    log = AccessLog(1, pipe)
    log.add(record(traceparent="\ud800"))
    log.add(record("r-2"))
    assert log.flush() is False
    assert [line["request_id"] for line in lines(pipe.read_lines(1))] == ["r-2"]
    assert log.dropped == 1


def test_close_of_a_blocked_log_returns_and_counts_what_was_not_written(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "_CLOSE_SECONDS", 0.01)
    pipe.fill()
    log = AccessLog(1, pipe)
    for _ in range(1000):
        log.add(record())
    log.close()
    assert log.flush() is False
    assert 1000 - 4096 // 300 <= log.dropped <= 1000  # the thread still tries to write one chunk


def test_stream_without_a_descriptor_is_an_error() -> None:
    with pytest.raises(io.UnsupportedOperation):
        AccessLog(1, io.BytesIO())
