"""Certificates for hostnames of the tests, by the program openssl."""
import base64
import json

from .kube import command


class Authority:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.cert = folder / "ca.crt"
        if not self.cert.exists():
            self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                          "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=tests", "-days", "30",
                          "-addext", "basicConstraints=critical,CA:TRUE")

    def _openssl(self, *args):
        command(["sh", "-c", 'cd "$0" && exec openssl "$@"', self.folder, *args])

    def secret(self, name, namespace, *hosts):
        """A kubernetes.io/tls Secret with a new key pair, as JSON, and the serial number."""
        names = ",".join(f"DNS:{h}" for h in hosts)
        (self.folder / "leaf.ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
        self._openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                      "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", f"/CN={hosts[0]}")
        self._openssl("x509", "-req", "-in", "leaf.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                      "-days", "20", "-extfile", "leaf.ext", "-out", "leaf.crt")
        serial = command(["openssl", "x509", "-in", self.folder / "leaf.crt", "-noout", "-serial"]).strip().split("=")[1]
        data = {f"tls.{k}": base64.b64encode((self.folder / f"leaf.{k}").read_bytes()).decode() for k in ("crt", "key")}
        return json.dumps({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": data,
                           "metadata": {"name": name, "namespace": namespace}}), serial
