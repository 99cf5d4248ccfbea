"""`python -m benchmarks.faults.relay HOST:PORT=HOST:PORT …`: passes TCP connections on.

Nodes behind a cable of their own reach the market's loopback ports through two of these.
"""

import asyncio
import contextlib
import sys


async def _relay(listen: str, to: str) -> None:
    host, _, port = to.rpartition(":")

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer))

    own_host, _, own_port = listen.rpartition(":")
    server = await asyncio.start_server(take, own_host, int(own_port))
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def _main(routes: list[str]) -> None:
    await asyncio.gather(*(_relay(*route.split("=")) for route in routes))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
