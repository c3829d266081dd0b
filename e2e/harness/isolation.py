"""Puts the run into network, process and mount namespaces of its own.

Outside them nothing is reached, routed or left behind: addresses and ports are free to choose, and the end of the
first process ends every other."""
import os
import signal
import shutil
import subprocess
import sys
from pathlib import Path

from .process import die_with_parent

INSIDE = "PORTCULLIS_E2E_INSIDE"
# kubelet has these paths built in; the node mounts folders of its own over them.
MOUNT_POINTS = ["/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers"]


def inside():
    return INSIDE in os.environ


def unshare():
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def why_not():
    """Why this machine cannot do it, or None."""
    if sys.platform != "linux":
        return "not Linux"
    for program in "unshare", "ip", "openssl":
        if not shutil.which(program):
            return f"no program `{program}` (util-linux, iproute2, openssl)"
    probe = subprocess.run([*unshare(), "true"], capture_output=True, text=True)
    if probe.returncode:
        return f"namespaces are not allowed here ({probe.stderr.strip()})"
    return None


def why_no_node():
    if os.geteuid() != 0:
        return "not root"
    for proc in Path("/proc").iterdir():
        try:
            if proc.name.isdigit() and (proc / "comm").read_text().strip() == "kubelet":
                return f"a kubelet runs on this machine (process {proc.name})"
        except OSError:
            continue
    return None


def again(argv):
    """Runs this program again inside, and returns its exit code once nothing of it is left."""
    made = []
    if os.geteuid() == 0:
        for d in MOUNT_POINTS:
            if not os.path.isdir(d):
                os.makedirs(d)
                made.append(d)
    child = subprocess.Popen([*unshare(), sys.executable, *argv], env={**os.environ, INSIDE: "1"},
                             preexec_fn=die_with_parent)
    # The one inside stops in good order; here the signal would only cut it short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: child.kill())
    try:
        return child.wait()
    finally:
        for d in made:
            try:
                os.rmdir(d)
            except OSError:
                pass


def addresses(*ranges):
    """Every address of the ranges belongs to this namespace: processes here can have addresses as Pods do."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for r in ranges:
        subprocess.run(["ip", "addr", "add", r, "dev", "lo"], check=True)
