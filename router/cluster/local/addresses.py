"""The replicas of one version that something else runs, at fixed addresses.

Lives here: which there are and whether they are ready. Must not live here: anything that starts, stops or scales.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from router.authority import authority
from router.cluster.local.around import Around
from router.cluster.local.file import Launch
from router.cluster.local.probe import Watch
from router.services import Replica, ReplicaState, Version, VersionKey

NOT_READY_INTERVAL = 1.0
"""Seconds between probes of an address that is not ready: it may be so for hours, which is no reason to flood it."""

Address = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Member:
    id: str
    address: Address
    watching: asyncio.Task[None] | None = None
    state: ReplicaState = ReplicaState.STARTING
    silence: str | None = None
    """Why it does not count as ready, where that is no mere beginning."""


class Addresses:
    """Probes all addresses of one version."""

    def __init__(
        self, key: VersionKey, version: Version, launch: Launch, around: Around, changed: Callable[[], None]
    ) -> None:
        """`changed` is called when `replicas()` has become another by itself, not by a method. None is probed before
        `update`."""
        self._key = key
        self._version = version
        self._launch = launch
        self._around = around
        self._changed = changed
        self._members: dict[Address, _Member] = {}
        self._leaving: list[_Member] = []

    def replicas(self) -> tuple[Replica, ...]:
        """All there are, in the order of the file; those no longer in it come last, while they drain."""
        members = (*self._members.values(), *self._leaving)
        return tuple(Replica(member.id, *member.address, member.state) for member in members)

    def problems(self) -> list[str]:
        """What keeps replicas from being ready, in a line each."""
        return [
            f"{member.id} at {authority(*member.address)} does not answer: {member.silence}"
            for member in self._members.values()
            if member.silence is not None
        ]

    def update(self, version: Version, launch: Launch) -> None:
        """Go by other settings and addresses from now on."""
        self._version = version
        self._launch = launch
        self._have(launch.addresses)

    def retire(self) -> None:
        """Drain and forget all."""
        self._have(())

    def stop(self) -> None:
        """Probe no more."""
        for member in self._members.values():
            if member.watching is not None:
                member.watching.cancel()

    def _have(self, addresses: tuple[Address, ...]) -> None:
        former = self._members
        self._members = {
            address: former[address] if address in former else self._begin(address) for address in addresses
        }
        for address, member in former.items():
            if address not in self._members:
                self._let_go(member)

    def _begin(self, address: Address) -> _Member:
        member = _Member(self._around.new_id(self._key), address)
        watch = Watch(
            host=address[0],
            port=address[1],
            path=lambda: self._launch.readiness_path,
            version=lambda: self._version,
            busy=lambda: self._around.busy(member.id),
            turned=lambda ready, reason: self._turned(member, ready, reason),
            silent=lambda reason: self._is_silent(member, reason),
            interval=NOT_READY_INTERVAL,
        )
        member.watching = self._around.tasks.begin(watch.run())
        return member

    def _turned(self, member: _Member, ready: bool, reason: str) -> None:
        member.state = ReplicaState.READY if ready else ReplicaState.STARTING
        member.silence = None if ready else reason
        if ready:
            self._around.notice(self._key, logging.INFO, "replica is ready", replica=member.id)
        else:
            self._around.notice(
                self._key, logging.WARNING, "replica no longer answers", replica=member.id, reason=reason
            )
        self._changed()

    def _is_silent(self, member: _Member, reason: str) -> None:
        if member.silence is None:
            where = authority(*member.address)
            self._around.notice(
                self._key, logging.WARNING, "replica does not answer", replica=member.id, address=where, reason=reason
            )
        member.silence = reason

    def _let_go(self, member: _Member) -> None:
        if member.watching is not None:
            member.watching.cancel()
        if member.state is ReplicaState.READY:
            member.state = ReplicaState.DRAINING
            self._leaving.append(member)
            self._around.tasks.begin(self._leave(member))

    async def _leave(self, member: _Member) -> None:
        try:
            await self._around.drain(member.id, self._version.scoring_timeout_ms / 1000)
        finally:
            self._leaving.remove(member)
            self._changed()
