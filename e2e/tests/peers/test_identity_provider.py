"""Tokens and keys of a real library (go-jose), from a provider on loopback that rotates its keys, dies and comes back."""
import socket
import threading
import time
import unittest
import urllib.error
import urllib.request

from harness import world
from harness.process import Process
from harness.standalone import Echo, Standalone, thing
from harness.wait import hold, until

ALGORITHMS = ["RS256", "PS256", "ES256", "ES384", "EdDSA"]
LOOKS = 31  # seconds between two looks for an unknown key, as documented, and one


class Provider(Process):
    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        super().__init__("issuer", [world.tools, self.address, world.data / "issuer.json"], world.data / "log" / "issuer.log")

    @property
    def issuer(self):
        return f"http://{self.address}"

    def start(self):
        super().start()
        until("the provider answers", lambda: self.ask("GET", "/jwks"))
        return self

    def ask(self, method, path):
        self.check()
        with urllib.request.urlopen(urllib.request.Request(self.issuer + path, method=method), timeout=5) as answer:
            return answer.read().decode()

    def publish(self, kid, algorithm):
        self.ask("POST", f"/keys?kid={kid}&alg={algorithm}")

    def withdraw(self, kid):
        self.ask("DELETE", f"/keys?kid={kid}")

    def token(self, kid, audience="shop", ttl="10m"):
        return self.ask("GET", f"/token?kid={kid}&sub=alice&aud={audience}&ttl={ttl}")


class Users:
    """Ask all the time with tokens that must be good; whatever is not 200 is kept."""

    def __init__(self, gateway, tokens):
        self.gateway, self.tokens, self.ok, self.refused = gateway, tokens, 0, []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.loop)

    def loop(self):
        turn = 0
        while not self.done.wait(0.005):
            tokens = self.tokens
            name, token = tokens[turn % len(tokens)]
            turn += 1
            try:
                status = self.gateway.get("jwt.localhost", headers={"Authorization": f"Bearer {token}"}).status
            except OSError as error:
                status = repr(error)
            if status == 200:
                self.ok += 1
            else:
                self.refused.append((name, status))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


class IdentityProvider(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.provider = Provider().start()
        cls.addClassCleanup(cls.provider.stop)
        cls.echo = Echo("echo-jwt").start()
        cls.addClassCleanup(cls.echo.stop)
        for algorithm in ALGORITHMS:
            cls.provider.publish(f"first-{algorithm}", algorithm)
        cls.gateway = Standalone("jwt")
        cls.gateway.write("routes", cls.echo.backend("echo", "shop"), cls.route("jwt"))
        cls.gateway.start()
        cls.addClassCleanup(cls.gateway.stop)

    @classmethod
    def route(cls, name):
        jwt = {"issuer": cls.provider.issuer, "audiences": ["shop"], "claimsToHeaders": [{"claim": "sub", "header": "X-User"}]}
        entry = {"failures": {"requests": 0}, "anyOf": [{"name": "users", "jwt": jwt}]}
        return thing("GatewayRoute", name, "shop", {"hostnames": [f"{name}.localhost"], "policy": {"authentication": entry}, "rules": [
            {"name": "all", "backendRefs": [{"kind": "GatewayBackend", "name": "echo"}]}]})

    def ask(self, token):
        return self.gateway.get("jwt.localhost", headers={"Authorization": f"Bearer {token}"} if token else {})

    def test_1_every_algorithm_by_discovery(self):
        first = self.provider.token("first-RS256")
        until("the keys are there", lambda: self.ask(first).status == 200)
        for algorithm in ALGORITHMS:
            answer = self.ask(self.provider.token(f"first-{algorithm}"))
            self.assertEqual((answer.status, answer.json()["headers"].get("x-user")), (200, "alice"), algorithm)
            self.assertNotIn("authorization", answer.json()["headers"])
        # The controls: another audience, one that is over, one that was changed, none.
        head, claims, signature = first.split(".")
        swapped = f"{head}.{self.provider.token('first-PS256').split('.')[1]}.{signature}"
        for wrong in self.provider.token("first-ES256", audience="pay"), self.provider.token("first-ES256", ttl="-1h"), swapped, None:
            self.assertEqual(self.ask(wrong).status, 401)

    def test_2_keys_rotate_under_load_and_the_provider_dies_and_comes_back(self):
        """No good token is refused at any time; those of a key that is withdrawn are."""
        provider = self.provider
        old = [(a, provider.token(f"first-{a}")) for a in ALGORITHMS]
        until("the keys are there", lambda: self.ask(old[0][1]).status == 200)
        with Users(self.gateway, old) as users:
            # Published and used at once: the first of them makes the gateway look.
            for algorithm in ALGORITHMS:
                provider.publish(f"second-{algorithm}", algorithm)
            users.tokens = new = [(f"second {a}", provider.token(f"second-{a}")) for a in ALGORITHMS]
            until("the new tokens pass", lambda: users.refused or self.ask(new[-1][1]).status == 200)
            looked = time.monotonic()
            users.tokens = old + new
            for algorithm in ALGORITHMS:
                provider.withdraw(f"first-{algorithm}")
            users.tokens = new
            fresh = [provider.token("second-ES256", ttl=f"{n}m") for n in range(5, 15)]
            provider.kill()
            hold("served without the provider, new tokens too", lambda: all(self.ask(t).status == 200 for t in fresh), 3)
            provider.start()
            # A key withdrawn is known of with the next look: every 5 minutes, or for an unknown key.
            until("a look is due again", lambda: time.monotonic() - looked > LOOKS, 40)
            provider.publish("third", "ES256")
            third = provider.token("third")
            self.assertEqual(self.ask(third).status, 200, "the first request with a new key")
            users.tokens = new + [("third", third)]
            for name, token in old:
                self.assertEqual(self.ask(token).status, 401, f"{name} was withdrawn")
            hold("the good ones pass", lambda: not users.refused, 2)
        print(f"\n{users.ok} good tokens, {len(users.refused)} refused", end=" ... ")
        self.assertEqual(users.refused, [])
        self.assertGreater(users.ok, 500)

    def test_3_without_keys_it_is_unavailable_and_not_wrong(self):
        """A gateway that starts while the provider is down."""
        provider = self.provider
        provider.publish("late", "EdDSA")
        token = provider.token("late")
        provider.kill()
        self.gateway.stop()
        self.gateway.start()
        answer = self.ask(token)
        self.assertEqual((answer.status, b"KeysUnavailable" in answer.body), (503, True), answer)
        provider.start()
        until("the keys are there", lambda: self.ask(token).status == 200, 30)


if __name__ == "__main__":
    unittest.main()
