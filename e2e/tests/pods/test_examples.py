"""The files of examples/ as a user applies them, and backends by name."""
import ipaddress
import json
import unittest

from harness import ROOT, world
from harness.gateways import route
from harness.installed import EXAMPLES, RESTRICTED, SHOP, echo, install, services
from harness.traffic import eventually, get
from harness.wait import until

FILES = ROOT / "examples"
PROGRAMMED = '{.status.installations[?(@.name=="portcullis")].conditions[?(@.type=="Programmed")].status}'


def backend(name, **spec):
    return json.dumps({"apiVersion": "portcullis.dev/v1alpha1", "kind": "GatewayBackend", "metadata": {"name": name},
                       "spec": spec})


class Examples(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.gw, cls.kube = install(), world.kube
        if world.node:
            cls.kube.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s")

    def own_namespace(self, name):
        self.kube.namespace(name, **RESTRICTED)
        self.addCleanup(self.kube.delete, "namespace", name)

    def get(self, host, path="/", **more):
        return get(self.gw.address, host, path, **more)

    def wait_backend(self, name, namespace):
        self.kube.kubectl("-n", namespace, "wait", f"gwb/{name}", f"--for=jsonpath={PROGRAMMED}=True", "--timeout=30s")

    def columns(self, kind, name, namespace):
        head, row = self.kube.kubectl("-n", namespace, "get", kind, name).splitlines()
        print(f"\n{head}\n{row}")
        # By place: cells may be empty.
        starts = [head.index(word) for word in head.split()] + [None]
        return {word: row[a:b].strip() for word, a, b in zip(head.split(), starts, starts[1:])}

    def test_kubernetes(self):
        """Deployment, Service, GatewayRoute, TLS Secret, and a backend that is asked under a name of its own."""
        self.own_namespace(EXAMPLES[0])
        for file in sorted((FILES / "kubernetes/manifests").iterdir()):
            self.kube.apply(file.read_text().replace("portcullis:dev", world.image))
        self.kube.kubectl("-n", "demo", "rollout", "status", "deployment/echo", "--timeout=60s")
        self.kube.wait("gwr", "shop", "Programmed", "demo")
        self.wait_backend("by-name", "demo")
        ca = FILES / "kubernetes/ca.pem"
        self.assertEqual(self.get("shop.demo.example").status, 308)
        pods = {p["metadata"]["name"] for p in self.kube.json("-n", "demo", "get", "pods")["items"]}
        said = eventually(200, self.gw.address, "shop.demo.example", "/orders", ca=ca).json()
        self.assertIn(said["name"], pods)
        named = eventually(200, self.gw.address, "shop.demo.example", "/by-name", ca=ca).json()
        self.assertEqual(named["headers"]["host"], "echo.demo.svc.cluster.local")
        self.assertIn(named["name"], pods)

    def test_quickstart(self):
        """Its routes and its certificate as they are; Services in place of its servers on this machine."""
        self.own_namespace(EXAMPLES[1])
        folder = FILES / "quickstart"
        for server in "one", "two":
            echo(server, replicas=1, namespace="quickstart", cpu="20m")
        self.kube.kubectl("apply", "-f", folder / "manifests")
        refused = until("a loopback address is refused", lambda: (
            c := self.columns("gwb", "one", "quickstart"))["ACCEPTED"] == "False" and c)
        self.assertEqual((refused["REASON"], refused["PROGRAMMED"]), ("UnsupportedValue", "False"))
        for server in "one", "two":
            self.kube.kubectl("-n", "quickstart", "delete", "gwb", server)
            self.kube.apply(backend(server, service={"name": server, "port": 80}), "quickstart")
            self.wait_backend(server, "quickstart")
        for name in "web", "shop":
            self.kube.wait("gwr", name, "Programmed", "quickstart")
        ask = lambda host, path="/", **more: eventually(200, self.gw.address, host, path, **more)
        self.assertTrue(ask("web.localhost", headers={"X-Tester": "yes"}).json()["name"].startswith("two-"))
        self.assertEqual(ask("web.localhost", "/hello").body, b"hello from the gateway\n")
        self.assertEqual(self.get("web.localhost", "/old/page").status, 301)
        self.assertEqual(self.get("shop.localhost").status, 308)
        shop = ask("shop.localhost", ca=folder / "ca.pem")
        self.assertEqual(shop.headers["x-served-by"], "portcullis")

    def test_hosts_by_name_are_each_asked_under_their_own(self):
        names = [f"{server}.{SHOP}.svc.cluster.local" for server in ("first", "second")]
        for server in "first", "second":
            echo(server, replicas=1, cpu="20m")
            self.addCleanup(self.kube.delete, "-n", SHOP, "deployment", server)
        self.kube.apply(backend("both", hosts=[{"address": name, "port": 80} for name in names]), SHOP)
        self.wait_backend("both", SHOP)
        shown = self.columns("gwb", "both", SHOP)
        self.assertEqual((shown["ACCEPTED"], shown["PROGRAMMED"], shown["REASON"]), ("True", "True", "Accepted"))
        self.kube.apply(route("both", "both.test", rules=[
            {"name": "all", "backendRefs": [{"kind": "GatewayBackend", "name": "both"}]}]), SHOP)
        self.kube.wait("gwr", "both", "Programmed", SHOP)
        eventually(200, self.gw.address, "both.test")

        def each_was_asked():
            said = [self.get("both.test").json() for _ in range(8)]
            return {(s["name"].split("-")[0], s["headers"]["host"]) for s in said} == set(zip(("first", "second"), names))
        until("both answer, each under its own name", each_was_asked, 20)

    def test_a_private_address_is_refused(self):
        """Hosts are for what is outside: only the Services' network is allowed here."""
        private = next(a for a in ("192.168.255.1", "172.31.255.1") if ipaddress.ip_address(a) not in services())
        self.kube.apply(backend("private", hosts=[{"address": private, "port": 80}]), SHOP)
        refused = until("it is refused", lambda: (
            c := self.columns("gwb", "private", SHOP))["ACCEPTED"] == "False" and c)
        self.assertEqual((refused["REASON"], refused["PROGRAMMED"]), ("UnsupportedValue", "False"))
        message = next(c["message"] for i in self.kube.get("gwb", "private", SHOP)["status"]["installations"]
                       for c in i["conditions"] if c["type"] == "Accepted")
        self.assertIn("egress.allow", message)

    def test_a_backend_that_nobody_knows(self):
        """The control: it is served as 502, and does not keep others from being programmed."""
        self.kube.apply(backend("nowhere", hosts=[{"address": f"nowhere.{SHOP}.svc.cluster.local", "port": 80}]), SHOP)
        self.wait_backend("nowhere", SHOP)
        self.kube.apply(route("nowhere", "nowhere.test", rules=[
            {"name": "all", "backendRefs": [{"kind": "GatewayBackend", "name": "nowhere"}]}]), SHOP)
        self.kube.wait("gwr", "nowhere", "Programmed", SHOP)
        self.assertEqual(eventually(502, self.gw.address, "nowhere.test").json()["reason"], "NameResolution")


if __name__ == "__main__":
    unittest.main()
