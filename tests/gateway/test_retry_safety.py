"""Detection of requests that certainly did not run, on real sockets."""

import socket
import struct

import pytest

from router.gateway.retry_safety import is_unread, unacknowledged_bytes


class Transport:
    """The part of a transport that `unacknowledged_bytes` uses."""

    def __init__(self, sock: socket.socket | None, buffered: int) -> None:
        self._sock = sock
        self._buffered = buffered

    def get_extra_info(self, name: str) -> socket.socket | None:
        assert name == "socket"
        return self._sock

    def get_write_buffer_size(self) -> int:
        return self._buffered


def unacknowledged(sock: socket.socket | None, buffered: int = 0) -> int:
    return unacknowledged_bytes(Transport(sock, buffered))  # type: ignore[arg-type]


@pytest.fixture
def sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        local = socket.create_connection(listener.getsockname())
        remote, _ = listener.accept()
    return local, remote


def test_data_read_by_the_remote_is_acknowledged(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local, remote:
        local.send(b"request")
        remote.recv(100)
        remote.shutdown(socket.SHUT_WR)
        assert local.recv(1) == b""
        assert unacknowledged(local) == 0


def test_data_sent_to_a_closed_connection_is_unacknowledged(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local:
        remote.close()
        local.send(b"request")
        assert local.recv(1) == b""
        assert unacknowledged(local) == len(b"request")


def test_buffered_data_is_unacknowledged(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local, remote:
        assert unacknowledged(local, buffered=7) == 7


def test_closed_socket_has_no_unacknowledged_bytes(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    local.close()
    remote.close()
    assert unacknowledged(local) == 0
    assert unacknowledged(None) == 0


def test_request_that_arrived_after_the_close_is_unread(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local:
        remote.close()
        local.send(b"request")
        assert local.recv(1) == b""
        assert is_unread(None, unacknowledged(local), len(b"request"))


def test_later_write_to_a_closed_connection_keeps_the_proof(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local:
        remote.close()
        local.send(b"request")  # the peer replies with RST
        with pytest.raises(BrokenPipeError) as error:
            local.send(b"more")
        assert is_unread(error.value, unacknowledged(local), len(b"request"))


def test_reset_proves_nothing(sockets: tuple[socket.socket, socket.socket]) -> None:
    """The remote side may have read and run the request before it aborted the connection."""
    local, remote = sockets
    with local:
        local.send(b"request")
        remote.recv(100)
        remote.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        remote.close()
        with pytest.raises(ConnectionResetError) as error:
            local.recv(1)
        assert not is_unread(error.value, unacknowledged(local), len(b"request"))


def test_close_with_unread_data_proves_nothing(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local:
        local.send(b"request")
        remote.close()  # with unread data, so it is a reset
        with pytest.raises(ConnectionResetError) as error:
            local.recv(1)
        assert not is_unread(error.value, unacknowledged(local), len(b"request"))


def test_close_after_reading_proves_nothing(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local:
        local.send(b"request")
        remote.recv(100)
        remote.close()
        assert local.recv(1) == b""
        assert not is_unread(None, unacknowledged(local), len(b"request"))


def test_close_after_reading_a_part_proves_nothing(sockets: tuple[socket.socket, socket.socket]) -> None:
    local, remote = sockets
    with local:
        local.send(b"first part")
        remote.recv(100)
        remote.close()
        local.send(b"second part")
        assert local.recv(1) == b""
        assert 0 < unacknowledged(local) < len(b"first part" + b"second part")
        assert not is_unread(None, unacknowledged(local), len(b"first part" + b"second part"))


@pytest.mark.parametrize("error", [TimeoutError(), OSError(), ConnectionAbortedError(), ConnectionResetError()])
def test_other_errors_prove_nothing(error: BaseException) -> None:
    assert not is_unread(error, 7, 7)


def test_connection_without_a_request_proves_nothing() -> None:
    assert not is_unread(None, 0, 0)
