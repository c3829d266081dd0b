"""GatewayPolicies on a real API server: who may say what for whom, which of several counts, and how one is told."""
import json
import unittest

from harness import gateways, world
from harness.gateways import NAMESPACE as INSTALLATION
from harness.gateways import route
from harness.kube import command
from harness.wait import hold, until

NS = "policies"
NAMESPACE, EVERYTHING = {"kind": "Namespace"}, {"kind": "Installation"}


def policy(name, members, *targets, precedence=None):
    spec = {"policy": members, **({"targetRefs": list(targets)} if targets else {}),
            **({"precedence": precedence} if precedence else {})}
    return json.dumps({"apiVersion": "portcullis.dev/v1alpha1", "kind": "GatewayPolicy", "metadata": {"name": name}, "spec": spec})


def layer(word):
    """A setting that tells which policy gave it."""
    return {"response": {"headers": {"set": [{"name": "x-layer", "value": word}]}}}


def needs(header):
    """A gate: requests without this field are refused."""
    return {"validation": {"headers": [{"name": header, "required": True}]}}


class Policies(gateways.ThreeReplicas):
    namespace, echo_number = NS, 3

    def setUp(self):
        self.applied = []

    def tearDown(self):
        for name, namespace in self.applied:
            self.kube.delete("-n", namespace, "gwp", name)
        for name, namespace in self.applied:
            until(f"{name} is gone", lambda: name not in self.kube.kubectl("-n", namespace, "get", "gwp", "-o", "name"))

    def policy(self, name, members, *targets, namespace=NS, precedence=None):
        self.kube.apply(policy(name, members, *targets, precedence=precedence), namespace)
        self.applied.append((name, namespace))

    def route(self, name, *refs, rule_policy=None, route_policy=None):
        rule = {"name": "all", "backendRefs": [{"name": "echo", "port": 80}], **({"policy": rule_policy} if rule_policy else {})}
        spec = {**({"policyRefs": [{"name": r} for r in refs]} if refs else {}), **({"policy": route_policy} if route_policy else {})}
        self.kube.apply(route(name, f"{name}.test", rules=[rule], spec=spec), NS)

    def layer(self, name, word):
        self.everywhere(f"{name} has {word}", lambda g: g.get(f"{name}.test").headers.get("x-layer") == word)

    def condition(self, name, kind, namespace=NS):
        """As this installation wrote it about this generation."""
        found = self.kube.get("gwp", name, namespace)
        ours = [i for i in found.get("status", {}).get("installations", []) if i["name"] == "portcullis"]
        return next((c for i in ours for c in i["conditions"] if c["type"] == kind
                     and c["observedGeneration"] == found["metadata"]["generation"]), {})

    def said(self, name, kind, status, reason, namespace=NS):
        def seen():
            c = self.condition(name, kind, namespace)
            self.assertEqual((c.get("status"), c.get("reason")), (status, reason), c)
            return c
        return until(f"{kind}={status}/{reason} of {name}", seen)

    def test_the_most_specific_default_counts(self):
        self.policy("of-all", layer("installation"), EVERYTHING, namespace=INSTALLATION)
        self.route("depth")
        self.layer("depth", "installation")
        self.policy("of-namespace", layer("namespace"), NAMESPACE)
        self.layer("depth", "namespace")
        self.policy("of-route", layer("route's target"), {"kind": "GatewayRoute", "name": "depth"})
        self.layer("depth", "route's target")
        self.policy("shared", layer("reference"))
        self.route("depth", "shared")
        self.layer("depth", "reference")
        self.route("depth", "shared", route_policy=layer("route"))
        self.layer("depth", "route")
        self.policy("of-rule", layer("rule's target"), {"kind": "GatewayRoute", "name": "depth", "sectionName": "all"})
        self.layer("depth", "rule's target")
        self.route("depth", "shared", route_policy=layer("route"), rule_policy=layer("rule"))
        self.layer("depth", "rule")
        self.said("of-all", "Programmed", "True", "Programmed", INSTALLATION)
        # Back again: what is deleted ends.
        self.kube.kubectl("-n", NS, "delete", "gwp", "of-namespace", "of-route", "of-rule")
        self.route("depth")
        self.layer("depth", "installation")

    def test_what_is_imposed_wins_and_gates_add_up(self):
        self.route("imposed", rule_policy={**layer("rule"), **needs("X-Team")})
        asked = lambda *names: lambda g: g.get("imposed.test", headers=dict.fromkeys(names, "1"))
        self.everywhere("the rule's own gate", lambda g: (asked()(g).status, asked("X-Team")(g).status) == (400, 200))
        self.layer_with("imposed", "rule", "X-Team")
        self.policy("mild", layer("namespace"), NAMESPACE, precedence="Override")
        self.layer_with("imposed", "namespace", "X-Team")
        self.policy("strict", {**layer("installation"), **needs("X-Platform")}, EVERYTHING, namespace=INSTALLATION,
                    precedence="Override")
        both = asked("X-Team", "X-Platform")
        self.everywhere("both gates", lambda g: (
            asked("X-Team")(g).status, asked("X-Platform")(g).status, both(g).status) == (400, 400, 200))
        self.everywhere("the strongest setting", lambda g: both(g).headers["x-layer"] == "installation")
        said = command([world.binary, "explain", "GET", "http://imposed.test/", "--kubeconfig", self.gateways.kubeconfig,
                        "--namespace", INSTALLATION], env={"KUBECONFIG": "/dev/null"})
        self.assertIn(f"response (imposed by GatewayPolicy {INSTALLATION}/strict on the installation)", said)
        self.assertRegex(said, r"validation \(.*rule.*\)")
        self.assertIn(f"validation (imposed by GatewayPolicy {INSTALLATION}/strict on the installation)", said)

    def layer_with(self, name, word, header):
        self.everywhere(f"{name} has {word}", lambda g: g.get(f"{name}.test", headers={header: "1"}).headers.get("x-layer") == word)

    def test_only_the_installations_namespace_targets_more_than_itself(self):
        self.route("tenant")
        self.programmed("tenant")
        labels = {"matchLabels": {"kubernetes.io/metadata.name": NS}}
        for name, target in ("grab-all", EVERYTHING), ("grab-labels", {**NAMESPACE, "selector": labels}):
            self.policy(name, layer("grabbed"), target, precedence="Override")
            message = self.said(name, "Accepted", "False", "TargetNotPermitted")["message"]
            self.assertIn("targetRefs[0]", message)
        hold("nobody is grabbed", lambda: all("x-layer" not in g.get("tenant.test").headers for g in self.gateways.replicas), 1)
        # The control: the same by label from the installation's namespace.
        self.policy("by-label", layer("by label"), {**NAMESPACE, "selector": labels}, namespace=INSTALLATION)
        self.layer("tenant", "by label")

    def test_of_two_on_one_target_the_older_wins_and_the_other_is_told(self):
        self.route("two")
        self.policy("z-older", layer("older"), NAMESPACE)
        self.layer("two", "older")
        self.later_than("gwp", "z-older")
        self.policy("a-younger", layer("younger"), NAMESPACE)
        told = self.said("a-younger", "Accepted", "False", "Conflicted")
        self.assertIn(f"{NS}/z-older", told["message"])
        self.said("z-older", "Accepted", "True", "Accepted")
        self.layer("two", "older")
        self.kube.kubectl("-n", NS, "delete", "gwp", "z-older")
        self.layer("two", "younger")
        self.said("a-younger", "Accepted", "True", "Accepted")

    def test_a_policy_that_is_not_there_closes_its_rules_only(self):
        self.route("refers", "to-come")
        self.route("beside")
        self.programmed("beside")
        self.everywhere("closed", lambda g: (a := g.get("refers.test")).status == 503 and b"PolicyInvalid" in a.body)
        self.everywhere("served", lambda g: g.get("beside.test").status == 200)
        until("it is told", lambda: self.kube.condition("gwr", "refers", "ResolvedRefs", NS)["reason"] == "PolicyNotFound")
        self.policy("to-come", layer("came"))
        self.layer("refers", "came")


if __name__ == "__main__":
    unittest.main()
