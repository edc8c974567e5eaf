"""What `helm test` runs: asks each URL of the command line, and fails if one does not answer 200.

A URL may end in `#NAME`, the name to ask for by TLS. Who signed the certificate is not checked: it may come from an
authority that only the clients know.
"""

import http.client
import socket
import ssl
import sys
import time
import urllib.parse

_PATIENCE_SECONDS = 60.0
"""A Service that has just been made takes some seconds to lead to its pods."""
_ANSWER_SECONDS = 10.0


def ask(url: str) -> str:
    """Status and text of what a URL answers. Raises OSError and `http.client.HTTPException`."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    connection = http.client.HTTPConnection(host, parts.port, timeout=_ANSWER_SECONDS)
    connection.sock = socket.create_connection((host, parts.port or 80), _ANSWER_SECONDS)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.fragment or host)
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
            except (OSError, http.client.HTTPException) as error:
                said = repr(error)
            if said.startswith("200 "):
                print(f"ok {url}: {said}", flush=True)
                break
            if time.monotonic() >= deadline:
                print(f"FAILED {url}: {said}", flush=True)
                return 1
            time.sleep(min(1.0, patience_seconds / 4))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
