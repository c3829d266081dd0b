"""Three gateway processes and a real API server: readiness, status, the promise of Programmed, leader loss."""
import unittest

from harness import gateways, world
from harness.traffic import Loads
from harness.wait import hold, until

NS = "shop"


class Replicas(gateways.ThreeReplicas):
    namespace, echo_number = NS, 1

    def tearDown(self):
        for g in self.gateways.replicas:
            if not g.running():
                g.start()
            g.resume()
        self.gateways.publish(1, 2, 3)
        for g in self.gateways.replicas:
            until(f"{g.name} is ready", g.ready)

    def apply(self, name, host, **more):
        self.kube.apply(gateways.route(name, host, **more), NS)
        return name

    def condition(self, name, kind="Programmed"):
        return self.kube.condition("gwr", name, kind, NS)

    def pending(self, name):
        c = self.condition(name)
        return c if c.get("status") == "False" and c["reason"] == "Pending" and c["current"] else None

    def test_programmed_means_that_every_replica_serves_it(self):
        for n in range(5):
            path = f"/v{n}"
            self.apply("promise", "promise.test", path=path)
            generation = self.kube.get("gwr", "promise", NS)["metadata"]["generation"]
            until("Programmed is of this generation",
                  lambda: (c := self.condition("promise"))["status"] == "True" and c["observedGeneration"] == generation)
            for g in self.gateways.replicas:  # at once, and each of them: that is the promise
                self.assertEqual(g.get("promise.test", path).status, 200, g.name)

    def test_status_and_columns(self):
        self.apply("good", "good.test")
        self.apply("lost", "lost.test", service="nowhere")
        self.kube.wait("gwr", "good", "Programmed", NS)
        self.assertEqual(until("Accepted", lambda: self.condition("good", "Accepted"))["status"], "True")
        refs = until("ResolvedRefs", lambda: self.condition("lost", "ResolvedRefs"))
        self.assertEqual((refs["status"], refs["reason"]), ("False", "BackendNotFound"))
        self.assertIn("nowhere", refs["message"])
        table = self.kube.kubectl("-n", NS, "get", "gwr", "good").split("\n")
        self.assertEqual(table[0].split()[:5], ["NAME", "HOSTNAMES", "ACCEPTED", "PROGRAMMED", "REASON"])
        self.assertIn("good.test", table[1])
        self.assertEqual(self.gateways.replicas[0].get("lost.test").status, 500)

    def test_programmed_waits_for_a_replica_that_hangs(self):
        victim = next(g for g in self.gateways.replicas if g is not self.gateways.leader())
        victim.pause()
        self.apply("hang", "hang.test")
        seen = until("Pending names the replica", lambda: (c := self.pending("hang")) and victim.name in c["message"] and c)
        self.assertIn("2 of 3", seen["message"])
        hold("Pending while it hangs", lambda: self.pending("hang"))
        victim.resume()
        self.kube.wait("gwr", "hang", "Programmed", NS)
        self.assertEqual(victim.get("hang.test").status, 200)

    def test_a_replica_that_starts_is_not_waited_for_and_serves_when_ready(self):
        victim = next(g for g in self.gateways.replicas if g is not self.gateways.leader())
        victim.kill()
        number = int(victim.name[-1])
        self.gateways.publish(*{1, 2, 3} - {number}, starting=[number])
        self.apply("start", "start.test")
        self.kube.wait("gwr", "start", "Programmed", NS)  # silent and not ready: not counted
        victim.start()
        until("ready", victim.ready)
        self.assertEqual(victim.get("start.test").status, 200)  # ready means it has it

    def test_a_ready_replica_that_is_gone_is_waited_for_until_scaled_down(self):
        victim = next(g for g in self.gateways.replicas if g is not self.gateways.leader())
        victim.kill()
        self.apply("down", "down.test")
        until("Pending", lambda: self.pending("down"))
        self.gateways.publish(*{1, 2, 3} - {int(victim.name[-1])})
        self.kube.wait("gwr", "down", "Programmed", NS)

    def test_another_leads_when_the_leader_sleeps_and_one_alone_writes_when_it_wakes(self):
        """To the others a leader that sleeps is one that died; awake again it must not undo their work."""
        first = until("a leader", self.gateways.leader)
        first.pause()
        self.gateways.publish(*{1, 2, 3} - {int(first.name[-1])})
        self.apply("orphan", "orphan.test")
        other = next(g for g in self.gateways.replicas if g is not first)
        until("served without a leader", lambda: other.get("orphan.test").status == 200, seconds=3)
        second = until("another leader", lambda: (g := self.gateways.leader()) is not first and g, seconds=40)
        self.kube.wait("gwr", "orphan", "Programmed", NS)
        version = self.kube.get("gwr", "orphan", NS)["metadata"]["resourceVersion"]
        first.resume()
        self.gateways.publish(1, 2, 3)
        until("it serves", lambda: first.get("orphan.test").status == 200, seconds=5)
        hold("the second leads and nothing is written again", lambda: self.gateways.leader() is second and self.kube.get(
            "gwr", "orphan", NS)["metadata"]["resourceVersion"] == version, 5, every=0.3)

    def test_status_is_written_only_where_it_differs(self):
        self.apply("still", "still.test")
        self.kube.wait("gwr", "still", "Programmed", NS)
        version = self.kube.get("gwr", "still", NS)["metadata"]["resourceVersion"]
        self.apply("other", "other.test")
        self.kube.wait("gwr", "other", "Programmed", NS)
        hold("nothing written", lambda: self.kube.get("gwr", "still", NS)["metadata"]["resourceVersion"] == version)

    def test_traffic_goes_on_while_the_api_server_is_away(self):
        secret, _ = self.pki.secret("away-tls", NS, "away.test")
        self.kube.apply(secret)
        self.apply("away", "away.test", spec={"tls": {"certificateRefs": [{"name": "away-tls"}]}})
        self.kube.wait("gwr", "away", "Programmed", NS)
        gateway = self.gateways.replicas[0]
        with Loads(world.binary, world.data / "log", "https://away.test/", f"{gateway.address}:8443", self.pki.cert) as load:
            world.control_plane.stop_api_server()
            self.addCleanup(lambda: world.control_plane.start_api_server())
            hold("serves without the API server", lambda: gateway.get("away.test", ca=self.pki.cert).status == 200,
                 600 if world.long() else 8)
            self.assertTrue(gateway.ready())
            self.doCleanups()
            self.apply("back", "back.test")
            until("a change is seen again", lambda: gateway.get("back.test").status == 200, 60)
            self.kube.wait("gwr", "back", "Programmed", NS, 60)
            load.finish()
        self.assertEqual(load.lost, 0, load)
        self.assertGreater(load.ok, 1000, load)

    def test_not_ready_before_the_first_lists(self):
        victim = self.gateways.replicas[2]
        victim.stop()
        world.control_plane.stop_api_server()
        self.addCleanup(world.control_plane.start_api_server)
        victim.start()
        until("alive", lambda: victim.admin("/livez").status == 200)
        answer = until("not ready", lambda: (a := victim.admin("/readyz")).status == 503 and a)
        self.assertRegex(answer.body.decode(), "^waiting for: first lists, first route map", "it names what it waits for")
        hold("not ready", lambda: not victim.ready())
        self.doCleanups()
        until("ready after the lists", victim.ready, 60)
        self.assertEqual(victim.admin("/readyz").body, b"ready\n")

    def test_no_request_is_lost_over_churn(self):
        secret, _ = self.pki.secret("churn-tls", NS, "churn.test")
        self.kube.apply(secret)
        self.apply("churn", "churn.test", spec={"tls": {"certificateRefs": [{"name": "churn-tls"}]}})
        self.kube.wait("gwr", "churn", "Programmed", NS)
        gateway = self.gateways.replicas[1]
        with Loads(world.binary, world.data / "log", "https://churn.test/", f"{gateway.address}:8443", self.pki.cert) as load:
            for n in range(20):
                self.kube.apply("\n---\n".join(gateways.route(f"c{i}", f"c{i}.test", path=f"/v{n}") for i in range(20)), NS)
            self.kube.wait("gwr", "c19", "Programmed", NS)
            load.finish()
        self.assertEqual(load.lost, 0, load)
        self.assertGreater(load.ok, 500, load)
        self.assertEqual(gateway.get("c19.test", "/v19").status, 200)


if __name__ == "__main__":
    unittest.main()
