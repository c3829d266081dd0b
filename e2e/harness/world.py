"""The one cluster of this run, as the tests find it: `from harness import world`, then `world.kube`."""
import os
import unittest

from . import cluster, isolation
from .kube import Kube

tools = binary = data = kube = control_plane = node = None
image = cluster.GATEWAY_IMAGE
installed = None  # see installed.py


def start(part, tools_, binary_, data_, cgroup):
    global tools, binary, data, kube, control_plane, node
    tools, binary, data = tools_, binary_, data_
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


def use(tools_, kubeconfig, image_, binary_):
    """Somebody's own cluster: nothing of the machine below it can be touched."""
    global tools, binary, kube, image
    if not image_:
        raise SystemExit("e2e: E2E_KUBECONFIG also wants E2E_IMAGE, the gateway's image as that cluster finds it")
    tools, binary, image = tools_, binary_, image_
    kube = Kube(tools, kubeconfig)


def stop():
    if node:
        node.stop()
    if control_plane:
        control_plane.stop()


def needs_own_node(test):
    return unittest.skipIf(os.environ.get("E2E_KUBECONFIG"), "needs the machine below the cluster")(test)


def long():
    return bool(os.environ.get("E2E_LONG"))
