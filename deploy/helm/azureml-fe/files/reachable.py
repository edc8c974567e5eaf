"""The program of `helm test`: requests each URL of the command line, and fails unless all respond with 200.

A URL may end in `#NAME`, the TLS server name. The certificate's issuer is not verified, because it may be one that only
the clients trust.
"""

import http.client
import socket
import ssl
import sys
import time
import urllib.parse

_TIMEOUT_SECONDS = 60.0
"""A new Service needs some seconds until it forwards to its pods."""
_RESPONSE_SECONDS = 10.0


def get(url: str) -> str:
    """Return the status and text of a URL's response. Raises OSError and `http.client.HTTPException`."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    connection = http.client.HTTPConnection(host, parts.port, timeout=_RESPONSE_SECONDS)
    connection.sock = socket.create_connection((host, parts.port or 80), _RESPONSE_SECONDS)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.fragment or host)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        return f"{response.status} {response.read(200).decode(errors='replace').strip()}"
    finally:
        connection.close()


def main(urls: list[str], timeout_seconds: float = _TIMEOUT_SECONDS) -> int:
    """Return 0 if all URLs respond with 200 within the timeout, else 1."""
    deadline = time.monotonic() + timeout_seconds
    for url in urls:
        while True:
            try:
                result = get(url)
            except (OSError, http.client.HTTPException) as error:
                result = repr(error)
            if result.startswith("200 "):
                print(f"ok {url}: {result}", flush=True)
                break
            if time.monotonic() >= deadline:
                print(f"FAILED {url}: {result}", flush=True)
                return 1
            time.sleep(min(1.0, timeout_seconds / 4))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
