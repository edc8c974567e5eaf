"""The hand-shake: both ends prove the secret, whatever stands in between."""

from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.peer_tls import own_encryption
from router.peers.encryption import Encryption
from router.peers.endings import Ending
from router.peers.frames import WireError
from router.peers.handshake import (
    HANDSHAKE_FRAME_LIMIT_BYTES,
    MAGIC,
    ClientHandshake,
    HandshakeError,
    Party,
    ServerHandshake,
    Session,
    Versions,
    check_secret,
)

SECRET = b"correct horse battery"
ANN = Party("router-a", "00000000000000a1", "127.0.0.1", 9091)
BEN = Party("router-b", "00000000000000b1", "", 9092)

ONE = Versions(1, 1)

Alter = Callable[[int, bytes], bytes]


def as_sent(_: int, body: bytes) -> bytes:
    return body


def shake(client: ClientHandshake, server: ServerHandshake, alter: Alter = as_sent) -> tuple[Party, Session, Session]:
    """All three messages; `alter` sees each body on its way."""
    answer = client.answer(alter(0, server.challenge[4:]))
    found = server.receive(alter(1, answer[4:]))
    verdict, servers = server.accept()
    _, clients = client.finish(alter(2, verdict[4:]))
    return found, servers, clients


def client(secret: bytes = SECRET, versions: Versions = ONE) -> ClientHandshake:
    return ClientHandshake(ANN, secret, versions)


def server(secret: bytes = SECRET, versions: Versions = ONE) -> ServerHandshake:
    return ServerHandshake(BEN, secret, versions)


def test_both_learn_who_the_other_is_and_share_the_keys() -> None:
    ann, ben = client(), server()
    answer = ann.answer(ben.challenge[4:])
    assert ben.receive(answer[4:]) == ANN
    verdict, servers = ben.accept()
    found, clients = ann.finish(verdict[4:])
    assert found == BEN
    assert servers == Session(1, clients.receive_key, clients.send_key)
    assert clients.send_key != clients.receive_key
    assert len(clients.send_key) == 32


def test_no_two_sessions_share_a_key() -> None:
    sessions = [shake(client(), server())[1] for _ in range(10)]
    assert len({key for session in sessions for key in (session.send_key, session.receive_key)}) == 20


def test_the_keys_of_a_session_are_in_no_repr() -> None:
    assert repr(shake(client(), server())[1]) == "Session(version=1)"


def test_its_messages_fit_the_limit_of_the_longest_names() -> None:
    longest = Party("x" * 128, "f" * 16, "ä" * 255, 65535)
    ann, ben = ClientHandshake(longest, SECRET, ONE, made()), ServerHandshake(longest, SECRET, ONE, made())
    answer = ann.answer(ben.challenge[4:])
    ben.receive(answer[4:])
    verdict, _ = ben.accept()
    assert max(map(len, (ben.challenge, answer, verdict))) <= HANDSHAKE_FRAME_LIMIT_BYTES


# Whether to encrypt.


def made(*, required: bool = False) -> Encryption:
    return own_encryption(required=required)


def of(encryption: Encryption | None, versions: Versions = ONE) -> tuple[ClientHandshake, ServerHandshake]:
    return ClientHandshake(ANN, SECRET, versions, encryption), ServerHandshake(BEN, SECRET, versions, encryption)


def test_the_certificate_that_will_be_shown_is_named() -> None:
    ours, theirs = made(), made(required=True)
    _, servers, clients = shake(of(ours)[0], of(theirs)[1])
    assert servers.certificate == clients.certificate == theirs.certificate
    assert len(theirs.certificate) == 32
    assert theirs.certificate.hex() not in repr(clients)


def test_with_one_that_does_not_encrypt_nothing_is_encrypted() -> None:
    for dialling, accepting in ((made(), None), (None, made()), (None, None)):
        _, servers, clients = shake(of(dialling)[0], of(accepting)[1])
        assert servers.certificate is clients.certificate is None


def test_without_encryption_the_messages_are_those_of_releases_that_know_of_none() -> None:
    (ann, _), (_, ben) = of(None), of(made())
    answer = ann.answer(ben.challenge[4:])[4:]
    assert len(orjson.loads(answer[32:-32])) == 6
    ben.receive(answer)
    verdict, _ = ben.accept()
    assert orjson.loads(verdict[4:-32])[6:] == [1, ""]


def test_where_encryption_is_required_the_accepting_side_refuses_who_does_not_encrypt_and_says_so() -> None:
    (ann, _), (_, ben) = of(None), of(made(required=True))
    with pytest.raises(HandshakeError) as accepting:
        ben.receive(ann.answer(ben.challenge[4:])[4:])
    assert (accepting.value.ending, accepting.value.peer) == (Ending.UNENCRYPTED, ANN)
    with pytest.raises(HandshakeError) as dialling:
        ann.finish(ben.refuse(Ending.UNENCRYPTED)[4:])
    assert (dialling.value.ending, dialling.value.peer) == (Ending.UNENCRYPTED, BEN)


def test_where_encryption_is_required_the_dialling_side_refuses_who_does_not_encrypt() -> None:
    with pytest.raises(HandshakeError) as caught:
        shake(of(made(required=True))[0], of(None)[1])
    assert (caught.value.ending, caught.value.peer) == (Ending.UNENCRYPTED, BEN)


@pytest.mark.parametrize("message", [1, 2], ids=["offer", "certificate"])
def test_whoever_takes_the_word_of_encryption_away_is_found_out(message: int) -> None:
    """Nobody in between can make two routers that could encrypt do without."""

    def strip(number: int, body: bytes) -> bytes:
        if number != message:
            return body
        start = 32 if number == 1 else 0
        return body[:start] + orjson.dumps(orjson.loads(body[start:-32])[:-1]) + body[-32:]

    with pytest.raises(HandshakeError) as caught:
        shake(of(made())[0], of(made())[1], strip)
    assert (caught.value.ending, caught.value.peer) == (Ending.SECRET, None)


def test_whoever_names_another_certificate_is_found_out() -> None:
    ours, theirs, others = made(), made(), made().certificate.hex().encode()

    def replace(number: int, body: bytes) -> bytes:
        return body.replace(theirs.certificate.hex().encode(), others) if number == 2 else body

    with pytest.raises(HandshakeError) as caught:
        shake(of(ours)[0], of(theirs)[1], replace)
    assert caught.value.ending is Ending.SECRET


def test_a_stranger_is_told_nothing_but_that_a_router_listens() -> None:
    challenge = server().challenge[4:]
    assert challenge.startswith(MAGIC)
    assert len(challenge) == len(MAGIC) + 32
    assert challenge != server().challenge[4:]


def test_another_secret_is_refused_by_the_accepting_side() -> None:
    with pytest.raises(HandshakeError) as caught:
        shake(client(secret=b"another secret, as long"), server())
    assert (caught.value.ending, caught.value.peer) == (Ending.SECRET, None)


@given(st.integers(0, 2), st.data())
def test_an_altered_byte_of_any_message_is_refused(message: int, data: st.DataObject) -> None:
    def alter(number: int, body: bytes) -> bytes:
        if number != message:
            return body
        place = data.draw(st.integers(0, len(body) - 1))
        return body[:place] + bytes([body[place] ^ data.draw(st.integers(1, 255))]) + body[place + 1 :]

    with pytest.raises(HandshakeError) as caught:
        shake(client(), server(), alter)
    assert caught.value.ending in (Ending.SECRET, Ending.GARBAGE)
    assert caught.value.peer is None


@given(st.integers(0, 2), st.binary(max_size=200))
def test_garbage_in_place_of_any_message_is_refused(message: int, garbage: bytes) -> None:
    with pytest.raises(HandshakeError):
        shake(client(), server(), lambda number, body: garbage if number == message else body)


def test_an_answer_to_another_challenge_is_refused() -> None:
    recorded = client().answer(server().challenge[4:])
    with pytest.raises(HandshakeError) as caught:
        server().receive(recorded[4:])
    assert caught.value.ending is Ending.SECRET


def test_a_verdict_on_another_answer_is_refused() -> None:
    ann, ben = client(), server()
    ben.receive(ann.answer(ben.challenge[4:])[4:])
    recorded, _ = ben.accept()
    other = client()
    other.answer(ben.challenge[4:])
    with pytest.raises(HandshakeError) as caught:
        other.finish(recorded[4:])
    assert caught.value.ending is Ending.SECRET


def test_a_proof_sent_back_is_no_proof() -> None:
    ann, ben = client(), server()
    answer = ann.answer(ben.challenge[4:])
    with pytest.raises(HandshakeError) as caught:
        ann.finish(answer[4:])
    assert caught.value.ending is Ending.SECRET


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [((1, 1), (1, 1), 1), ((1, 2), (2, 3), 2), ((2, 3), (1, 2), 2), ((1, 5), (2, 4), 4), ((3, 3), (1, 9), 3)],
)
def test_the_highest_common_version_is_agreed_on(ours: tuple[int, int], theirs: tuple[int, int], agreed: int) -> None:
    _, servers, clients = shake(client(versions=Versions(*ours)), server(versions=Versions(*theirs)))
    assert servers.version == clients.version == agreed


@pytest.mark.parametrize(("ours", "theirs"), [((1, 1), (2, 2)), ((3, 4), (1, 2))])
def test_without_a_common_version_both_learn_why(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    ann, ben = client(versions=Versions(*ours)), server(versions=Versions(*theirs))
    answer = ann.answer(ben.challenge[4:])
    with pytest.raises(HandshakeError) as accepting:
        ben.receive(answer[4:])
    assert (accepting.value.ending, accepting.value.peer) == (Ending.VERSION, ANN)
    with pytest.raises(HandshakeError) as dialling:
        ann.finish(ben.refuse(accepting.value.ending)[4:])
    assert (dialling.value.ending, dialling.value.peer) == (Ending.VERSION, BEN)


def refused_with(reason: Ending) -> HandshakeError:
    ann, ben = client(), server()
    ben.receive(ann.answer(ben.challenge[4:])[4:])
    with pytest.raises(HandshakeError) as caught:
        ann.finish(ben.refuse(reason)[4:])
    return caught.value


@pytest.mark.parametrize(
    "reason", [Ending.STALE, Ending.SAME_ID, Ending.SELF, Ending.DUPLICATE, Ending.VERSION]
)  # fmt: skip
def test_who_has_proven_itself_is_told_why_it_is_refused(reason: Ending) -> None:
    error = refused_with(reason)
    assert (error.ending, error.peer) == (reason, BEN)


def test_a_reason_that_is_not_known_or_cannot_be_one_is_refused_all_the_same() -> None:
    assert refused_with(Ending.GOODBYE).ending is Ending.REFUSED


@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "a/b", "ä", "a\n", 'a"'])
def test_an_id_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="id of a router"):
        Party(name, ANN.incarnation, "", 0)


@pytest.mark.parametrize("incarnation", ["", "1", "G" * 16, "A" * 16, "0" * 17])
def test_an_incarnation_that_cannot_be_one_is_refused(incarnation: str) -> None:
    with pytest.raises(ValueError, match="incarnation"):
        Party("a", incarnation, "", 0)


@pytest.mark.parametrize(
    "claim",
    [
        [],
        ["a b", ANN.incarnation, "", 1, 1, 1],
        ["a", "x", "", 1, 1, 1],
        ["a", ANN.incarnation, "h h", 1, 1, 1],
        ["a", ANN.incarnation, "", 70000, 1, 1],
        ["a", ANN.incarnation, "", 1, "1", 1],
    ],
)
def test_one_who_knows_the_secret_but_names_no_router_is_refused(
    claim: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.peers.handshake._written", lambda *_: claim)
    ben = server()
    with pytest.raises(WireError) as caught:
        ben.receive(client().answer(ben.challenge[4:])[4:])
    assert caught.value.ending is Ending.GARBAGE
    assert orjson.dumps(claim).decode() not in str(caught.value)


def test_a_short_secret_is_refused_without_being_told() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes") as caught:
        check_secret(b"hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_later_process_has_a_greater_incarnation() -> None:
    incarnations = [Party.new_incarnation() for _ in range(3)]
    assert len(set(incarnations)) == 3
    assert Party("a", incarnations[0], "", 0).incarnation[:10] <= incarnations[2][:10]
