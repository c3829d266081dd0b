"""Several tenants on one gateway: what it may read and does read of them, whom it serves, who may claim which name."""
import base64
import json
import re
import secrets
import unittest

from harness import gateways
from harness.gateways import route
from harness.kube import CommandFailed
from harness.wait import hold, until

NS = "tenants"
LABEL = "portcullis.dev/api-keys"


def keyed(**found_by):
    return {"policy": {"authentication": {"failures": {"requests": 0}, "anyOf": [{"name": "partners", "apiKey": found_by}]}}}


def secret(name, data, **labels):
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": data})


def found_in_memory(pid, *needles):
    """Those that are anywhere in the memory that a process can write."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            start, end = (int(x, 16) for x in span.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
                found.update(n for n in needles if n in content)
            except (OSError, ValueError):
                continue  # gone meanwhile, or the kernel's
    return found


class Tenants(gateways.ThreeReplicas):
    namespace, echo_number = NS, 5

    def upgrade(self, *values):
        """The release with other rights, and its own again at the end of the test."""
        self.addCleanup(self.own_values)
        self.own_values(*values)

    def own_values(self, *more):
        argv = ["upgrade", gateways.RELEASE, gateways.CHART, "-n", gateways.NAMESPACE, "--reset-values", "--set", gateways.VALUES]
        self.kube.helm(*argv, *(f for v in more for f in ("--set", v)))

    def anew(self, *flags):
        """The first replica, started again with these flags."""
        gateway = self.gateways.replicas[0]
        own, gateway.argv = gateway.argv, [*gateway.argv, *flags]
        self.addCleanup(self.gateways.start, 1)
        self.addCleanup(setattr, gateway, "argv", own)
        self.addCleanup(gateway.stop)
        gateway.stop()
        gateway.start()
        until("ready", gateway.ready)
        return gateway

    def can(self, verb, what, namespace=NS):
        """Whether the release's own account may."""
        who = f"--as=system:serviceaccount:{gateways.NAMESPACE}:{gateways.NAME}"
        try:
            self.kube.kubectl("auth", "can-i", verb, what, "-n", namespace, who)
        except CommandFailed:
            return False
        return True

    def message(self, name, kind="ResolvedRefs", namespace=NS):
        return self.kube.condition("gwr", name, kind, namespace)

    def status(self, gateway, host, key):
        return gateway.get(host, headers={"X-Api-Key": key}).status

    def test_only_what_is_named_is_in_memory(self):
        named, stranger = secrets.token_hex(24), secrets.token_hex(24)
        self.kube.apply(secret("held", {"key": named}), NS)
        self.kube.apply(secret("stranger", {"key": stranger}), NS)
        tls = json.loads(self.pki.secret("stranger-tls", NS, "nobody.test")[0])
        self.kube.apply(json.dumps(tls))
        self.kube.apply(route("held", "held.test", spec=keyed(secretRef={"name": "held"})), NS)
        self.programmed("held")
        g = self.gateways.replicas[0]
        until("its key counts", lambda: self.status(g, "held.test", named) == 200)
        # As the API has it, and as it is.
        needles = {name: {key.encode(), base64.b64encode(key.encode())} for name, key in (("held", named), ("stranger", stranger))}
        # Behind what all keys of a kind begin with.
        private = tls["data"]["tls.key"].encode()[128:192]
        found = found_in_memory(g.pid, *needles["held"], *needles["stranger"], private)
        self.assertTrue(found & needles["held"], "the control: what is named can be found")
        self.assertFalse(found - needles["held"], "a Secret that nobody names")
        # It is the naming that counts: with a route for it, it is there.
        self.kube.apply(route("held", "held.test", spec=keyed(secretRef={"name": "stranger"})), NS)
        until("it is read now", lambda: found_in_memory(g.pid, *needles["stranger"]), every=1)

    def test_many_names_of_a_namespace_are_one_watch(self):
        many = self.kube.namespace("many")
        gateways.service("echo", many, self.echo)
        keys = {f"k{n}": secrets.token_hex(16) for n in range(40)}
        self.kube.apply("\n---\n".join(secret(name, {"key": key}) for name, key in keys.items()), many)
        before = self.secret_watches()
        self.kube.apply("\n---\n".join(route(name, f"{name}.many.test", spec=keyed(secretRef={"name": name})) for name in keys), many)
        self.programmed("k39", many)
        for g in self.gateways.replicas:
            for name, key in keys.items():
                until(f"{name} counts", lambda: self.status(g, f"{name}.many.test", key) == 200)
        more = until("the single watches have ended", lambda: (n := self.secret_watches() - before) <= 17 * 3 and n)
        print(f"\n{len(keys)} names: {more} more watches by three replicas", end=" ... ")
        new = secrets.token_hex(16)
        self.kube.apply(secret("k7", {"key": new}), many)
        self.everywhere("one of them changes", lambda g: (
            self.status(g, "k7.many.test", keys["k7"]), self.status(g, "k7.many.test", new)) == (401, 200))

    def secret_watches(self):
        """Those that the API server serves now, whoever asked."""
        text = self.kube.kubectl("get", "--raw", "/metrics")
        found = re.findall(r'^apiserver_longrunning_requests\{[^}]*resource="secrets"[^}]*verb="WATCH"[^}]*\} (\d+)$', text, re.M)
        return sum(map(int, found))

    def test_with_names_these_secrets_alone_can_be_read(self):
        mine, other = secrets.token_hex(16), secrets.token_hex(16)
        self.kube.apply(secret("mine", {"key": mine}, **{LABEL: "names"}), NS)
        self.kube.apply(secret("other", {"key": other}, **{LABEL: "names"}), NS)
        self.kube.apply(self.pki.secret("may-tls", NS, "may.test")[0])
        self.kube.apply(self.pki.secret("may-not-tls", NS, "may-not.test")[0])
        self.upgrade("rbac.secrets=names", f"rbac.secretNames.{NS}={{mine,may-tls}}")
        self.assertTrue(self.can("get", "secret/mine") and self.can("watch", "secret/mine"))
        self.assertFalse(self.can("get", "secret/other") or self.can("list", "secrets") or self.can("get", "secret/mine", "default"))
        g = self.anew()  # what was read before stays with those that run
        self.kube.apply(route("by-name", "may.test", spec={**keyed(secretRef={"name": "mine"}), "tls": {
            "certificateRefs": [{"name": "may-tls"}]}}), NS)
        self.kube.apply(route("not-mine", "not-mine.test", spec=keyed(secretRef={"name": "other"})), NS)
        self.kube.apply(route("by-label", "by-label.test", spec=keyed(secretSelector={"matchLabels": {LABEL: "names"}})), NS)
        self.kube.apply(route("no-tls", "may-not.test", spec={"tls": {"certificateRefs": [{"name": "may-not-tls"}]}}), NS)
        self.kube.apply(route("plain", "plain.test"), NS)
        until("by name", lambda: g.get("may.test", ca=self.pki.cert, headers={"X-Api-Key": mine}).status == 200)
        until("the rest goes on", lambda: g.get("plain.test").status == 200)
        for name, host in ("not-mine", "not-mine.test"), ("by-label", "by-label.test"):
            until(f"{name} is closed", lambda: (a := g.get(host, headers={"X-Api-Key": other})).status == 503 and b"PolicyInvalid" in a.body)
        with self.assertRaises(OSError):
            g.get("may-not.test", ca=self.pki.cert)
        # Said by whoever leads; the others have read all of it before.
        self.alone(g)
        for name, what in ("not-mine", f"Secret {NS}/other"), ("by-label", f"namespace {NS}"), ("no-tls", f"Secret {NS}/may-not-tls"):
            told = until(f"{name} is told", lambda: (c := self.message(name))["reason"] == "RefNotPermitted" and c)
            self.assertIn(what, told["message"])
            self.assertIn("rbac.secrets", told["message"])
        # The control: more rights, and it is served without a restart.
        self.upgrade("rbac.secrets=names", f"rbac.secretNames.{NS}={{mine,may-tls,other}}")
        until("it may be read", lambda: self.status(g, "not-mine.test", other) == 200, 40)
        self.assertEqual(self.status(g, "by-label.test", other), 503)

    def alone(self, gateway):
        others = [g for g in self.gateways.replicas if g is not gateway]
        for g in others:
            g.stop()
        self.addCleanup(self.gateways.start, *(self.gateways.replicas.index(g) + 1 for g in others))
        self.gateways.publish(self.gateways.replicas.index(gateway) + 1)
        until("it leads", lambda: self.gateways.leader() is gateway, 40)

    def test_with_namespaces_those_of_the_others_cannot_be_read(self):
        there = self.kube.namespace("not-listed")
        gateways.service("echo", there, self.echo)
        key = secrets.token_hex(16)
        for namespace in NS, there:
            self.kube.apply(secret("partner", {"key": key}, **{LABEL: "ns"}), namespace)
        self.upgrade("rbac.secrets=namespaces", f"rbac.secretNamespaces={{{NS}}}")
        g = self.anew()
        for namespace in NS, there:
            self.kube.apply(route("ns-label", f"{namespace}.test", spec=keyed(secretSelector={"matchLabels": {LABEL: "ns"}})), namespace)
        until("by label", lambda: self.status(g, f"{NS}.test", key) == 200)
        until("closed", lambda: self.status(g, f"{there}.test", key) == 503)

    def test_watched_namespaces_need_no_more_than_their_roles(self):
        there = self.kube.namespace("not-watched")
        gateways.service("echo", there, self.echo)
        key, next_key = secrets.token_hex(16), secrets.token_hex(16)
        self.kube.apply(secret("watched", {"key": key}), NS)
        self.upgrade(f"watchNamespaces={{{NS}}}")
        for verb, what, namespace, may in [
                ("list", "gatewayroutes", NS, True), ("list", "gatewayroutes", there, False),
                ("watch", "endpointslices", NS, True), ("watch", "endpointslices", there, False)]:
            self.assertEqual(self.can(verb, what, namespace), may, (verb, what, namespace))
        g = self.anew("--watch-namespaces", NS)
        self.alone(g)
        # Before the others start again: they watch the whole cluster.
        self.addCleanup(self.own_values)
        for namespace in NS, there:
            self.kube.apply(route("watched", f"watched.{namespace}.test", spec=keyed(secretRef={"name": "watched"})), namespace)
        until("it is served, by its key", lambda: self.status(g, f"watched.{NS}.test", key) == 200)
        until("its status is written", lambda: self.message("watched", "Programmed")["status"] == "True", 40)
        self.kube.apply(secret("watched", {"key": next_key}), NS)
        until("a change is seen", lambda: (self.status(g, f"watched.{NS}.test", key), self.status(g, f"watched.{NS}.test", next_key)) == (401, 200))
        self.assertEqual(self.status(g, f"watched.{there}.test", key), 404)
        metrics = g.admin("/metrics").body.decode()
        self.assertIn("portcullis_build_info{", metrics)
        refused = re.findall(r"^portcullis_watch_errors_total\{.*\} [1-9].*$", metrics, re.M)
        self.assertEqual(refused, [], "nothing is asked for that the Roles do not grant")

    def test_only_selected_namespaces_are_served(self):
        inside, outside = self.kube.namespace("inside", team="web"), self.kube.namespace("outside", team="lab")
        for namespace in inside, outside:
            self.kube.apply(route("sel", "sel.test" if namespace == inside else "sel-out.test",
                                  rules=[{"name": "all", "respond": {"status": 200, "text": namespace}}]), namespace)
        g = self.anew("--namespace-selector", "team=web")
        until("served", lambda: g.get("sel.test").status == 200)
        hold("the other is not there", lambda: g.get("sel-out.test").status == 404, 1)
        self.kube.kubectl("label", "namespace", outside, "team=web", "--overwrite")
        until("served once it has the label", lambda: g.get("sel-out.test").status == 200)
        self.kube.kubectl("label", "namespace", outside, "team-")
        until("and no longer", lambda: g.get("sel-out.test").status == 404)

    def test_listed_hostnames_are_claimed_by_those_that_list_them_alone(self):
        a, b = self.kube.namespace("claims-a"), self.kube.namespace("claims-b")
        self.kube.kubectl("annotate", "namespace", a, "portcullis.dev/hostnames=shop.listed.test,*.a.listed.test")
        for name, hosts, namespace in ("squatter", ["shop.listed.test", "x.a.listed.test"], b), ("owner", ["shop.listed.test", "x.a.listed.test"], a):
            self.kube.apply(route(name, "x", spec={"hostnames": hosts},
                                  rules=[{"name": "all", "respond": {"status": 200, "text": namespace}}]), namespace)
            self.later_than("gwr", name, namespace)
        g = self.anew("--hostnames", "Listed")
        for host in "shop.listed.test", "x.a.listed.test":
            until("the younger owner answers", lambda: g.get(host).body == a.encode())
        self.alone(g)
        told = until("the squatter is told", lambda: (c := self.message("squatter", "Accepted", b))["reason"] == "HostnameConflict" and c)
        self.assertIn("portcullis.dev/hostnames", told["message"])
        # Given over by the annotation, while it runs; the older claim counts then.
        self.kube.kubectl("annotate", "namespace", b, "portcullis.dev/hostnames=shop.listed.test")
        until("the squatter owns it now", lambda: g.get("shop.listed.test").body == b.encode())
        self.assertEqual(g.get("x.a.listed.test").body, a.encode())


if __name__ == "__main__":
    unittest.main()
