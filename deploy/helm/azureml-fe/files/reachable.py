"""What `helm test` runs: asks each URL of the command line, and fails if one does not answer 200.

An address may end in `#NAME`: the name to ask for by TLS (SNI), which the certificate must then be valid for in time and
form; who signed it is the clients' affair, as the certificate may come from an authority that only they know.
"""

import http.client
import ssl
import sys
import time
import urllib.parse

_PATIENCE_SECONDS = 60
"""A Service that has just been made takes some seconds to lead to its pods."""


class _NamedConnection(http.client.HTTPSConnection):
    """Asks for one name by TLS while it connects to another."""

    def __init__(self, host: str, port: int, name: str) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().__init__(host, port, timeout=10, context=context)
        self._name = name

    def connect(self) -> None:
        """Connect by TCP, then by TLS with the name."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)  # type: ignore[attr-defined]


def ask(url: str) -> str:
    """The status line's number and the first line of what was answered."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = _NamedConnection(host, port, parts.fragment or host)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        return f"{answer.status} {answer.read(200).decode(errors='replace').strip()}"
    finally:
        connection.close()


def main(urls: list[str], patience_seconds: float = _PATIENCE_SECONDS) -> int:
    """0 when each URL was answered 200 within the time, else 1."""
    deadline = time.monotonic() + patience_seconds
    for url in urls:
        while True:
            try:
                said = ask(url)
            except OSError as error:
                said = str(error)
            if said.startswith("200 "):
                break
            if time.monotonic() >= deadline:
                print(f"FAILED {url}: {said}", flush=True)
                return 1
            time.sleep(1)
        print(f"ok {url}: {said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
