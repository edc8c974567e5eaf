"""The thread of exports: batches, the bound of its queue, and its end."""

import threading
from collections.abc import Iterator, Sequence

from router.telemetry.export_thread import ExportThread
from tests.processes import TIMEOUT_SECONDS


class Recorder:
    """Records batches. The first one waits for `release`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began, self.release, self.closed = threading.Event(), threading.Event(), threading.Event()

    def export(self, batch: Sequence[int]) -> Iterator[None]:
        self.batches.append(list(batch))
        self.began.set()
        self.release.wait(TIMEOUT_SECONDS)
        yield


def started(recorder: Recorder, *, capacity: int, batch: int) -> ExportThread[int]:
    thread: ExportThread[int] = ExportThread(
        "test", recorder.export, recorder.closed.set, capacity=capacity, batch=batch
    )
    thread.start()
    return thread


def test_queue_is_bounded_and_rejects_the_rest() -> None:
    recorder = Recorder()
    thread = started(recorder, capacity=5, batch=2)
    assert thread.is_idle
    assert thread.submit([0]) == 0
    assert recorder.began.wait(TIMEOUT_SECONDS)
    assert thread.submit(range(1, 4)) == 0
    assert thread.submit(range(4, 8)) == 2
    assert thread.submit([8]) == 1
    assert not thread.is_idle
    recorder.release.set()
    thread.stop()
    assert recorder.batches == [[0], [1, 2], [3, 4], [5]]
    assert recorder.closed.is_set()
    assert thread.is_idle


def test_stop_gives_up_on_an_export_that_hangs() -> None:
    recorder = Recorder()
    thread = started(recorder, capacity=5, batch=1)
    thread.submit([0, 1])
    assert recorder.began.wait(TIMEOUT_SECONDS)
    thread.stop()
    assert not recorder.closed.is_set()
    recorder.release.set()
    assert recorder.closed.wait(TIMEOUT_SECONDS)
