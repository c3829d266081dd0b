"""Requests from outside: one by one, and an open loop that never retries."""
import http.client
import json
import signal
import socket
import ssl
import subprocess

from .process import Process
from .wait import until


class Answer:
    def __init__(self, status, headers, body, serial):
        self.status, self.headers, self.body, self.serial = status, headers, body, serial

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:200]!r}"


def get(address, host, path="/", ca=None, port=None, method="GET", headers=None, body=None, seconds=5):
    """One request on a connection of its own; with `ca` over TLS, verified, with the host as server name."""
    sock = socket.create_connection((address, port or (443 if ca else 80)), seconds)
    serial = None
    try:
        if ca:
            sock = ssl.create_default_context(cafile=ca).wrap_socket(sock, server_hostname=host)
            serial = sock.getpeercert()["serialNumber"]
        conn = http.client.HTTPConnection(host)
        conn.sock = sock
        conn.request(method, path, body=body, headers={"Host": host, **(headers or {})})
        answer = conn.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read(), serial)
    finally:
        sock.close()


class Load:
    """`portcullis load`, from start to stop; the report says what was lost and why."""

    def __init__(self, binary, log, url, connect, rate=200, connections=16, ca=None, fresh=False, http2=False,
                 status=200):
        argv = [binary, "load", "--url", url, "--connect", connect, "--rate", rate, "--connections", connections,
                "--status", status, "--until-signal"]
        argv += ["--ca", ca] if ca else []
        argv += ["--fresh"] * fresh + ["--http2"] * http2
        self.name = f"{'h2' if http2 else 'h1'} {'fresh' if fresh else 'kept'}"
        self.process = Process(f"load {self.name}", argv, log)

    def __enter__(self):
        self.process.log.unlink(missing_ok=True)
        self.process.start()
        return self

    def __exit__(self, *error):
        if self.process.running():
            self.finish()

    def finish(self):
        self.process.check()
        self.process.signal(signal.SIGINT)
        try:
            self.process.child.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        lines = [line for line in self.process.log.read_text().splitlines() if line.startswith("{")]
        assert lines, f"{self.process.name} printed no report:\n{self.process.tail()}"
        self.report = json.loads(lines[-1])
        self.lost = sum(self.report["lost"].values())
        return self

    def __str__(self):
        r = self.report
        return (f"{self.name}: {r['sent']} sent, {r['ok']} ok, lost { {k: v for k, v in r['lost'].items() if v} }, "
                f"p50 {r['p50_us']} us, p99 {r['p99_us']} us")


class Loads:
    """The four kinds of client at once: HTTP/1.1 and HTTP/2, kept and fresh connections, sharing one rate. A fifth of
    it on fresh connections: more would measure handshakes of a test build."""

    def __init__(self, binary, folder, url, connect, ca, rate=200):
        self.each = [Load(binary, folder / f"load-{'h2' if h2 else 'h1'}-{'fresh' if fresh else 'kept'}.log", url, connect,
                          rate=rate // 10 if fresh else rate * 2 // 5, connections=32, ca=ca, fresh=fresh, http2=h2)
                     for h2 in (False, True) for fresh in (False, True)]

    def __enter__(self):
        for load in self.each:
            load.__enter__()
        return self

    def __exit__(self, *error):
        for load in self.each:
            load.__exit__()

    def finish(self):
        for load in self.each:
            load.finish()
        return self

    @property
    def lost(self):
        return sum(load.lost for load in self.each)

    @property
    def ok(self):
        return sum(load.report["ok"] for load in self.each)

    def __str__(self):
        return "\n".join(map(str, self.each))


def eventually(expected, *args, seconds=15, **more):
    """Asks until the status is the expected one."""
    def asked():
        answer = get(*args, **more)
        assert answer.status == expected, answer
        return answer
    return until(f"{expected} from {args[1:3]}", asked, seconds)
