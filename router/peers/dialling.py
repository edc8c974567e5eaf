"""How a peer's address is reached, again and again, and what a failure to reach it proves.

A refused connect is an answer: the host lives and nobody listens there, so the process that did has ended (or has not
begun). Everything else, above all silence, proves nothing. So whatever answers refusals on behalf of others must not
stand between routers: the virtual address of a Kubernetes Service does, a pod's own address does not.

Lives here: one address. Must not live here: what follows for the peer behind it (`mesh`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from router.peers.endings import Ending
from router.peers.link import Link
from router.peers.roster import Standing

Address = tuple[str, int]
"""Host (a name or an address) and port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DialPace:
    """How an address is dialled. The first attempt after a loss comes at once, later ones pause."""

    connect_seconds: float = 1.0
    """For each step: to find the addresses of a name, to connect to one of them."""
    first_pause_seconds: float = 0.05
    longest_pause_seconds: float = 1.0


class Backoff:
    """Pauses between attempts: none, then doubling from the first to the longest, each cut by up to a half at random,
    so that routers which lost one another at the same time do not dial at the same time."""

    __slots__ = ("_first", "_longest", "_next", "_random")

    def __init__(self, pace: DialPace, rng: random.Random | None = None) -> None:
        self._first = pace.first_pause_seconds
        self._longest = pace.longest_pause_seconds
        self._random = rng or random.Random()
        self._next = 0.0

    def pause(self) -> float:
        """Seconds to wait before the next attempt."""
        pause = self._next
        self._next = min(max(pause * 2, self._first), self._longest)
        return pause * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """The next attempt needs no pause."""
        self._next = 0.0


def is_numeric(address: Address) -> bool:
    """Whether the host is an address, not a name: only then there is just one place at which to listen."""
    try:
        ipaddress.ip_address(address[0])
    except ValueError:
        return False
    return True


class Pursuit:
    """Dials one address for as long as it is wanted."""

    def __init__(self, address: Address, pace: DialPace) -> None:
        self.address = address
        self.backoff = Backoff(pace)
        self.expected = False  # the caller has named the address, else a peer has
        self.peer: str | None = None  # who is known to listen there
        self.claimant: str | None = None  # who says so and has not been found there yet
        self.is_self = False
        self.standing: Standing | None = None  # after the last attempt; None before the first
        self.task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """See at once whether to dial: something has changed."""
        self._wake.set()

    async def run(self, wanted: Callable[[Pursuit], bool], attempt: Callable[[Pursuit], Awaitable[None]]) -> None:
        """Dial whenever `wanted`, until cancelled."""
        while True:
            self._wake.clear()
            if not wanted(self):
                await self._wake.wait()
                continue
            pause = self.backoff.pause()
            if pause:
                await self._woken_within(pause)
            if wanted(self):
                await attempt(self)

    async def _woken_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass


async def connect(address: Address, make: Callable[[], Link], context: ssl.SSLContext | None, pace: DialPace) -> Link:
    """A link to whoever listens at an address, its hand-shake begun.

    Raises `ConnectionRefusedError` if nobody listens there (where a name has several addresses: at none of them), and
    another `OSError` if that cannot be told, such as `TimeoutError` or `ssl.SSLError`.
    """
    host, port = address
    try:
        async with asyncio.timeout(pace.connect_seconds):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("name of a peer's host cannot be encoded") from None
    refused: OSError | None = None
    unclear: OSError | None = None
    for family, _, _, _, (numeric, *_) in found:
        try:
            async with asyncio.timeout(pace.connect_seconds):
                return await _connect_to(str(numeric), family, address, make, context)
        except ConnectionRefusedError as error:
            refused = error
        except OSError as error:
            unclear = error
    raise unclear or refused or OSError("name of a peer's host has no address")


async def _connect_to(
    numeric: str, family: int, address: Address, make: Callable[[], Link], context: ssl.SSLContext | None
) -> Link:
    link = make()
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: link,
            numeric,
            address[1],
            family=family,
            ssl=context,
            server_hostname=address[0] if context else None,
        )
    except BaseException:  # a cancelled attempt leaves nothing behind, either
        link.end(Ending.STOPPED)
        raise
    if transport.get_extra_info("sockname") == transport.get_extra_info("peername"):
        # TCP's simultaneous open: on its own host, a free port that the kernel picks for dialling may be the dialled
        # one. Nobody listens there.
        link.end(Ending.STOPPED)
        raise ConnectionRefusedError("connected to itself")
    return link
