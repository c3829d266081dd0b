"""WebSocket sessions one after the other, each a few seconds of echoed messages. One that breaks off is lost."""
import base64
import os
import socket
import ssl
import struct
import threading
import time

SESSION = 3  # seconds; shorter than a server may drain
PAUSE = 0.1


class Sessions:
    """Several at a time until the end of the block; `whole` were ended by us, `lost` by anybody else."""

    def __init__(self, address, host, ca, at_once=4):
        self.address, self.host, self.ca = address, host, ca
        self.whole, self.messages, self.lost = 0, 0, []
        self._done, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._loop) for _ in range(at_once)]

    def __enter__(self):
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        for t in self._threads:
            t.join()

    def _loop(self):
        while not self._done.is_set():
            began, messages = time.monotonic(), 0
            try:
                messages = self._session()
                with self._lock:
                    self.whole, self.messages = self.whole + 1, self.messages + messages
            except (OSError, ValueError, struct.error) as e:
                with self._lock:
                    self.lost.append(f"{type(e).__name__} {e} after {time.monotonic() - began:.1f} s")
                time.sleep(PAUSE)

    def _session(self):
        raw = socket.create_connection((self.address, 443), 10)
        with ssl.create_default_context(cafile=self.ca).wrap_socket(raw, server_hostname=self.host) as sock:
            shake(sock, self.host)
            end, count = time.monotonic() + SESSION, 0
            while time.monotonic() < end:
                count += 1
                text = f"message {count}".encode()
                sock.sendall(frame(1, text))
                opcode, said = read_frame(sock)
                if (opcode, said) != (1, text):
                    raise ValueError(f"opcode {opcode} {said!r} in place of {text!r}")
                time.sleep(PAUSE)
            sock.sendall(frame(8, struct.pack("!H", 1000)))
            if read_frame(sock)[0] != 8:
                raise ValueError("no answer to our close")
            return count


def shake(sock, host):
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall((f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                  f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(sock, 1)
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ValueError(head.split(b"\r\n")[0].decode())


def frame(opcode, payload):
    mask = os.urandom(4)
    return struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload)) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def read_frame(sock):
    first, length = exactly(sock, 2)
    return first & 15, exactly(sock, length)  # ours are short, and so are their echoes


def exactly(sock, count):
    data = b""
    while len(data) < count:
        if not (more := sock.recv(count - len(data))):
            raise ValueError("closed")
        data += more
    return data
