#!/usr/bin/env python3
"""mkimage.py OUT.tar NAME:TAG --entry /portcullis [--user 65532:65532] [--port 8080/tcp] [--libs] SOURCE=/path …

Writes a container image FROM scratch with one layer that holds the given files, without any registry or daemon: an
OCI layout as a tar, which `ctr images import` and `docker load` take. Same input, same bytes."""
import argparse
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import tarfile

ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def entry(name, size=0, mode=0o755, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type, info.mtime = size, mode, kind, 0
    return info


def shared_libraries(program):
    out = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", out)


def layer(files):
    """files: where in the image -> where here."""
    folders = {"tmp": 0o1777, "etc": 0o755}
    for path in files:
        while path := os.path.dirname(path.lstrip("/")):
            folders.setdefault(path, 0o755)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for folder in sorted(folders):
            tar.addfile(entry(folder + "/", mode=folders[folder], kind=tarfile.DIRTYPE))
        for path, source in sorted(files.items()):
            with open(source, "rb") as f:
                data = f.read()
            mode = 0o755 if os.access(source, os.X_OK) else 0o644
            tar.addfile(entry(path.lstrip("/"), len(data), mode), io.BytesIO(data))
    return raw.getvalue()


def full(name):
    """As containerd knows it: `portcullis:dev` is a short form."""
    first, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"


def image(out, name, files, entrypoint, user="", ports=()):
    blobs = {}

    def blob(data, media, **more):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media, "digest": "sha256:" + digest, "size": len(data), **more}

    def js(value):
        return json.dumps(value, separators=(",", ":")).encode()

    target = {"architecture": ARCH.get(platform.machine(), platform.machine()), "os": "linux"}
    # Not compressed: an image that is made and read on the same machine gains nothing.
    content = blob(layer(files), "application/vnd.oci.image.layer.v1.tar")
    config = blob(js({
        **target, "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": entrypoint, "User": user, "WorkingDir": "/", "Env": ["PATH=/"],
                   "ExposedPorts": {p: {} for p in ports}},
        "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
    }), "application/vnd.oci.image.config.v1+json")
    manifest = blob(
        js({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [content]}),
        "application/vnd.oci.image.manifest.v1+json", platform=target,
        annotations={"io.containerd.image.name": full(name), "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1]})
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]}
    members = {"oci-layout": js({"imageLayoutVersion": "1.0.0"}), "index.json": js(index),
               **{"blobs/sha256/" + digest: blobs[digest] for digest in sorted(blobs)}}
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in members.items():
            tar.addfile(entry(path, len(data), 0o644), io.BytesIO(data))
    return manifest["digest"]


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("out")
    p.add_argument("name")
    p.add_argument("files", nargs="+")
    p.add_argument("--entry", action="append", required=True)
    p.add_argument("--user", default="")
    p.add_argument("--port", action="append", default=[])
    p.add_argument("--libs", action="store_true", help="add the shared libraries that ldd names")
    a = p.parse_intermixed_args()
    files = {dest: source for source, dest in (f.split("=", 1) for f in a.files)}
    if a.libs:
        for source in list(files.values()):
            files.update({lib: lib for lib in shared_libraries(source)})
    digest = image(a.out, a.name, files, a.entry, a.user, a.port)
    print(f"{a.out}: {a.name}, {os.path.getsize(a.out) / 1e6:.1f} MB, {digest}")


if __name__ == "__main__":
    main()
