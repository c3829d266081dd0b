"""What a real API server says to the CRDs and to the chart's objects, before any gateway looks."""
import json
import unittest

from harness import ROOT, world
from harness.gateways import route
from harness.kube import CommandFailed, command
from harness.wait import until


class Api(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kube = world.kube
        cls.kube.kubectl("apply", "-f", ROOT / "crds")  # plainly: it fits into kubectl's annotation
        cls.kube.established("gatewayroutes.portcullis.dev")
        cls.kube.namespace("api")
        until("kubectl knows it", lambda: "gwr" in cls.kube.kubectl("api-resources"))

    def test_every_case_of_the_schema(self):
        """Those that must be refused, with the words of the refusal, and those that must not."""
        env = {"KUBECTL": str(world.tools / "kubectl"), "KUBECONFIG": str(self.kube.kubeconfig), "NAMESPACE": "api"}
        print(command([ROOT / "tests/crd/check.sh"], env=env, seconds=300).strip(), end=" ... ")

    def test_unknown_field_is_refused_by_kubectl(self):
        self.assertIn("retries", self.kube.refused(route("u", "u.test", spec={"retries": 3}), "api"))

    def test_status_is_a_subresource(self):
        spec = json.loads(route("s", "s.test"))
        spec["status"] = {"conditions": [{"type": "Programmed", "status": "True", "reason": "Forged", "message": "",
                                          "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        self.kube.apply(json.dumps(spec), "api")
        self.assertEqual(self.kube.get("gwr", "s", "api").get("status", {}), {})

    def test_every_field_is_explained(self):
        def bare(schema, path):
            for name, field in schema.get("properties", {}).items():
                here = f"{path}.{name}"
                # the second copy of the policy schema goes without, for size
                if not field.get("description") and not here.startswith(".spec.policy"):
                    yield here
                yield from bare(field, here)
                yield from bare(field.get("items", {}), here + "[]")
        for kind in "gatewayroutes", "gatewaybackends", "gatewaypolicies":
            crd = self.kube.json("get", "crd", f"{kind}.portcullis.dev")
            schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            self.assertEqual([p for p in bare(schema["properties"]["spec"], ".spec")], [], kind)

    def test_the_chart_is_taken_without_a_warning(self):
        for name in "taken", "pay":
            self.kube.namespace(name, **{"pod-security.kubernetes.io/enforce": "restricted",
                                         "pod-security.kubernetes.io/warn": "restricted"})
        for values in "kind=Deployment", "kind=DaemonSet", "watchNamespaces={pay}", "service.type=NodePort":
            with self.subTest(values):
                text = command([world.tools / "helm", "template", "gw", ROOT / "charts/portcullis", "-n", "taken", "--set", values])
                out = self.apply_dry(text)
                self.assertIn("created (server dry run)", out)
        loose = text.replace("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true")
        with self.assertRaisesRegex(CommandFailed, "PodSecurity"):  # the control
            self.apply_dry(loose)

    def apply_dry(self, text):
        kubectl = [world.tools / "kubectl", "--kubeconfig", self.kube.kubeconfig, "--warnings-as-errors"]
        return command([*kubectl, "apply", "--dry-run=server", "-f", "-"], stdin=text)


if __name__ == "__main__":
    unittest.main()
