"""From frames to stored lines, without processes and without waiting: each event is stored once, or counted."""

import random
import tracemalloc
from pathlib import Path

import pytest

from router.collection.events import MAX_INLINE_BYTES, EventKey
from router.collection.frames import REQUEST_DATA, RESTART
from router.collection.store import FolderStore
from router.model.data_collection import PAYLOADS
from tests.collection.faulty_store import FaultyStore
from tests.collection.reader import StoredEvent, read_folder
from tests.collection.simulation import Simulation, check_stored


def requests_of(events: list[StoredEvent]) -> dict[str, dict[str, object]]:
    return {e.attributes["correlationid"]: e.attributes for e in events if e.collection == "request"}


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_each_line_of_a_day_is_stored_once_in_its_file(tmp_path: Path, rate: float) -> None:
    rng = random.Random(1)
    simulation = Simulation(FaultyStore(tmp_path, rng, rate))
    sent = simulation.pass_day(rng, ["iris", "team-a/resnet"], 20.0)
    events = read_folder(tmp_path)  # checks files, times and formats
    check_stored(events, sent)
    assert sum(simulation.log.counts.events.values()) == 2 * len(sent) > 15_000
    assert not simulation.log.counts.dropped
    assert simulation.log.budget.used == 0


def test_nothing_but_what_is_counted_is_lost_while_storage_is_away(tmp_path: Path) -> None:
    store = FaultyStore(tmp_path, random.Random(1), 0.0)
    simulation = Simulation(store, limit=200_000)
    sent = set()
    for number in range(2_000):
        simulation.now += 1.0
        store.rate = 1.0 if 300 <= number < 1_500 else 0.0
        sent.add(simulation.exchange("iris", b'"%s"' % (b"x" * 500), b"[1]"))
        simulation.write()
    simulation.write_all()
    events = read_folder(tmp_path)
    counts = simulation.log.counts
    assert len(events) == sum(counts.events.values())
    assert len(events) + sum(counts.dropped.values()) == 2 * len(sent)
    assert counts.dropped["iris", "default", "buffer"] > 0
    truncated = [event for event in events if "truncated" in event.attributes]
    assert len(truncated) == sum(counts.truncated.values()) > 0
    assert all("data" not in event.attributes for event in truncated)
    assert simulation.log.budget.used == 0


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("body", [b"\xff\x00", b"[" + b"1," * MAX_INLINE_BYTES + b"1]"])
def test_large_and_binary_bodies_are_blobs_beside_their_lines(tmp_path: Path, body: bytes, rate: float) -> None:
    simulation = Simulation(FaultyStore(tmp_path, random.Random(2), rate))
    request_id = simulation.begin("iris", b"")
    for start in range(0, len(body), 60_000):
        simulation.feed(REQUEST_DATA, body[start : start + 60_000])
        simulation.write()
    assert simulation.log.budget.used <= MAX_INLINE_BYTES + 2**21 or rate
    simulation.end(len(body), 0)
    simulation.write_all()
    attributes = requests_of(read_folder(tmp_path))[request_id]
    assert attributes["datainblob"] == "true"
    assert attributes["contentrange"] == f"bytes 0-{len(body) - 1}/{len(body)}"
    blob = Path(str(attributes["data"]).removeprefix("file://"))
    assert blob.read_bytes() == body
    assert blob.parent == next(tmp_path.rglob("*.jsonl")).parent
    assert simulation.log.budget.used == 0


def test_body_beyond_the_budget_leaves_metadata(tmp_path: Path) -> None:
    simulation = Simulation(FaultyStore(tmp_path, random.Random(2), 0.0), limit=MAX_INLINE_BYTES + 2**21)
    simulation.begin("iris", b"")
    for _ in range(200):  # storage is too slow: nothing is written
        simulation.feed(REQUEST_DATA, b"x" * 60_000)
    simulation.end(200 * 60_000, 0)
    simulation.write_all()
    (attributes,) = requests_of(read_folder(tmp_path)).values()
    assert (attributes["truncated"], attributes["contentrange"]) == ("true", "bytes */12000000")
    assert "data" not in attributes
    assert not list(tmp_path.rglob("*.partial"))
    assert simulation.log.budget.used == 0


@pytest.mark.parametrize("size", [2 * 2**20, 6 * 2**20])
def test_body_of_small_pieces_needs_little_more_memory_than_its_bytes(tmp_path: Path, size: int) -> None:
    log = Simulation(FolderStore(tmp_path, 2**30)).log
    body = log.new_body("id", EventKey("iris", "default", "request"), PAYLOADS, 0.0, "")
    tracemalloc.start()
    try:
        for start in range(0, size, 4):
            body.add(start.to_bytes(4))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == log.budget.used <= used < 1.5 * size


def test_incomplete_bodies_leave_metadata(tmp_path: Path) -> None:
    simulation = Simulation(FolderStore(tmp_path, 2**30))
    simulation.exchange("iris", b"[1]", b"[1", complete=False)
    simulation.write_all()
    by_collection = {event.collection: event.attributes for event in read_folder(tmp_path)}
    assert by_collection["request"]["data"] == [1]
    assert (by_collection["response"]["truncated"], by_collection["response"]["contentrange"]) == ("true", "bytes */*")


def test_body_that_is_sent_to_another_replica_is_collected_once(tmp_path: Path) -> None:
    simulation = Simulation(FolderStore(tmp_path, 2**30))
    request_id = simulation.begin("iris", b"[1,")
    simulation.feed(RESTART)
    simulation.feed(REQUEST_DATA, b"[1,2]")
    simulation.end(5, 0)
    simulation.write_all()
    assert requests_of(read_folder(tmp_path))[request_id]["data"] == [1, 2]


def test_removed_files_continue_as_others(tmp_path: Path) -> None:
    simulation = Simulation(FolderStore(tmp_path, 2**30))
    simulation.exchange("iris", b"[1]", b"[1]")
    simulation.write_all()
    for path in tmp_path.rglob("*.jsonl"):
        path.unlink()
    second = simulation.exchange("iris", b"[2]", b"[2]")
    simulation.write_all()
    events = read_folder(tmp_path)
    assert {event.attributes["correlationid"] for event in events} == {second}
    assert len(events) == 2
    assert {event.instance for event in events} <= {"pod-1-1", "pod-1-2"}


def test_full_folder_drops_and_counts(tmp_path: Path) -> None:
    simulation = Simulation(FolderStore(tmp_path, 1_000))
    for _ in range(3):
        simulation.exchange("iris", b"[1]", b"[1]")
        simulation.write_all()
    counts = simulation.log.counts
    assert counts.dropped["iris", "default", "folder-full"] == 6 - len(read_folder(tmp_path)) > 0
    assert simulation.log.budget.used == 0


def test_exchanges_of_a_worker_that_ended_are_counted(tmp_path: Path) -> None:
    simulation = Simulation(FolderStore(tmp_path, 2**30))
    simulation.begin("iris", b"[1]")
    assert simulation.assembly.unstored() == {EventKey("iris", "default", "request"): 1}
    simulation.assembly.drop_sender(2)
    assert len(simulation.assembly) == 1
    simulation.assembly.drop_sender(1)
    simulation.end(3, 0)  # late: of an exchange that is not known any more
    assert simulation.log.is_empty
    assert simulation.log.counts.dropped == {("iris", "default", "worker-ended"): 1}
    assert simulation.log.budget.used == 0


def test_response_to_a_request_that_ended_with_another_collector_is_counted(tmp_path: Path) -> None:
    previous, simulation = Simulation(FolderStore(tmp_path, 2**30)), Simulation(FolderStore(tmp_path, 2**30))
    previous.begin("iris", b"[1]")
    simulation.number = previous.number
    simulation.respond("iris", b"[2]")
    simulation.end(3, 3)
    assert previous.assembly.unstored() == {EventKey("iris", "default", "request"): 1}
    assert simulation.log.counts.dropped == {("iris", "default", "collector-ended"): 1}
    assert simulation.log.is_empty


def test_rest_is_counted_at_the_end(tmp_path: Path) -> None:
    simulation = Simulation(FaultyStore(tmp_path, random.Random(1), 1.0))
    simulation.exchange("iris", b"[1]", b"\xff")
    simulation.write(everything=True)
    simulation.log.drop_rest("shutdown")
    assert simulation.log.counts.dropped == {("iris", "default", "shutdown"): 2}


def test_files_that_get_no_more_lines_are_forgotten_and_their_names_not_used_again(tmp_path: Path) -> None:
    simulation = Simulation(FolderStore(tmp_path, 2**30))
    simulation.exchange("iris", b"[1]", b"[1]")
    simulation.write_all()
    simulation.now = 4_000.0
    simulation.write()
    simulation.now = 10.0  # an event that ended late, of the first hour
    simulation.exchange("iris", b"[2]", b"[2]")
    simulation.write_all()
    assert len(list(tmp_path.rglob("*.jsonl"))) == 4
    assert len(read_folder(tmp_path)) == 4


def test_unknown_version_is_collected_in_the_default_layout(tmp_path: Path) -> None:
    simulation = Simulation(FolderStore(tmp_path, 2**30))
    assert simulation.assembly.collectors.get(("iris", "default")) or PAYLOADS
    simulation.exchange("iris", b"", b"")
    simulation.write_all()
    assert [event.attributes["contentrange"] for event in read_folder(tmp_path)] == ["bytes */0"] * 2
