"""An issuer's published keys (a JSON Web Key Set): parsing, and when to fetch them again.

    due ──on_fetch_started──> fetching ──on_fetched──> fresh ── keys_refresh_seconds, or an unknown key ──> due
                                 └──on_fetch_failed──> the last keys are used until keys_max_age_seconds;
                                                       due again after an increasing delay

Contains: parsing of what an issuer publishes, and the state of its keys (`IssuerKeys`). Times are arguments, in seconds
of the monotonic clock. Does not contain: fetching (`issuing.key_fetcher`, `issuing.token_authority`).
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from router.auth.issuers import Issuer, is_safe_url
from router.auth.trust import KeySet, PublicKey
from router.net.backoff import Backoff

MAX_FETCHES_PER_WINDOW = 3
FETCH_WINDOW_SECONDS = 30.0
"""A token with an unknown key does not cause a fetch if there were this many fetches within this time: anybody can send
tokens with invented key ids."""

MAX_KEYS = 100
_FIRST_PAUSE_SECONDS = 1.0  # after a failed fetch
_MAX_PAUSE_SECONDS = 60.0
_MIN_REFRESH_SECONDS = 10.0  # even if `max-age` of a response is shorter

_PUBLIC_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_MAX_MEMBER_LENGTH = 4096
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])", re.ASCII)


class InvalidIssuerResponse(ValueError):
    """The response of an issuer cannot be used. `str()` is the reason, and contains no part of the response."""


def parse_key_set(content: bytes) -> tuple[PublicKey, ...]:
    """Return the signature keys of a key set, with their public members only. Other keys are skipped.

    Raises `InvalidIssuerResponse` if there is no signature key.
    """
    listed = _json_object(content).get("keys")
    if not isinstance(listed, list):
        raise InvalidIssuerResponse("the response is not a key set: it has no list of keys")
    keys = tuple(key for each in listed[:MAX_KEYS] if (key := _public_key(each)) is not None)
    if not keys:
        raise InvalidIssuerResponse("the key set has no key for signatures")
    return keys


def parse_jwks_uri(content: bytes, issuer: str) -> str:
    """Return the URL of the keys from the metadata of OpenID Connect Discovery. Raises `InvalidIssuerResponse`."""
    metadata = _json_object(content)
    if metadata.get("issuer") != issuer:  # section 4.3: otherwise one issuer could publish keys of another
        raise InvalidIssuerResponse("the metadata belongs to another issuer than the one in the setting `issuer`")
    url = metadata.get("jwks_uri")
    if not isinstance(url, str) or not is_safe_url(url):
        raise InvalidIssuerResponse("the metadata has no https URL of keys in jwks_uri")
    return url


def parse_max_age(cache_control: str) -> float:
    """Return `max-age` of a Cache-Control header in seconds: how long the response may be used. Infinite if absent."""
    found = _MAX_AGE.search(cache_control.lower())
    return float(found[1]) if found else math.inf


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise InvalidIssuerResponse("the response is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidIssuerResponse("the response is not a JSON object")
    return value


def _public_key(listed: object) -> PublicKey | None:
    if not isinstance(listed, Mapping):
        return None
    key_type, use, operations = listed.get("kty"), listed.get("use", "sig"), listed.get("key_ops", ["verify"])
    if not isinstance(key_type, str) or key_type not in _PUBLIC_MEMBERS or use != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    key: dict[str, str] = {}
    for name in ("kty", "kid", "alg", *_PUBLIC_MEMBERS[key_type]):
        if name not in listed and name in ("kid", "alg"):
            continue
        member = listed.get(name)
        if not isinstance(member, str) or len(member) > _MAX_MEMBER_LENGTH:
            return None
        key[name] = member
    return key


class IssuerKeys:
    """The keys of one issuer over time."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.failures = 0
        """The number of fetches that failed."""
        self.successes = 0
        """The number of fetches that succeeded."""
        self._fetching = False
        self._failing = False  # the last fetch failed
        self._keys: tuple[PublicKey, ...] = ()
        self._last_attempt_at = -math.inf
        self._last_success_at = -math.inf
        self._next_fetch_at = -math.inf
        self._last_fetches: deque[float] = deque(maxlen=MAX_FETCHES_PER_WINDOW)
        self._backoff = Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)

    def is_due(self, now: float) -> bool:
        """Return True if the keys should be fetched now."""
        return not self._fetching and now >= self._next_fetch_at

    def on_fetch_started(self, now: float) -> None:
        """Record that a fetch begins."""
        self._fetching = True
        self._last_fetches.append(now)

    def on_fetched(self, keys: tuple[PublicKey, ...], now: float, usable_seconds: float = math.inf) -> bool:
        """Record a successful fetch of keys that may be used for `usable_seconds`.

        Return True if the keys have changed or the previous fetch failed.
        """
        is_news = self._failing or keys != self._keys
        self._fetching = self._failing = False
        self._last_attempt_at = self._last_success_at = now
        self.successes += 1
        self._keys = keys
        self._backoff.reset()
        self._next_fetch_at = now + min(self.issuer.keys_refresh_seconds, max(usable_seconds, _MIN_REFRESH_SECONDS))
        return is_news

    def on_fetch_failed(self, now: float) -> bool:
        """Record a failed fetch. Return True if the previous fetch did not fail."""
        is_news = not self._failing
        self._fetching, self._failing = False, True
        self._last_attempt_at = now
        self.failures += 1
        self._next_fetch_at = now + self._backoff.next_delay()
        return is_news

    def on_unknown_key(self, now: float) -> None:
        """Make the keys due, as a token names an unknown key, unless they were fetched too often recently."""
        if now >= self._refetch_allowed_at:
            self._next_fetch_at = min(self._next_fetch_at, now)

    @property
    def _refetch_allowed_at(self) -> float:
        if len(self._last_fetches) < MAX_FETCHES_PER_WINDOW:
            return -math.inf
        return self._last_fetches[0] + FETCH_WINDOW_SECONDS

    def age(self, now: float) -> float:
        """Return the seconds since the last successful fetch; infinite if there was none."""
        return now - self._last_success_at

    def key_set(self, now: float) -> KeySet:
        """Return the keys for workers, or no keys if they are too old."""
        is_usable = self.age(now) < self.issuer.keys_max_age_seconds
        # During a fetch, a request with an unknown key should be parked until the fetch has ended.
        refetch_allowed_at = -math.inf if self._fetching else self._refetch_allowed_at
        return KeySet(self._keys if is_usable else (), self._last_attempt_at, refetch_allowed_at)
