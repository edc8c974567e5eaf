"""A load that keeps a worker busy and costs its client little."""

import socket
import threading

from tests.processes import PATIENCE_SECONDS


class Flood:
    """A client that has a worker parse all the time: health checks, a thousand in one write."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> "Flood":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        request = b"GET / HTTP/1.1\r\nHost: router\r\n\r\n"
        while not self._over.is_set():
            try:
                with socket.create_connection((self._host, self._port), PATIENCE_SECONDS) as line:
                    while not self._over.is_set():
                        line.sendall(request * 1000)
                        answers = 0
                        while answers < 1000:
                            data = line.recv(2**20)
                            if not data:
                                break
                            answers += data.count(b"HTTP/1.1 200")
            except OSError:
                self._over.wait(0.05)  # its worker has gone
