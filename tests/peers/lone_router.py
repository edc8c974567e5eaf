"""A router's mesh in a process of its own: `python -m tests.peers.lone_router NAME PORT_OF_A_PEER`. Prints a line when
it is linked."""

import asyncio
import sys

import uvloop

from tests.peers.world import router


async def main(name: str, port: int) -> None:
    async with router(name, expects={("127.0.0.1", port): None}) as one:
        await one.ears.until(one.mesh.live)
        print("linked", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
