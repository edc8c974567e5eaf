"""How a worker authenticates: the check of each service, and requests whose token names a key that is not known yet.

Keys of issuers come from the supervisor, who alone talks to issuers. A token that names an unknown key may have been
signed with a new one, so the supervisor is told, once for all such tokens, and the requests are held until it answers
or a short time is up; then they are judged finally. Whose issuer was asked several times just now is refused at
once: such tokens can be made up by anyone, and must neither fill the router nor reach the issuer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from router.auth.keys import CHALLENGE, INSUFFICIENT_CHALLENGE, INVALID_CHALLENGE, MISSING, KeyCheck
from router.auth.trust import KeySet, Trust
from router.http import answers
from router.http.answers import Answer
from router.services import Service
from router.telemetry.counters import GatewayCounters

if TYPE_CHECKING:
    from router.auth.tokens import TokenCheck, TokenMemory, TokenVerifier
    from router.gateway.admission import Admission

HELD_SECONDS = 3.0
MOST_HELD = 1000

_MISSING_CLAIM = "missing-claim"


def refusal(reason: str) -> Answer:
    """What a client is told whose key or token was refused for a reason: no more than RFC 6750 section 3.1 says."""
    if reason == MISSING:
        return answers.unauthorized(CHALLENGE)
    if reason == _MISSING_CLAIM:
        return answers.forbidden(INSUFFICIENT_CHALLENGE)
    return answers.unauthorized(INVALID_CHALLENGE)


class Authentication:
    """What a gateway has for all of its services. `ask(issuer)` tells the supervisor that a token names an unknown
    key of an issuer."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], ask: Callable[[str], None] | None
    ) -> None:
        """`clock` gives seconds since the epoch. `ask` is None where nobody knows more."""
        self._loop = loop
        self._clock = clock
        self._ask = ask
        self._trust = Trust()
        self._verifier: TokenVerifier | None = None
        self._memory: TokenMemory | None = None
        self._checks: dict[str, TokenCheck] = {}
        self._held: dict[str, list[Admission]] = {}

    # What is trusted.

    def check(self, service: Service) -> KeyCheck | TokenCheck | None:
        """The check of a service's requests; None if it asks for nothing."""
        if service.token_auth_enabled:
            if service.name not in self._checks:
                self._checks[service.name] = self._token_check(service.name)
            return self._checks[service.name]
        return KeyCheck((service.primary_key, service.secondary_key)) if service.auth_enabled else None

    def _token_check(self, service: str) -> TokenCheck:
        # Loaded with the first such service only: it takes as much memory as a third of the worker.
        from router.auth.tokens import TokenCheck, TokenMemory, TokenVerifier

        if self._verifier is None or self._memory is None:
            self._verifier, self._memory = TokenVerifier(), TokenMemory()
            self._verifier.set_trust(self._trust)
        return TokenCheck(service, self._verifier, self._memory, self._clock)

    def retain(self, services: frozenset[str]) -> None:
        """Forget the tokens of all services but these, which are those that ask for tokens."""
        self._checks = {name: check for name, check in self._checks.items() if name in services}

    def set_trust(self, trust: Trust) -> None:
        """Go by these issuers and keys from now on, and judge who has waited for them."""
        former, self._trust = self._trust, trust
        if self._verifier is not None and self._memory is not None:
            self._verifier.set_trust(trust)
            if trust.takes_back(former):
                self._memory.clear()
        for name in tuple(self._held):
            if trust.keys.get(name, KeySet()).answered_at != former.keys.get(name, KeySet()).answered_at:
                self._release(name)

    # Requests that wait for a key.

    def hold(self, exchange: Admission, issuer: str) -> bool:
        """Keep a request until the issuer's keys have been fetched again; False if there is no point in that."""
        if self._ask is None or monotonic() < self._trust.keys.get(issuer, KeySet()).may_be_asked_at:
            return False
        if sum(map(len, self._held.values())) >= MOST_HELD:
            return False
        if issuer not in self._held:
            self._held[issuer] = []
            self._loop.call_later(HELD_SECONDS, self._release_those, issuer, self._held[issuer])
            self._ask(issuer)
        self._held[issuer].append(exchange)
        return True

    def _release_those(self, issuer: str, held: list[Admission]) -> None:
        if self._held.get(issuer) is held:
            self._release(issuer)

    def _release(self, issuer: str) -> None:
        for exchange in self._held.pop(issuer):
            exchange.authenticate_again()

    # Numbers.

    def count(self, counters: GatewayCounters) -> None:
        """Write down what was counted of tokens."""
        if self._memory is not None:
            counters.token_cache_entries = len(self._memory)
            counters.token_cache_hits = self._memory.hits
            counters.token_cache_misses = self._memory.misses
