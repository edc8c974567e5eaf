"""Dials one peer address repeatedly, and interprets failures to connect.

A refused connect (TCP RST) proves that the host runs and that nothing listens on the port. So the process that listened
there has ended, or has not started yet. Other failures, such as timeouts, prove nothing. For this reason routers must
be dialed at the pod's own address, not at the virtual address of a Kubernetes Service: that may refuse connections
although the pod is running.

`mesh` decides what a failure means for the peer at the address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from router.net.backoff import Backoff
from router.peers.close_reason import CloseReason
from router.peers.link import Link
from router.peers.peer_table import PeerStatus

PeerAddress = tuple[str, int]
"""Host (a name or an IP address) and port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DialPolicy:
    """Timeout and backoff of dialing. The first attempt after a link was lost is immediate."""

    connect_timeout_seconds: float = 1.0
    """Timeout of each step: resolving a name, and connecting to each of its addresses."""
    first_retry_seconds: float = 0.05
    max_retry_seconds: float = 1.0


def is_ip_address(address: PeerAddress) -> bool:
    """Return True if the host is an IP address, so that only one router can listen there.

    A name may have several addresses.
    """
    try:
        ipaddress.ip_address(address[0])
    except ValueError:
        return False
    return True


class Dialer:
    """Dials one address while `is_wanted` returns True, with delays after failures.

    The mesh records here what it learns about the address.
    """

    def __init__(self, address: PeerAddress, policy: DialPolicy) -> None:
        self.address = address
        # Jitter, so that routers which lost each other at the same time do not dial at the same time.
        self.backoff = Backoff(policy.first_retry_seconds, policy.max_retry_seconds, jitter=0.5, immediate=True)
        self.is_expected = False  # True: given by `Mesh.set_expected_peers`; False: given by a peer in its handshake
        self.peer: str | None = None  # the router that is known to listen at this address
        self.claimed_by: str | None = None  # the peer that gave this address, until a dial has confirmed it
        self.is_self = False
        self.last_failure: PeerStatus | None = None  # GONE or UNREACHABLE
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def start(
        self, is_wanted: Callable[[Dialer], bool], attempt: Callable[[Dialer], Awaitable[None]]
    ) -> asyncio.Task[None]:
        """Start to dial. Return the task, which runs until `stop`."""
        self._task = asyncio.ensure_future(self._run(is_wanted, attempt))
        return self._task

    def stop(self) -> None:
        """Stop dialing, if started."""
        if self._task is not None:
            self._task.cancel()

    def wake(self) -> None:
        """Check at once whether to dial, as something has changed."""
        self._wake.set()

    async def _run(self, is_wanted: Callable[[Dialer], bool], attempt: Callable[[Dialer], Awaitable[None]]) -> None:
        while True:
            self._wake.clear()
            if not is_wanted(self):
                await self._wake.wait()
                continue
            delay = self.backoff.next_delay()
            if delay:
                await self._sleep_unless_woken(delay)
            if is_wanted(self):
                await attempt(self)

    async def _sleep_unless_woken(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass


class Dialers:
    """The dialers of a mesh, by address. They run from `start` to `stop`."""

    def __init__(
        self,
        policy: DialPolicy,
        is_wanted: Callable[[Dialer], bool],
        attempt: Callable[[Dialer], Awaitable[None]],
    ) -> None:
        self._policy = policy
        self._is_wanted = is_wanted
        self._attempt = attempt
        self._by_address: dict[PeerAddress, Dialer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False

    def __iter__(self) -> Iterator[Dialer]:
        """Iterate over a copy, so that dialers may be added and removed meanwhile."""
        return iter(tuple(self._by_address.values()))

    def of_peer(self, peer: str) -> list[Dialer]:
        """Return the dialers of the addresses at which a peer is known to listen."""
        return [dialer for dialer in self if dialer.peer == peer]

    def get(self, address: PeerAddress) -> Dialer | None:
        """Return the dialer of an address, if there is one."""
        return self._by_address.get(address)

    def add(self, address: PeerAddress) -> Dialer:
        """Add and return a dialer for an address that has none."""
        dialer = self._by_address[address] = Dialer(address, self._policy)
        if self._started:
            self._start(dialer)
        return dialer

    def remove(self, dialer: Dialer) -> None:
        """Stop and remove a dialer."""
        del self._by_address[dialer.address]
        dialer.stop()

    def wake(self, peer: str) -> None:
        """Wake all dialers of a peer."""
        for dialer in self.of_peer(peer):
            dialer.wake()

    def start(self) -> None:
        """Start to dial."""
        self._started = True
        for dialer in self:
            self._start(dialer)

    async def stop(self) -> None:
        """Stop dialing, and wait for attempts in progress to end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, dialer: Dialer) -> None:
        task = dialer.start(self._is_wanted, self._attempt)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def connect(
    address: PeerAddress, make_link: Callable[[], Link], context: ssl.SSLContext | None, policy: DialPolicy
) -> Link:
    """Connect to an address and return a link whose handshake has started.

    Raises `ConnectionRefusedError` if nothing listens at the address (for a name: at any of its addresses). Raises
    another `OSError`, such as `TimeoutError` or `ssl.SSLError`, if a router may listen there.
    """
    host, port = address
    try:
        async with asyncio.timeout(policy.connect_timeout_seconds):
            resolved = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("name of a peer's host cannot be encoded") from None
    refused: OSError | None = None
    other: OSError | None = None
    for family, _, _, _, (ip_address, *_) in resolved:
        try:
            async with asyncio.timeout(policy.connect_timeout_seconds):
                return await _connect_to(str(ip_address), family, address, make_link, context)
        except ConnectionRefusedError as error:
            refused = error
        except OSError as error:
            other = error
    raise other or refused or OSError("name of a peer's host has no address")


async def _connect_to(
    ip_address: str, family: int, address: PeerAddress, make_link: Callable[[], Link], context: ssl.SSLContext | None
) -> Link:
    link = make_link()
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: link,
            ip_address,
            address[1],
            family=family,
            ssl=context,
            server_hostname=address[0] if context else None,
        )
    except BaseException:  # cancellation must not leak the link, either
        link.end(CloseReason.STOPPED)
        raise
    if transport.get_extra_info("sockname") == transport.get_extra_info("peername"):
        # TCP's simultaneous open: if this host is dialed, the kernel may choose the dialed port as the local port. Then
        # the connection is connected to itself, and nothing listens at the address.
        link.end(CloseReason.STOPPED)
        raise ConnectionRefusedError("connected to itself")
    return link
