#!/usr/bin/env python3
"""The walls of the house, as a program.

    scripts/walls.py               check this repository
    scripts/walls.py --self-test   plant each violation in a scratch copy and expect to be told

What is checked:

  arrows    which workspace member may depend on which (cargo metadata)
  rooms     which room of `common` may use which, and the words a room must not contain
  deny      deny.toml: banned crates, licences, sources (cargo metadata; no cargo-deny needed)
  reasons   every external [workspace.dependencies] entry has a comment above it
  budget    files over 450 lines without their tests are listed, over 600 refused
  codes     every error code is said somewhere, and every ERROR line of the log says one
  places    no paths of one machine and no registry hosts in tracked files

Each check takes a directory (and what cargo said about it) and returns complaints, so that the self-test can run it
on a small tree that is wrong in exactly one way.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# --------------------------------------------------------------------------------------------------------------------
# The plan

PREFIX = "minitcptunnel-"

# Arrows between members: from -> to. Nothing else may be drawn.
ARROWS = {
    ("server", "common"),
    ("client", "common"),
    ("gui", "client"),
    ("gui", "common"),
    ("e2e", "common"),
    ("e2e", "server"),
    ("e2e", "client"),
    ("bench", "common"),
    ("pages", "common"),
    ("pages", "server"),
    ("pages", "client"),
}

# The first row of rooms in common/src: a room uses rooms of a lower number only.
ROW = {"id": 0, "wire": 1, "duplex": 2, "channel": 3, "link": 3, "relay": 4, "pool": 5}
# Apart from the row: may be used by any room that may do I/O, and use nothing of the row but `id`.
APART = {
    "addresses", "admin", "backoff", "budget", "capacity", "cli", "codes", "config", "dial", "doctor", "evloop", "exit", "files", "health", "identity", "log",
    "metrics", "pki", "resources", "service", "signals", "winapi",
}
# These compute and nothing else: no sockets, threads, files, clock or randomness of their own.
SANS_IO = ["common/src/id", "common/src/wire", "common/src/link/mod", "server/src/gateway/http"]
SANS_IO_ROOMS = {"id", "wire"}

SANS_IO_WORDS = [
    (r"\bstd\s*::\s*(net|thread|fs|process|env)\b", "std::{0} (no I/O, threads or environment here)"),
    (r"\bstd\s*::\s*\{[^;]*\b(net|thread|fs|process|env)\b[^;]*;", "std::{0} (no I/O, threads or environment here)"),
    (r"\bstd\s*::\s*io\s*::\s*(stdin|stdout|stderr)\b", "std::io::{0} (no I/O here)"),
    (r"\b(mio|socket2|crossbeam_channel)\s*::", "{0} (no I/O here)"),
    (r"\b(Instant|SystemTime)\s*::\s*now\b", "{0}::now (time is an argument)"),
    (r"\b(e?println|e?print|dbg)\s*!", "{0}! (say it in an error)"),
    (r"\b(rand|rand_core|getrandom|fastrand)\s*::", "{0} (random bytes are an argument)"),
    (r"\b(OsRng|SysRng|thread_rng|secure_rand_bytes)\b", "{0} (random bytes are an argument)"),
    (r"\b(?:SigningKey|SecretKey|PrivateKey|EphemeralSecret)\s*::\s*(generate|random|default)\b",
     "::{0}() of a key (random bytes are an argument)"),
]

# Other words that a folder must not contain.
FOLDER_WORDS = [
    ("server/src/forward", r"\b(wire)\s*::", "wire (the forward job speaks TLS)"),
    ("server/src", r"\b(ring)\s*::", "{0} (the provider of TLS is common::pki::provider)"),
    ("client/src", r"\b(ring)\s*::", "{0} (the provider of TLS is common::pki::provider)"),
    ("client/src", r"\b(httparse|http)\s*::", "{0} (no HTTP parsing in the client)"),
    ("server/src", r"\b(minitcptunnel_client)\b", "{0} (server and client never meet)"),
    ("client/src", r"\b(minitcptunnel_server)\b", "{0} (server and client never meet)"),
    ("common/src", r"\b(minitcptunnel_server|minitcptunnel_client)\b", "{0} (common depends on no member)"),
]

BUDGET_LISTED = 450
BUDGET_REFUSED = 600

# Written so that this file does not match itself.
PLACES = [
    (r"(?<![\w.])/wor[k]/[\w.]", "a path of one machine"),
    (r"(?<![\w.])/roo[t]/[\w.]", "a path of one machine"),
    (r"(?<![\w.])/hom[e]/[a-z][\w-]*/", "a path of one machine"),
    (r"(?<![\w.])/User[s]/[A-Za-z]", "a path of one machine"),
    (r"[A-Z]:\\\\?User[s]\\", "a path of one machine"),
    (r"/tmp/bash_job[s]", "a path of one machine"),
    (r"\b(?:static|index)\.crate[s]\.io\b", "a registry host"),
    (r"\b(?:test\.|files\.)?(?:pyp[i]\.org|pythonhoste[d]\.org)\b", "a registry host"),
    (r"\b(?:deb|security|snapshot)\.debia[n]\.org\b", "a registry host"),
    (r"\b\w+\.ubunt[u]\.com\b", "a registry host"),
    (r"\bregistry\.(?:npmj[s]\.org|yarnpk[g]\.com)\b", "a registry host"),
    (r"(?:--|\b)(?:extra-)?index-ur[l]\b|--find-link[s]\b|--trusted-hos[t]\b", "a registry setting"),
    (r"\bsparse\+http", "a registry setting"),
]

# --------------------------------------------------------------------------------------------------------------------
# Reading Rust, as far as needed

TOKEN = re.compile(
    r"""
      (?P<line>//[^\n]*)
    | (?P<block>/\*)
    | (?P<raw>b?r(?P<hash>\#*)")
    | (?P<string>b?"(?:\\.|[^"\\])*")
    | (?P<char>b?'(?:\\(?:u\{[^}]*\}|x[0-9a-fA-F]{2}|.)|[^'\\\n])')
    """,
    re.VERBOSE | re.DOTALL,
)


def code_only(text):
    """The same text with comments and the insides of strings blanked out; lines and columns stay where they are."""

    def blank(part):
        return re.sub(r"[^\n]", " ", part)

    out = []
    at = 0
    while True:
        m = TOKEN.search(text, at)
        if not m:
            out.append(text[at:])
            return "".join(out)
        out.append(text[at : m.start()])
        end = m.end()
        if m.group("block"):
            depth = 1
            while depth and end < len(text):
                if text.startswith("/*", end):
                    depth, end = depth + 1, end + 2
                elif text.startswith("*/", end):
                    depth, end = depth - 1, end + 2
                else:
                    end += 1
        elif m.group("raw"):
            close = text.find('"' + m.group("hash"), end)
            end = len(text) if close < 0 else close + 1 + len(m.group("hash"))
        out.append(blank(text[m.start() : end]))
        at = end


CFG_TEST = re.compile(r"#\s*\[\s*cfg\s*\(\s*(?:all\s*\(\s*)?test\b[^\]]*\]")


def without_tests(code):
    """Blank out every item under #[cfg(test)]. Takes and gives code without comments."""
    out = code
    at = 0
    while True:
        m = CFG_TEST.search(out, at)
        if not m:
            return out
        i = m.end()
        depth = 0
        while i < len(out):
            c = out[i]
            if c in "{([":
                depth += 1
            elif c in "})]":
                depth -= 1
                if depth < 0:
                    # The end of what the item is in: an arm of a match, the last field of a struct.
                    i -= 1
                    break
                if depth == 0 and c == "}":
                    break
            elif c == ";" and depth == 0:
                break
            i += 1
        end = min(i + 1, len(out))
        out = out[: m.start()] + re.sub(r"[^\n]", "\0", out[m.start() : end]) + out[end:]
        at = end


class Source:
    """One Rust file: its path from the root, its text, and its code without comments and tests."""

    def __init__(self, root, path):
        self.path = path.relative_to(root).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.stripped = without_tests(code_only(self.text))
        self.code = self.stripped.replace("\0", " ")

    def line_of(self, position):
        return self.code.count("\n", 0, position) + 1

    def lines_without_tests(self):
        """Lines that are not wholly inside a test item."""
        marks = self.stripped.split("\n")
        if marks and marks[-1] == "":
            marks.pop()
        return sum(1 for mark in marks if "\0" not in mark)


def sources(root, folder):
    """Every Rust file under a folder but those that exist for tests only."""
    base = root / folder
    found = [Source(root, p) for p in sorted(base.rglob("*.rs"))] if base.is_dir() else []
    only_tests = set()
    for source in found:
        for m in re.finditer(CFG_TEST.pattern + r"\s*(?:pub\s+)?mod\s+(\w+)\s*;", code_only(source.text)):
            here = Path(source.path)
            inside = here.parent if here.stem in ("mod", "lib", "main") else here.parent / here.stem
            only_tests.add((inside / m.group(1)).as_posix())
    return [
        s for s in found
        if not any(s.path == t + ".rs" or s.path.startswith(t + "/") for t in only_tests)
    ]


# --------------------------------------------------------------------------------------------------------------------
# The checks


def check_arrows(metadata):
    complaints = []
    members = {p["name"] for p in metadata["packages"] if p["id"] in set(metadata["workspace_members"])}
    for package in metadata["packages"]:
        if package["name"] not in members:
            continue
        source = package["name"].removeprefix(PREFIX)
        for dependency in package["dependencies"]:
            if dependency["name"] not in members and not dependency.get("path"):
                continue
            target = dependency["name"].removeprefix(PREFIX)
            if (source, target) not in ARROWS:
                kind = dependency.get("kind") or "normal"
                complaints.append(f"arrow {source} -> {target} ({kind} dependency) is not in the plan")
    return complaints


def room_of(path):
    """common/src/wire/frame.rs -> wire, common/src/relay.rs -> relay, common/src/lib.rs -> None."""
    parts = Path(path).with_suffix("").parts[2:]
    return None if not parts or parts[0] in ("lib", "main") else parts[0]


def split_group(text):
    """The items of a use group: `a, b::{c, d}` -> [a, b::{c, d}]."""
    items, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
        elif c == "," and depth == 0:
            items.append(text[start:i])
            start = i + 1
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def rooms_used(source):
    """(position, room) for each crate::room or super::...::room the file names."""
    known = set(ROW) | APART
    module = list(Path(source.path).with_suffix("").parts[2:])
    if module and module[-1] in ("mod", "lib"):
        module.pop()
    for m in re.finditer(r"\b(crate|super(?:\s*::\s*super)*)\s*::\s*(\{|\w+)", source.code):
        supers = len(re.findall("super", m.group(1)))
        # `super` out of a file of depth n leads to the root only from the n-th on.
        if supers and supers < len(module):
            continue
        if m.group(2) != "{":
            names = [m.group(2)]
        else:
            depth, i = 1, m.end()
            while depth and i < len(source.code):
                depth += {"{": 1, "}": -1}.get(source.code[i], 0)
                i += 1
            names = [re.match(r"\w*", item).group() for item in split_group(source.code[m.end() : i - 1])]
        for name in names:
            if name in known:
                yield m.start(), name


def check_rooms(root):
    complaints = []
    seen = sources(root, "common/src")
    for source in seen:
        room = room_of(source.path)
        if room is None:
            continue
        if room not in ROW and room not in APART:
            complaints.append(f"{source.path}: room `{room}` is not in the plan; give it a place in scripts/walls.py")
            continue
        for position, used in rooms_used(source):
            if used == room:
                continue
            if room in APART:
                allowed = used in APART or used == "id"
            elif room in SANS_IO_ROOMS:
                allowed = used in ROW and ROW[used] < ROW[room]
            else:
                allowed = used in APART or ROW[used] < ROW[room]
            if not allowed:
                complaints.append(
                    f"{source.path}:{source.line_of(position)}: room `{room}` uses `{used}`, which is not to its left"
                )
    return complaints


def check_words(root):
    complaints = []

    def look(source, pattern, text):
        for m in re.finditer(pattern, source.code):
            complaints.append(f"{source.path}:{source.line_of(m.start())}: " + text.format(m.group(1)))

    for folder in ("common/src", "server/src", "client/src"):
        for source in sources(root, folder):
            if any(source.path == room + ".rs" or source.path.startswith(room + "/") for room in SANS_IO):
                for pattern, text in SANS_IO_WORDS:
                    look(source, pattern, text)
            for where, pattern, text in FOLDER_WORDS:
                if source.path.startswith(where + "/"):
                    look(source, pattern, text)
    return complaints


def licence_allowed(expression, allowed):
    """Evaluate an SPDX expression; `/` is the old way to write OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    at = 0

    def atom():
        nonlocal at
        token = tokens[at]
        at += 1
        if token == "(":
            value = either()
            if at >= len(tokens) or tokens[at] != ")":
                raise ValueError(expression)
            at += 1
            return value
        if token in (")", "AND", "OR", "WITH"):
            raise ValueError(expression)
        if at + 1 < len(tokens) and tokens[at] == "WITH":
            token = f"{token} WITH {tokens[at + 1]}"
            at += 2
        return token in allowed

    def both():
        nonlocal at
        value = atom()
        while at < len(tokens) and tokens[at] == "AND":
            at += 1
            value = atom() and value
        return value

    def either():
        nonlocal at
        value = both()
        while at < len(tokens) and tokens[at] == "OR":
            at += 1
            value = both() or value
        return value

    try:
        value = either()
    except (IndexError, ValueError):
        return False
    return value and at == len(tokens)


def check_deny(root, metadata):
    complaints = []
    rules = tomllib.loads((root / "deny.toml").read_text(encoding="utf-8"))
    banned = {entry["crate"]: entry["reason"] for entry in rules["bans"]["deny"]}
    allowed = set(rules["licenses"]["allow"])
    exceptions = {entry["crate"]: set(entry["allow"]) for entry in rules["licenses"]["exceptions"]}
    registries = {"registry+" + url for url in rules["sources"]["allow-registry"]}
    members = set(metadata["workspace_members"])
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        if package["name"] in banned:
            complaints.append(f"{name} is banned by deny.toml: {banned[package['name']]}")
        licence = package.get("license") or ""
        if not licence_allowed(licence, allowed | exceptions.get(package["name"], set())):
            complaints.append(f"{name}: licence '{licence or 'not named'}' is not allowed by deny.toml")
        if package["id"] in members:
            continue
        if package["source"] not in registries:
            complaints.append(f"{name} comes from {package['source'] or 'a path outside the workspace'}: not allowed by deny.toml")
    return complaints


def check_reasons(root):
    complaints = []
    section = None
    previous = ""
    for number, line in enumerate((root / "Cargo.toml").read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if text.startswith("["):
            section = text
        elif section == "[workspace.dependencies]":
            entry = re.match(r'"?([\w-]+)"?(?:\.[\w-]+)?\s*=', text)
            if entry and not entry.group(1).startswith(PREFIX) and not previous.startswith("#"):
                complaints.append(f"Cargo.toml:{number}: {entry.group(1)} has no comment above it that says why it is here")
        previous = text
    return complaints


def check_budget(root, notes):
    complaints = []
    for folder in ("common/src", "server/src", "client/src"):
        for source in sources(root, folder):
            lines = source.lines_without_tests()
            if lines > BUDGET_REFUSED:
                complaints.append(f"{source.path}: {lines} lines without tests, over {BUDGET_REFUSED}: there is a second role in it")
            elif lines > BUDGET_LISTED:
                notes.append(f"{source.path}: {lines} lines without tests (budget {BUDGET_LISTED})")
    return complaints


def closing(code, at):
    """Where the bracket closes that was opened in front of `at`."""
    depth = 1
    while depth and at < len(code):
        depth += (code[at] in "([{") - (code[at] in ")]}")
        at += 1
    return at


def check_codes(root):
    path = root / "common/src/codes.rs"
    if not path.is_file():
        return []
    listed = re.findall(r"^    ([A-Z][A-Z_]+) = \d+;$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if not listed:
        return ["common/src/codes.rs: no codes found: the check looks for them in the wrong shape"]
    complaints = []
    said = set()
    for source in [s for folder in ("common/src", "server/src", "client/src") for s in sources(root, folder)]:
        # What the errors have in common is chosen beside the list.
        said.update(re.findall(r"\b(?:Code|Self)\s*::\s*([A-Z][A-Z_]+)\b", source.code))
        # `log!` and `log_limited!` may choose ERROR as they go.
        for m in re.finditer(r"\b(?:log::error|log::log|log_limited)!\s*\((?!\s*(?:(?:::)?log::)?Level::(?:Warn|Info|Debug|Trace)\b)", source.code):
            call = source.text[m.start() : closing(source.code, m.end())]
            # Lines that come ready made have theirs already.
            if not re.search(r"code=|\{line\}|\{code\}|\$text", call):
                complaints.append(f"{source.path}:{source.line_of(m.start())}: an ERROR line without code=")
    complaints += [f"common/src/codes.rs: nothing ever says {name}" for name in listed if name not in said]
    return complaints


def check_places(root, tracked):
    complaints = []
    for name in tracked:
        path = root / name
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            for pattern, what in PLACES:
                m = re.search(pattern, line)
                if m:
                    complaints.append(f"{name}:{number}: {what}: {m.group().strip()}")
    return complaints


def tracked_files(root):
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True,
    ).stdout
    return sorted(name for name in listed.decode().split("\0") if name)


def check_all(root):
    cargo = os.environ.get("CARGO", "cargo")
    metadata = json.loads(subprocess.run(
        [cargo, "metadata", "--locked", "--format-version", "1"],
        cwd=root, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
    ).stdout)
    notes = []
    tracked = tracked_files(root)
    results = [
        ("arrows", check_arrows(metadata)),
        ("rooms", check_rooms(root)),
        ("words", check_words(root)),
        ("deny", check_deny(root, metadata)),
        ("reasons", check_reasons(root)),
        ("budget", check_budget(root, notes)),
        ("codes", check_codes(root)),
        ("places", check_places(root, tracked)),
    ]
    # A check over nothing is no check: say what was looked at, and refuse an empty look.
    rust = len(sources(root, "common/src")) + len(sources(root, "server/src")) + len(sources(root, "client/src"))
    wire = len(sources(root, "common/src/wire"))
    print(f"walls: {len(metadata['packages'])} packages, {rust} source files ({wire} of the wire), {len(tracked)} tracked files")
    for note in notes:
        print(f"walls: note: {note}")
    if rust == 0 or wire == 0:
        results.append(("looked", ["no source files there: the checks of the wire look in the wrong place"]))
    wrong = 0
    for name, complaints in results:
        for complaint in complaints:
            wrong += 1
            print(f"walls: {name}: {complaint}")
    print("walls: all stand" if not wrong else f"walls: {wrong} broken")
    return 1 if wrong else 0


# --------------------------------------------------------------------------------------------------------------------
# The self-test: a small clean house, then one fault at a time

HOUSE = {
    "Cargo.toml": (
        '[workspace]\nmembers = []\n\n[workspace.dependencies]\nminitcptunnel-common = { path = "common" }\n\n'
        '# Readiness.\nmio = "1"\n# Logs.\nlog = { version = "0.4" }\n\n[profile.dev]\nopt-level = 1\n'
    ),
    "deny.toml": (Path(__file__).resolve().parent.parent / "deny.toml").read_text(encoding="utf-8"),
    "common/src/lib.rs": "pub mod id;\npub mod wire;\npub mod relay;\npub mod pool;\n",
    "common/src/id.rs": "pub struct ConnId(pub u128);\n",
    "common/src/wire/mod.rs": (
        "//! Not std::net, not Instant::now: a comment may say so.\nuse crate::id::ConnId;\n"
        "pub fn say() -> &'static str { \"std::net println!(x)\" }\npub fn life<'a>(x: &'a str) -> char { let _ = x; '\"' }\n"
        "/* std::fs /* nested */ mio::Poll */\n"
        "#[cfg(test)]\nmod tests {\n    use std::fs;\n    fn f() { println!(\"{:?}\", std::time::Instant::now()); }\n}\n"
    ),
    "common/src/wire/frame.rs": "use super::say;\nuse crate::{id::{ConnId}, wire};\n#[cfg(test)]\nmod vectors;\n",
    "common/src/wire/frame/vectors.rs": "use std::fs;\n",
    "common/src/duplex.rs": "use crate::{log, metrics};\nuse crate::id::ConnId;\n",
    "common/src/relay.rs": "use crate::duplex::Duplex;\nuse crate::metrics::Metrics;\nuse super::channel;\n",
    "common/src/pool.rs": "use crate::relay;\n",
    "common/src/metrics.rs": "use crate::id::ConnId;\nuse std::time::Instant;\nfn f() { let _ = Instant::now(); }\n",
    "common/src/codes.rs": "codes! {\n    /// Somebody's fault.\n    FAULT = 101;\n}\n",
    "server/src/lib.rs": (
        "use minitcptunnel_common::wire;\nfn f() {\n    log::error!(\"it broke; sorry code={}\", Code::FAULT);\n"
        "    lines.iter().for_each(|line| log::error!(\"{line}\"));\n}\n"
    ),
    "client/src/lib.rs": "use std::net::TcpStream;\n",
    "README.md": "Install to /opt/minitcptunnel; see https://crates.io/crates/mio.\n",
}


def house_metadata():
    def package(name, dependencies=(), licence="MIT", source="registry+https://github.com/rust-lang/crates.io-index"):
        return {
            "name": name, "version": "1.0.0", "id": name, "license": licence, "source": source,
            "dependencies": [{"name": d, "kind": None, "path": "x" if d.startswith(PREFIX) else None} for d in dependencies],
        }

    own = [
        package("minitcptunnel-common", ["mio", "log"], source=None),
        package("minitcptunnel-server", ["minitcptunnel-common", "mio"], source=None),
        package("minitcptunnel-client", ["minitcptunnel-common"], source=None),
        package("minitcptunnel-e2e", ["minitcptunnel-common", "minitcptunnel-server", "minitcptunnel-client"], source=None),
    ]
    others = [
        package("mio"),
        package("log", licence="MIT OR Apache-2.0"),
        package("old", licence="MIT/Apache-2.0"),
        package("both", licence="(MIT OR GPL-3.0) AND Unicode-3.0"),
        package("with", licence="Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT"),
        package("dual", licence="LGPL-2.1-or-later OR MIT"),
    ]
    return {"packages": own + others, "workspace_members": [p["id"] for p in own]}


def look_at(house, metadata):
    """All complaints and notes about a house given as {path: text}."""
    with tempfile.TemporaryDirectory(prefix="walls-") as folder:
        root = Path(folder)
        for name, text in house.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        notes = []
        complaints = (
            check_arrows(metadata) + check_rooms(root) + check_words(root) + check_deny(root, metadata)
            + check_reasons(root) + check_budget(root, notes) + check_codes(root) + check_places(root, sorted(house))
        )
        return complaints, notes


def self_test():
    cases = []

    def file_case(title, expected, path, text, append=True):
        house = dict(HOUSE)
        house[path] = (house.get(path, "") if append else "") + text
        cases.append((title, expected, house, house_metadata()))

    def metadata_case(title, expected, change):
        metadata = house_metadata()
        change({p["name"]: p for p in metadata["packages"]}, metadata)
        cases.append((title, expected, dict(HOUSE), metadata))

    def depend(packages, source, target, kind=None):
        packages[source]["dependencies"].append({"name": target, "kind": kind, "path": "x"})

    def add(metadata, **fields):
        package = {"version": "1.0.0", "license": "MIT", "dependencies": [],
                   "source": "registry+https://github.com/rust-lang/crates.io-index"} | fields
        metadata["packages"].append(package | {"id": package["name"]})

    # Arrows.
    for source, target in [("server", "client"), ("client", "server"), ("common", "server"), ("common", "client"),
                           ("server", "e2e"), ("common", "e2e")]:
        metadata_case(f"{source} depends on {target}", f"arrow {source} -> {target}",
                      lambda p, m, s=source, t=target: depend(p, PREFIX + s, PREFIX + t))
    metadata_case("a dev-dependency is an arrow too", "arrow server -> client (dev dependency)",
                  lambda p, m: depend(p, PREFIX + "server", PREFIX + "client", "dev"))

    # Rooms.
    for path, line, expected in [
        ("common/src/wire/mod.rs", "use crate::duplex::Duplex;\n", "room `wire` uses `duplex`"),
        ("common/src/wire/mod.rs", "use crate::log;\n", "room `wire` uses `log`"),
        ("common/src/wire/frame.rs", "use super::super::relay;\n", "room `wire` uses `relay`"),
        ("common/src/id.rs", "use crate::metrics;\n", "room `id` uses `metrics`"),
        ("common/src/duplex.rs", "use crate::relay::run;\n", "room `duplex` uses `relay`"),
        ("common/src/relay.rs", "fn f() { crate::pool::admit(); }\n", "room `relay` uses `pool`"),
        ("common/src/relay.rs", "use super::pool;\n", "room `relay` uses `pool`"),
        ("common/src/channel/sealed.rs", "use crate::{\n    duplex,\n    wire::{frame, keys},\n    pool,\n};\n", "room `channel` uses `pool`"),
        ("common/src/channel/mod.rs", "use crate::link::Stream;\n", "room `channel` uses `link`"),
        ("common/src/metrics.rs", "use crate::relay::Ended;\n", "room `metrics` uses `relay`"),
        ("common/src/helpers.rs", "\n", "room `helpers` is not in the plan"),
    ]:
        file_case(f"{path}: {line.strip()}", expected, path, line)

    # Words.
    wire = "common/src/wire/frame.rs"
    for line, expected in [
        ("use std::net::TcpStream;\n", "std::net"),
        ("use std::{io, net::TcpStream};\n", "std::net"),
        ("use std::{\n    io,\n    thread,\n};\n", "std::thread"),
        ("fn f() { std::thread::yield_now(); }\n", "std::thread"),
        ("use std::fs::File;\n", "std::fs"),
        ("use mio::Poll;\n", "mio"),
        ("fn f() { let _ = std::time::Instant::now(); }\n", "Instant::now"),
        ("fn f() { let _ = SystemTime :: now(); }\n", "SystemTime::now"),
        ("fn f() { println!(\"x\"); }\n", "println!"),
        ("fn f() { eprintln!(\"x\"); }\n", "eprintln!"),
        ("use rand::Rng;\n", "rand"),
        ("fn f() { getrandom::fill(&mut []); }\n", "getrandom"),
        ("use orion::util::secure_rand_bytes;\n", "secure_rand_bytes"),
        ("fn f() { let _ = PrivateKey::generate(); }\n", "::generate()"),
        ("fn f() { let _ = SecretKey::default(); }\n", "::default()"),
        # What looks like the end of a comment or a string, or a test item without one, must not hide what follows.
        ("fn f() { match x {\n    #[cfg(test)]\n    1 => 2,\n    } }\nfn g() { std::fs::read(\"x\"); }\n", "std::fs"),
        ("fn f() { let _ = \"\\\"\"; let _ = '\"'; std::fs::read(\"x\"); }\n", "std::fs"),
        ("fn f() { let _ = r#\"a\"b\"#; std::fs::read(\"x\"); }\n", "std::fs"),
        ("#[cfg(test)]\nmod more { fn f() { let _ = [0; 3]; } }\nuse std::fs;\n", "std::fs"),
    ]:
        file_case(f"in the wire: {line.strip()}", expected, wire, line)
    file_case("in id: a clock", "Instant::now", "common/src/id.rs", "fn f() { let _ = Instant::now(); }\n")
    file_case("in the HTTP framing: a socket", "std::net", "server/src/gateway/http.rs", "use std::net::TcpStream;\n")
    file_case("forward speaks the wire", "the forward job speaks TLS", "server/src/forward/acceptor.rs", "use minitcptunnel_common::wire::frame;\n")
    file_case("client parses HTTP", "no HTTP parsing", "client/src/lib.rs", "use httparse::Request;\n")
    file_case("server names the provider", "common::pki::provider", "server/src/lib.rs", "use rustls::crypto::ring::Ticketer;\n")
    file_case("client names the provider", "common::pki::provider", "client/src/lib.rs", "use rustls::crypto::ring::Ticketer;\n")
    file_case("server names the client", "server and client never meet", "server/src/lib.rs", "use minitcptunnel_client::run;\n")
    file_case("client names the server", "server and client never meet", "client/src/lib.rs", "use minitcptunnel_server::run;\n")

    # deny.toml.
    for crate in ("tokio", "async-std", "smol", "async-io", "openssl-sys", "native-tls", "aws-lc-rs"):
        metadata_case(f"{crate} in the tree", f"{crate} 1.0.0 is banned", lambda p, m, c=crate: add(m, name=c))
    for licence in ("GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0 WITH Odd-exception", "MIT OR", "(MIT", "", None):
        metadata_case(f"licence {licence!r}", "is not allowed by deny.toml",
                      lambda p, m, v=licence: add(m, name="odd", license=v))
    for source in ("git+https://example.org/x", "registry+https://example.org/index", "sparse" + "+https://example.org/", None):
        metadata_case(f"source {source!r}", "not allowed by deny.toml",
                      lambda p, m, v=source: add(m, name="odd", source=v))

    # Reasons.
    with_entry = HOUSE["Cargo.toml"].replace("\n[profile.dev]", 'regex = "1"\n\n[profile.dev]')
    file_case("a dependency without a reason", "regex has no comment above it", "Cargo.toml", with_entry, append=False)
    parted = HOUSE["Cargo.toml"].replace("# Logs.\n", "# Logs.\n\n")
    file_case("a reason parted from its dependency", "log has no comment above it", "Cargo.toml", parted, append=False)

    # Budget.
    file_case("601 lines", "601 lines without tests, over 600", "server/src/big.rs", "fn f() {}\n" * 601)
    file_case("601 lines, and a test", "601 lines without tests, over 600", "server/src/big.rs",
              "fn f() {}\n" * 601 + "#[cfg(test)]\nmod tests {\n" + "fn t() {}\n" * 50 + "}\n")

    # Codes.
    listed = HOUSE["common/src/codes.rs"].replace("}\n", "    /// Never met.\n    NEVER = 102;\n}\n")
    file_case("a code that nothing says", "nothing ever says NEVER", "common/src/codes.rs", listed, append=False)
    file_case("a code that only a test says", "nothing ever says NEVER", "common/src/codes.rs",
              listed + "#[cfg(test)]\nmod tests {\n    fn f() { Self::NEVER; }\n}\n", append=False)
    file_case("codes in another shape", "looks for them in the wrong shape", "common/src/codes.rs", "list![];\n", append=False)
    file_case("an ERROR line without a code", "an ERROR line without code=", "client/src/lib.rs",
              "fn f() {\n    log::error!(\n        \"it broke; see code\",\n    );\n}\n")
    file_case("a line that may be ERROR without a code", "an ERROR line without code=", "client/src/lib.rs",
              "fn f() {\n    log_limited!(kind.level(), say, \"it broke ({why})\");\n    log::warn!(\"code={c}\");\n}\n")
    file_case("an ERROR line by its level alone", "an ERROR line without code=", "client/src/lib.rs",
              "fn f() {\n    log_limited!(Level::Error, say, \"it broke\");\n}\n")

    # Places.
    for line in ("see /" + "work/main/x", "/" + "root/.cargo", "/" + "home/someone/src", "C:\\" + "Users\\me", "/" + "Users/me/x",
                 "https://" + "pypi" + ".org/simple", "index." + "crates.io", "deb." + "debian.org", "pip --index" + "-url x",
                 "--find" + "-links y", "https://registry." + "npmjs.org"):
        file_case(f"a tracked file says {line!r}", "README.md:2: a ", "README.md", line + "\n")

    passed = failed = 0

    def verdict(good, title, detail):
        nonlocal passed, failed
        if good:
            passed += 1
        else:
            failed += 1
            print(f"FAILED {title}: {detail}")

    # The clean house first, or every later "it was told" would mean nothing.
    complaints, notes = look_at(HOUSE, house_metadata())
    verdict(not complaints and not notes, "the clean house is clean", complaints + notes)
    for title, expected, house, metadata in cases:
        complaints, _ = look_at(house, metadata)
        verdict(any(expected in c for c in complaints), title, f"expected '{expected}', was told {complaints}")
        # One fault, one complaint: a check that complains about everything would pass the line above.
        verdict(len(complaints) == 1, title, f"one complaint expected, was told {complaints}")
    tested = "fn f() {}\n" * 440 + "#[cfg(test)]\nmod tests {\n" + "fn t() {}\n" * 400 + "}\n"
    complaints, notes = look_at(HOUSE | {"server/src/tested.rs": tested}, house_metadata())
    verdict(not complaints and not notes, "tests do not count against the budget", complaints + notes)
    complaints, notes = look_at(HOUSE | {"server/src/long.rs": "fn f() {}\n" * 451}, house_metadata())
    verdict(not complaints and len(notes) == 1 and "451 lines" in notes[0], "451 lines are listed", complaints + notes)
    verdict(len(cases) >= 60, "the table of violations is whole", f"{len(cases)} cases")

    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if sys.argv[1:]:
        print(__doc__)
        return 2
    return check_all(Path(__file__).resolve().parent.parent)


if __name__ == "__main__":
    sys.exit(main())
