"""A WebSocket server of the library `websockets`, over HTTP/1.1: sends back every message. Prints its port."""
import asyncio
import logging

from websockets.asyncio.server import serve

MOST = 64 << 20


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main():
    # What the cases do wrong is not worth a trace each.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    async with serve(echo, "127.0.0.1", 0, max_size=MOST, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


asyncio.run(main())
