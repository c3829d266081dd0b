"""The chart as rendered by helm. A check is a function from objects to findings; for each there is a control, an
edit of the rendered objects after which it must find something."""
import copy
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import unittest
from pathlib import Path

from harness import ROOT, world
from harness.kube import CommandFailed, command

CHART = ROOT / "charts" / "portcullis"
VARIANTS = {
    "default": [],
    "daemonset": ["kind=DaemonSet"],
    "namespaces": ["watchNamespaces={shop,pay}"],
    "node-port": ["service.type=NodePort", "service.httpNodePort=30080"],
    "cluster-ip": ["service.type=ClusterIP"],
    "monitored": ["metrics.serviceMonitor.enabled=true"],
    "dual-stack": ["bindAddress=[::]", "service.ipFamilyPolicy=PreferDualStack"],
    "secrets-of-namespaces": ["rbac.secrets=namespaces", "rbac.secretNamespaces={shop,pay}", "namespaceSelector.team=web"],
    "secrets-by-name": ["rbac.secrets=names", "rbac.secretNames.shop={tls,key}", "watchNamespaces={shop}"],
    "proxy-protocol": ["proxyProtocol.listeners={http,https}", "proxyProtocol.trustedProxies={10.0.0.0/24,fd00::1}"],
    "redis": ["redis.secretName=counts", "redis.secretKey=address", "redis.timeout=50ms"],
    "own-secret": ["peer.existingSecret=mine", "networkPolicy.enabled=false", "workers=4"],
}


def render(*values, release="gw", namespace="gateway", chart=CHART):
    sets = [f for v in values for f in ("--set", v)]
    text = command([world.tools / "helm", "template", release, chart, "-n", namespace, *sets])
    return json.loads(command([world.tools / "yaml2json"], stdin=text))


def of(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def pod(objects):
    return next(o for o in objects if o["kind"] in ("Deployment", "DaemonSet"))["spec"]["template"]


def container(objects):
    return pod(objects)["spec"]["containers"][0]


def env(objects):
    return {e["name"]: e.get("value") for e in container(objects)["env"]}


def restricted(objects):
    """The profile `restricted` of Pod security, and a read-only root."""
    spec, box = pod(objects)["spec"], container(objects)["securityContext"]
    wanted = [
        (spec["securityContext"].get("runAsNonRoot"), True), (spec["securityContext"].get("runAsUser"), 65532),
        (spec["securityContext"].get("seccompProfile"), {"type": "RuntimeDefault"}),
        (box.get("allowPrivilegeEscalation"), False), (box.get("readOnlyRootFilesystem"), True),
        (box.get("capabilities"), {"drop": ["ALL"]}), (spec.get("hostNetwork", False), False),
    ]
    return [f"{got} and not {want}" for got, want in wanted if got != want]


def memory_without_cpu_limit(objects):
    limits = container(objects)["resources"]["limits"]
    return ["cpu limit"] * ("cpu" in limits) + ["no memory limit"] * ("memory" not in limits)


def selectors_meet_pods(objects):
    """Every selector of ours finds the Pods; a Service's named port exists."""
    labels, ports = pod(objects)["metadata"]["labels"], {p["name"] for p in container(objects)["ports"]}
    found = []
    for o in objects:
        spec = o.get("spec", {})
        selector = {"Service": spec.get("selector"), "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
                    "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels")}.get(o["kind"], {})
        found += [f"{o['kind']} selects {k}={v}" for k, v in (selector or {}).items() if labels.get(k) != v]
        if o["kind"] == "Service":
            found += [f"no port {p['targetPort']}" for p in spec["ports"] if p["targetPort"] not in ports]
    return found


def least_rights(objects):
    """No wildcard; nothing written but status, Events and the Lease, and these as the gateway does it; of Secrets nothing
    beyond reading."""
    status = {"gatewayroutes/status", "gatewaybackends/status", "gatewaypolicies/status"}
    written = status | {"events", "leases"}
    found = []
    for role in of(objects, "Role") + of(objects, "ClusterRole"):
        for rule in role["rules"]:
            if "*" in rule["resources"] + rule["verbs"] + rule["apiGroups"]:
                found.append(f"wildcard in {rule}")
            if set(rule["verbs"]) - {"get", "list", "watch"} and set(rule["resources"]) - written:
                found.append(f"writes {rule['resources']}")
            if set(rule["resources"]) & status and rule["verbs"] != ["patch"]:
                found.append(f"{rule['verbs']} of status")
            if "events" in rule["resources"] and (rule["apiGroups"], rule["verbs"]) != (["events.k8s.io"], ["create", "patch"]):
                found.append(f"{rule['verbs']} of Events of {rule['apiGroups']}")
    return found


def bindings_meet_roles(objects):
    roles = {(r["kind"], r["metadata"]["name"], r["metadata"].get("namespace")) for r in of(objects, "Role") + of(objects, "ClusterRole")}
    accounts = {a["metadata"]["name"] for a in of(objects, "ServiceAccount")}
    found = []
    for b in of(objects, "RoleBinding") + of(objects, "ClusterRoleBinding"):
        ref = (b["roleRef"]["kind"], b["roleRef"]["name"], b["metadata"].get("namespace"))
        found += [f"no role {ref}"] * (ref not in roles)
        found += [f"no account {s['name']}" for s in b["subjects"] if s["name"] not in accounts]
    if pod(objects)["spec"]["serviceAccountName"] not in accounts:
        found.append("the Pods' account is not there")
    return found


def peers_are_all_replicas(objects):
    peers = [s for s in of(objects, "Service") if s["metadata"]["name"] == env(objects)["PORTCULLIS_PEER_SERVICE"]]
    if len(peers) != 1:
        return ["no peer Service"]
    return [] if peers[0]["spec"].get("publishNotReadyAddresses") and peers[0]["spec"]["clusterIP"] == "None" else ["not headless over all"]


def drains_in_time(objects):
    seconds = sum(int(env(objects)[f"PORTCULLIS_DRAIN_{k}"].removesuffix("s")) for k in ("DELAY", "TIMEOUT"))
    return ["killed while it drains"] * (seconds >= pod(objects)["spec"]["terminationGracePeriodSeconds"])


def never_fewer_while_updating(objects):
    spec = next(o for o in objects if o["kind"] in ("Deployment", "DaemonSet"))["spec"]
    update = spec.get("strategy") or spec.get("updateStrategy")
    return ["loses a replica"] * (update["rollingUpdate"] != {"maxSurge": 1, "maxUnavailable": 0})


def probes_on_admin(objects):
    box = container(objects)
    want = {"livenessProbe": "/livez", "readinessProbe": "/readyz", "startupProbe": "/livez"}
    return [k for k, path in want.items() if box.get(k, {}).get("httpGet") != {"path": path, "port": "admin"}]


def policy_closes(objects):
    """Data ports for all, admin for monitoring, peers among themselves, no metadata service."""
    if not (policies := of(objects, "NetworkPolicy")):
        return []
    spec, found = policies[0]["spec"], []
    opened = {p["port"]: rule.get("from") for rule in spec["ingress"] for p in rule["ports"]}
    found += ["data ports are not open"] * (opened["http"] is not None or opened["https"] is not None)
    found += ["admin is open"] * (not opened["admin"] or not opened["admin"][0].get("namespaceSelector"))
    own = [{"podSelector": spec["podSelector"]}]
    found += ["peer is open"] * (opened["peer"] != own)
    blocks = [to["ipBlock"] for rule in spec["egress"] for to in rule["to"] if "ipBlock" in to]
    found += ["metadata service"] * any("169.254.169.254/32" not in b["except"] for b in blocks if b["cidr"] == "0.0.0.0/0")
    found += ["egress is open"] * any("to" not in rule for rule in spec["egress"])
    return found


def token_is_there(objects):
    volume = pod(objects)["spec"]["volumes"][0]["secret"]
    made = [s for s in of(objects, "Secret") if s["metadata"]["name"] == volume["secretName"]]
    if volume["secretName"] == "mine":
        return ["made one beside it"] * bool(of(objects, "Secret"))
    return [] if made and len(made[0]["data"]["token"]) == 64 else ["no token of 48 characters"]


def edit(path, value):
    """An edit of the first object for which the path exists: kind, then keys."""
    def apply(objects):
        for o in objects:
            if o["kind"] != path[0]:
                continue
            at = o
            for key in path[1:-1]:
                at = at[key]
            at[path[-1]] = value
            return
        raise LookupError(path)
    return apply


BOX = ("Deployment", "spec", "template", "spec", "containers", 0)
CHECKS = {
    restricted: edit((*BOX, "securityContext", "readOnlyRootFilesystem"), False),
    memory_without_cpu_limit: edit((*BOX, "resources", "limits", "cpu"), "1"),
    selectors_meet_pods: edit(("Service", "spec", "selector", "app.kubernetes.io/name"), "other"),
    least_rights: edit(("ClusterRole", "rules", 0, "verbs"), ["get", "create"]),
    bindings_meet_roles: edit(("RoleBinding", "roleRef", "name"), "other"),
    peers_are_all_replicas: lambda objects: [s["spec"].pop("publishNotReadyAddresses", 0) for s in of(objects, "Service")],
    drains_in_time: edit(("Deployment", "spec", "template", "spec", "terminationGracePeriodSeconds"), 30),
    never_fewer_while_updating: edit(("Deployment", "spec", "strategy", "rollingUpdate", "maxUnavailable"), 1),
    probes_on_admin: edit((*BOX, "readinessProbe", "httpGet", "path"), "/livez"),
    policy_closes: edit(("NetworkPolicy", "spec", "ingress", 2, "from"), [{"podSelector": {}}]),
    token_is_there: edit(("Secret", "data", "token"), ""),
}


def paths(values, schema, at=()):
    """The values that the chart itself reads: what the schema leaves open is passed on whole."""
    if not isinstance(values, dict) or "properties" not in schema:
        return [at]
    return [path for key, value in values.items() for path in paths(value, schema["properties"].get(key, {}), (*at, key))]


def unknown(values, schema, at=()):
    """Keys that stand in one of the two alone. A container's resources have members that are not ours to list."""
    if at == ("resources",):
        return sorted(".".join((*at, key)) for key in set(values) - set(schema["properties"]))
    if not isinstance(values, dict) or "properties" not in schema:
        return []
    known = schema["properties"]
    found = [".".join((*at, key)) for key in sorted(set(values) ^ set(known))]
    return found + [path for key in values if key in known for path in unknown(values[key], known[key], (*at, key))]


def used(path, templates):
    """Whether a template reads it: itself, below a `with`, or with all that is around it."""
    if any(f"toYaml .Values.{'.'.join(path[:n])} " in templates for n in range(1, len(path) + 1)):
        return True
    if re.search(rf"\.Values\.{re.escape('.'.join(path))}\b", templates):
        return True
    *above, key = path
    return bool(above) and f"with .Values.{'.'.join(above)} " in templates and bool(re.search(rf"[ (]\.{re.escape(key)}\b", templates))


class Chart(unittest.TestCase):
    def test_lint(self):
        command([world.tools / "helm", "lint", "--strict", CHART])
        for name, values in VARIANTS.items():
            with self.subTest(name):
                command([world.tools / "helm", "lint", "--strict", CHART, *[f for v in values for f in ("--set", v)]])

    def test_every_variant_passes_every_check(self):
        for name, values in VARIANTS.items():
            objects = render(*values)
            for check in CHECKS:
                with self.subTest(f"{name}: {check.__name__}"):
                    self.assertEqual(check(objects), [])

    def test_every_check_can_fail(self):
        objects = render()
        for check, spoil in CHECKS.items():
            with self.subTest(check.__name__):
                spoiled = copy.deepcopy(objects)
                spoil(spoiled)
                self.assertNotEqual(check(spoiled), [])

    def test_watched_namespaces_need_nothing_cluster_wide(self):
        kinds = {o["kind"] for o in render("watchNamespaces={shop,pay}")}
        self.assertFalse({k for k in kinds if k.startswith("ClusterRole")})
        self.assertTrue({k for k in {o["kind"] for o in render()} if k.startswith("ClusterRole")})  # the control
        roles = of(render("watchNamespaces={shop,pay}"), "Role")
        self.assertEqual({r["metadata"]["namespace"] for r in roles}, {"gateway", "shop", "pay"})
        self.assertEqual(env(render("watchNamespaces={shop,pay}"))["PORTCULLIS_WATCH_NAMESPACES"], "shop,pay")

    def test_secrets_can_be_read_where_the_values_say_and_nowhere_else(self):
        def readable(*values):
            """Kind and namespace of each Role that lets Secrets be read, with the names, if only some."""
            objects = render(*values)
            return sorted((r["kind"], r["metadata"].get("namespace"), tuple(rule.get("resourceNames", ())))
                          for r in of(objects, "Role") + of(objects, "ClusterRole") for rule in r["rules"]
                          if "secrets" in rule["resources"])
        self.assertEqual(readable(), [("ClusterRole", None, ())])
        self.assertEqual(readable("watchNamespaces={shop}"), [("Role", "shop", ())])
        self.assertEqual(readable(*VARIANTS["secrets-of-namespaces"]), [("Role", "pay", ()), ("Role", "shop", ())])
        self.assertEqual(readable(*VARIANTS["secrets-by-name"]), [("Role", "shop", ("tls", "key"))])
        self.assertEqual(readable("rbac.secrets=names"), [])
        self.assertEqual(env(render("namespaceSelector.team=web,namespaceSelector.a/b=c"))["PORTCULLIS_NAMESPACE_SELECTOR"], "a/b=c,team=web")

    def test_two_releases_share_nothing(self):
        def names(objects):
            return {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects}
        one = names(render())
        self.assertFalse(one & names(render(release="other")))
        self.assertFalse(one & names(render(namespace="other")))

    def test_kinds_by_values(self):
        def kinds(*values):
            return sorted({o["kind"] for o in render(*values)})
        self.assertIn("PodDisruptionBudget", kinds())
        self.assertNotIn("PodDisruptionBudget", kinds("kind=DaemonSet"))
        self.assertNotIn("ServiceMonitor", kinds())
        self.assertIn("ServiceMonitor", kinds("metrics.serviceMonitor.enabled=true"))
        self.assertNotIn("NetworkPolicy", kinds("networkPolicy.enabled=false"))

    def test_values_are_checked(self):
        for bad in ("kind=Pod", "replicas=-1", "drain.delay=5", "service.type=ExternalName", "replicsa=3", "hostnames=All",
                    "trustedHops=-1", "accessLog=stderr", "watchNamespaces={Shop}", "image.digest=sha256:12",
                    "rbac.secrets=some", "maxConnections=0", "maxConnectionsPerClient=0", "maxAcceptsPerSecond=0", "workers=257", "maxBodySize=big", "service.publicHttpsPort=0", "rbac.secretNames.shop={A}", "rbac.secretNamespaces={shop}", "namespaceSelector.a=b c",
                    "rbac.secrets=names,rbac.secretNamespaces={shop}",
                    "egress.deny={everything}", "egress.allow={private}", "egress.cluster={10.0.0.0/8/8}", "egress.permit={10.0.0.0/8}",
                    "proxyProtocol.listeners={admin}", "proxyProtocol.trustedProxies={everybody}"):
            with self.subTest(bad), self.assertRaises(CommandFailed):
                render(bad)
        with self.assertRaisesRegex(CommandFailed, "leave watchNamespaces empty"):
            render("hostnames=Listed", "watchNamespaces={shop}")
        with self.assertRaisesRegex(CommandFailed, "leave watchNamespaces empty"):
            render("namespaceSelector.a=b", "watchNamespaces={shop}")
        for half in ("proxyProtocol.listeners={http}", "proxyProtocol.trustedProxies={10.0.0.0/8}"):
            with self.subTest(half), self.assertRaisesRegex(CommandFailed, "go together"):
                render(half)
        render("replicas=3", "drain.delay=1m30s")  # the control

    def test_every_value_is_in_the_schema_and_used(self):
        values = json.loads(command([world.tools / "yaml2json"], stdin=(CHART / "values.yaml").read_text()))[0]
        schema = json.loads((CHART / "values.schema.json").read_text())
        schema["properties"].pop("global")
        templates = "".join(f.read_text() for f in (CHART / "templates").iterdir())
        self.assertEqual(unknown(values, schema), [])
        self.assertEqual([path for path in paths(values, schema) if not used(path, templates)], [])
        # The controls: a key that the schema lacks, one that values.yaml lacks, one that no template reads.
        spoiled = copy.deepcopy(values)
        spoiled["redis"]["database"] = spoiled["redis"].pop("timeout")
        self.assertEqual(unknown(spoiled, schema), ["redis.database", "redis.timeout"])
        self.assertFalse(used(("redis", "database"), templates))

    def test_the_store_arrives(self):
        given = {e["name"]: e for e in container(render(*VARIANTS["redis"]))["env"]}
        self.assertEqual(given["PORTCULLIS_REDIS"]["valueFrom"], {"secretKeyRef": {"name": "counts", "key": "address"}})
        self.assertEqual(given["PORTCULLIS_REDIS_TIMEOUT"]["value"], "50ms")
        self.assertFalse({"PORTCULLIS_REDIS", "PORTCULLIS_REDIS_TIMEOUT"} & set(env(render())))

    def test_redirects_lead_to_the_port_that_clients_reach(self):
        for values, port in (([], "443"), (["service.httpsPort=8443"], "8443"),
                             (["service.type=NodePort", "service.httpsNodePort=30443"], "30443"),
                             (["service.type=NodePort"], "443"), (["service.type=ClusterIP", "service.httpsPort=9443"], "9443"),
                             (["service.type=NodePort", "service.httpsNodePort=30443", "service.publicHttpsPort=8443"], "8443")):
            with self.subTest(values):
                self.assertEqual(env(render(*values))["PORTCULLIS_PUBLIC_HTTPS_PORT"], port)

    def test_the_notes_are_right_for_any_namespace(self):
        def notes(*values):
            # helm shows them to those alone that have a cluster.
            with tempfile.TemporaryDirectory() as folder:
                chart = shutil.copytree(CHART, Path(folder) / "portcullis")
                shutil.move(chart / "templates/NOTES.txt", chart / "notes")
                (chart / "templates/notes.yaml").write_text(
                    'kind: ConfigMap\nmetadata: {name: notes}\ndata: {notes: {{ tpl (.Files.Get "notes") . | quote }}}\n')
                objects = render(*values, chart=chart)
            return of(objects, "ConfigMap")[0]["data"]["notes"]
        self.assertIn("kubectl -n default wait --for=condition=Programmed gwr/web", notes())
        self.assertIn("kubectl -n shop wait --for=condition=Programmed gwr/web", notes("watchNamespaces={shop,pay}"))
        self.assertIn(".hostname}", notes())

    def test_crds_are_the_generated_ones(self):
        def files(folder):
            return {f.name: f.read_text() for f in folder.glob("*.yaml")}
        generated = files(ROOT / "crds")
        self.assertEqual(set(generated), {"gatewayroutes.yaml", "gatewaybackends.yaml", "gatewaypolicies.yaml"})
        self.assertEqual(files(CHART / "crds"), generated, "run `make crds`")

    def test_numbers_arrive_as_they_are_written(self):
        self.assertEqual(env(render())["PORTCULLIS_MAX_CONNECTIONS"], "10000")
        self.assertEqual(env(render("maxConnections=25000000"))["PORTCULLIS_MAX_CONNECTIONS"], "25000000")

    def test_bounds_of_clients_are_off_and_arrive(self):
        names = ("PORTCULLIS_MAX_CONNECTIONS_PER_CLIENT", "PORTCULLIS_MAX_ACCEPTS_PER_SECOND")
        self.assertFalse(set(names) & set(env(render())))
        given = env(render("maxConnectionsPerClient=100", "maxAcceptsPerSecond=1000000"))
        self.assertEqual([given[n] for n in names], ["100", "1000000"])

    def test_networks_of_the_egress_guard_arrive(self):
        for list in "deny", "allow", "cluster":
            name = f"PORTCULLIS_EGRESS_{list.upper()}"
            self.assertNotIn(name, env(render()))
            self.assertEqual(env(render(f"egress.{list}={{10.0.0.0/24,fd00::/8}}"))[name], "10.0.0.0/24,fd00::/8")

    def test_no_image_of_a_registry(self):
        for name, values in VARIANTS.items():
            self.assertEqual(container(render(*values))["image"], "portcullis:0.1.0", name)
        self.assertEqual(container(render("image.digest=sha256:" + "0" * 64))["image"], "portcullis@sha256:" + "0" * 64)


class Shell(unittest.TestCase):
    def test_an_image_has_the_name_that_a_node_looks_for(self):
        wanted = {"portcullis:dev": "docker.io/library/portcullis:dev", "team/portcullis:1": "docker.io/team/portcullis:1",
                  "registry.example/portcullis:1": "registry.example/portcullis:1", "localhost/p:1": "localhost/p:1"}
        with tempfile.TemporaryDirectory() as folder:
            (program := Path(folder) / "program").write_text("none")
            for name, full in wanted.items():
                command([ROOT / "e2e/cluster/mkimage.py", f"{folder}/image.tar", name, "--entry", "/p", f"{program}=/p"])
                with tarfile.open(f"{folder}/image.tar") as image:
                    index = json.load(image.extractfile("index.json"))
                self.assertEqual(index["manifests"][0]["annotations"]["io.containerd.image.name"], full)

    def test_scripts_parse(self):
        for script in (ROOT / "e2e" / "cluster").rglob("*.sh"):
            with self.subTest(script.name):
                self.assertEqual(subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr, "")
