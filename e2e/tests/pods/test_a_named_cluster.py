"""E2E_KUBECONFIG: a user's own cluster, played by this one. Only the named one is touched, and it is left as it was."""
import os
import subprocess
import unittest

from harness import ROOT, world

MADE = "portcullis"


@world.needs_own_node
class Named(unittest.TestCase):
    """The first of the part, while the cluster is empty."""

    def pods(self, *, only, **env):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("E2E_")}
        # KUBECONFIG and the context in it must mean nothing here.
        env = {**kept, "PORTCULLIS_BIN": str(world.binary), "KUBECONFIG": str(world.kube.kubeconfig),
               "E2E_IMAGE": world.image, **env}
        with world.node.balancing():
            return subprocess.run([ROOT / "e2e/run", "pods", "-k", only], env=env, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=240)

    def made(self):
        listed = world.kube.kubectl("get", "namespaces,crds,clusterroles,clusterrolebindings", "-o", "name")
        return [name for name in listed.split() if MADE in name]

    def test_1_no_other_cluster_is_touched(self):
        dead = world.data / "dead.kubeconfig"
        dead.write_text(world.kube.kubeconfig.read_text().replace(":6443", ":1"))
        ran = self.pods(only="columns", E2E_KUBECONFIG=str(dead))
        self.assertNotEqual(ran.returncode, 0, ran.stdout)
        self.assertEqual(self.made(), [])

    def test_2_the_named_one_is_used_and_left_as_it_was(self):
        ran = self.pods(only="columns", E2E_KUBECONFIG=str(world.kube.kubeconfig))
        self.assertEqual(ran.returncode, 0, ran.stdout)
        self.assertRegex(ran.stdout, r"columns\S* \.\.\. (?s:.*)ok")
        self.assertEqual(self.made(), [])

    def test_3_one_that_has_portcullis_is_refused(self):
        world.kube.kubectl("apply", "-f", ROOT / "crds")
        self.addCleanup(world.kube.kubectl, "delete", "-f", ROOT / "crds")
        ran = self.pods(only="columns", E2E_KUBECONFIG=str(world.kube.kubeconfig))
        self.assertNotEqual(ran.returncode, 0, ran.stdout)
        self.assertIn("without Portcullis", ran.stdout)
        self.assertEqual(len(self.made()), len(list((ROOT / "crds").iterdir())), "it must not remove what it did not make")


if __name__ == "__main__":
    unittest.main()
