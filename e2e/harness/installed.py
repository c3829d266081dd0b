"""The chart installed by helm in a namespace of Pod security `restricted`, with echo backends, on a real node."""
import ipaddress
import json
import time

from . import ROOT, world
from .pki import Authority
from .traffic import Loads
from .wait import until

NAMESPACE, SHOP = ("portcullis-e2e", "portcullis-e2e-shop") if world.named() else ("gateway", "shop")
EXAMPLES = ["demo", "quickstart"]  # namespaces that files of examples/ name
CHART, RELEASE = ROOT / "charts" / "portcullis", "gw"
NAME = f"{RELEASE}-portcullis"
LABELS = f"app.kubernetes.io/instance={RELEASE}"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def claim():
    """Refuses a cluster in which the run would meet something of its owner's."""
    ours = tuple(f"namespace/{name}" for name in (NAMESPACE, SHOP, *EXAMPLES))
    there = [n for n in world.kube.kubectl("get", "namespaces,crds", "-o", "name").split()
             if n in ours or n.endswith(".portcullis.dev")]
    if there:
        raise SystemExit(f"e2e: {' '.join(there)} are in this cluster already; the tests want one without Portcullis")


def remove():
    """All that the run made, in a cluster that goes on."""
    kube = world.kube
    if kube.helm("list", "-n", NAMESPACE, "-a", "-q").strip():
        kube.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
    kube.kubectl("delete", "namespace", NAMESPACE, SHOP, *EXAMPLES, "--ignore-not-found", "--timeout=170s", seconds=180)
    kube.kubectl("delete", "--ignore-not-found", "-f", CHART / "crds")


def install():
    """Once a run; later calls find it there."""
    if not world.installed:
        world.kube.namespace(NAMESPACE, **RESTRICTED)
        world.kube.namespace(SHOP, **RESTRICTED)
        upgrade("--install", "--set", f"egress.allow={{{services()}}}")
        until("the API knows GatewayRoutes", lambda: "gwr" in world.kube.kubectl("api-resources"))
        echo("echo")
        ingress = world.kube.get("service", NAME, NAMESPACE)["status"]["loadBalancer"]["ingress"][0]
        world.installed = Installed(ingress.get("ip") or ingress["hostname"])
    return world.installed


def services():
    """A network that holds the Services: hosts there are refused unless it is allowed."""
    address = ipaddress.ip_address(world.kube.get("service", "kubernetes", "default")["spec"]["clusterIP"])
    return ipaddress.ip_network(f"{address}/{12 if address.version == 4 else 64}", strict=False)


def upgrade(*more):
    repository, tag = world.image.rsplit(":", 1)
    own = ["--set", "image.pullPolicy=Never,resources.requests.cpu=300m"] if world.node else []
    argv = ["upgrade", RELEASE, CHART, "-n", NAMESPACE, "--wait", "--timeout", "120s", "--reuse-values", *own,
            "--set", f"image.repository={repository},image.tag={tag}", *more]
    if not world.node:
        return world.kube.helm(*argv)
    with world.node.balancing():
        return world.kube.helm(*argv)


def echo(name, replicas=2, namespace=SHOP, cpu="300m"):
    """The echo backend as a Deployment with its Service."""
    container = {
        "name": "echo", "image": world.image, "imagePullPolicy": "Never" if world.node else "IfNotPresent",
        "args": ["echo", "--listen", "0.0.0.0:8080", "--drain", "5s"],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": [{"containerPort": 8080}],
        # Without a share of the CPU it would be the first to starve on a busy machine.
        "resources": {"requests": {"cpu": cpu}},
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1,
                           "timeoutSeconds": 5, "failureThreshold": 3},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]}},
    }
    pod = {"terminationGracePeriodSeconds": 15, "containers": [container], "automountServiceAccountToken": False,
           "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}}
    world.kube.apply(json.dumps({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                 "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                 "template": {"metadata": {"labels": {"app": name}}, "spec": pod}}}), namespace)
    world.kube.apply(json.dumps({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}), namespace)
    world.kube.kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=60s")


class Installed:
    def __init__(self, address):
        self.address = address
        self.pki = Authority(world.data / "tests-pki")

    def secret(self, name, *hosts):
        manifest, serial = self.pki.secret(name, SHOP, *hosts)
        world.kube.apply(manifest)
        return serial

    def pods(self):
        """Those that live, as JSON."""
        found = world.kube.json("-n", NAMESPACE, "get", "pods", "-l", LABELS)["items"]
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    def leader(self):
        """The Pod that holds the Lease."""
        holder = world.kube.get("lease", NAME, NAMESPACE)["spec"].get("holderIdentity") or ""
        return next((p for p in self.pods() if holder.startswith(p["metadata"]["name"])), None)

    def loads(self, host, rate=200):
        return Loads(world.binary, world.data / "log", f"https://{host}/", f"{self.address}:443", self.pki.cert, rate)


def rollout(namespace, deployment):
    """A rolling update that has ended: the old Pods are gone, too."""
    kube = world.kube
    kube.kubectl("-n", namespace, "rollout", "restart", f"deployment/{deployment}")
    kube.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=180s", seconds=200)
    wanted = kube.get("deployment", deployment, namespace)
    labels = ",".join(f"{k}={v}" for k, v in wanted["spec"]["selector"]["matchLabels"].items())
    until("the old Pods are gone", lambda: len(kube.json("-n", namespace, "get", "pods", "-l", labels)["items"])
          == wanted["spec"]["replicas"], 90, every=0.5)
    return time.monotonic()
