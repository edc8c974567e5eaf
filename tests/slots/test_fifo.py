"""First come, first served, across front-ends: exact when whatever is said is heard at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slots.world import FrontEnd, World

EVENTS = ("arrive", "arrive", "arrive", "end", "end", "end", "leave", "expire", "change replicas", "change front-ends")


def waiting(world: World) -> list[int]:
    return [request.number for front in world.fronts.values() for request in front.waiting]


def happens(world: World, event: str, which: int) -> None:
    fronts = list(world.fronts.values())
    front = fronts[which % len(fronts)]
    running = [(each, one) for each in fronts for one in each.running]
    match event:
        case "arrive":
            world.arrive(front)
        case "end" if running:
            world.end(*running[which % len(running)])
        case "leave" if front.waiting:
            world.cancel(front, front.waiting[which % len(front.waiting)])
        case "expire":
            world.wait(which / 8)
            world.expire(front, 0.5 + which / 8)
        case "change replicas":
            change_replicas(world, which)
        case "change front-ends":
            if len(fronts) > 2:
                world.crash(front)
            else:
                world.add_front_end()


def change_replicas(world: World, which: int) -> None:
    replica = f"r{which % 3}"
    if replica not in world.slots:
        world.set_slots({**world.slots, replica: 1 + which % 2})
    elif which % 4 == 0:
        world.set_slots({other: slots for other, slots in world.slots.items() if other != replica})
    elif replica in world.cordoned:
        world.uncordon(replica)
    else:
        world.cordon(replica)


@settings(max_examples=60, deadline=None)
@given(fronts=st.integers(2, 4), events=st.binary(min_size=20, max_size=200))
def test_waiters_are_served_in_the_order_in_which_they_came(fronts: int, events: bytes) -> None:
    world = World(at_once=True)
    world.set_slots({"r0": 2})
    for _ in range(fronts):
        world.add_front_end()
    for event in events:
        served = len(world.started)
        happens(world, EVENTS[event % len(EVENTS)], event // len(EVENTS))
        started = [request.number for request in world.started[served:]]
        assert max(started, default=0) < min(waiting(world), default=world.requests + 1)
        if waiting(world):
            assert all(world.in_flight(r) >= n for r, n in world.slots.items() if r not in world.cordoned)


def two_front_ends(slots: int) -> tuple[World, FrontEnd, FrontEnd]:
    world = World(at_once=True)
    world.set_slots({"r": slots})
    return world, world.add_front_end(), world.add_front_end()


def test_waiters_of_a_long_queue_take_turns_with_those_elsewhere() -> None:
    """More waiters in a row than the ledger looks ahead."""
    world, a, b = two_front_ends(1)
    for front, count in ((a, 1), (a, 150), (b, 2), (a, 3), (b, 1)):
        for _ in range(count):
            world.arrive(front)
    while a.running or b.running:
        for front in (a, b):
            for running in [*front.running]:
                world.end(front, running)
    assert [request.number for request in world.started] == list(range(1, 158))


def test_steady_traffic_costs_no_message() -> None:
    world, a, b = two_front_ends(4)
    for front in (a, a, b, b):
        world.arrive(front)
    before = world.messages
    for _ in range(100):
        for front in (a, b):
            world.end(front, front.running[0])
            world.arrive(front)
    assert world.messages == before


def test_slot_idle_elsewhere_costs_one_round_to_fetch() -> None:
    world, a, b = two_front_ends(1)
    world.arrive(a)
    world.end(a, a.running[0])
    before = world.messages
    world.arrive(b)
    assert len(b.running) == 1
    assert world.messages - before == 4  # Wants, Recall, Return, Grant
