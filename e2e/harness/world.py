"""The one cluster of this run, as the tests find it: `from harness import world`, then `world.kube`."""
import os
import unittest
from pathlib import Path

from . import cluster, isolation
from .kube import Kube

tools = binary = data = kube = control_plane = node = None
image = cluster.GATEWAY_IMAGE
installed = None  # see installed.py


def start(part, tools_, binary_, data_, cgroup):
    """`tools` is the folder of the programs that the part needs; in `peers` it is the identity provider itself."""
    global tools, binary, data, kube, control_plane, node
    tools, binary, data = tools_, binary_, data_
    if part == "peers":
        isolation.addresses()
        return
    pods = part == "pods"
    # Where no node is, processes of the run stand in for Pods, with addresses like theirs.
    isolation.addresses(*([] if pods else [f"{cluster.HOST}/24", cluster.PODS]))
    control_plane = cluster.ControlPlane(tools, data)
    if pods:
        node = cluster.Node(control_plane, cluster.make_images(tools, binary, data / "images"), cgroup)
        node.start()
    control_plane.start(scheduler=pods)
    kube = control_plane.kube
    if pods:
        node.wait_ready()
        kube.kubectl("apply", "-f", cluster.CLUSTER / "coredns.yaml")  # awaited by those who ask it


def named():
    """The kubeconfig of a cluster that the user named: nothing of the machine below it can be touched."""
    return os.environ.get("E2E_KUBECONFIG")


def use(tools_, binary_, data_):
    global tools, binary, data, kube, image
    if not os.environ.get("E2E_IMAGE"):
        raise SystemExit("e2e: E2E_KUBECONFIG also wants E2E_IMAGE, the gateway's image as that cluster finds it")
    tools, binary, data, image = tools_, binary_, data_, os.environ["E2E_IMAGE"]
    kube = Kube(tools, Path(named()).resolve())


def stop():
    if node:
        node.stop()
    if control_plane:
        control_plane.stop()


def needs_own_node(test):
    return unittest.skipIf(named(), "needs the machine below the cluster")(test)


def long():
    return bool(os.environ.get("E2E_LONG"))
