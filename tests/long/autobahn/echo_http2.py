"""A WebSocket server of the libraries h2 and wsproto, over HTTP/2 without TLS (RFC 8441): sends back every message. Prints
its port."""
import asyncio

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes, Settings
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.handshake import server_extensions_handshake

PIECE = 64 << 10


class Stream:
    """One WebSocket: what comes in, what goes out and does not fit into the window yet."""

    def __init__(self, extensions):
        self.socket = Connection(ConnectionType.SERVER, extensions)
        self.message = []
        self.out = bytearray()
        self.over = False

    def hear(self, data):
        if self.over:
            return
        self.socket.receive_data(data)
        for event in self.socket.events():
            if isinstance(event, CloseConnection):
                # The farewell that came, or why what came is none of the protocol's.
                self.out += self.socket.send(event.response())
                self.over = True
                return
            if isinstance(event, Ping):
                self.out += self.socket.send(event.response())
            elif isinstance(event, (TextMessage, BytesMessage)):
                self.message.append(event.data)
                if event.message_finished:
                    whole = type(event.data)().join(self.message)
                    self.message = []
                    self.out += self.socket.send(type(event)(data=whole))


class Server:
    def __init__(self, writer):
        self.writer = writer
        self.streams = {}
        self.wire = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.wire.local_settings = Settings(client=False, initial_values={
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 1, SettingCodes.MAX_CONCURRENT_STREAMS: 100})

    async def run(self, reader):
        self.wire.initiate_connection()
        await self.flush()
        while data := await reader.read(PIECE):
            for event in self.wire.receive_data(data):
                if isinstance(event, ConnectionTerminated):
                    return
                self.hear(event)
            self.pump()
            await self.flush()

    def hear(self, event):
        number = getattr(event, "stream_id", 0)
        if isinstance(event, RequestReceived):
            fields = dict(event.headers)
            if fields.get(":protocol") != "websocket":
                self.wire.send_headers(number, [(":status", "404")], end_stream=True)
                return
            supported = [PerMessageDeflate()]
            offers = [value for name, value in event.headers if name == "sec-websocket-extensions"]
            wanted = [one.strip() for offer in offers for one in offer.split(",")]
            agreed = server_extensions_handshake(wanted, supported)
            more = [("sec-websocket-extensions", agreed.decode())] if agreed else []
            self.wire.send_headers(number, [(":status", "200"), *more])
            self.streams[number] = Stream([one for one in supported if one.enabled()])
        elif isinstance(event, DataReceived):
            self.wire.acknowledge_received_data(event.flow_controlled_length, number)
            if number in self.streams:
                self.streams[number].hear(event.data)
        elif isinstance(event, StreamEnded) and number in self.streams:
            self.streams[number].over = True
        elif isinstance(event, StreamReset):
            self.streams.pop(number, None)

    def pump(self):
        for number, stream in list(self.streams.items()):
            while stream.out:
                room = min(self.wire.local_flow_control_window(number), self.wire.max_outbound_frame_size)
                if room <= 0:
                    break
                self.wire.send_data(number, bytes(stream.out[:room]))
                del stream.out[:room]
            if stream.over and not stream.out:
                self.wire.end_stream(number)
                del self.streams[number]

    async def flush(self):
        if data := self.wire.data_to_send():
            self.writer.write(data)
            await self.writer.drain()


async def main():
    # Nobody else holds them.
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await Server(writer).run(reader)
        except ConnectionError:
            pass
        finally:
            writer.close()
            tasks.discard(asyncio.current_task())

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
