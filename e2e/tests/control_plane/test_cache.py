"""What three replicas keep: each its own answers, and all hear of a purge and of a write."""
import json
import unittest

from harness import gateways, world
from harness.gateways import route
from harness.kube import CommandFailed, command
from harness.wait import until

NS, HOST = "kept", "answers.test"


class Kept(gateways.ThreeReplicas):
    namespace, echo_number = NS, 8

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.kube.apply(route("kept", HOST, spec={"policy": {"cache": {"defaultTtl": "10m"}}}), NS)
        cls.kube.wait("gwr", "kept", "Programmed", NS)

    def setUp(self):
        for g in self.gateways.replicas:
            if not g.running():
                g.start()
        self.gateways.publish(1, 2, 3)
        for g in self.gateways.replicas:
            until(f"{g.name} is ready", g.ready)

    def used(self, gateway, path):
        """Whether it answers with what it keeps."""
        answer = gateway.get(HOST, path)
        self.assertEqual(answer.status, 200, answer)
        return "portcullis; hit" in answer.headers["cache-status"]

    def keep(self, *paths):
        for path in paths:
            self.everywhere(f"{path} is kept", lambda g: self.used(g, path))

    def purge(self, gateway, *named):
        return command([world.binary, "purge", "--admin", f"{gateway.address}:9090", "--token-file", self.gateways.token, *named])

    def test_a_purge_told_to_any_replica_holds_for_all_from_its_answer_on(self):
        for teller in self.gateways.replicas:
            self.keep("/gone", "/stays")
            self.purge(teller, "--url", f"http://{HOST}/gone")
            # At once: no replica may be waited for.
            self.assertEqual([self.used(g, "/gone") for g in self.gateways.replicas], [False] * 3, f"told to {teller.name}")
            self.assertEqual([self.used(g, "/stays") for g in self.gateways.replicas], [True] * 3, "the control")

    def test_a_purge_that_a_replica_cannot_hear_fails_and_names_it(self):
        one, other = self.gateways.replicas[:2]
        self.keep("/named")
        other.kill()
        with self.assertRaises(CommandFailed) as failed:
            self.purge(one, "--route", f"{NS}/kept")
        self.assertIn(other.name, str(failed.exception))
        self.assertFalse(self.used(one, "/named"), "the others have done it")

    def test_a_write_through_one_replica_makes_every_replica_ask_anew(self):
        writer = self.gateways.replicas[0]
        self.keep("/written", "/untouched")
        self.assertEqual(writer.get(HOST, "/written", method="POST", body="{}").status, 200)
        # A hit that is still used would be a hit for ten minutes.
        self.everywhere("the write counts", lambda g: not self.used(g, "/written"), seconds=5)
        self.assertEqual([self.used(g, "/untouched") for g in self.gateways.replicas], [True] * 3, "the control")

    def test_without_the_token_nobody_purges(self):
        self.keep("/safe")
        for headers in {}, {"Authorization": "Bearer 0123456789abcdef0123456789abcdef"}:
            answer = self.ask_to_purge(headers)
            self.assertIn(answer.status, (401, 403), answer)
        self.assertTrue(all(self.used(g, "/safe") for g in self.gateways.replicas))

    def ask_to_purge(self, headers):
        gateway = self.gateways.replicas[0]
        return gateways.traffic.get(gateway.address, gateway.address, "/purge", port=9090, method="POST",
                                    headers={"Content-Type": "application/json", **headers}, body=json.dumps({"everything": True}))


if __name__ == "__main__":
    unittest.main()
