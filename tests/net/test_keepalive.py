"""Options of TCP that detect vanished peers."""

import socket

import pytest

from router.net.keepalive import set_keepalive


def options(sock: socket.socket) -> tuple[int, int, int]:
    """Return keep-alive (0 or 1), its idle time in seconds, and the user timeout in milliseconds."""
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )


@pytest.mark.parametrize(
    ("idle_seconds", "user_timeout_seconds", "expected"),
    [(60, 60, (1, 60, 60_000)), (0.2, 0.5, (1, 1, 500)), (30, 0, (1, 30, 0)), (0, 5, (0, 7200, 5000))],
)
def test_accepted_connections_have_the_options_of_the_listener(
    idle_seconds: float, user_timeout_seconds: float, expected: tuple[int, int, int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        default_idle = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        set_keepalive(listener, idle_seconds, user_timeout_seconds)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                keepalive, idle, user_timeout = options(accepted)
    assert (keepalive, user_timeout) == (expected[0], expected[2])
    assert idle == (expected[1] if idle_seconds else default_idle)
