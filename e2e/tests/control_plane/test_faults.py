"""What goes wrong around the gateway: API servers that restart and forget, rights that are taken away, people who want
what is not theirs. docs/faults.md has them all."""
import json
import re
import subprocess
import time
import unittest
import urllib.request

from harness import gateways, world
from harness.gateways import route
from harness.kube import CommandFailed, command
from harness.traffic import Loads
from harness.wait import until

NS = "faults"
RESTARTS = 20 if world.long() else 3
IN_STEP = 5 if world.long() else 10  # seconds; the short run shares its machine
GRANTS = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "referencegrants.gateway.networking.k8s.io",
                 "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
    "spec": {"group": "gateway.networking.k8s.io", "scope": "Namespaced",
             "names": {"kind": "ReferenceGrant", "plural": "referencegrants", "singular": "referencegrant"},
             "versions": [{"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                 "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}}


class Faults(gateways.ThreeReplicas):
    namespace, echo_number = NS, 2

    def with_tls(self, name, host):
        secret, _ = self.pki.secret(f"{name}-tls", NS, host)
        self.kube.apply(secret)
        self.kube.apply(route(name, host, spec={"tls": {"certificateRefs": [{"name": f"{name}-tls"}]}}), NS)
        self.programmed(name)

    def loads(self, gateway, host):
        return Loads(world.binary, world.data / "log", f"https://{host}/", f"{gateway.address}:8443", self.pki.cert, 50)

    def in_step(self, present, absent):
        """Seconds until every replica serves exactly these hosts."""
        began = time.monotonic()
        for g in self.gateways.replicas:
            for host, status in [(h, 200) for h in present] + [(h, 404) for h in absent]:
                until(f"{g.name} answers {status} for {host}", lambda: g.get(host).status == status, IN_STEP)
        return time.monotonic() - began

    def metric(self, gateway, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", gateway.admin("/metrics").body.decode(), re.M)
        return float(found[1]) if found else 0

    def test_the_api_server_restarts_again_and_again_during_churn(self):
        """What was there all the time is never lost, what changes is known soon after each restart."""
        self.with_tls("steady", "steady.test")
        steady, slowest = self.gateways.replicas[0], 0
        with self.loads(steady, "steady.test") as load:
            for n in range(RESTARTS):
                self.kube.apply(route(f"c{n}", f"c{n}.test"), NS)
                world.control_plane.stop_api_server()
                world.control_plane.start_api_server()
                if n:
                    self.kube.delete("-n", NS, "gwr", f"c{n - 1}")
                self.kube.apply(route(f"d{n}", f"d{n}.test"), NS)
                gone = [f"c{n - 1}.test"] if n else []
                slowest = max(slowest, self.in_step([f"c{n}.test", f"d{n}.test"], gone))
            self.programmed(f"d{n}")
            load.finish()
        print(f"\n{RESTARTS} restarts, in step again within {slowest:.1f} s; {load.ok} requests", end=" ... ")
        self.assertEqual(load.lost, 0, load)

    def test_one_that_slept_over_a_compaction_lists_anew(self):
        """Its watch goes on from a past that etcd and the API server have forgotten (410)."""
        self.kube.apply(route("before", "before.test"), NS)
        self.kube.apply(route("stays", "stays.test"), NS)
        self.in_step(["before.test", "stays.test"], [])
        sleeper = next(g for g in self.gateways.replicas if g is not self.gateways.leader())
        log = len(sleeper.log.read_text())
        sleeper.pause()
        self.addCleanup(sleeper.resume)
        self.kube.delete("-n", NS, "gwr", "before")
        self.kube.apply(route("after", "after.test"), NS)
        compact()
        world.control_plane.stop_api_server()
        world.control_plane.start_api_server()
        sleeper.resume()
        self.in_step(["after.test", "stays.test"], ["before.test"])
        # The control: it did lose its past.
        self.assertRegex(sleeper.log.read_text()[log:], "too old resource version|Expired|Gone")

    def test_rights_taken_away_leave_what_is_known(self):
        """Without the right to read Secrets the certificates that are known go on, and so do the other kinds."""
        self.with_tls("kept", "kept.test")
        role = self.kube.json("get", "clusterrole", f"{gateways.NAMESPACE}-{gateways.NAME}")
        gateway = self.gateways.replicas[0]
        before = self.metric(gateway, 'portcullis_watch_errors_total{kind="secrets"}')
        with self.loads(gateway, "kept.test") as load:
            for rule in role["rules"]:
                rule["resources"] = [r for r in rule["resources"] if r != "secrets"]
            taken = [rule for rule in role["rules"] if rule["resources"]]
            self.put_role(role, taken)
            self.addCleanup(self.kube.helm, "upgrade", gateways.RELEASE, gateways.CHART, "-n", gateways.NAMESPACE,
                            "--reuse-values")
            world.control_plane.stop_api_server()  # ends the watch; the next one is refused
            world.control_plane.start_api_server()
            until("it is told", lambda: self.metric(gateway, 'portcullis_watch_errors_total{kind="secrets"}') > before + 1)
            self.kube.apply(route("meanwhile", "meanwhile.test"), NS)
            self.programmed("meanwhile")
            self.assertEqual(gateway.get("kept.test", ca=self.pki.cert).status, 200)
            self.assertTrue(gateway.ready())
            self.doCleanups()
            secret, serial = self.pki.secret("kept-tls", NS, "kept.test")
            self.kube.apply(secret)
            until("the new certificate is served", lambda: int(
                gateway.get("kept.test", ca=self.pki.cert).serial, 16) == int(serial, 16))
            load.finish()
        self.assertEqual(load.lost, 0, load)

    def put_role(self, role, rules):
        self.kube.kubectl("replace", "-f", "-", stdin=json.dumps({**role, "rules": rules}))

    def test_nobody_uses_what_is_another_namespaces(self):
        """No reference without a grant, and no telling whether the object is there."""
        victim, thief = self.kube.namespace("victim"), self.kube.namespace("thief")
        gateways.service("echo", victim, self.echo)
        self.kube.apply(self.pki.secret("real", victim, "thief.test")[0])
        told = {}
        for there in True, False:
            host = f"thief-{there}.test".lower()
            rules = [{"name": "all", "backendRefs": [{"name": "echo" if there else "none", "namespace": victim, "port": 80}]}]
            tls = {"certificateRefs": [{"name": "real" if there else "none", "namespace": victim}]}
            self.kube.apply(route("steal", host, rules=rules, spec={"tls": tls}), thief)
            generation = self.kube.get("gwr", "steal", thief)["metadata"]["generation"]
            seen = until("refused", lambda: (c := self.kube.condition("gwr", "steal", "ResolvedRefs", thief))
                         and c["observedGeneration"] == generation and c["status"] == "False" and c)
            self.assertEqual(seen["reason"], "RefNotPermitted")
            told[there] = re.sub(r"victim/\w+", "victim/…", seen["message"])
            with self.assertRaises(OSError):
                self.gateways.replicas[0].get(host, ca=self.pki.cert)
        self.assertEqual(told[True], told[False])
        # The control: with the grant, whose kind is installed only now, it is served.
        self.kube.apply(json.dumps(GRANTS))
        self.kube.established(GRANTS["metadata"]["name"])
        self.addCleanup(self.kube.delete, "crd", GRANTS["metadata"]["name"])
        self.kube.apply(json.dumps({
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"name": "g"},
            "spec": {"from": [{"group": "portcullis.dev", "kind": "GatewayRoute", "namespace": thief}],
                     "to": [{"group": "", "kind": "Service"}]}}), victim)
        rules = [{"name": "all", "backendRefs": [{"name": "echo", "namespace": victim, "port": 80}]}]
        self.kube.apply(route("guest", "guest.test", rules=rules), thief)
        until("the grant counts", lambda: self.gateways.replicas[0].get("guest.test").status == 200)

    def test_a_hostname_stays_with_its_first_owner(self):
        """Whoever came first, also for replicas that start anew."""
        for namespace in self.kube.namespace("first"), self.kube.namespace("second"):
            gateways.service("echo", namespace, self.echo)
        rules = {n: [{"name": "all", "respond": {"status": 200, "text": n}}] for n in ("first", "second")}
        self.kube.apply(route("z-oldest", "owned.test", rules=rules["first"]), "first")
        self.programmed("z-oldest", "first")
        self.later_than("gwr", "z-oldest", "first")
        self.kube.apply(route("a-younger", "owned.test", rules=rules["second"]), "second")
        lost = until("the loser is told", lambda: (c := self.kube.condition("gwr", "a-younger", "Accepted", "second"))
                     and c["status"] == "False" and c)
        self.assertEqual(lost["reason"], "HostnameConflict")
        again = self.gateways.replicas[2]
        again.stop()
        again.start()
        until("ready", again.ready)
        for g in self.gateways.replicas:
            self.assertEqual(g.get("owned.test").body, b"first", g.name)

    def test_strings_of_every_kind_harm_nobody(self):
        """200 objects whose strings try to be something else."""
        self.kube.apply(route("sane", "sane.test"), NS)
        self.programmed("sane")
        strings = ["\"", "'", "\n", "\r\nX-Injected: 1", "{}", ";", "#", "\u0000", "../../etc/passwd", "${jndi:ldap://x}",
                   "{{ .Values }}", "\u202e", "ﬀ", "a" * 5_000, "a" * 1_000_000, "-", "%00", "%", "*", "&a *a", "|\n x",
                   "\ud83d\ude80", "\\", "`id`", "$(id)"]
        places = [lambda s: {"hostnames": [s]}, lambda s: {"matches": [{"path": {"type": "Exact", "value": s}}]},
                  lambda s: {"matches": [{"path": {"type": "RegularExpression", "value": s}}]},
                  lambda s: {"matches": [{"headers": [{"name": "X-A", "value": s}]}]},
                  lambda s: {"matches": [{"path": {"type": "PathTemplate", "value": s}}]},
                  lambda s: {"respond": {"status": 200, "text": s, "contentType": s}},
                  lambda s: {"policy": {"request": {"headers": {"set": [{"name": "X-A", "value": s}]}}}},
                  lambda s: {"policy": {"response": {"headers": {"set": [{"name": s, "value": "a"}]}}}}]
        items = []
        for i, place in enumerate(places):
            for j, text in enumerate(strings):
                rule = {"name": "r", "respond": {"status": 200, "text": "x"}, **place(text)}
                hosts = rule.pop("hostnames", [f"h{i}-{j}.strings.test"])
                item = json.loads(route(f"s{i}-{j}", "x", rules=[rule], spec={"hostnames": hosts}))
                item["metadata"]["labels"] = {"strings": "yes"}
                items.append(item)
        taken = self.post(items)
        self.assertGreater(taken, 50, "the control: some must come past the schema")
        self.kube.apply(route("after-strings", "after-strings.test"), NS)
        self.programmed("after-strings")
        for g in self.gateways.replicas:
            self.assertTrue(g.ready(), g.name)
            self.assertEqual((g.get("sane.test").status, g.get("after-strings.test").status), (200, 200))
            for item in items[:40]:
                for host in item["spec"]["hostnames"]:
                    if host.endswith(".strings.test"):
                        self.assertNotIn("X-Injected", g.get(host).headers)
        self.kube.kubectl("-n", NS, "delete", "gwr", "-l", "strings=yes", "--wait=false")
        print(f"\n{taken} of {len(items)} taken by the schema", end=" ... ")

    def post(self, items):
        """Past kubectl's own checks; how many of them the API server takes. Each that it refuses is a line."""
        everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        done = subprocess.run([world.tools / "kubectl", "--kubeconfig", self.kube.kubeconfig, "-n", NS, "create",
                               "--validate=false", "-f", "-"], input=everything, capture_output=True, text=True, timeout=120)
        return len(re.findall(r"^gatewayroute.portcullis.dev/\S+ created$", done.stdout, re.M))

    def test_explain_reads_the_cluster(self):
        rules = [{"name": "orders", "matches": [{"path": {"value": "/orders"}, "method": "GET"}],
                  "backendRefs": [{"name": "echo", "port": 80}]}]
        self.kube.apply(route("explained", "explained.test", rules=rules), NS)
        for kubeconfig in self.gateways.kubeconfig, self.kube.kubeconfig:  # the gateway's rights, an administrator's
            said = self.explain("GET", "http://explained.test/orders/7", "--kubeconfig", kubeconfig)
            self.assertIn(f"rule      orders of {NS}/explained", said)
            self.assertIn(f"{self.echo.address}:8080", said)
        with self.assertRaisesRegex(CommandFailed, "404 NoRouteMatch"):
            self.explain("POST", "http://explained.test/orders/7", "--kubeconfig", self.kube.kubeconfig)
        # As kubectl finds it; and for somebody who may read routes alone.
        said = self.explain("GET", "http://explained.test/orders", env={"KUBECONFIG": str(self.kube.kubeconfig)})
        self.assertIn("orders of", said)
        with self.assertRaisesRegex(CommandFailed, "cannot list the GatewayRoutes"):
            self.explain("GET", "http://explained.test/", env={"KUBECONFIG": str(self.nobody())})

    def explain(self, *args, env=None):
        return command([world.binary, "explain", *args], env={"KUBECONFIG": "/dev/null", **(env or {})})

    def nobody(self):
        token = self.kube.kubectl("-n", NS, "create", "token", "default").strip()
        config = json.loads(self.gateways.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path = world.data / "nobody.kubeconfig"
        path.write_text(json.dumps(config))
        return path


def compact():
    """Forgets all of etcd's past, by its own JSON gateway."""
    def ask(path, body):
        request = urllib.request.Request(f"http://127.0.0.1:2379/v3/kv/{path}", json.dumps(body).encode())
        return json.load(urllib.request.urlopen(request, timeout=10))
    now = ask("range", {"key": "AA=="})["header"]["revision"]
    ask("compaction", {"revision": now, "physical": True})


if __name__ == "__main__":
    unittest.main()
