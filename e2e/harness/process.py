"""A child process that cannot outlive the run, with its output in a file."""
import ctypes
import os
import signal
import subprocess

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    def __init__(self, name, argv, log, env=None):
        self.name, self.argv, self.log = name, [str(a) for a in argv or ()], log
        self.env = {**os.environ, **(env or {})}
        self.child = None

    def start(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env,
                                          start_new_session=True, preexec_fn=die_with_parent)
        return self

    @property
    def pid(self):
        return self.child.pid

    def running(self):
        return self.child is not None and self.child.poll() is None

    def check(self):
        if not self.running():
            code = self.child and self.child.returncode
            raise RuntimeError(f"{self.name} ended with {code}:\n{self.tail()}")

    def signal(self, number):
        self.child.send_signal(number)

    def stop(self, seconds=15):
        """SIGTERM, then SIGKILL; returns the exit code."""
        if self.running():
            self.child.send_signal(signal.SIGCONT)
            self.child.terminate()
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.child and self.child.returncode

    def kill(self):
        self.child.kill()
        self.child.wait()

    def tail(self, lines=20):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
