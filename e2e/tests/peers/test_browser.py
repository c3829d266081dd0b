"""CORS as a real browser asks for it: Chromium loads a page of one origin, whose script asks the gateway under another."""
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import unittest

from harness import world
from harness.process import Process
from harness.standalone import Echo, Standalone, thing
from harness.wait import until

KEY = "0123456789abcdef0123456789abcdef"
# Names under .localhost are loopback for Chromium; the two of one site share cookies, their origins differ.
SHOP, EVIL, API = "shop.site.localhost", "evil.localhost", "api.site.localhost"
PAGE = """<!doctype html><title>page</title><script>
const api = "http://%(api)s", key = {"X-Api-Key": "%(key)s"}, told = {};
async function ask(name, path, options) {
  try {
    const answer = await fetch(api + path, options);
    const text = await answer.text();
    let seen = {};
    try { seen = JSON.parse(text).headers || {}; } catch {}
    told[name] = {type: answer.type, status: answer.status, total: answer.headers.get("x-total"), hidden: answer.headers.get("x-hidden"),
                  cookie: seen["cookie"], origin: seen["origin"]};
  } catch (error) { told[name] = {blocked: String(error)}; }
}
(async () => {
  await ask("cookie", "/open/", {credentials: "include"});
  await ask("own header", "/", {headers: key, credentials: "include"});
  await ask("without credentials", "/", {headers: key, credentials: "omit"});
  await ask("no key", "/", {credentials: "include"});
  await ask("put", "/", {method: "PUT", body: "{}", headers: {...key, "Content-Type": "application/json"}, credentials: "include"});
  await ask("method not allowed", "/", {method: "DELETE", headers: key, credentials: "include"});
  await ask("header not allowed", "/", {headers: {...key, "X-Other": "1"}, credentials: "include"});
  await ask("opaque", "/open/", {mode: "no-cors"});
  await ask("no cors there", "/plain/", {});
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


class Site(http.server.ThreadingHTTPServer):
    """Serves the page under every name, and is told what its script saw."""

    def __init__(self, api):
        self.page, self.told = (PAGE % {"api": api, "key": KEY}).encode(), {}
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(self.server.page if self.path == "/" else b"", 200 if self.path == "/" else 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told[self.headers["Host"].split(":")[0]] = json.loads(body)
        self.answer(b"", 200)

    def answer(self, body, status):
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@unittest.skipUnless(shutil.which("chromium"), "no Chromium (Debian: chromium)")
class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.echo = Echo("echo-cors").start()
        cls.addClassCleanup(cls.echo.stop)
        cls.gateway = Standalone("cors", "--access-log", world.data / "log" / "access.log")
        cls.gateway.start()
        cls.addClassCleanup(cls.gateway.stop)
        cls.site = Site(f"{API}:{cls.gateway.http}")
        cls.addClassCleanup(cls.site.shutdown)
        cls.gateway.write("routes", cls.echo.backend("echo", "site"), {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "acme", "namespace": "site"}, "stringData": {"key": KEY}},
            cls.route(cls.site.server_port))
        until("the route is there", lambda: cls.gateway.get(API, "/open/").status == 200)
        for host in SHOP, EVIL:
            cls.visit(host)

    @classmethod
    def route(cls, port):
        cors = {"allowOrigins": [f"http://{SHOP}:{port}"], "allowMethods": ["PUT"], "allowHeaders": ["X-Api-Key", "Content-Type"],
                "exposeHeaders": ["X-Total"], "allowCredentials": True}
        key = {"anyOf": [{"name": "key", "apiKey": {"secretRef": {"name": "acme"}}}]}
        fields = [{"name": "X-Total", "value": "3"}, {"name": "X-Hidden", "value": "4"}, {"name": "Set-Cookie", "value": "sid=7; Path=/"}]
        to = {"backendRefs": [{"kind": "GatewayBackend", "name": "echo"}]}
        return thing("GatewayRoute", "api", "site", {"hostnames": [API], "rules": [
            {"name": "open", "matches": [{"path": {"value": "/open"}}], "policy": {"cors": cors, "response": {"headers": {"set": fields}}}, **to},
            {"name": "plain", "matches": [{"path": {"value": "/plain"}}], **to},
            {"name": "keyed", "policy": {"cors": cors, "authentication": key, "response": {"headers": {"set": fields[:2]}}}, **to}]})

    @classmethod
    def visit(cls, host):
        """Until the page's script has told what it saw."""
        folder = world.data / f"chromium-{host}"
        folder.mkdir()
        sandbox = ["--no-sandbox"] * (os.geteuid() == 0)  # it refuses to be root with one
        browser = Process(f"chromium-{host}", [
            "chromium", "--headless=new", *sandbox, "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}",
            "--remote-debugging-port=0",  # else it would end as soon as the page is loaded
            f"http://{host}:{cls.site.server_port}/"], world.data / "log" / f"chromium-{host}.log", {"HOME": str(folder)}).start()
        try:
            def told():
                browser.check()
                return host in cls.site.told
            until(f"the script of {host} tells", told, 60)
        finally:
            browser.stop()

    def told(self, host, name):
        return self.site.told[host][name]

    def test_an_allowed_origin_reads_what_it_may(self):
        first, own = self.told(SHOP, "cookie"), self.told(SHOP, "own header")
        self.assertEqual((first["type"], first["status"], first["origin"]), ("cors", 200, f"http://{SHOP}:{self.site.server_port}"))
        self.assertEqual((own["status"], own["total"], own["hidden"]), (200, "3", None))
        self.assertEqual(self.told(SHOP, "put")["status"], 200)

    def test_credentials_go_where_they_are_included(self):
        self.assertEqual(self.told(SHOP, "own header")["cookie"], "sid=7")
        self.assertEqual((self.told(SHOP, "without credentials")["status"], self.told(SHOP, "without credentials").get("cookie")), (200, None))

    def test_an_error_of_the_gateway_can_be_read(self):
        self.assertEqual(self.told(SHOP, "no key")["status"], 401)

    def test_methods_and_fields_that_are_not_allowed_are_blocked(self):
        for name in "method not allowed", "header not allowed":
            self.assertIn("blocked", self.told(SHOP, name), name)
        seen = [(line["method"], line["status"]) for line in self.access_log()]
        self.assertNotIn("DELETE", [method for method, _ in seen], "it did not come past its preflight")
        self.assertEqual(seen.count(("PUT", 200)), 1)

    def test_a_refused_origin_reads_nothing(self):
        told = dict(self.site.told[EVIL])
        self.assertEqual(told.pop("opaque")["type"], "opaque", "the control: its requests do arrive")
        for name, seen in told.items():
            self.assertIn("blocked", seen, name)

    def test_without_cors_nobody_of_another_origin_reads(self):
        for host in SHOP, EVIL:
            self.assertIn("blocked", self.told(host, "no cors there"))

    def test_real_preflights_were_answered_by_the_gateway(self):
        preflights = [line for line in self.access_log() if line["method"] == "OPTIONS"]
        self.assertGreater(len(preflights), 3)
        self.assertEqual({line["status"] for line in preflights}, {204})

    def access_log(self):
        text = until("the access log is written", lambda: re.search(r"\A(?s:.+)\n\Z", (world.data / "log" / "access.log").read_text()))[0]
        return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    unittest.main()
