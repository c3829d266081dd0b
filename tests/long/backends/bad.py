"""A backend that misbehaves as the path says, and counts: one thread, one event loop."""
import asyncio
import itertools
import socket
import struct
import threading

MIB = 1 << 20


class Bad:
    def __init__(self, delay=0.0):
        self.delay, self.asked, self.open, self.cancelled = delay, 0, 0, []
        self.turn = itertools.count()
        self.loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self.run, args=[started], daemon=True).start()
        started.wait()

    def run(self, started):
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=4096, limit=MIB))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self.loop.run_forever()

    async def serve(self, reader, writer):
        self.open += 1
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def answer(self, reader, writer):
        """One request; whether another may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        way = head.split(b" ")[1].split(b"/")[-1].decode()
        return await getattr(self, way.replace("-", "_") or "plain")(reader, writer)

    async def plain(self, _, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        return True

    async def half(self, _, writer):
        """Every other answer is 503."""
        if next(self.turn) % 2:
            writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
            return True
        return await self.plain(_, writer)

    async def silent(self, reader, _):
        """Accepts and says nothing; notes how long it took until the other side left."""
        await reader.read()
        self.cancelled.append(self.loop.time())

    async def drip(self, reader, writer):
        """One byte a second."""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        left = asyncio.ensure_future(reader.read(1))
        while not left.done():
            writer.write(b"x")
            await asyncio.wait([left], timeout=1)

    async def reset(self, _, writer):
        """RST in the middle of the body."""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        # Without this it would be a FIN.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def cut(self, _, writer):
        """FIN in the middle of the body."""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
        await writer.drain()

    async def cut_chunks(self, _, writer):
        """FIN before the last chunk."""
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await writer.drain()

    async def half_closed(self, reader, writer):
        """Ends its side at once and reads on."""
        writer.write_eof()
        await reader.read()

    async def early(self, reader, writer):
        """Answers before it has read the body."""
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        await writer.drain()

    async def huge_head(self, _, writer):
        """A field of 100 MB."""
        writer.write(b"HTTP/1.1 200 OK\r\nx: ")
        for _ in range(100):
            writer.write(b"a" * MIB)
            await writer.drain()

    async def endless_1xx(self, _, writer):
        while True:
            writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 64)
            await writer.drain()

    async def garbage(self, _, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n" * 9)
        await writer.drain()

    async def two_lengths(self, _, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!")
        await writer.drain()
