"""The handshake proves the secret to both sides and detects any tampering."""

from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.peers.close_reason import CloseReason
from router.peers.frames import WireError
from router.peers.handshake import (
    HANDSHAKE_FRAME_LIMIT_BYTES,
    MAGIC,
    ClientHandshake,
    HandshakeError,
    PeerIdentity,
    ProtocolVersions,
    ServerHandshake,
    Session,
    check_secret,
)
from router.peers.tls import self_signed_tls
from router.peers.tls_stream import PinnedTls

SECRET = b"correct horse battery"
DIALING_PEER = PeerIdentity("router-a", "00000000000000a1", "127.0.0.1", 9091)
ACCEPTING_PEER = PeerIdentity("router-b", "00000000000000b1", "", 9092)

VERSION_1 = ProtocolVersions(1, 1)

Alter = Callable[[int, bytes], bytes]
"""Gets the number of a message (0: challenge, 1: response, 2: verdict) and its body, and returns the delivered body."""


def unaltered(_: int, body: bytes) -> bytes:
    return body


def perform_handshake(
    client: ClientHandshake, server: ServerHandshake, alter: Alter = unaltered
) -> tuple[PeerIdentity, Session, Session]:
    """Exchange the three messages; return the dialing peer's identity and the sessions of server and client."""
    response = client.respond(alter(0, server.challenge[4:]))
    identity = server.receive_response(alter(1, response[4:]))
    verdict, server_session = server.accept()
    _, client_session = client.receive_verdict(alter(2, verdict[4:]))
    return identity, server_session, client_session


def new_client(secret: bytes = SECRET, versions: ProtocolVersions = VERSION_1) -> ClientHandshake:
    return ClientHandshake(DIALING_PEER, secret, versions)


def new_server(secret: bytes = SECRET, versions: ProtocolVersions = VERSION_1) -> ServerHandshake:
    return ServerHandshake(ACCEPTING_PEER, secret, versions)


def test_both_sides_get_each_others_identity_and_the_same_keys() -> None:
    client, server = new_client(), new_server()
    response = client.respond(server.challenge[4:])
    assert server.receive_response(response[4:]) == DIALING_PEER
    verdict, server_session = server.accept()
    identity, client_session = client.receive_verdict(verdict[4:])
    assert identity == ACCEPTING_PEER
    assert server_session == Session(1, client_session.receive_key, client_session.send_key)
    assert client_session.send_key != client_session.receive_key
    assert len(client_session.send_key) == 32


def test_no_two_sessions_share_a_key() -> None:
    sessions = [perform_handshake(new_client(), new_server())[1] for _ in range(10)]
    assert len({key for session in sessions for key in (session.send_key, session.receive_key)}) == 20


def test_repr_of_a_session_has_no_keys() -> None:
    assert repr(perform_handshake(new_client(), new_server())[1]) == "Session(version=1)"


def test_messages_with_the_longest_names_fit_the_frame_limit() -> None:
    longest = PeerIdentity("x" * 128, "f" * 16, "ä" * 255, 65535)
    client, server = (
        ClientHandshake(longest, SECRET, VERSION_1, new_tls()),
        ServerHandshake(longest, SECRET, VERSION_1, new_tls()),
    )
    response = client.respond(server.challenge[4:])
    server.receive_response(response[4:])
    verdict, _ = server.accept()
    assert max(map(len, (server.challenge, response, verdict))) <= HANDSHAKE_FRAME_LIMIT_BYTES


# Negotiation of TLS.


def new_tls(*, required: bool = False) -> PinnedTls:
    return self_signed_tls(required=required)


def handshakes(
    tls: PinnedTls | None, versions: ProtocolVersions = VERSION_1
) -> tuple[ClientHandshake, ServerHandshake]:
    return ClientHandshake(DIALING_PEER, SECRET, versions, tls), ServerHandshake(ACCEPTING_PEER, SECRET, versions, tls)


def test_verdict_announces_the_certificate_of_the_accepting_side() -> None:
    client_tls, server_tls = new_tls(), new_tls(required=True)
    _, server_session, client_session = perform_handshake(handshakes(client_tls)[0], handshakes(server_tls)[1])
    assert server_session.certificate_digest == client_session.certificate_digest == server_tls.certificate_digest
    assert len(server_tls.certificate_digest) == 32
    assert server_tls.certificate_digest.hex() not in repr(client_session)


def test_tls_is_not_used_unless_both_sides_support_it() -> None:
    for dialing, accepting in ((new_tls(), None), (None, new_tls()), (None, None)):
        _, server_session, client_session = perform_handshake(handshakes(dialing)[0], handshakes(accepting)[1])
        assert server_session.certificate_digest is client_session.certificate_digest is None


def test_messages_without_tls_are_those_of_releases_that_do_not_support_it() -> None:
    (client, _), (_, server) = handshakes(None), handshakes(new_tls())
    response = client.respond(server.challenge[4:])[4:]
    assert len(orjson.loads(response[32:-32])) == 6
    server.receive_response(response)
    verdict, _ = server.accept()
    assert orjson.loads(verdict[4:-32])[6:] == [1, ""]


def test_accepting_side_that_requires_tls_refuses_a_peer_without_it_with_a_reason() -> None:
    (client, _), (_, server) = handshakes(None), handshakes(new_tls(required=True))
    with pytest.raises(HandshakeError) as accepting:
        server.receive_response(client.respond(server.challenge[4:])[4:])
    assert (accepting.value.close_reason, accepting.value.peer) == (CloseReason.UNENCRYPTED, DIALING_PEER)
    with pytest.raises(HandshakeError) as dialing:
        client.receive_verdict(server.refuse(CloseReason.UNENCRYPTED)[4:])
    assert (dialing.value.close_reason, dialing.value.peer) == (CloseReason.UNENCRYPTED, ACCEPTING_PEER)


def test_dialing_side_that_requires_tls_refuses_a_peer_without_it() -> None:
    with pytest.raises(HandshakeError) as caught:
        perform_handshake(handshakes(new_tls(required=True))[0], handshakes(None)[1])
    assert (caught.value.close_reason, caught.value.peer) == (CloseReason.UNENCRYPTED, ACCEPTING_PEER)


@pytest.mark.parametrize("message", [1, 2], ids=["response", "verdict"])
def test_removing_a_tls_field_is_detected(message: int) -> None:
    """A downgrade attack fails."""

    def strip(number: int, body: bytes) -> bytes:
        if number != message:
            return body
        start = 32 if number == 1 else 0
        return body[:start] + orjson.dumps(orjson.loads(body[start:-32])[:-1]) + body[-32:]

    with pytest.raises(HandshakeError) as caught:
        perform_handshake(handshakes(new_tls())[0], handshakes(new_tls())[1], strip)
    assert (caught.value.close_reason, caught.value.peer) == (CloseReason.SECRET, None)


def test_replacing_the_announced_certificate_is_detected() -> None:
    client_tls, server_tls, other_digest = new_tls(), new_tls(), new_tls().certificate_digest.hex().encode()

    def replace(number: int, body: bytes) -> bytes:
        return body.replace(server_tls.certificate_digest.hex().encode(), other_digest) if number == 2 else body

    with pytest.raises(HandshakeError) as caught:
        perform_handshake(handshakes(client_tls)[0], handshakes(server_tls)[1], replace)
    assert caught.value.close_reason is CloseReason.SECRET


def test_challenge_has_nothing_but_the_magic_and_a_random_nonce() -> None:
    challenge = new_server().challenge[4:]
    assert challenge.startswith(MAGIC)
    assert len(challenge) == len(MAGIC) + 32
    assert challenge != new_server().challenge[4:]


def test_accepting_side_refuses_another_secret() -> None:
    with pytest.raises(HandshakeError) as caught:
        perform_handshake(new_client(secret=b"another secret, as long"), new_server())
    assert (caught.value.close_reason, caught.value.peer) == (CloseReason.SECRET, None)


@given(st.integers(0, 2), st.data())
def test_altered_byte_of_any_message_is_detected(message: int, data: st.DataObject) -> None:
    def alter(number: int, body: bytes) -> bytes:
        if number != message:
            return body
        position = data.draw(st.integers(0, len(body) - 1))
        return body[:position] + bytes([body[position] ^ data.draw(st.integers(1, 255))]) + body[position + 1 :]

    with pytest.raises(HandshakeError) as caught:
        perform_handshake(new_client(), new_server(), alter)
    assert caught.value.close_reason in (CloseReason.SECRET, CloseReason.GARBAGE)
    assert caught.value.peer is None


@given(st.integers(0, 2), st.binary(max_size=200))
def test_garbage_instead_of_any_message_is_refused(message: int, garbage: bytes) -> None:
    with pytest.raises(HandshakeError):
        perform_handshake(new_client(), new_server(), lambda number, body: garbage if number == message else body)


def test_response_to_another_challenge_is_refused() -> None:
    recorded = new_client().respond(new_server().challenge[4:])
    with pytest.raises(HandshakeError) as caught:
        new_server().receive_response(recorded[4:])
    assert caught.value.close_reason is CloseReason.SECRET


def test_verdict_for_another_response_is_refused() -> None:
    client, server = new_client(), new_server()
    server.receive_response(client.respond(server.challenge[4:])[4:])
    recorded, _ = server.accept()
    other = new_client()
    other.respond(server.challenge[4:])
    with pytest.raises(HandshakeError) as caught:
        other.receive_verdict(recorded[4:])
    assert caught.value.close_reason is CloseReason.SECRET


def test_reflected_proof_is_refused() -> None:
    client, server = new_client(), new_server()
    response = client.respond(server.challenge[4:])
    with pytest.raises(HandshakeError) as caught:
        client.receive_verdict(response[4:])
    assert caught.value.close_reason is CloseReason.SECRET


@pytest.mark.parametrize(
    ("client_versions", "server_versions", "negotiated"),
    [((1, 1), (1, 1), 1), ((1, 2), (2, 3), 2), ((2, 3), (1, 2), 2), ((1, 5), (2, 4), 4), ((3, 3), (1, 9), 3)],
)
def test_highest_common_version_is_negotiated(
    client_versions: tuple[int, int], server_versions: tuple[int, int], negotiated: int
) -> None:
    _, server_session, client_session = perform_handshake(
        new_client(versions=ProtocolVersions(*client_versions)), new_server(versions=ProtocolVersions(*server_versions))
    )
    assert server_session.version == client_session.version == negotiated


@pytest.mark.parametrize(("client_versions", "server_versions"), [((1, 1), (2, 2)), ((3, 4), (1, 2))])
def test_both_sides_report_that_there_is_no_common_version(
    client_versions: tuple[int, int], server_versions: tuple[int, int]
) -> None:
    client, server = (
        new_client(versions=ProtocolVersions(*client_versions)),
        new_server(versions=ProtocolVersions(*server_versions)),
    )
    response = client.respond(server.challenge[4:])
    with pytest.raises(HandshakeError) as accepting:
        server.receive_response(response[4:])
    assert (accepting.value.close_reason, accepting.value.peer) == (CloseReason.VERSION, DIALING_PEER)
    with pytest.raises(HandshakeError) as dialing:
        client.receive_verdict(server.refuse(accepting.value.close_reason)[4:])
    assert (dialing.value.close_reason, dialing.value.peer) == (CloseReason.VERSION, ACCEPTING_PEER)


def refused_with(reason: CloseReason) -> HandshakeError:
    client, server = new_client(), new_server()
    server.receive_response(client.respond(server.challenge[4:])[4:])
    with pytest.raises(HandshakeError) as caught:
        client.receive_verdict(server.refuse(reason)[4:])
    return caught.value


@pytest.mark.parametrize(
    "reason", [CloseReason.STALE, CloseReason.SAME_ID, CloseReason.SELF, CloseReason.DUPLICATE, CloseReason.VERSION]
)  # fmt: skip
def test_authenticated_peer_gets_the_reason_of_its_refusal(reason: CloseReason) -> None:
    error = refused_with(reason)
    assert (error.close_reason, error.peer) == (reason, ACCEPTING_PEER)


def test_unknown_reason_is_reported_as_refused() -> None:
    assert refused_with(CloseReason.GOODBYE).close_reason is CloseReason.REFUSED


@pytest.mark.parametrize("peer_id", ["", "x" * 129, "a b", "a/b", "ä", "a\n", 'a"'])
def test_invalid_id_raises(peer_id: str) -> None:
    with pytest.raises(ValueError, match="id of a router"):
        PeerIdentity(peer_id, DIALING_PEER.incarnation, "", 0)


@pytest.mark.parametrize("incarnation", ["", "1", "G" * 16, "A" * 16, "0" * 17])
def test_invalid_incarnation_raises(incarnation: str) -> None:
    with pytest.raises(ValueError, match="incarnation"):
        PeerIdentity("a", incarnation, "", 0)


@pytest.mark.parametrize(
    "claim",
    [
        [],
        ["a b", DIALING_PEER.incarnation, "", 1, 1, 1],
        ["a", "x", "", 1, 1, 1],
        ["a", DIALING_PEER.incarnation, "h h", 1, 1, 1],
        ["a", DIALING_PEER.incarnation, "", 70000, 1, 1],
        ["a", DIALING_PEER.incarnation, "", 1, "1", 1],
    ],
)
def test_peer_with_the_secret_and_an_invalid_identity_is_refused(
    claim: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.peers.handshake._identity_fields", lambda *_: claim)
    server = new_server()
    with pytest.raises(WireError) as caught:
        server.receive_response(new_client().respond(server.challenge[4:])[4:])
    assert caught.value.close_reason is CloseReason.GARBAGE
    assert orjson.dumps(claim).decode() not in str(caught.value)


def test_short_secret_raises_and_is_not_in_the_error() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes") as caught:
        check_secret(b"hunter2")
    assert "hunter2" not in str(caught.value)


def test_later_incarnation_is_greater() -> None:
    incarnations = [PeerIdentity.new_incarnation() for _ in range(3)]
    assert len(set(incarnations)) == 3
    assert PeerIdentity("a", incarnations[0], "", 0).incarnation[:10] <= incarnations[2][:10]
