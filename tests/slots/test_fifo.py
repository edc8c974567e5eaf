"""First come, first served among all workers. The order is exact if every message is delivered immediately."""

from hypothesis import given, settings
from hypothesis import strategies as st

from router.slots.records import MAX_RUN
from tests.slots.slot_simulation import SlotSimulation, Worker

EVENTS = ("arrive", "arrive", "arrive", "end", "end", "end", "cancel", "expire", "change replicas", "change workers")


def waiting(simulation: SlotSimulation) -> list[int]:
    return [request.number for worker in simulation.workers.values() for request in worker.waiting]


def apply(simulation: SlotSimulation, event: str, index: int) -> None:
    workers = list(simulation.workers.values())
    worker = workers[index % len(workers)]
    in_flight = [(each, request) for each in workers for request in each.in_flight]
    match event:
        case "arrive":
            simulation.arrive(worker)
        case "end" if in_flight:
            simulation.end(*in_flight[index % len(in_flight)])
        case "cancel" if worker.waiting:
            simulation.cancel(worker, worker.waiting[index % len(worker.waiting)])
        case "expire":
            simulation.advance_clock(index / 8)
            simulation.expire(worker, 0.5 + index / 8)
        case "change replicas":
            change_replicas(simulation, index)
        case "change workers":
            if len(workers) > 2:
                simulation.crash(worker)
            else:
                simulation.add_worker()


def change_replicas(simulation: SlotSimulation, index: int) -> None:
    replica_id = f"r{index % 3}"
    if replica_id not in simulation.replica_ids:
        simulation.set_replicas(*simulation.replica_ids, replica_id, slots=1 + index % 2)
    elif index % 4 == 0:
        simulation.set_replicas(*[other for other in simulation.replica_ids if other != replica_id])
    elif replica_id in simulation.replicas.cordoned:
        simulation.uncordon(replica_id)
    else:
        simulation.cordon(replica_id)


@settings(max_examples=60)
@given(workers=st.integers(2, 4), events=st.binary(min_size=20, max_size=200))
def test_waiters_start_in_order_of_arrival(workers: int, events: bytes) -> None:
    simulation = SlotSimulation(immediate=True)
    simulation.set_replicas("r0", slots=2)
    for _ in range(workers):
        simulation.add_worker()
    for event in events:
        before = len(simulation.started_waiters)
        apply(simulation, EVENTS[event % len(EVENTS)], event // len(EVENTS))
        started = [request.number for request in simulation.started_waiters[before:]]
        assert max(started, default=0) < min(waiting(simulation), default=simulation.request_count + 1)
        if waiting(simulation):
            replicas = simulation.replicas
            assert all(simulation.in_flight_at(replica_id) >= replicas.slots for replica_id in replicas.open_ids)


def simulation_of_two_workers(slots: int) -> tuple[SlotSimulation, Worker, Worker]:
    simulation = SlotSimulation(immediate=True)
    simulation.set_replicas("r", slots=slots)
    return simulation, simulation.add_worker(), simulation.add_worker()


def test_waiters_of_a_long_queue_alternate_with_those_of_another_worker() -> None:
    """The queue has a longer run of one worker's waiters than the ledger examines."""
    simulation, a, b = simulation_of_two_workers(1)
    for worker, count in ((a, 1), (a, 2 * MAX_RUN), (b, 2), (a, 3), (b, 1)):
        for _ in range(count):
            simulation.arrive(worker)
    while a.in_flight or b.in_flight:
        for worker in (a, b):
            for ending in [*worker.in_flight]:
                simulation.end(worker, ending)
    assert [request.number for request in simulation.started_waiters] == list(range(1, simulation.request_count + 1))


def test_steady_traffic_costs_no_message() -> None:
    simulation, a, b = simulation_of_two_workers(4)
    for worker in (a, a, b, b):
        simulation.arrive(worker)
    before = simulation.message_count
    for _ in range(100):
        for worker in (a, b):
            simulation.end(worker, worker.in_flight[0])
            simulation.arrive(worker)
    assert simulation.message_count == before


def test_idle_lease_of_another_worker_costs_four_messages() -> None:
    simulation, a, b = simulation_of_two_workers(1)
    simulation.arrive(a)
    simulation.end(a, a.in_flight[0])
    before = simulation.message_count
    simulation.arrive(b)
    assert len(b.in_flight) == 1
    assert simulation.message_count - before == 4  # SlotDemand, Recall, Return, Grant
