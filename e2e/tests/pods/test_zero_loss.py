"""Not one request is lost: rollouts of the backend and of the gateway, leader loss, an API server that goes away.

The clients never retry; HTTP/1.1 and HTTP/2, kept and fresh connections, an open loop, and WebSocket sessions. The control
shows that they would see a loss."""
import unittest

from harness import world
from harness.gateways import route
from harness.installed import NAME, NAMESPACE, SHOP, echo, install, rollout
from harness.traffic import eventually, get
from harness.wait import hold, until
from harness.websocket import Sessions

TIMES, RATE = (10, 500) if world.long() else (1, 200)


class ZeroLoss(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.gw, cls.kube = install(), world.kube
        cls.host = "steady.test"
        cls.gw.secret("steady-tls", cls.host)
        cls.kube.apply(route("steady", cls.host, spec={"tls": {"certificateRefs": [{"name": "steady-tls"}]}}), SHOP)
        cls.kube.wait("gwr", "steady", "Programmed", SHOP)

    def setUp(self):
        self.kube.kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{NAME}", "--timeout=90s")
        eventually(200, self.gw.address, self.host, ca=self.gw.pki.cert)
        self.load = self.gw.loads(self.host, RATE)

    def served_by(self):
        return get(self.gw.address, self.host, ca=self.gw.pki.cert).json()["name"]

    def lost_nothing(self, at_least):
        self.load.finish()
        print(f"\n{self.load}")
        self.assertEqual(self.load.lost, 0, str(self.load))
        self.assertGreater(self.load.ok, at_least)

    def sessions(self):
        return Sessions(self.gw.address, self.host, self.gw.pki.cert)

    def no_session_lost(self, sessions):
        print(f"WebSocket: {sessions.whole} sessions, {sessions.messages} messages, lost {sessions.lost}")
        self.assertEqual(sessions.lost, [])
        self.assertGreater(sessions.whole, 4)

    def test_backend_rollout(self):
        before = {self.served_by() for _ in range(20)}
        with self.load, self.sessions() as sessions:
            for _ in range(TIMES):
                rollout(SHOP, "echo")
            after = {self.served_by() for _ in range(20)}
            self.lost_nothing(1000)
        self.no_session_lost(sessions)
        self.assertFalse(before & after, "endpoints did not follow")

    def test_gateway_rollout(self):
        before = {p["metadata"]["name"] for p in self.gw.pods()}
        with self.load, self.sessions() as sessions:
            for _ in range(TIMES):
                rollout(NAMESPACE, NAME)
            self.lost_nothing(1500)
        self.no_session_lost(sessions)
        self.assertFalse(before & {p["metadata"]["name"] for p in self.gw.pods()})

    @world.needs_own_node
    def test_control_killed_gateway_loses_requests(self):
        # All of them: of two, four sessions may well be at the other.
        victims = {p["metadata"]["uid"] for p in self.gw.pods()}
        with self.load, self.sessions() as sessions:
            hold("load is flowing", lambda: True, 2)
            for uid in victims:
                world.node.kill_container(uid)
            until("they were restarted", lambda: all(
                s["restartCount"] for p in self.gw.pods() if p["metadata"]["uid"] in victims
                for s in p["status"]["containerStatuses"]), 60)
            self.load.finish()
        print(f"\n{self.load}\nWebSocket: {len(sessions.lost)} lost, {sessions.lost[:4]} …")
        self.assertTrue(sessions.lost, "no session was seen to break")
        self.assertGreater(self.load.lost, 0, "clients that see no loss here cannot prove its absence elsewhere")

    def test_leader_loss(self):
        leader = until("a leader", self.gw.leader)
        with self.load:
            self.kube.kubectl("-n", NAMESPACE, "delete", "pod", leader["metadata"]["name"], "--wait=false")
            second = until("another leader", lambda: (p := self.gw.leader()) and
                           p["metadata"]["name"] != leader["metadata"]["name"] and p, 60, every=0.5)
            self.kube.apply(route("led", "led.test"), SHOP)
            self.kube.wait("gwr", "led", "Programmed", SHOP, 60)
            self.lost_nothing(100)
        self.assertNotEqual(second["metadata"]["uid"], leader["metadata"]["uid"])

    @world.needs_own_node
    def test_api_server_away(self):
        with self.load:
            world.control_plane.stop_api_server()
            try:
                hold("serves", lambda: get(self.gw.address, self.host, ca=self.gw.pki.cert).status == 200, 5)
            finally:
                world.control_plane.start_api_server()
            self.kube.apply(route("again", "again.test"), SHOP)
            until("a change is seen", lambda: get(self.gw.address, "again.test").status == 200, 60)
            self.kube.wait("gwr", "again", "Programmed", SHOP, 60)
            self.lost_nothing(1000)

    def test_scale_from_one_backend_to_none_and_back(self):
        echo("alone", replicas=1)
        self.kube.apply(route("alone", "alone.test", service="alone"), SHOP)
        self.kube.wait("gwr", "alone", "Programmed", SHOP)
        eventually(200, self.gw.address, "alone.test")
        self.kube.kubectl("-n", SHOP, "scale", "deployment/alone", "--replicas=0")
        gone = eventually(503, self.gw.address, "alone.test", seconds=30)
        self.assertEqual(gone.json()["reason"], "NoHealthyEndpoints")
        self.kube.kubectl("-n", SHOP, "scale", "deployment/alone", "--replicas=1")
        eventually(200, self.gw.address, "alone.test", seconds=30)


if __name__ == "__main__":
    unittest.main()
