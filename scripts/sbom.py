#!/usr/bin/env python3
"""What a release is made of, from what cargo knows: a bill of materials and the licences of everything in it.

    scripts/sbom.py --target TRIPLE --bom FILE --licences FILE

The bill is CycloneDX 1.5 (https://cyclonedx.org) with package URLs, checksums of the lock file and the edges between
packages. It has neither a time nor a random serial number: the same sources give the same bytes. Only what is linked
for the target is in it, not what tests or builds need.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

PROGRAMS = ("minitcptunnel-server", "minitcptunnel-client")
TEXTS = re.compile(r"(licen[cs]e|copying|notice|unlicense|copyright)", re.IGNORECASE)


def metadata(target):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def linked(data):
    """What the programs have in them, with the edges: id -> ids. Build scripts and tests are no part of it; what a
    procedural macro is made of stays in the compiler."""
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    macros = {
        package["id"]
        for package in data["packages"]
        if any("proc-macro" in target["kind"] for target in package["targets"])
    }
    todo = [package["id"] for package in data["packages"] if package["name"] in PROGRAMS]
    edges = {}
    while todo:
        at = todo.pop()
        if at in edges:
            continue
        edges[at] = sorted(
            dep["pkg"]
            for dep in nodes[at]["deps"]
            if dep["pkg"] not in macros and any(kind["kind"] is None for kind in dep["dep_kinds"])
        )
        todo += edges[at]
    return edges


def checksums(lock):
    """(name, version) -> sha256 of the crate, as the lock file has it."""
    found = {}
    for entry in lock.read_text().split("[[package]]")[1:]:
        field = dict(re.findall(r'^(name|version|checksum) = "([^"]*)"$', entry, re.MULTILINE))
        if "checksum" in field:
            found[field["name"], field["version"]] = field["checksum"]
    return found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def licence(package):
    # Old manifests write a slash where SPDX has "OR".
    return (package["license"] or "").replace("/", " OR ")


def component(package, sums):
    it = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "purl": purl(package),
        "licenses": [{"expression": licence(package)}],
    }
    checksum = sums.get((package["name"], package["version"]))
    if checksum:
        it["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package.get("repository"):
        it["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return it


def bill(data, edges, target):
    packages = {package["id"]: package for package in data["packages"]}
    sums = checksums(pathlib.Path(data["workspace_root"]) / "Cargo.lock")
    used = sorted((packages[id] for id in edges), key=lambda package: (package["name"], package["version"]))
    version = next(package["version"] for package in used if package["name"] in PROGRAMS)
    top = f"minitcptunnel@{version}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": top,
                "name": "minitcptunnel",
                "version": version,
                "licenses": [{"expression": "MIT"}],
            },
            "properties": [{"name": "target", "value": target}],
        },
        "components": [component(package, sums) for package in used],
        "dependencies": [
            {"ref": top, "dependsOn": [purl(package) for package in used if package["name"] in PROGRAMS]}
        ]
        + [
            {"ref": purl(package), "dependsOn": sorted(purl(packages[id]) for id in edges[package["id"]])}
            for package in used
        ],
    }


def licences(data, edges):
    """The text of every licence, once, with those it is the licence of."""
    texts, without = {}, []
    for package in sorted(data["packages"], key=lambda package: (package["name"], package["version"])):
        if package["id"] not in edges or package["source"] is None:
            continue
        folder = pathlib.Path(package["manifest_path"]).parent
        files = [file for file in sorted(folder.iterdir()) if TEXTS.match(file.name) and file.is_file()]
        name = f"{package['name']} {package['version']} ({licence(package)})"
        for file in files:
            text = file.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").strip()
            texts.setdefault(text, []).append(name)
        if not files:
            without.append(f"{name}, {package.get('repository') or 'no repository'}")
    parts = ["# What is in these programs besides their own code, and under which terms\n"]
    for text, names in texts.items():
        unique = list(dict.fromkeys(names))
        parts.append("\n".join(f"* {name}" for name in unique) + "\n\n```\n" + text + "\n```\n")
    if without:
        parts.append("Named in their manifests alone:\n\n" + "\n".join(f"* {name}" for name in without) + "\n")
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="the target triple")
    parser.add_argument("--bom", required=True, type=pathlib.Path, help="where the bill goes")
    parser.add_argument("--licences", required=True, type=pathlib.Path, help="where the licences go")
    arguments = parser.parse_args()
    data = metadata(arguments.target)
    edges = linked(data)
    if len(edges) < 10:
        sys.exit("sbom: cargo names hardly any packages; is the target right?")
    arguments.bom.write_text(json.dumps(bill(data, edges, arguments.target), indent=2) + "\n")
    arguments.licences.write_text(licences(data, edges))


if __name__ == "__main__":
    main()
