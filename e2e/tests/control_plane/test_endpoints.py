"""How soon requests follow an endpoint among many routes (with --long ten thousand)."""
import http.client
import json
import ssl
import threading
import time
import unittest

from harness import cluster, gateways, world
from harness.gateways import Echo, endpoint_slice, route, service
from harness.wait import until

NS, HOST = "many", "followed.test"
ROUTES, CHANGES, WRITERS = (10_000, 200, 8) if world.long() else (200, 10, 4)
SOON = 0.1  # seconds, of 99 in 100: told, not asked for, as it depends on the machine


class Endpoints(gateways.ThreeReplicas):
    namespace, echo_number = NS, 9

    def test_requests_follow_an_endpoint(self):
        others = [Echo(n, f"followed-{n}").start() for n in (21, 22)]
        for other in others:
            self.addCleanup(other.stop)
        self.create_routes()
        service("followed", NS, others[0])
        self.kube.apply(route("followed", HOST, service="followed"), NS)
        self.programmed("followed", seconds=300)
        gateway, api = self.gateways.replicas[0], Api()
        seen = Poll(gateway.address)
        until("the first is asked", lambda: seen.name() == "followed-21")
        # What the leader has to write of so many is not what is measured.
        until("all statuses are written", lambda: api.not_programmed() == 0, 600, every=2)
        times, own = [], []
        for n in range(1, CHANGES + 1):
            other = others[n % 2]
            slice_ = endpoint_slice("followed", [{"addresses": [other.address], "conditions": {"ready": True}}], 8080, "http")
            began = time.monotonic()
            api.ask("PATCH", f"/apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices/followed-tests", slice_,
                    "application/merge-patch+json")
            answered = time.monotonic()
            until(f"change {n} is followed", lambda: seen.name() == other.name, 10, every=0)
            own.append(answered - began)
            times.append(time.monotonic() - began)
        late = share(times, 99)
        print(f"\n{ROUTES} routes, {CHANGES} changes: followed after {share(times, 50):.1f} ms (median), {late:.1f} ms (99 in 100), "
              f"{share(times, 100):.1f} ms (all); of it the API server's answer {share(own, 50):.1f}, {share(own, 99):.1f}, "
              f"{share(own, 100):.1f} ms; goal {SOON * 1000:.0f} ms{'' if late <= SOON * 1000 else ': MISSED'}", end=" ... ")

    def create_routes(self):
        """kubectl would take minutes."""
        failed = []

        def create(numbers):
            api = Api()
            for n in numbers:
                try:
                    api.ask("POST", f"/apis/portcullis.dev/v1alpha1/namespaces/{NS}/gatewayroutes", route(f"r{n}", f"h{n}.test"))
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    failed.append(error)
                    return
        threads = [threading.Thread(target=create, args=[range(n, ROUTES, WRITERS)]) for n in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failed, [])
        for g in self.gateways.replicas:
            for n in 0, ROUTES // 2, ROUTES - 1:
                until(f"{g.name} serves route {n}", lambda: g.get(f"h{n}.test").status == 200, 300, every=0.5)


def share(times, percent):
    """Milliseconds within which so many are."""
    return sorted(times)[max(0, len(times) * percent // 100 - 1)] * 1000


class Poll:
    """One kept connection; whose answer comes."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, 8080, timeout=5)

    def name(self):
        self.connection.request("GET", "/", headers={"Host": HOST})
        answer = self.connection.getresponse()
        body = answer.read()
        return json.loads(body).get("name") if answer.status == 200 else None


class Api:
    """One kept connection to the API server, as its administrator."""

    def __init__(self):
        pki = world.control_plane.pki
        tls = ssl.create_default_context(cafile=pki / "ca.crt")
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self.connection = http.client.HTTPSConnection(cluster.API.removeprefix("https://"), context=tls, timeout=60)

    def ask(self, method, path, body, kind="application/json"):
        self.connection.request(method, path, body, {"Content-Type": kind})
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.status < 300, text
        return json.loads(text)

    def not_programmed(self):
        """How many routes of the namespace are not in force, or not yet said to be."""
        routes = self.ask("GET", f"/apis/portcullis.dev/v1alpha1/namespaces/{NS}/gatewayroutes", None)["items"]
        is_in_force = lambda r: any((c["type"], c["status"]) == ("Programmed", "True")  # noqa: E731
                                    for c in r.get("status", {}).get("conditions", []))
        return sum(not is_in_force(r) for r in routes)


if __name__ == "__main__":
    unittest.main()
