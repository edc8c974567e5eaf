"""The hand-shake of a fresh connection: both ends prove that they know the shared secret. No I/O, no clock.

    accepting side                                    dialling side
      challenge: magic, nonce          ---------->
                                       <----------      answer: nonce, who and which versions, proof
      verdict: who, versions, result, proof  ---->
                                       <----------      the first sealed frame: it holds the session's key

A proof is HMAC-SHA256 with the secret over a word for its role and every byte that went before it in either direction,
so it covers both nonces, both ids, both ranges of versions. Another role's proof (reflection), an earlier connection's
(replay) or one byte altered on the way does not fit. The keys of the session come from the same bytes by the same
function. What has not been proven is not even parsed, and a stranger learns no more than that a router listens here.

The secret must be random: whoever sees a hand-shake, or makes a router dial it, can try out guesses at leisure.
The form of these three messages is the same in all releases; what follows is governed by the version they agree on.
What a release adds to them stands at the end of a list, where others pass over it.

Encryption is agreed on in this way: the answer says that the dialling side can, the verdict which certificate it will
be shown, and the next byte of either side is TLS's (`encryption`). Both words are under proof, so nobody in between can
take them away, and the certificate is part of what the session's keys are made of.
"""

from __future__ import annotations

import hmac
import re
import secrets
import struct
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from router.peers.encryption import Encryption
from router.peers.endings import Ending
from router.peers.frames import WireError, frame

MAGIC = b"azureml-fe peer 1\n"
SECRET_BYTES = 16
"""Shortest secret that is accepted."""
HANDSHAKE_FRAME_LIMIT_BYTES = 1024
"""Largest frame of a hand-shake: a stranger makes this router hold no more."""

_NONCE_BYTES = 32
_PROOF_BYTES = 32
_CLIENT, _SERVER = b"dials", b"accepts"
_LENGTH = struct.Struct("!I")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_CERTIFICATE = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CAN_ENCRYPT = "tls"
_INCARNATION = re.compile(r"[0-9a-f]{16}", re.ASCII)
_HOST = re.compile(r"[^\s/]{0,255}")


class Versions(NamedTuple):
    """The protocol versions that a release speaks, both ends included."""

    lowest: int
    highest: int

    def common_with(self, other: Versions) -> int | None:
        """The highest version that both speak; None if there is none."""
        highest = min(self.highest, other.highest)
        return highest if highest >= max(self.lowest, other.lowest) else None


SUPPORTED = Versions(1, 1)


class HandshakeError(Exception):
    """The hand-shake came to no session. `peer` is who refused or was refused, if that one has proven itself."""

    def __init__(self, ending: Ending, peer: Party | None = None) -> None:
        self.ending = ending
        self.peer = peer
        super().__init__(ending.value)


@dataclass(frozen=True, slots=True)
class Party:
    """Who a router says it is. `host` is empty where the router listens on all addresses of its machine.

    `incarnation` is another one in each process; of two with the same id, the greater one began later.
    Raises `ValueError` for an id, incarnation, host or port that cannot be one.
    """

    id: str
    incarnation: str
    host: str
    port: int

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"id of a router = {self.id[:200]!r}: must be 1 to 128 of A-Z, a-z, 0-9 and . _ : -")
        if not _INCARNATION.fullmatch(self.incarnation):
            raise ValueError("incarnation of a router: must be 16 of 0-9 and a-f")
        if not _HOST.fullmatch(self.host) or not 0 <= self.port <= 65535:
            raise ValueError("address of a router: must be a host and a port")

    @staticmethod
    def new_incarnation() -> str:
        """For one process: the time, so that a later one has a greater one, and chance, so that no two are alike."""
        return f"{(time.time_ns() >> 16 << 16 | secrets.randbits(16)) % 2**64:016x}"


@dataclass(frozen=True, slots=True)
class Session:
    """What a hand-shake leads to. `certificate` is the SHA-256 of that of the accepting side, where TLS follows."""

    version: int
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    certificate: bytes | None = field(default=None, repr=False)


def check_secret(secret: bytes) -> bytes:
    """The secret itself. Raises `ValueError` if it is too short."""
    if len(secret) < SECRET_BYTES:
        raise ValueError(f"secret of the peers: must be at least {SECRET_BYTES} bytes")
    return secret


class ServerHandshake:
    """The accepting side: send `challenge`, `receive` the answer, then send what `accept` or `refuse` gives."""

    __slots__ = (
        "_answer", "_certificate", "_challenge", "_encryption", "_own", "_secret", "_versions", "challenge", "peer",
        "version",
    )  # fmt: skip

    def __init__(
        self, own: Party, secret: bytes, versions: Versions = SUPPORTED, encryption: Encryption | None = None
    ) -> None:
        self._own = own
        self._secret = check_secret(secret)
        self._versions = versions
        self._encryption = encryption
        self._certificate: bytes | None = None
        self._challenge = MAGIC + secrets.token_bytes(_NONCE_BYTES)
        self._answer = b""
        self.challenge = frame(self._challenge)
        self.peer: Party | None = None
        self.version = 0

    def receive(self, body: bytes) -> Party:
        """Take the answer in: who it is that has proven itself. Raises `HandshakeError`, with `peer` if that one has
        proven itself and is to be told so (`refuse`)."""
        claim, proof = body[:-_PROOF_BYTES], body[-_PROOF_BYTES:]
        if not hmac.compare_digest(proof, _digest(self._secret, _CLIENT, self._challenge, claim)):
            raise HandshakeError(Ending.SECRET)
        self._answer = body
        party, versions, added = _read(claim[_NONCE_BYTES:])
        self.peer = party
        version = self._versions.common_with(versions)
        if version is None:
            raise HandshakeError(Ending.VERSION, party)
        self.version = version
        if self._encryption is not None and _CAN_ENCRYPT in added[:1]:
            self._certificate = self._encryption.certificate
        elif self._encryption is not None and self._encryption.required:
            raise HandshakeError(Ending.UNENCRYPTED, party)
        return party

    def accept(self) -> tuple[bytes, Session]:
        """What to send, and the session that begins with it."""
        named = [self._certificate.hex()] if self._certificate is not None else []
        verdict = self._verdict([self.version, "", *named])
        to_server, to_client = _keys(self._secret, self._challenge, self._answer, verdict)
        return frame(verdict), Session(self.version, to_client, to_server, self._certificate)

    def refuse(self, reason: Ending) -> bytes:
        """What to send before closing to one that has proven itself."""
        return frame(self._verdict([0, reason.value]))

    def _verdict(self, result: list[object]) -> bytes:
        claim = orjson.dumps([*_written(self._own, self._versions), *result])
        return claim + _digest(self._secret, _SERVER, self._challenge, self._answer, claim)


class ClientHandshake:
    """The dialling side: send what `answer` makes of the challenge, then `finish` with the verdict."""

    __slots__ = ("_answer", "_challenge", "_encryption", "_own", "_secret", "_versions")

    def __init__(
        self, own: Party, secret: bytes, versions: Versions = SUPPORTED, encryption: Encryption | None = None
    ) -> None:
        self._own = own
        self._secret = check_secret(secret)
        self._versions = versions
        self._encryption = encryption
        self._challenge = b""
        self._answer = b""

    @property
    def is_answered(self) -> bool:
        """Whether the challenge has come: the next frame is the verdict."""
        return bool(self._answer)

    def answer(self, body: bytes) -> bytes:
        """What to send. Raises `HandshakeError` if nothing that is a router has spoken."""
        if len(body) != len(MAGIC) + _NONCE_BYTES or not body.startswith(MAGIC):
            raise HandshakeError(Ending.GARBAGE)
        self._challenge = body
        added = [_CAN_ENCRYPT] if self._encryption is not None else []
        claim = secrets.token_bytes(_NONCE_BYTES) + orjson.dumps([*_written(self._own, self._versions), *added])
        self._answer = claim + _digest(self._secret, _CLIENT, body, claim)
        return frame(self._answer)

    def finish(self, body: bytes) -> tuple[Party, Session]:
        """Who has accepted, and the session. Raises `HandshakeError`, with `peer` if that one has proven itself."""
        claim, proof = body[:-_PROOF_BYTES], body[-_PROOF_BYTES:]
        if not hmac.compare_digest(proof, _digest(self._secret, _SERVER, self._challenge, self._answer, claim)):
            raise HandshakeError(Ending.SECRET)
        party, _, rest = _read(claim)
        match rest:
            case [0, str(reason), *_]:
                raise HandshakeError(_ending(reason), party)
            case [int(version), str(), *added] if self._versions.lowest <= version <= self._versions.highest:
                certificate = self._named(added, party)
                to_server, to_client = _keys(self._secret, self._challenge, self._answer, body)
                return party, Session(version, to_server, to_client, certificate)
        raise HandshakeError(Ending.VERSION, party)

    def _named(self, added: list[object], party: Party) -> bytes | None:
        """The certificate that the accepting side will show; None where it does not encrypt."""
        match added:
            case [str(certificate), *_] if self._encryption is not None and _CERTIFICATE.fullmatch(certificate):
                return bytes.fromhex(certificate)
        if self._encryption is not None and self._encryption.required:
            raise HandshakeError(Ending.UNENCRYPTED, party)
        return None


def _digest(secret: bytes, purpose: bytes, *parts: bytes) -> bytes:
    """HMAC over the parts, each with its length, so that bytes cannot pass from one to the next."""
    return hmac.digest(secret, b"".join(_LENGTH.pack(len(part)) + part for part in (purpose, *parts)), "sha256")


def _keys(secret: bytes, *transcript: bytes) -> tuple[bytes, bytes]:
    """The keys of both directions: to the accepting side, to the dialling side."""
    return _digest(secret, b"key to who accepts", *transcript), _digest(secret, b"key to who dials", *transcript)


def _written(own: Party, versions: Versions) -> list[object]:
    return [own.id, own.incarnation, own.host, own.port, versions.lowest, versions.highest]


def _read(claim: bytes) -> tuple[Party, Versions, list[object]]:
    """Who and which versions, and what stands behind it. Raises `WireError`."""
    try:
        match orjson.loads(claim):
            case [str(name), str(incarnation), str(host), int(port), int(lowest), int(highest), *rest]:
                return Party(name, incarnation, host, port), Versions(lowest, highest), rest
    except ValueError:  # neither JSON, nor a party; the text of either error would repeat what came
        pass
    raise WireError(Ending.GARBAGE, "hand-shake that names no router")


def _ending(reason: str) -> Ending:
    return Ending(reason) if reason in _TOLD else Ending.REFUSED


_TOLD = frozenset(
    ending.value
    for ending in (
        Ending.VERSION, Ending.STALE, Ending.SAME_ID, Ending.SELF, Ending.DUPLICATE, Ending.UNENCRYPTED,
    )
)  # fmt: skip
