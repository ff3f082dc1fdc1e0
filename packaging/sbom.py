#!/usr/bin/env python3
"""Writes the software bill of materials of our programs to standard output, as CycloneDX 1.5 in JSON.

    cargo metadata --locked --format-version 1 --filter-platform TARGET --features capture | sbom.py LIBRARIES...

It lists the crates that are linked into the programs, with version, licence and checksum, and what depends on what; and
the libraries beside the Recorder, from files with a line `package version architecture` each. Equal input gives equal
bytes.
"""

import json
import re
import sys


def main():
    metadata = json.load(sys.stdin)
    packages = {package["id"]: package for package in metadata["packages"]}
    checksums = {}
    lock = open(f"{metadata['workspace_root']}/Cargo.lock", encoding="utf-8").read()
    for name, version, checksum in re.findall(r'name = "(.*)"\nversion = "(.*)"\n(?:source = ".*"\n)?checksum = "(.*)"', lock):
        checksums[name, version] = checksum
    # Tests, build scripts and macros are in no program.
    macros = {id for id, package in packages.items() if any("proc-macro" in target["kind"] for target in package["targets"])}
    linked = lambda dependency: dependency["pkg"] not in macros and any(kind["kind"] is None for kind in dependency["dep_kinds"])
    uses = {node["id"]: [dep["pkg"] for dep in node["deps"] if linked(dep)] for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    found, left = set(), [root]
    while left:
        package = left.pop()
        if package not in found:
            found.add(package)
            left += uses[package]
    purl = lambda package: f"pkg:cargo/{packages[package]['name']}@{packages[package]['version']}"

    def component(package):
        about = packages[package]
        entry = {"type": "library", "bom-ref": purl(package), "name": about["name"], "version": about["version"], "purl": purl(package)}
        if about["license"]:
            entry["licenses"] = [{"expression": about["license"].replace("/", " OR ")}]
        if (about["name"], about["version"]) in checksums:
            entry["hashes"] = [{"alg": "SHA-256", "content": checksums[about["name"], about["version"]]}]
        return entry

    libraries = {}
    for path in sys.argv[1:]:
        for name, version, architecture in (line.split() for line in open(path, encoding="utf-8")):
            url = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}?arch={architecture}"
            libraries[url] = {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}

    crates = [component(package) for package in found - {root}]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**component(root), "type": "application"}},
        "components": sorted([*crates, *libraries.values()], key=lambda entry: entry["purl"]),
        "dependencies": sorted(
            ({"ref": purl(package), "dependsOn": sorted(purl(used) for used in uses[package])} for package in found),
            key=lambda entry: entry["ref"],
        ),
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
