"""What is known of an issuer's published keys (a JSON Web Key Set), and when to ask for them again.

    due ──began──> asking ──succeeded──> fresh ── keys_refresh_seconds, or an unknown key ──> due
                      └─────failed─────> known until keys_max_age_seconds; due again after a growing pause

Lives here: reading of what an issuer publishes, and `IssuerKeys`, the state. Times are seconds of the monotonic clock
and arguments. Must not live here: fetching.
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

MOST_QUESTIONS = 3
QUESTIONS_SECONDS = 30.0
"""Keys that tokens name are reason to ask an issuer only if it was not asked so often within this time: anyone can make
up such names."""

MOST_KEYS = 100
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_SOONEST_SECONDS = 10.0  # whatever an answer says of its own age

_PUBLIC_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_LONGEST_MEMBER = 4096
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])", re.ASCII)


class BadAnswer(ValueError):
    """What an issuer has published cannot be used; `str()` says why, and repeats nothing of it."""


def read_keys(content: bytes) -> tuple[PublicKey, ...]:
    """The keys for signatures in a key set, their public members only. What is of another kind is passed over. Raises
    `BadAnswer` when there is none."""
    listed = _object(content).get("keys")
    if not isinstance(listed, list):
        raise BadAnswer("it is no key set: it has no list of keys")
    keys = tuple(key for each in listed[:MOST_KEYS] if (key := _public_key(each)) is not None)
    if not keys:
        raise BadAnswer("the key set has no key for signatures")
    return keys


def read_keys_url(content: bytes, issuer: str) -> str:
    """Where the keys are, by the metadata of OpenID Connect Discovery. Raises `BadAnswer`."""
    metadata = _object(content)
    if metadata.get("issuer") != issuer:  # section 4.3: else whoever answers there could speak for another issuer
        raise BadAnswer("the metadata is of another issuer than the setting `issuer` says")
    url = metadata.get("jwks_uri")
    if not isinstance(url, str) or not is_safe_url(url):
        raise BadAnswer("the metadata has no https address of keys in jwks_uri")
    return url


def max_age(cache_control: str) -> float:
    """Seconds for which an answer says it may be used; infinite when it does not say."""
    found = _MAX_AGE.search(cache_control.lower())
    return float(found[1]) if found else math.inf


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise BadAnswer("it is not JSON") from None
    if not isinstance(value, dict):
        raise BadAnswer("it is not a JSON object")
    return value


def _public_key(listed: object) -> PublicKey | None:
    if not isinstance(listed, Mapping):
        return None
    kind, usage, operations = listed.get("kty"), listed.get("use", "sig"), listed.get("key_ops", ["verify"])
    if not isinstance(kind, str) or kind not in _PUBLIC_MEMBERS or usage != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    key: dict[str, str] = {}
    for name in ("kty", "kid", "alg", *_PUBLIC_MEMBERS[kind]):
        if name not in listed and name in ("kid", "alg"):
            continue
        member = listed.get(name)
        if not isinstance(member, str) or len(member) > _LONGEST_MEMBER:
            return None
        key[name] = member
    return key


class IssuerKeys:
    """The keys of one issuer over time."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.failures = 0
        """Fetches that failed, ever."""
        self.successes = 0
        """Fetches that succeeded, ever."""
        self.asking = False
        self._keys: tuple[PublicKey, ...] = ()
        self._answered_at = -math.inf
        self._asked: deque[float] = deque(maxlen=MOST_QUESTIONS)
        self._known_at = -math.inf
        self._next_at = -math.inf
        self._in_a_row = 0  # failures since the last success

    def is_due(self, now: float) -> bool:
        """Whether the issuer should be asked."""
        return not self.asking and now >= self._next_at

    def began(self, now: float) -> None:
        """The issuer is being asked."""
        self.asking = True
        self._asked.append(now)

    def succeeded(self, keys: tuple[PublicKey, ...], now: float, usable_seconds: float = math.inf) -> bool:
        """It answered; the answer may be used for so long by its own account. Returns whether that is news."""
        news = self._in_a_row > 0 or keys != self._keys
        self.asking = False
        self._answered_at = now
        self.successes += 1
        self._in_a_row = 0
        self._keys = keys
        self._known_at = now
        self._next_at = now + min(self.issuer.keys_refresh_seconds, max(usable_seconds, _SOONEST_SECONDS))
        return news

    def failed(self, now: float) -> bool:
        """It gave no answer that can be used. Returns whether that is news: the one before was good."""
        self.asking = False
        self._answered_at = now
        self.failures += 1
        self._in_a_row += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(self._in_a_row - 1, 10), _LONGEST_PAUSE_SECONDS)
        self._next_at = now + pause
        return self._in_a_row == 1

    def unknown_key(self, now: float) -> None:
        """A token names a key that is not known: ask now, unless that was just done several times."""
        if now >= self._may_be_asked_at:
            self._next_at = min(self._next_at, now)

    @property
    def _may_be_asked_at(self) -> float:
        return self._asked[0] + QUESTIONS_SECONDS if len(self._asked) == MOST_QUESTIONS else -math.inf

    def age(self, now: float) -> float:
        """Seconds since the issuer last told its keys; infinite when it never did."""
        return now - self._known_at

    def key_set(self, now: float) -> KeySet:
        """What workers may go by: nothing when it is too old."""
        usable = self.age(now) < self.issuer.keys_max_age_seconds
        # While it is being asked, it pays to wait for the answer.
        may_be_asked_at = -math.inf if self.asking else self._may_be_asked_at
        return KeySet(self._keys if usable else (), self._answered_at, may_be_asked_at)
