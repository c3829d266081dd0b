"""Speaks HTTP/2 for a client that cannot: takes a WebSocket's handshake of HTTP/1.1, asks for it by extended CONNECT
(RFC 8441) at the address that it is given, and copies bytes. By the library `h2`. Prints its port."""
import asyncio
import base64
import hashlib
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (ConnectionTerminated, DataReceived, RemoteSettingsChanged, ResponseReceived, StreamEnded,
                       StreamReset, WindowUpdated)
from h2.settings import SettingCodes

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PIECE = 64 << 10
OF_HTTP1 = {b"host", b"connection", b"upgrade", b"sec-websocket-key"}


class Tunnel:
    def __init__(self, client, writer, target):
        self.client, self.writer, self.target = client, writer, target
        self.wire = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.stream = None
        self.room = asyncio.Event()
        self.begun = asyncio.Event()

    async def run(self):
        lines = (await self.client.readuntil(b"\r\n\r\n")).split(b"\r\n")
        path = lines[0].split(b" ")[1]
        fields = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:]) if name]
        self.key = dict(fields)[b"sec-websocket-key"]
        reader, self.out = await asyncio.open_connection(*self.target)
        self.wire.initiate_connection()
        await self.flush()
        self.request = [
            (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", path),
            (b":authority", dict(fields)[b"host"]), *((name, value) for name, value in fields if name not in OF_HTTP1),
        ]
        upload = asyncio.create_task(self.upload())
        try:
            while data := await reader.read(PIECE):
                for event in self.wire.receive_data(data):
                    if await self.hear(event) == "over":
                        return
                await self.flush()
                await self.writer.drain()
        finally:
            # What it said last goes out, a farewell among it.
            await self.flush()
            upload.cancel()
            self.out.close()
            self.writer.close()

    async def hear(self, event):
        if isinstance(event, RemoteSettingsChanged) and self.stream is None:
            if not self.wire.remote_settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL):
                self.writer.write(b"HTTP/1.1 501 It takes no WebSockets\r\nconnection: close\r\n\r\n")
                return "over"
            self.stream = self.wire.get_next_available_stream_id()
            self.wire.send_headers(self.stream, self.request)
        elif isinstance(event, ResponseReceived):
            fields = dict(event.headers)
            if fields[b":status"] != b"200":
                self.writer.write(b"HTTP/1.1 %s Refused\r\nconnection: close\r\n\r\n" % fields[b":status"])
                return "over"
            proof = base64.b64encode(hashlib.sha1(self.key + GUID).digest())
            more = [b"%s: %s\r\n" % field for field in event.headers if not field[0].startswith(b":")]
            self.writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                b"sec-websocket-accept: %s\r\n%s\r\n" % (proof, b"".join(more)))
            self.begun.set()
        elif isinstance(event, DataReceived):
            self.writer.write(event.data)
            self.wire.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, WindowUpdated):
            self.room.set()
        elif isinstance(event, StreamEnded):
            if self.writer.can_write_eof():
                self.writer.write_eof()
        elif isinstance(event, StreamReset):
            self.writer.transport.abort()
            return "over"
        elif isinstance(event, ConnectionTerminated):
            return "over"

    async def upload(self):
        await self.begun.wait()
        while data := await self.client.read(PIECE):
            while data:
                self.room.clear()
                room = min(self.wire.local_flow_control_window(self.stream), self.wire.max_outbound_frame_size)
                if room <= 0:
                    await self.room.wait()
                    continue
                self.wire.send_data(self.stream, data[:room])
                data = data[room:]
                await self.flush()
        self.wire.end_stream(self.stream)
        await self.flush()

    async def flush(self):
        if data := self.wire.data_to_send():
            self.out.write(data)
            await self.out.drain()


async def main():
    host, port = sys.argv[1].rsplit(":", 1)
    # Nobody else holds them.
    tunnels = set()

    async def serve(client, writer):
        tunnels.add(asyncio.current_task())
        try:
            await Tunnel(client, writer, (host, int(port))).run()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()
        finally:
            tunnels.discard(asyncio.current_task())

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
