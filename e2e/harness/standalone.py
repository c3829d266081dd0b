"""A gateway in file mode on loopback, with an echo backend: nothing of Kubernetes."""
import json
import re

from . import traffic, world
from .process import Process
from .wait import until


class Standalone(Process):
    """Serves the objects of a folder; `write` replaces one of its files at once."""

    def __init__(self, name, *flags, http=0):
        self.folder = world.data / name / "manifests"
        self.folder.mkdir(parents=True)
        workers = () if "--workers" in flags else ("--workers", "1")
        argv = [world.binary, "run", "--manifests", self.folder, "--http", f"127.0.0.1:{http}", "--https", "127.0.0.1:0",
                "--admin", "127.0.0.1:0", *workers, *flags]
        super().__init__(name, argv, world.data / "log" / f"{name}.log", {"PORTCULLIS_LOG": "info"})

    def write(self, name, *objects):
        path = self.folder / f"{name}.yaml"
        fresh = path.with_suffix(".new")
        fresh.write_text("\n---\n".join(map(json.dumps, objects)))
        fresh.rename(path)

    def start(self):
        self.log.unlink(missing_ok=True)
        super().start()
        self.http, self.admin_port = (until(f"{self.name} listens for {what}", lambda: self._port(what)) for what in ("http", "admin"))
        until(f"{self.name} is ready", lambda: self.admin("/readyz").status == 200)
        return self

    def _port(self, listener):
        self.check()
        found = re.search(rf'"?listener"?[=:]\s*"?{listener}"?\b.*?127\.0\.0\.1:(\d+)', self.log.read_text())
        return found and int(found[1])

    def admin(self, path):
        return traffic.get("127.0.0.1", "127.0.0.1", path, port=self.admin_port)

    def get(self, host, path="/", **more):
        return traffic.get("127.0.0.1", host, path, port=self.http, **more)


class Echo(Process):
    port = 0  # of the first start on always the same

    def __init__(self, name):
        super().__init__(name, None, world.data / "log" / f"{name}.log")

    def start(self):
        self.argv = [str(world.binary), "echo", "--listen", f"127.0.0.1:{self.port}", "--name", self.name]
        self.log.unlink(missing_ok=True)
        super().start()
        found = until("the backend listens", lambda: self.check() or re.search(r"127\.0\.0\.1:(\d+)", self.log.read_text()))
        self.port = int(found[1])
        return self

    def backend(self, name, namespace):
        return thing("GatewayBackend", name, namespace, {"hosts": [{"address": "127.0.0.1", "port": self.port}]})


def thing(kind, name, namespace, spec):
    return {"apiVersion": "portcullis.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}
