"""What a user sees: helm install, kubectl apply, requests through TLS, status, Prometheus."""
import json
import subprocess
import unittest
import urllib.parse
import urllib.request

from harness import ROOT, world
from harness.gateways import route
from harness.installed import NAME, NAMESPACE, SHOP, install, upgrade
from harness.kube import CommandFailed
from harness.process import Process
from harness.traffic import eventually, get
from harness.wait import until

RIGHTS = ROOT / "e2e" / "tests" / "pods" / "rights.txt"


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.gw, cls.kube = install(), world.kube

    def serve(self, name, host, **more):
        """A route with a certificate, served by every replica."""
        self.gw.secret(f"{name}-tls", host)
        self.kube.apply(route(name, host, spec={"tls": {"certificateRefs": [{"name": f"{name}-tls"}]}}, **more), SHOP)
        self.kube.wait("gwr", name, "Programmed", SHOP)

    def get(self, host, path="/", **more):
        return get(self.gw.address, host, path, **more)

    def test_pods_run_restricted(self):
        labels = self.kube.get("namespace", NAMESPACE)["metadata"]["labels"]
        self.assertEqual(labels["pod-security.kubernetes.io/enforce"], "restricted")
        self.assertEqual(len(self.gw.pods()), 2)
        bad = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"},
               "spec": {"containers": [{"name": "c", "image": "x.test/x:1", "securityContext": {"privileged": True}}]}}
        self.assertIn("PodSecurity", self.kube.refused(json.dumps(bad), NAMESPACE))  # the control

    def test_rights_are_these_and_no_more(self):
        who = f"system:serviceaccount:{NAMESPACE}:{NAME}"
        listed = self.kube.kubectl("auth", "can-i", "--list", "-n", NAMESPACE, f"--as={who}")
        rights = sorted({" ".join(line.split()) for line in listed.splitlines()[1:]
                         if "[/" not in line and "selfsubject" not in line})  # everyone has those
        if RIGHTS.read_text().splitlines() != rights:
            (world.data / "log" / "rights.txt").write_text("\n".join(rights) + "\n")
        self.assertEqual(RIGHTS.read_text().splitlines(), rights)

    def test_peer_token_outlives_an_upgrade(self):
        before = self.kube.get("secret", f"{NAME}-peers", NAMESPACE)["data"]
        upgrade()
        self.assertEqual(self.kube.get("secret", f"{NAME}-peers", NAMESPACE)["data"], before)

    def test_tls_by_server_name(self):
        self.serve("one", "one.test")
        self.serve("two", "two.test")
        one, two = (self.get(h, "/x", ca=self.gw.pki.cert) for h in ("one.test", "two.test"))
        self.assertEqual((one.status, two.status), (200, 200))
        self.assertNotEqual(one.serial, two.serial)
        self.assertEqual(one.json()["path"], "/x")
        plain = self.get("one.test", "/x")
        self.assertEqual((plain.status, plain.headers.get("location") or plain.headers.get("Location")), (308, "https://one.test/x"))
        with self.assertRaises(OSError):  # no certificate for a name that has none
            self.get("none.test", ca=self.gw.pki.cert)

    def test_columns_and_wait(self):
        self.serve("columns", "columns.test")
        head, row = self.kube.kubectl("-n", SHOP, "get", "gwr", "columns").splitlines()
        print(f"\n{head}\n{row}")
        self.assertEqual(head.split(), ["NAME", "HOSTNAMES", "ACCEPTED", "PROGRAMMED", "REASON", "AGE"])
        self.assertEqual(row.split()[2:4], ["True", "True"])
        self.assertIn("columns.test", row)
        self.assertIn("hostnames", self.kube.kubectl("explain", "gwr.spec"))
        with self.assertRaises(CommandFailed):  # the control: a condition that never comes
            self.kube.wait("gwr", "columns", "Nonsense", SHOP, seconds=1)

    def test_a_broken_route_harms_no_other(self):
        self.serve("sound", "sound.test")
        broken = json.loads(route("broken", "broken.test"))
        broken["spec"]["rules"][0]["matches"] = [{"path": {"type": "RegularExpression", "value": "/(unclosed"}}]
        broken["spec"]["rules"].append({"name": "fine", "matches": [{"path": {"type": "PathPrefix", "value": "/fine"}}],
                                        "backendRefs": [{"name": "echo", "port": 80}]})
        self.kube.apply(json.dumps(broken), SHOP)
        seen = until("the broken route is told",
                     lambda: (c := self.kube.condition("gwr", "broken", "PartiallyInvalid", SHOP)) and c)
        self.assertEqual(seen["status"], "True")
        self.assertIn("rules[0]", seen["message"])
        self.assertEqual(self.get("sound.test", ca=self.gw.pki.cert).status, 200)
        eventually(200, self.gw.address, "broken.test", "/fine/x")

    def test_certificate_rotation_without_a_restart(self):
        self.serve("turn", "turn.test")
        first = self.get("turn.test", ca=self.gw.pki.cert).serial
        with self.gw.loads("turn.test") as load:
            for _ in range(30 if world.long() else 2):
                second = self.gw.secret("turn-tls", "turn.test")
                self.assertNotEqual(int(first, 16), int(second, 16))
                until("the new certificate",
                      lambda: int(self.get("turn.test", ca=self.gw.pki.cert).serial, 16) == int(second, 16))
            until("enough requests", lambda: load.each[0].process.running(), 5)
            load.finish()
        self.assertEqual(load.lost, 0, load)
        self.assertEqual(sum(s["restartCount"] for p in self.gw.pods() for s in p["status"]["containerStatuses"]), 0)

    def test_explain_in_a_pod(self):
        """With the gateway's own rights and settings."""
        self.kube.apply(route("told", "told.test"), SHOP)
        said = self.kube.kubectl("-n", NAMESPACE, "exec", f"deploy/{NAME}", "--", "/portcullis", "explain", "GET",
                                 "http://told.test/x")
        self.assertIn(f"all of {SHOP}/told", said)
        self.assertIn("2 endpoints", said)

    @world.needs_own_node
    def test_prometheus_scrapes_and_answers(self):
        self.serve("counted", "counted.test")
        for _ in range(20):
            self.assertEqual(self.get("counted.test", ca=self.gw.pki.cert).status, 200)
        prometheus = self.prometheus()

        def query(text):
            url = "http://127.0.0.1:9099/api/v1/query?" + urllib.parse.urlencode({"query": text})
            found = json.load(urllib.request.urlopen(url, timeout=5))["data"]["result"]
            return float(found[0]["value"][1]) if found else None
        self.assertEqual(until("both replicas are up", lambda: query("sum(up)") == 2 and 2, 30), 2)
        metric = 'sum(portcullis_requests_total{route=~".*counted.*"})'
        self.assertGreaterEqual(until("the requests are counted", lambda: (n := query(metric)) and n >= 20 and n, 30), 20)
        print(f"\n{metric} = {query(metric)}")
        self.assertIsNone(query("portcullis_no_such_metric"))  # the control
        for pod in self.gw.pods():
            text = get(pod["status"]["podIP"], "x", "/metrics", port=9090).body
            check = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
            self.assertEqual(check.returncode, 0, check.stderr.decode())
        prometheus.stop()

    def prometheus(self):
        """Debian's Prometheus over the Pods with the chart's annotations (it is built without discovery in Kubernetes)."""
        config = world.data / "prometheus.json"  # YAML takes JSON
        annotated = [(p["status"]["podIP"], p["metadata"]["annotations"]) for p in self.gw.pods()]
        targets = [f"{ip}:{a['prometheus.io/port']}" for ip, a in annotated if a.get("prometheus.io/scrape") == "true"]
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [{
            "job_name": "pods", "metrics_path": annotated[0][1]["prometheus.io/path"],
            "static_configs": [{"targets": targets}]}]}))
        started = Process("prometheus", ["prometheus", f"--config.file={config}", "--web.listen-address=127.0.0.1:9099",
                                         f"--storage.tsdb.path={world.data / 'prometheus'}"], world.data / "log" / "prometheus.log")
        self.addCleanup(started.start().stop)

        def up():
            started.check()
            return urllib.request.urlopen("http://127.0.0.1:9099/-/ready", timeout=2).status == 200
        until("Prometheus is ready", up, 60)
        return started


if __name__ == "__main__":
    unittest.main()
