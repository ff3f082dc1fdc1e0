#!/usr/bin/env python3
"""Writes one of our images as an OCI archive, which `podman load` reads. Needs no registry, no container tool and no root.

    oci.py (controller|recorder) CONTENT ARCHITECTURE VERSION REVISION FILE

CONTENT is a program or a folder. The image is that of the Containerfile: the program, for the Recorder with the libraries
that it is linked to, users and groups by name, and for the Controller the names under which it answers health checks. Equal input gives equal bytes: times are SOURCE_DATE_EPOCH, or 0.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
import time

HERE = os.path.dirname(os.path.realpath(__file__))
TIME = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
OCI = "application/vnd.oci.image"


def archive(entries):
    """A tar archive of (name, content): bytes are a file, a text is the target of a link, None is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = TIME, 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
                info.mode = 0o755 if content.startswith(b"\x7fELF") else 0o644
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def content(path, name):
    """What an image holds of a program, or of a folder with all that is in it."""
    if not os.path.isdir(path):
        return [(name, read(path))]
    entries = []
    for folder, folders, files in os.walk(path):
        folders.sort()
        below = os.path.relpath(folder, path)
        place = lambda file: os.path.normpath(os.path.join(below, file))
        entries += [(below, None)] if below != "." else []
        for file in sorted(files):
            source = os.path.join(folder, file)
            entries.append((place(file), os.readlink(source) if os.path.islink(source) else read(source)))
    return entries


def main(kind, program, architecture, version, revision, out):
    name = f"silvasonic-{kind}"
    users = [("etc", None)] + [(f"etc/{file}", read(f"{HERE}/image/etc/{file}")) for file in ("group", "passwd")]
    heap = "GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0"
    links, config = [], {"Entrypoint": [f"/{name}"], "Env": ["PATH=/", "SILVASONIC_RECORDER_RESERVE_MB=512", heap]}
    if kind == "controller":
        folders = [(folder, None) for folder in ("bin", "usr", "usr/bin")]
        links = folders + [(link, f"/{name}") for link in ("curl", "usr/bin/curl", "bin/sh")]
        config["Env"] = [
            "PATH=/:/bin:/usr/bin",
            "SILVASONIC_RECORDER_WORKSPACE_LOCAL=/workspace/recorder",
            heap,
        ]
        config["ExposedPorts"] = {"9100/tcp": {}}
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(TIME))
    labels = {
        "org.opencontainers.image.title": f"silvasonic_{kind}",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    }
    config["Labels"] = labels
    layer = archive(users + content(program, name) + links)
    blobs = {}

    def blob(content, kind, **more):
        content = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(content), **more}

    layers = [blob(layer, "layer.v1.tar")]
    rootfs = {"type": "layers", "diff_ids": [layers[0]["digest"]]}
    history = [{"created": created, "created_by": "packaging/oci.py"}]
    platform = {"architecture": architecture, "os": "linux"}
    description = blob({**platform, "created": created, "config": config, "rootfs": rootfs, "history": history}, "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": description, "layers": layers, "annotations": labels}
    reference = {"org.opencontainers.image.ref.name": f"localhost/silvasonic_{kind}:latest"}
    index = {"schemaVersion": 2, "manifests": [blob(manifest, "manifest.v1+json", annotations=reference, platform=platform)]}
    entries = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", json.dumps(index, sort_keys=True).encode())]
    entries += [("blobs", None), ("blobs/sha256", None)] + [(f"blobs/sha256/{digest}", blobs[digest]) for digest in sorted(blobs)]
    with open(f"{out}.new", "wb") as file:
        file.write(archive(entries))
    os.rename(f"{out}.new", out)


if __name__ == "__main__":
    if len(sys.argv) != 7 or sys.argv[1] not in ("controller", "recorder"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
