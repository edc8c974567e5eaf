"""A load that keeps a worker busy at little cost for the client."""

import selectors
import socket
import threading

from tests.processes import TIMEOUT_SECONDS

_BATCH = 2  # so few that a worker serves them in one turn of its event loop
_REQUESTS = b"GET / HTTP/1.1\r\nHost: router\r\n\r\n" * _BATCH
_BODY = b"Healthy"
_CONNECTIONS = 1000


class Flood:
    """Many clients that send health checks in small batches, each batch after the responses to the previous one.

    A worker serves all of them in each turn of its event loop, so that a turn takes long. The router continues only one
    of the clients that send more in each turn, so these would not have this effect.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._address = (host, port)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for _ in range(_CONNECTIONS):
                self._connect(selector)
            while not self._stopped.is_set():
                for key, _ in selector.select(timeout=0.1):
                    self._continue(selector, key)
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _connect(self, selector: selectors.BaseSelector) -> None:
        """Open a connection and send a batch. The data of its key is what was received since the last batch."""
        while not self._stopped.is_set():
            try:
                sock = socket.create_connection(self._address, TIMEOUT_SECONDS)
                sock.sendall(_REQUESTS)
            except OSError:
                self._stopped.wait(0.05)  # no worker listens at the moment
                continue
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, bytearray())
            return

    def _continue(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        try:
            data = sock.recv(2**16)
            received: bytearray = key.data
            received += data
            if received.count(_BODY) >= _BATCH:
                received.clear()
                sock.send(_REQUESTS)  # far less than the buffer of the socket
        except OSError:
            data = b""
        if not data:  # the worker of this connection has ended
            selector.unregister(sock)
            sock.close()
            self._connect(selector)
