"""A router's mesh as a process: `python -m tests.peers.router_process NAME PEER_PORT`. Prints "linked" once it is."""

import asyncio
import sys

import uvloop

from tests.peers.mesh_fixtures import running_router


async def main(name: str, peer_port: int) -> None:
    async with running_router(name, expected={("127.0.0.1", peer_port): None}) as router:
        await router.observer.wait_until(router.mesh.live)
        print("linked", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
