"""Gateway processes beside a control plane without nodes, and backends for them.

The chart is installed with no replicas, so that its RBAC, peer Service and token are the ones in use; the processes
stand in for its Pods, with addresses and names of their own and a hand-made EndpointSlice."""
import base64
import json
import os
import signal
import time
import unittest
from datetime import datetime

from . import ROOT, cluster, traffic, world
from .pki import Authority
from .process import Process
from .wait import until

NAMESPACE = "gateway"
CHART = ROOT / "charts" / "portcullis"
RELEASE = "gw"
NAME = f"{RELEASE}-portcullis"
VALUES = "replicas=0,service.type=ClusterIP"


class Gateway(Process):
    def __init__(self, number, kubeconfig, token, *flags):
        self.address, pod = f"10.244.0.{10 + number}", f"gw-{number}"
        argv = [world.binary, "run", "--kubeconfig", kubeconfig, "--http", f"{self.address}:8080",
                "--https", f"{self.address}:8443", "--admin", f"{self.address}:9090", "--peer", f"{self.address}:9091",
                "--peer-service", f"{NAME}-peers", "--peer-token-file", token, "--lease-name", NAME,
                "--access-log", "off", "--workers", "1", "--drain-delay", "1s", *flags]
        env = {"POD_NAME": pod, "POD_NAMESPACE": NAMESPACE, "POD_IP": self.address, "RUST_LOG": "info"}
        super().__init__(pod, argv, world.data / "log" / f"{pod}.log", env)

    def admin(self, path):
        return traffic.get(self.address, self.address, path, port=9090)

    def ready(self):
        return self.running() and self.admin("/readyz").status == 200

    def get(self, host, path="/", **more):
        return traffic.get(self.address, host, path, port=8443 if more.get("ca") else 8080, **more)

    def pause(self):
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)


class Installation:
    """What helm made, and up to three replicas."""

    def __init__(self):
        kube = world.kube
        if NAMESPACE not in kube.kubectl("get", "namespaces", "-o", "name"):
            kube.namespace(NAMESPACE)
            kube.helm("install", RELEASE, CHART, "-n", NAMESPACE, "--set", VALUES)
            until("the API knows GatewayRoutes", lambda: "gwr" in kube.kubectl("api-resources"))
        token = kube.kubectl("-n", NAMESPACE, "create", "token", NAME, "--duration=4h").strip()
        self.kubeconfig = world.data / "gateway.kubeconfig"
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": cluster.API, "certificate-authority": str(world.control_plane.pki / "ca.crt")}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}]}))
        self.token = world.data / "peer-token"
        self.token.write_bytes(base64.b64decode(kube.get("secret", f"{NAME}-peers", NAMESPACE)["data"]["token"]))
        os.chmod(self.token, 0o400)
        self.replicas = [Gateway(n, self.kubeconfig, self.token) for n in (1, 2, 3)]

    def start(self, *numbers):
        started = [self.replicas[n - 1] for n in numbers]
        for g in started:
            g.start()
        self.publish(*numbers)
        for g in started:
            until(f"{g.name} is ready", g.ready)
        return started

    def publish(self, *ready, starting=()):
        """The EndpointSlice of the peer Service, as the controller would write it for Pods."""
        endpoints = [{"addresses": [self.replicas[n - 1].address], "targetRef": {"kind": "Pod", "name": f"gw-{n}"},
                      "conditions": {"ready": n in ready, "serving": n in ready, "terminating": False}}
                     for n in (*ready, *starting)]
        world.kube.apply(endpoint_slice(f"{NAME}-peers", endpoints, 9091, "peer"), NAMESPACE)

    def leader(self):
        holder = world.kube.get("lease", NAME, NAMESPACE)["spec"].get("holderIdentity") or ""
        return next((g for g in self.replicas if g.running() and holder.startswith(g.name)), None)

    def stop(self):
        for g in self.replicas:
            g.stop()


class Echo(Process):
    """A backend with an address like a Pod's, its Service and its EndpointSlice."""

    def __init__(self, number, name):
        self.address = f"10.244.0.{100 + number}"
        super().__init__(name, [world.binary, "echo", "--listen", f"{self.address}:8080", "--name", name],
                         world.data / "log" / f"{name}.log")


class ThreeReplicas(unittest.TestCase):
    """Three gateways, and a backend with the Service `echo` in the namespace of the tests."""
    namespace = None
    echo_number = None  # another for each class

    @classmethod
    def setUpClass(cls):
        cls.kube = world.kube
        cls.kube.namespace(cls.namespace)
        cls.gateways = Installation()
        cls.addClassCleanup(cls.gateways.stop)
        cls.echo = Echo(cls.echo_number, f"echo-{cls.echo_number}").start()
        cls.addClassCleanup(cls.echo.stop)
        service("echo", cls.namespace, cls.echo)
        cls.pki = Authority(world.data / "tests-pki")
        cls.gateways.start(1, 2, 3)

    def programmed(self, name, namespace=None, seconds=60):
        self.kube.wait("gwr", name, "Programmed", namespace or self.namespace, seconds)

    def everywhere(self, what, seen, seconds=10, every=0.1):
        """Waits until `seen` is true of every replica."""
        for g in self.gateways.replicas:
            until(f"{what} by {g.name}", lambda: seen(g), seconds, every)

    def later_than(self, kind, name, namespace=None):
        """Whatever is created now is younger: the API's timestamps are whole seconds."""
        created = self.kube.get(kind, name, namespace or self.namespace)["metadata"]["creationTimestamp"]
        second = datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp()
        until(f"the second of {name} is over", lambda: time.time() >= second + 1, 5, every=0.02)


def service(name, namespace, *backends):
    """A Service without selector over these backends."""
    world.kube.apply(json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                                 "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}), namespace)
    endpoints = [{"addresses": [b.address], "conditions": {"ready": True}} for b in backends]
    world.kube.apply(endpoint_slice(name, endpoints, 8080, "http"), namespace)


def endpoint_slice(service_name, endpoints, port, port_name):
    return json.dumps({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": f"{service_name}-tests", "labels": {"kubernetes.io/service-name": service_name,
                                                                 "endpointslice.kubernetes.io/managed-by": "tests"}},
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}]})


def route(name, host, *, service="echo", path="/", spec=None, rules=None):
    """A GatewayRoute as JSON: one rule to one Service, or the given rules."""
    rules = rules or [{"name": "all", "matches": [{"path": {"type": "PathPrefix", "value": path}}],
                       "backendRefs": [{"name": service, "port": 80}]}]
    return json.dumps({"apiVersion": "portcullis.dev/v1alpha1", "kind": "GatewayRoute", "metadata": {"name": name},
                       "spec": {"hostnames": [host], "rules": rules, **(spec or {})}})
