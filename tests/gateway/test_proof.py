"""Proof that a request did not run, on real sockets."""

import socket
import struct

import pytest

from router.gateway.proof import never_ran, unacknowledged


class Transport:
    """As much of a transport as the proof looks at."""

    def __init__(self, sock: socket.socket | None, waiting: int = 0) -> None:
        self._sock = sock
        self._waiting = waiting

    def get_extra_info(self, name: str) -> socket.socket | None:
        assert name == "socket"
        return self._sock

    def get_write_buffer_size(self) -> int:
        return self._waiting


def look(transport: Transport) -> int:
    return unacknowledged(transport)  # type: ignore[arg-type]


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def test_what_the_other_side_has_taken_is_no_proof(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with ours, theirs:
        ours.send(b"request")
        theirs.recv(100)
        theirs.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        assert look(Transport(ours)) == 0


def test_what_met_a_closed_connection_was_not_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with ours:
        theirs.close()
        ours.send(b"request")
        assert ours.recv(1) == b""
        assert look(Transport(ours)) == len(b"request")


def test_what_was_not_even_written_was_not_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with ours, theirs:
        assert look(Transport(ours, waiting=7)) == 7


def test_nothing_is_known_of_a_socket_that_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    theirs.close()
    assert look(Transport(ours)) == 0
    assert look(Transport(None)) == 0


def test_socket_closed_with_unread_data_is_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with ours:
        ours.send(b"request")
        theirs.close()
        with pytest.raises(ConnectionResetError) as caught:
            ours.recv(1)
        assert never_ran(caught.value, look(Transport(ours)))


def test_program_that_read_all_and_dies_sends_an_orderly_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with ours:
        ours.send(b"request")
        theirs.recv(100)
        theirs.close()
        assert ours.recv(1) == b""
        assert not never_ran(None, look(Transport(ours)))


def test_write_to_a_connection_known_to_be_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with ours:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)) as caught:
            ours.send(b"request")
        assert never_ran(caught.value, 0)


@pytest.mark.parametrize("error", [None, TimeoutError(), OSError(), ConnectionAbortedError()])
def test_other_ends_prove_nothing(error: BaseException | None) -> None:
    assert not never_ran(error, 0)
