"""API keys as Secrets that kubectl makes, labels and deletes: how soon every replica knows."""
import json
import secrets
import threading
import time
import unittest

from harness import gateways
from harness.gateways import route
from harness.wait import until

NS = "keys"
SOON = 1  # second, from the end of the kubectl that changes it to the last replica that still answered otherwise


def entry(**found_by):
    # The brake would take the polling below for guessing.
    return {"authentication": {"failures": {"requests": 0}, "anyOf": [{"name": "partners", "apiKey": {
        **found_by, "claimsToHeaders": [{"claim": "id", "header": "X-Consumer"}]}}]}}


class Keys(gateways.ThreeReplicas):
    namespace, echo_number = NS, 4

    def status(self, host, key):
        return lambda g: g.get(host, headers={"X-Api-Key": key}).status

    def slowest(self, act, host, key, expected):
        """Seconds from before `act` until each replica answers so; each is asked all the time, by a thread of its own."""
        before = {g.name: self.status(host, key)(g) for g in self.gateways.replicas}
        self.assertNotIn(expected, before.values(), "the control: it is something else before")
        seconds, asked = {}, threading.Barrier(len(before) + 1)

        def ask(g):
            asked.wait()
            until(f"{expected} by {g.name}", lambda: self.status(host, key)(g) == expected, 30, every=0.01)
            seconds[g.name] = time.monotonic() - began
        threads = [threading.Thread(target=ask, args=[g]) for g in self.gateways.replicas]
        for t in threads:
            t.start()
        began = time.monotonic()
        asked.wait()
        act()
        kubectl = time.monotonic() - began
        for t in threads:
            t.join()
        self.assertEqual(len(seconds), len(before), "some replica never did")
        return max(seconds.values()), max(0, max(seconds.values()) - kubectl)

    def test_a_key_counts_within_a_second_and_no_longer_once_deleted(self):
        pids = [g.pid for g in self.gateways.replicas]
        kubectl, key, other = self.kube.kubectl, secrets.token_hex(16), secrets.token_hex(16)
        self.kube.apply(route("by-label", "by-label.test", spec={"policy": entry(
            secretSelector={"matchLabels": {"portcullis.dev/api-keys": NS}})}), NS)
        kubectl("-n", NS, "create", "secret", "generic", "other", f"--from-literal=key={other}")
        kubectl("-n", NS, "label", "secret", "other", f"portcullis.dev/api-keys={NS}")
        self.programmed("by-label")
        self.everywhere("the other key counts", lambda g: self.status("by-label.test", other)(g) == 200)
        figures = {"added": [], "revoked": []}
        for _ in range(3):
            kubectl("-n", NS, "create", "secret", "generic", "acme", f"--from-literal=key={key}")
            figures["added"].append(self.slowest(lambda: kubectl(
                "-n", NS, "label", "secret", "acme", f"portcullis.dev/api-keys={NS}"), "by-label.test", key, 200))
            for g in self.gateways.replicas:
                self.assertEqual(g.get("by-label.test", headers={"X-Api-Key": key}).json()["headers"]["x-consumer"], "acme")
                self.assertEqual(self.status("by-label.test", other)(g), 200, "the other key stays")
            figures["revoked"].append(self.slowest(lambda: kubectl("-n", NS, "delete", "secret", "acme"), "by-label.test", key, 401))
        for what, times in figures.items():
            whole, after = max(t for t, _ in times), max(t for _, t in times)
            print(f"\n{what}: by every replica {after:.2f} s after kubectl ended, {whole:.2f} s with it", end=" ... ")
            self.assertLess(after, SOON)
        self.assertEqual([g.pid for g in self.gateways.replicas if g.running()], pids, "nobody started anew")

    def test_a_key_by_name_comes_changes_and_goes(self):
        kubectl, first, second = self.kube.kubectl, secrets.token_hex(16), secrets.token_hex(16)
        self.kube.apply(route("by-name", "by-name.test", spec={"policy": entry(secretRef={"name": "partner"})}), NS)
        self.everywhere("closed without the Secret", lambda g: self.status("by-name.test", first)(g) == 503)
        until("it is told", lambda: self.kube.condition("gwr", "by-name", "ResolvedRefs", NS)["reason"] == "SecretNotFound")
        kubectl("-n", NS, "create", "secret", "generic", "partner", f"--from-literal=key={first}")
        self.everywhere("the first key", lambda g: self.status("by-name.test", first)(g) == 200)
        self.kube.apply(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "partner"},
                                    "stringData": {"key": second}}), NS)
        self.everywhere("the second key alone", lambda g: (
            self.status("by-name.test", first)(g), self.status("by-name.test", second)(g)) == (401, 200))
        kubectl("-n", NS, "delete", "secret", "partner")
        self.everywhere("closed again", lambda g: self.status("by-name.test", second)(g) == 503)


if __name__ == "__main__":
    unittest.main()
