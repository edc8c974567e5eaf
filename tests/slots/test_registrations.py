"""Pending registrations: when all workers of a pod have registered with the owner of a service."""

from router.slots.registrations import PendingRegistrations

BLUE, GREEN, ROSE = ("iris", "blue"), ("iris", "green"), ("rose", "default")


def pending_registrations(*workers: str) -> PendingRegistrations:
    registrations = PendingRegistrations()
    registrations.set_versions([BLUE, GREEN, ROSE])
    for worker in workers:
        registrations.add_worker(worker)
    return registrations


def test_service_is_complete_once_every_worker_has_registered_for_every_version() -> None:
    registrations = pending_registrations("w0", "w1")
    assert registrations.restart(["iris"]) == []
    for worker, key in (("w0", BLUE), ("w1", BLUE), ("w0", GREEN)):
        assert registrations.on_registered(worker, key) == []
    assert registrations.is_pending("iris")
    assert registrations.on_registered("w1", GREEN) == ["iris"]
    assert not registrations.is_pending("iris")


def test_service_is_complete_at_once_without_workers() -> None:
    assert pending_registrations().restart(["iris", "rose"]) == ["iris", "rose"]


def test_registration_that_is_not_pending_completes_nothing() -> None:
    registrations = pending_registrations("w0")
    assert registrations.on_registered("w0", BLUE) == []
    registrations.restart(["rose"])
    assert registrations.on_registered("w0", BLUE) == []
    assert registrations.is_pending("rose")


def test_ended_worker_is_not_waited_for() -> None:
    registrations = pending_registrations("w0", "w1")
    registrations.restart(["rose"])
    registrations.on_registered("w0", ROSE)
    assert registrations.remove_worker("w1") == ["rose"]
    assert set(registrations.workers) == {"w0"}


def test_removed_version_is_not_waited_for() -> None:
    registrations = pending_registrations("w0")
    registrations.restart(["iris"])
    registrations.on_registered("w0", BLUE)
    assert registrations.set_versions([BLUE, ROSE]) == ["iris"]
    assert set(registrations.services) == {"iris", "rose"}


def test_new_worker_is_not_waited_for() -> None:
    registrations = pending_registrations("w0")
    registrations.restart(["rose"])
    registrations.add_worker("w1")
    assert registrations.on_registered("w0", ROSE) == ["rose"]
