"""A real Kubernetes in the run's own namespaces: a control plane, and one node for Pods.

The run lives in network, mount and process namespaces of its own (see isolation.py). So the addresses below
cannot meet anyone else's, and nothing is left behind when the run is killed."""
import contextlib
import itertools
import json
import os
import shutil
import ssl
import subprocess
import threading
import urllib.request
from pathlib import Path

from . import ROOT
from .kube import Kube, command
from .process import Process
from .wait import until

HOST, NODE = "10.77.0.1", "10.77.0.2"
PODS, SERVICES, BALANCERS = "10.244.0.0/24", "10.96.0.0/16", "10.77.1.0/24"
API = f"https://{HOST}:6443"
CLUSTER = ROOT / "e2e" / "cluster"
ECHO_IMAGE = GATEWAY_IMAGE = "portcullis.test/portcullis:e2e"


class ControlPlane:
    """etcd, kube-apiserver and kube-controller-manager; kube-scheduler where there is a node."""

    def __init__(self, tools, data):
        self.tools, self.data, self.pki = tools, data, data / "pki"
        self.kube = Kube(tools, self.pki / "admin.kubeconfig")
        self.processes = {}

    def start(self, scheduler):
        command([CLUSTER / "certs.sh", self.pki, API, HOST, NODE, "10.96.0.1", "node1"])
        pki = self.pki
        self.run("etcd", "--data-dir", self.data / "etcd", "--unsafe-no-fsync", "--log-level", "warn")
        self.run("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
                 f"--bind-address={HOST}", f"--advertise-address={HOST}", "--secure-port=6443",
                 f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
                 f"--client-ca-file={pki}/ca.crt",
                 f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
                 f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
                 f"--kubelet-certificate-authority={pki}/ca.crt",
                 "--kubelet-preferred-address-types=InternalIP",
                 "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                 f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key",
                 f"--service-cluster-ip-range={SERVICES}", "--authorization-mode=Node,RBAC",
                 "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true", "--profiling=false")
        self.wait_ready()  # the others give up soon where it is slow to start
        self.run("kube-controller-manager", f"--kubeconfig={pki}/controller-manager.kubeconfig",
                 "--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true",
                 f"--service-account-private-key-file={pki}/sa.key", f"--root-ca-file={pki}/ca.crt",
                 f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key",
                 "--cluster-cidr=10.244.0.0/16")
        if scheduler:
            self.run("kube-scheduler", f"--kubeconfig={pki}/scheduler.kubeconfig", "--bind-address=127.0.0.1",
                     "--leader-elect=false")
        # Pods are refused before this account is there.
        until("default service account", lambda: self.kube.get("serviceaccount", "default"))

    def run(self, name, *args):
        self.processes[name] = Process(name, [self.tools / name, *args], self.data / "log" / f"{name}.log").start()

    def wait_ready(self, seconds=90):
        tls = ssl.create_default_context(cafile=self.pki / "ca.crt")

        def ready():
            for p in self.processes.values():
                p.check()
            return urllib.request.urlopen(f"{API}/readyz", timeout=2, context=tls).status == 200
        until("the API server is ready", ready, seconds)

    def stop_api_server(self):
        # SIGKILL: a clean stop takes as long as the slowest watch, a crash is the harder case anyway.
        self.processes["kube-apiserver"].kill()

    def start_api_server(self):
        self.processes["kube-apiserver"].start()
        self.wait_ready()

    def stop(self):
        for p in reversed(self.processes.values()):
            p.stop(5)


class Node:
    """containerd, kubelet and kube-proxy in namespaces of their own, joined to the run's by a veth pair."""

    def __init__(self, control_plane, images, cgroup):
        self.cp, self.data, self.images, self.cgroup = control_plane, control_plane.data / "node", images, cgroup
        self.keeper = self.init = None
        self.addresses = (f"10.77.1.{n}" for n in itertools.count(10))

    def start(self):
        self.data.mkdir(parents=True)
        make_cgroups(self.cgroup)
        # overlayfs does not stack on itself, as in a checkout inside a container
        stacked = command(["stat", "-f", "-c", "%T", self.data]).strip() == "overlayfs"
        env = {"BIN": self.cp.tools, "CNI_BIN": "/usr/lib/cni", "DATA": self.data, "PKI": self.cp.pki,
               "IMAGES": self.images, "CGROUP": self.cgroup, "SNAPSHOTTER": "native" if stacked else "overlayfs",
               "NODE_IP": NODE, "HOST_IP": HOST}
        self.keeper = Process("node", ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child",
                                       "--mount-proc", "--propagation", "private", CLUSTER / "node.sh"],
                              self.data / "log" / "node.log", {k: str(v) for k, v in env.items()}).start()
        children = Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children")
        self.init = until("the node's first process", lambda: children.read_text().split())[0]
        command(["ip", "link", "add", "veth-node", "type", "veth", "peer", "name", "eth0", "netns", self.init])
        command(["ip", "addr", "add", f"{HOST}/24", "dev", "veth-node"])
        command(["ip", "link", "set", "veth-node", "up"])
        for r in PODS, SERVICES, BALANCERS:
            command(["ip", "route", "add", r, "via", NODE, "dev", "veth-node", "onlink"])

    def wait_ready(self):
        def ready():
            self.keeper.check()
            found = self.cp.kube.get("node", "node1")["status"]["conditions"]
            return any(c["type"] == "Ready" and c["status"] == "True" for c in found)
        until("the node is ready", ready, 120, every=0.3)

    @contextlib.contextmanager
    def balancing(self):
        """Gives Services of type LoadBalancer their addresses, as a cloud would; kube-proxy does the rest."""
        done = threading.Event()

        def loop():
            while not done.wait(0.5):
                for s in self.cp.kube.json("get", "services", "-A")["items"]:
                    if s["spec"]["type"] == "LoadBalancer" and not s["status"]["loadBalancer"]:
                        ingress = [{"ip": next(self.addresses), "ipMode": "VIP"}]
                        self.cp.kube.kubectl("-n", s["metadata"]["namespace"], "patch", "service", s["metadata"]["name"],
                                             "--subresource=status", "--type=merge", "-p",
                                             json.dumps({"status": {"loadBalancer": {"ingress": ingress}}}))
        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def kill_container(self, pod_uid, number=9):
        """Signals the processes of a Pod from outside, as the kernel's OOM killer would."""
        hit = []
        for proc in Path("/proc").iterdir():
            try:
                if proc.name.isdigit() and pod_uid in (proc / "cgroup").read_text() \
                        and (proc / "comm").read_text().strip() != "pause":
                    os.kill(int(proc.name), number)
                    hit.append(proc.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
        assert hit, f"no process of Pod {pod_uid}"

    def stop(self):
        if self.keeper:
            self.keeper.kill()


def make_cgroups(name):
    for group in cgroup_parents():
        (group / name).mkdir(exist_ok=True)
    cpuset = Path("/sys/fs/cgroup/cpuset")
    if cpuset.is_dir():
        for f in "cpuset.cpus", "cpuset.mems":
            (cpuset / name / f).write_text((cpuset / f).read_text())


def remove_cgroups(name):
    """Deepest first; the kernel takes a moment to see that the processes are gone."""
    def removed():
        left = [g / name for g in cgroup_parents() if (g / name).is_dir()]
        for top in left:
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass
        return not [g for g in left if g.is_dir()]
    until("the cgroups are gone", removed, 10)


def cgroup_parents():
    """The hierarchies of version 1, or the one of version 2."""
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.procs").exists():
        return [top]
    return [g for g in top.iterdir() if g.is_dir() and not g.is_symlink() and (g / "cgroup.procs").exists()]


def make_images(tools, binary, folder):
    folder.mkdir(parents=True, exist_ok=True)
    mkimage = CLUSTER / "mkimage.py"
    command([mkimage, folder / "pause.tar", "portcullis.test/pause:e2e", "--entry", "/pause", "--user", "65535:65535",
             f"{tools}/pause=/pause"])
    command([mkimage, folder / "coredns.tar", "portcullis.test/coredns:e2e", "--entry", "/coredns",
             f"{tools}/coredns=/coredns"])
    # Debug information is half of a test build.
    stripped = folder / "portcullis"
    shutil.copy(binary, stripped)
    subprocess.run(["strip", "--strip-debug", stripped], check=False, stderr=subprocess.DEVNULL)
    command([mkimage, folder / "portcullis.tar", GATEWAY_IMAGE, "--entry", "/portcullis", "--user", "65532:65532",
             "--libs", f"{stripped}=/portcullis"])
    stripped.unlink()
    return folder
