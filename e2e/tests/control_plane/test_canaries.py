"""No Secret's content in what the API server keeps of us (status, Events), in logs and on the admin port."""
import base64
import json
import secrets
import unittest

from harness import gateways, world
from harness.gateways import route
from harness.wait import until

NS = "canaries"
TELL = [{"claim": "id", "header": "X-Consumer"}]


def secret(name, data, kind="Opaque"):
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {"name": name, "labels": {"keys": name}},
                       "stringData": data})


def by(entry):
    return {"policy": {"authentication": {"failures": {"requests": 0}, "anyOf": [{"name": "entry", **entry}]}}}


def forms(canary):
    """Every form in which a program could say it; of base64 what its neighbours do not touch."""
    raw = canary.encode()
    found = {canary, canary.upper(), canary[::-1], raw.hex(), raw.hex().upper()}
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(b"\0" * before + raw).decode().rstrip("=")[4:-4])
    return found


class Canaries(gateways.ThreeReplicas):
    namespace, echo_number = NS, 7

    def world(self, canary):
        """Secrets of each kind, whole, and broken ones with the same keys; routes and backends that name them."""
        pem = f"-----BEGIN CERTIFICATE-----\n{canary}\n-----END CERTIFICATE-----\n"
        # bob's line is no hash, and the other files are none at all: what is wrong with them is told.
        secrets_of = {
            "keys": {"key": canary}, "labelled": {"key": canary}, "users": {"users": f"bob:{canary}\n"},
            "key-set": {"jwks": f'{{"keys": "{canary}"}}'}, "client": {"clientId": "gateway", "clientSecret": canary},
            "schema": {"order.json": f'{{"type": "{canary}"}}'}, "authority": {"ca.crt": pem}, "revoked": {"ca.crl": pem},
            "shown": {"tls.crt": pem, "tls.key": pem}, "served": {"tls.crt": pem, "tls.key": pem}, "token": {"token": canary},
        }
        for name, data in secrets_of.items():
            self.kube.apply(secret(name, data, "kubernetes.io/tls" if "tls.key" in data else "Opaque"), NS)
        nobody = "https://login.canaries.test"
        tls = {"certificateRefs": [{"name": "served"}]}
        refs = [{"kind": "Secret", "name": "authority"}]
        for name, spec in {
            "named": by({"apiKey": {"secretRef": {"name": "keys"}, "claimsToHeaders": TELL}}),
            "labelled": by({"apiKey": {"secretSelector": {"matchLabels": {"keys": "labelled"}}}}),
            "people": by({"basicAuth": {"secretRef": {"name": "users"}}}),
            "tokens": by({"jwt": {"issuer": nobody, "audiences": ["shop"], "jwks": {"secretRef": {"name": "key-set"}}}}),
            "fetched": by({"jwt": {"issuer": nobody, "audiences": ["shop"], "jwks": {"uri": f"{nobody}/keys"}}}),
            "opaque": by({"introspection": {"endpoint": f"{nobody}/introspect", "clientSecretRef": {"name": "client"}}}),
            "bodies": {"policy": {"validation": {"bodySchema": {"secretRef": {"name": "schema", "key": "order.json"}}}}},
            "served": {"tls": tls},
            "asked": {"tls": {**tls, "clientValidation": {"caCertificateRefs": refs, "crlRefs": [{"kind": "Secret", "name": "revoked"}]}}},
        }.items():
            self.kube.apply(route(name, f"{name}.canaries.test", spec=spec), NS)
        self.kube.apply(json.dumps({"apiVersion": "portcullis.dev/v1alpha1", "kind": "GatewayBackend", "metadata": {"name": "paid"}, "spec": {
            "hosts": [{"address": "paid.canaries.test", "port": 443}],
            "tls": {"caCertificateRefs": refs, "clientCertificateRef": {"name": "shown"}},
            "credentials": {"header": "X-Pay", "secretKeyRef": {"name": "token", "key": "token"}}}}), NS)
        self.kube.apply(route("paid", "paid.canaries.test", rules=[{
            "name": "all", "backendRefs": [{"kind": "GatewayBackend", "name": "paid"}]}]), NS)

    def told(self):
        """What the API server keeps of us, the Secrets themselves excepted, and what each replica says."""
        kinds = "gatewayroutes,gatewaypolicies,gatewaybackends,events,events.events.k8s.io,leases,configmaps,endpointslices"
        said = {"the API server": self.kube.kubectl("get", kinds, "-A", "-o", "json", "--show-managed-fields")}
        for g in self.gateways.replicas:
            said[f"the log of {g.name}"] = (world.data / "log" / f"{g.name}.log").read_text()
            for page in ("/status", "/metrics", "/readyz"):
                said[f"{page} of {g.name}"] = g.admin(page).body.decode(errors="replace")
        return said

    def test_no_secret_is_in_any_status_event_log_or_page(self):
        canary = secrets.token_hex(16)
        self.world(canary)
        for name, reason in (("people", "PolicyInvalid"), ("bodies", "PolicyInvalid"), ("paid", "")):
            until(f"something is told of {name}", lambda: self.kube.condition("gwr", name, "Accepted", NS).get("current"), 30)
            if reason:
                until(f"{name} is told to be broken", lambda: reason in json.dumps(self.kube.get("gwr", name, NS).get("status", {})), 30)
        self.everywhere("the control: the canary is a key", lambda g: g.get("named.canaries.test", headers={"X-Api-Key": canary}).status == 200)
        for g in self.gateways.replicas:
            for host in ("named", "labelled", "people", "tokens", "fetched", "opaque", "bodies", "paid"):
                for field in ({"X-Api-Key": canary}, {"Authorization": f"Bearer {canary}"},
                              {"Authorization": "Basic " + base64.b64encode(f"bob:{canary}".encode()).decode()}):
                    answer = g.get(f"{host}.canaries.test", headers=field)
                    if answer.status != 200:
                        self.assertEqual([f for f in forms(canary) if f in answer.body.decode(errors="replace")], [], f"{host} told it to a client")
        # Statuses follow their routes at once; Events may come a little later.
        self.kube.kubectl("-n", NS, "delete", "secret", "keys", "client")
        until("the loss is told", lambda: self.kube.condition("gwr", "named", "ResolvedRefs", NS).get("reason") == "SecretNotFound", 30)
        token, told = self.gateways.token.read_text().strip(), self.told()
        self.assertIn("SecretNotFound", told["the API server"], "the control: statuses are searched")
        self.assertTrue(all(told.values()), f"the control: there is something to search: {[k for k, v in told.items() if not v]}")
        for what, secret_text in (("a Secret", canary), ("the token of the peer port", token)):
            places = [place for place, text in told.items() for form in forms(secret_text) if form in text]
            self.assertEqual(places, [], f"{what} is told there")
        self.assertTrue([f for f in forms(canary) if f in self.kube.kubectl("-n", NS, "get", "secrets", "-o", "json")],
                        "the control: it is found where it stands")


if __name__ == "__main__":
    unittest.main()
