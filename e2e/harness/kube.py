"""kubectl and helm against one cluster."""
import json
import os
import subprocess

from .wait import until


class CommandFailed(AssertionError):
    """The message holds the command and all that it printed."""


def command(argv, stdin=None, env=None, seconds=120):
    done = subprocess.run([str(a) for a in argv], input=stdin, env={**os.environ, **(env or {})}, text=True,
                          capture_output=True, timeout=seconds)
    if done.returncode:
        raise CommandFailed(f"{' '.join(map(str, argv))}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Kube:
    def __init__(self, tools, kubeconfig):
        self.tools, self.kubeconfig = tools, kubeconfig

    def kubectl(self, *args, stdin=None, seconds=120):
        return command([self.tools / "kubectl", "--kubeconfig", self.kubeconfig, *args], stdin, seconds=seconds)

    def helm(self, *args, seconds=180):
        return command([self.tools / "helm", "--kubeconfig", self.kubeconfig, *args], seconds=seconds)

    def json(self, *args):
        return json.loads(self.kubectl(*args, "-o", "json"))

    def get(self, kind, name, namespace="default"):
        return self.json("-n", namespace, "get", kind, name)

    def apply(self, manifests, namespace=None):
        return self.kubectl(*(["-n", namespace] if namespace else []), "apply", "-f", "-", stdin=manifests)

    def refused(self, manifests, namespace="default"):
        """The message with which the API server refuses; fails when it accepts."""
        try:
            self.apply(manifests, namespace)
        except CommandFailed as e:
            # by its rules, not because it does not know the kind or does not answer
            if "is invalid" in str(e) or "is forbidden" in str(e) or "strict decoding" in str(e):
                return str(e)
            raise
        raise AssertionError(f"accepted, and should not be:\n{manifests}")

    def established(self, crd):
        """Waits until its objects can be made. For a moment after it was applied its conditions are null, which kubectl
        takes for an error and not for something to wait for."""
        until(f"{crd} is established", lambda: self.kubectl("wait", "--for=condition=Established", f"crd/{crd}"), every=0.2)

    def namespace(self, name, **labels):
        self.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
        return name

    def condition(self, kind, name, condition, namespace="default"):
        """One condition with its observedGeneration, or {} while there is none."""
        found = self.get(kind, name, namespace)
        for c in found.get("status", {}).get("conditions", []):
            if c["type"] == condition:
                return {**c, "current": c.get("observedGeneration") == found["metadata"]["generation"]}
        return {}

    def wait(self, kind, name, condition, namespace="default", seconds=30):
        self.kubectl("-n", namespace, "wait", f"--for=condition={condition}", f"{kind}/{name}", f"--timeout={seconds}s")

    def delete(self, *args):
        self.kubectl("delete", "--ignore-not-found", "--wait=false", *args)
