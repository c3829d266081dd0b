"""Clients that a load generator is not: WebSockets that stay, and clients that leave in the middle of everything."""
import base64
import os
import random
import socket
import ssl
import struct
import threading


class Clients(threading.Thread):
    """Goes on until it is told to stop. What is wrong is in `failures`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ended, self.count, self.failures = threading.Event(), 0, []

    def run(self):
        while not self.ended.is_set():
            try:
                self.turn()
            except Exception as error:  # whatever it is, it is told at the end
                self.failures.append(f"{type(error).__name__}: {error}")
                self.ended.wait(1)

    def stop(self):
        self.ended.set()
        self.join(30)
        return self


class WebSocket(Clients):
    """Sends a text every tenth of a second and must get it back; after `life` seconds it says goodbye and comes anew."""

    def __init__(self, address, host, life=None):
        super().__init__()
        self.address, self.host, self.life = address, host, life

    def turn(self):
        with upgraded(self.address, self.host) as stream:
            reader, turns = stream.makefile("rb"), 0
            while not self.ended.is_set() and (self.life is None or turns < self.life * 10):
                text = f"{self.name} {turns}".encode()
                stream.sendall(frame(1, text))
                kind, payload = read_frame(reader)
                if (kind, payload) != (1, text):
                    raise ValueError(f"sent {text!r}, got back {payload!r} of kind {kind}")
                turns += 1
                self.count += 1
                self.ended.wait(0.1)
            stream.sendall(frame(8, struct.pack("!H", 1000)))
            kind, _ = read_frame(reader)
            if kind != 8:
                raise ValueError(f"a close was answered by a frame of kind {kind}")


class Leaving(Clients):
    """Twenty times a second a client that resets its connection, or its HTTP/2 stream, at some stage."""

    def __init__(self, http, https, host, ca):
        super().__init__()
        self.http, self.https, self.host = http, https, host
        self.tls = ssl.create_default_context(cafile=ca)
        self.tls.set_alpn_protocols(["h2"])
        self.chance = random.Random(1)
        self.stages = [self.at_once, self.in_head, self.in_body, self.in_answer, self.in_handshake, self.in_websocket,
                       self.streams]

    def turn(self):
        self.chance.choice(self.stages)()
        self.count += 1
        self.ended.wait(0.05)

    def at_once(self):
        reset(connect(self.http))

    def in_head(self):
        stream = connect(self.http)
        stream.sendall(f"GET / HTTP/1.1\r\nHost: {self.host}\r\nX-Half: ".encode())
        reset(stream)

    def in_body(self):
        stream = connect(self.http)
        stream.sendall(f"POST / HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: 100000\r\n\r\n".encode() + b"x" * 5000)
        reset(stream)

    def in_answer(self):
        stream = connect(self.http)
        stream.sendall(f"GET /bytes/10000000 HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        stream.recv(10_000)
        reset(stream)

    def in_handshake(self):
        stream = connect(self.https)
        stream.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(40))
        reset(stream)

    def in_websocket(self):
        stream = upgraded(self.http, self.host)
        stream.sendall(frame(1, b"x" * 1000)[:500])
        reset(stream)

    def streams(self):
        """Answers are asked for and cancelled when the first bytes have come, then more of them at once than may wait;
        and an answer to a ping that nobody sent (RFC 9113 sections 6.4 and 6.7). None of it belongs into the log."""
        stream = self.tls.wrap_socket(connect(self.https), server_hostname=self.host)
        block = b"\x82\x87" + literal(4, b"/bytes/1000000") + literal(1, self.host.encode())
        stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2(4, 0, 0, b"") + http2(4, 1, 0, b""))
        for number in range(1, 11, 2):
            stream.sendall(http2(1, 5, number, block))
        stream.recv(10_000)
        cancel = struct.pack("!I", 8)
        for number in range(1, 11, 2):
            stream.sendall(http2(3, 0, number, cancel))
        stream.sendall(http2(6, 1, 0, b"\0" * 8))
        stream.sendall(b"".join(http2(1, 5, number, block) + http2(3, 0, number, cancel) for number in range(11, 111, 2)))
        try:
            while stream.recv(10_000):
                pass
        except OSError:
            pass  # cut in the middle of what was cancelled
        reset(stream)


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), 10)


def reset(stream):
    """Closes with RST instead of FIN."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def upgraded(address, host):
    stream = connect(address)
    key = base64.b64encode(os.urandom(16)).decode()
    stream.sendall(f"GET /chat HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                   f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        if not byte:
            raise ConnectionError(f"closed in the handshake after {head!r}")
        head += byte
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(f"no upgrade: {head!r}")
    return stream


def frame(kind, payload):
    """A whole message, masked with zeros (RFC 6455 section 5.2)."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    return bytes([0x80 | kind]) + size + bytes(4) + payload


def read_frame(reader):
    head = reader.read(2)
    if len(head) < 2:
        raise ConnectionError("the WebSocket was closed without a word")
    size = head[1] & 0x7f
    if size == 126:
        size = struct.unpack("!H", reader.read(2))[0]
    return head[0] & 0x0f, reader.read(size)


def http2(kind, flags, number, payload):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", number) + payload


def literal(name, value):
    """A field with a name of the static table, not indexed (RFC 7541 section 6.2.2)."""
    return bytes([name, len(value)]) + value
