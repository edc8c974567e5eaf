"""The handshake of a new connection: both sides prove that they hold the shared secret. No I/O, no clock.

    accepting side                                           dialing side
      challenge: magic, nonce            ------------>
                                         <------------  response: nonce, identity, versions, proof
      verdict: identity, versions, result, proof  --->
                                         <------------  the first signed frame proves the session's key

A proof is HMAC-SHA256, keyed with the secret, over the role of the sender and all bytes sent before it in both
directions, so it covers both nonces, both identities and both version ranges. It rejects the proof of the other role
(reflection), the proof of an earlier connection (replay) and any altered byte. The keys of the session are derived from
the same bytes by the same function. Data without a valid proof is not parsed, and a dialing side without the secret
only learns that a router listens here.

The secret must be random: an attacker that records a handshake, or lets a router dial it, can test guesses offline.

These three messages have the same form in all releases. The messages after them depend on the negotiated version. A
later release may append fields to the end of a list. Earlier releases ignore them.

TLS is negotiated as follows. A field of the response states that the dialing side supports TLS. The verdict announces
the digest of the certificate that the accepting side will present. The next byte in either direction is TLS
(`tls_stream`). The proofs cover both fields, so they cannot be removed in transit, and the session's keys depend on the
certificate.
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

from router.peers.close_reason import CloseReason
from router.peers.frames import WireError, encode_frame
from router.peers.tls_stream import PinnedTls

MAGIC = b"azureml-fe peer 1\n"
MIN_SECRET_BYTES = 16
HANDSHAKE_FRAME_LIMIT_BYTES = 1024
"""Maximum size of a frame during the handshake: bounds the memory used by peers that are not authenticated."""

_NONCE_BYTES = 32
_PROOF_BYTES = 32
_LENGTH = struct.Struct("!I")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_CERTIFICATE_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_INCARNATION = re.compile(r"[0-9a-f]{16}", re.ASCII)
_HOST = re.compile(r"[^\s/]{0,255}")

# These bytes are part of the protocol: both sides must use the same ones.
_CLIENT_ROLE, _SERVER_ROLE = b"dials", b"accepts"
_KEY_TO_SERVER, _KEY_TO_CLIENT = b"key to who accepts", b"key to who dials"
_SUPPORTS_TLS = "tls"


class ProtocolVersions(NamedTuple):
    """The range of protocol versions that a release supports, inclusive."""

    lowest: int
    highest: int

    def highest_common(self, other: ProtocolVersions) -> int | None:
        """Return the highest version in both ranges, or None if they do not overlap."""
        highest = min(self.highest, other.highest)
        return highest if highest >= max(self.lowest, other.lowest) else None


SUPPORTED_VERSIONS = ProtocolVersions(1, 1)


class HandshakeError(Exception):
    """The handshake failed. `peer` is the other side, if it has proven that it holds the secret."""

    def __init__(self, close_reason: CloseReason, peer: PeerIdentity | None = None) -> None:
        self.close_reason = close_reason
        self.peer = peer
        super().__init__(close_reason.value)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """One process of a router pod. `host` is empty if the process listens on all addresses of its machine.

    `incarnation` differs between processes with the same id, and a later process has a greater one.
    Raises `ValueError` for an invalid id, incarnation, host or port.
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
        """Return an incarnation for this process: the time, for the order, and 16 random bits, for uniqueness."""
        return f"{(time.time_ns() >> 16 << 16 | secrets.randbits(16)) % 2**64:016x}"


@dataclass(frozen=True, slots=True)
class Session:
    """The result of a handshake.

    `certificate_digest` is the SHA-256 digest of the accepting side's certificate if TLS follows, else None.
    """

    version: int
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    certificate_digest: bytes | None = field(default=None, repr=False)


def check_secret(secret: bytes) -> bytes:
    """Return the secret. Raises `ValueError` if it is too short."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"secret of the peers: must be at least {MIN_SECRET_BYTES} bytes")
    return secret


class ServerHandshake:
    """The accepting side: send `challenge`, call `receive_response`, then send the verdict of `accept` or `refuse`."""

    __slots__ = (
        "_certificate_digest", "_challenge", "_own", "_response", "_secret", "_tls", "_version", "_versions",
        "challenge",
    )  # fmt: skip

    def __init__(
        self,
        own: PeerIdentity,
        secret: bytes,
        versions: ProtocolVersions = SUPPORTED_VERSIONS,
        tls: PinnedTls | None = None,
    ) -> None:
        self._own = own
        self._secret = check_secret(secret)
        self._versions = versions
        self._tls = tls
        self._certificate_digest: bytes | None = None
        self._challenge = MAGIC + secrets.token_bytes(_NONCE_BYTES)
        self._response = b""
        self._version = 0
        self.challenge = encode_frame(self._challenge)

    def receive_response(self, body: bytes) -> PeerIdentity:
        """Verify the response and return the peer's identity.

        Raises `HandshakeError`. Its `peer` is set if the peer holds the secret and should get a refusal (`refuse`).
        Raises `WireError` if the proof is valid but the response is malformed.
        """
        claim, proof = body[:-_PROOF_BYTES], body[-_PROOF_BYTES:]
        if not hmac.compare_digest(proof, _hmac(self._secret, _CLIENT_ROLE, self._challenge, claim)):
            raise HandshakeError(CloseReason.SECRET)
        self._response = body
        peer, versions, extensions = _parse_claim(claim[_NONCE_BYTES:])
        version = self._versions.highest_common(versions)
        if version is None:
            raise HandshakeError(CloseReason.VERSION, peer)
        self._version = version
        if self._tls is not None and _SUPPORTS_TLS in extensions[:1]:
            self._certificate_digest = self._tls.certificate_digest
        elif self._tls is not None and self._tls.required:
            raise HandshakeError(CloseReason.UNENCRYPTED, peer)
        return peer

    def accept(self) -> tuple[bytes, Session]:
        """Return the verdict to send, and the session that it starts."""
        extensions = [self._certificate_digest.hex()] if self._certificate_digest is not None else []
        verdict = self._make_verdict([self._version, "", *extensions])
        to_server, to_client = _derive_keys(self._secret, self._challenge, self._response, verdict)
        return encode_frame(verdict), Session(self._version, to_client, to_server, self._certificate_digest)

    def refuse(self, reason: CloseReason) -> bytes:
        """Return the verdict to send before closing a connection whose peer holds the secret."""
        return encode_frame(self._make_verdict([0, reason.value]))

    def _make_verdict(self, result: list[object]) -> bytes:
        claim = orjson.dumps([*_identity_fields(self._own, self._versions), *result])
        return claim + _hmac(self._secret, _SERVER_ROLE, self._challenge, self._response, claim)


class ClientHandshake:
    """The dialing side: send what `respond` returns for the challenge, then call `receive_verdict`."""

    __slots__ = ("_challenge", "_own", "_response", "_secret", "_tls", "_versions")

    def __init__(
        self,
        own: PeerIdentity,
        secret: bytes,
        versions: ProtocolVersions = SUPPORTED_VERSIONS,
        tls: PinnedTls | None = None,
    ) -> None:
        self._own = own
        self._secret = check_secret(secret)
        self._versions = versions
        self._tls = tls
        self._challenge = b""
        self._response = b""

    @property
    def has_responded(self) -> bool:
        """True once the challenge was received: the next frame is the verdict."""
        return bool(self._response)

    def respond(self, body: bytes) -> bytes:
        """Return the response to the challenge `body`. Raises `HandshakeError` if it is not a router's challenge."""
        if len(body) != len(MAGIC) + _NONCE_BYTES or not body.startswith(MAGIC):
            raise HandshakeError(CloseReason.GARBAGE)
        self._challenge = body
        extensions = [_SUPPORTS_TLS] if self._tls is not None else []
        fields = [*_identity_fields(self._own, self._versions), *extensions]
        claim = secrets.token_bytes(_NONCE_BYTES) + orjson.dumps(fields)
        self._response = claim + _hmac(self._secret, _CLIENT_ROLE, body, claim)
        return encode_frame(self._response)

    def receive_verdict(self, body: bytes) -> tuple[PeerIdentity, Session]:
        """Verify the verdict and return the peer's identity and the session.

        Raises `HandshakeError`, with `peer` set if the peer holds the secret, and `WireError` if the proof is valid but
        the verdict is malformed.
        """
        claim, proof = body[:-_PROOF_BYTES], body[-_PROOF_BYTES:]
        if not hmac.compare_digest(proof, _hmac(self._secret, _SERVER_ROLE, self._challenge, self._response, claim)):
            raise HandshakeError(CloseReason.SECRET)
        peer, _, result = _parse_claim(claim)
        match result:
            case [0, str(reason), *_]:
                raise HandshakeError(_parse_refusal(reason), peer)
            case [int(version), str(), *extensions] if self._versions.lowest <= version <= self._versions.highest:
                certificate_digest = self._parse_certificate_digest(extensions, peer)
                to_server, to_client = _derive_keys(self._secret, self._challenge, self._response, body)
                return peer, Session(version, to_server, to_client, certificate_digest)
        raise HandshakeError(CloseReason.VERSION, peer)

    def _parse_certificate_digest(self, extensions: list[object], peer: PeerIdentity) -> bytes | None:
        """Return the digest of the certificate that the accepting side will present, or None if it will not use TLS."""
        match extensions:
            case [str(digest), *_] if self._tls is not None and _CERTIFICATE_DIGEST.fullmatch(digest):
                return bytes.fromhex(digest)
        if self._tls is not None and self._tls.required:
            raise HandshakeError(CloseReason.UNENCRYPTED, peer)
        return None


def _hmac(secret: bytes, purpose: bytes, *parts: bytes) -> bytes:
    """Return the HMAC of the parts, each prefixed with its length so that bytes cannot move between parts."""
    return hmac.digest(secret, b"".join(_LENGTH.pack(len(part)) + part for part in (purpose, *parts)), "sha256")


def _derive_keys(secret: bytes, *transcript: bytes) -> tuple[bytes, bytes]:
    """Return the keys of both directions: to the accepting side, to the dialing side."""
    return _hmac(secret, _KEY_TO_SERVER, *transcript), _hmac(secret, _KEY_TO_CLIENT, *transcript)


def _identity_fields(own: PeerIdentity, versions: ProtocolVersions) -> list[object]:
    return [own.id, own.incarnation, own.host, own.port, versions.lowest, versions.highest]


def _parse_claim(claim: bytes) -> tuple[PeerIdentity, ProtocolVersions, list[object]]:
    """Return the identity, the versions and the fields after them. Raises `WireError`."""
    try:
        match orjson.loads(claim):
            case [str(peer_id), str(incarnation), str(host), int(port), int(lowest), int(highest), *rest]:
                return PeerIdentity(peer_id, incarnation, host, port), ProtocolVersions(lowest, highest), rest
    except ValueError:  # invalid JSON or an invalid identity; the text of either error would contain received data
        pass
    raise WireError(CloseReason.GARBAGE, "handshake without a valid identity")


def _parse_refusal(reason: str) -> CloseReason:
    return CloseReason(reason) if reason in _REFUSALS_SENT else CloseReason.REFUSED


_REFUSALS_SENT = frozenset(
    reason.value
    for reason in (
        CloseReason.VERSION, CloseReason.STALE, CloseReason.SAME_ID, CloseReason.SELF, CloseReason.DUPLICATE,
        CloseReason.UNENCRYPTED,
    )
)  # fmt: skip
"""The reasons that a verdict can carry. Their values are part of the protocol."""
