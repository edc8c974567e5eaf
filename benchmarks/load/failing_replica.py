"""A replica that can be made to fail. ``python -m benchmarks.load.failing_replica PORT``.

Its responses contain its port. It answers each request after 10 ms, several at a time. A GET of ``/fault/NAME``
changes what it does from then on: ``none``, ``close`` (read the request, then close the connection), ``unavailable``
(503 at once), ``error`` (500 at once). A replica that hangs is one that has received SIGSTOP.
"""

import asyncio
import sys
from typing import Final

SERVICE_SECONDS: Final = 0.01
_STATUS: Final = {"none": "200 OK", "unavailable": "503 Service Unavailable", "error": "500 Internal Server Error"}

fault = "none"
port = sys.argv[-1]


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    global fault
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            path = head.split(b" ", 2)[1].decode()
            status = "200 OK"
            if path.startswith("/fault/"):
                fault = path.rpartition("/")[2]
            elif path != "/":
                if fault == "close":
                    return
                if fault == "none":
                    await asyncio.sleep(SERVICE_SECONDS)
                status = _STATUS[fault]
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(port)}\r\n\r\n{port}".encode())
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    """Listen until the process is terminated."""
    server = await asyncio.start_server(serve_connection, "127.0.0.1", int(port), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
