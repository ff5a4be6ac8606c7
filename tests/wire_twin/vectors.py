"""Reads and checks the files of tests/vectors with the twin (format: README.md beside them)."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass

import nacl.signing
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import wire

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "vectors"


def from_expression(text: str) -> bytes:
    """`HEX` and `COUNT*HEX` terms between white space -> bytes."""
    out = bytearray()
    for term in text.split():
        count, star, digits = term.partition("*")
        out += bytes.fromhex(digits) * int(count) if star else bytes.fromhex(count)
    return bytes(out)


def to_terms(raw: bytes) -> list[str]:
    """Bytes -> terms; runs of one byte become `COUNT*HEX`, the rest pieces of at most 39 bytes."""
    terms: list[str] = []

    def plain(piece: bytes) -> None:
        terms.extend(piece[i : i + 39].hex() for i in range(0, len(piece), 39))

    at = 0
    for run in re.finditer(rb"(.)\1{39,}", raw, re.DOTALL):
        plain(raw[at : run.start()])
        terms.append(f"{run.end() - run.start()}*{run[1].hex()}")
        at = run.end()
    plain(raw[at:])
    return terms


@dataclass
class Vector:
    """One file: its fields in order and its body."""

    name: str
    fields: dict[str, str]
    body: bytes

    def hex(self, key: str, default: bytes | None = None) -> bytes:
        """A field holding a hex expression."""
        if key not in self.fields and default is not None:
            return default
        return from_expression(self.fields[key])

    def number(self, key: str, default: int | None = None) -> int:
        """A field holding a decimal number."""
        if key not in self.fields and default is not None:
            return default
        return int(self.fields[key])

    @property
    def good(self) -> bool:
        """True for `expect: ok`."""
        return self.fields["expect"] == "ok"


def read(path: pathlib.Path) -> Vector:
    """Parses a file."""
    head, _, body = path.read_text("ascii").partition("\n\n")
    fields: dict[str, str] = {}
    for line in head.splitlines():
        key, colon, value = line.partition(":")
        if not colon or key in fields:
            raise ValueError(f"{path.name}: bad header line {line!r}")
        fields[key] = value.strip()
    return Vector(path.stem, fields, from_expression(body))


def read_all() -> list[Vector]:
    """Every vector, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.txt"))]


MESSAGE_FIELDS = {
    "public-port": "port", "tunnel-id": "tunnel", "compression": "compression", "status": "status",
    "reason-text": "reason", "port": "port", "conn-id": "conn", "visitor": "visitor", "token": "token",
    "session-key": "session_key", "code": "code", "text": "text", "keep": "keep", "max": "max",
}


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r:.200}, wanted {wanted!r:.200}")


def _evaluate(v: Vector) -> None:
    """Runs a vector: WireError when the input is refused, AssertionError when a result differs."""
    kind = v.fields["kind"]
    if kind == "hello-client":
        allowed, seen = v.hex("allowed"), v.hex("seen", b"")
        keys = [allowed[i : i + 32] for i in range(0, len(allowed), 32)]
        hello = wire.check_client_hello(
            wire.unframe_hello(v.body), keys, {seen[i : i + 32] for i in range(0, len(seen), 32)}
        )
        for key in ("identity", "ephemeral", "nonce", "signature"):
            _same(key, getattr(hello, key), v.hex(key))
    elif kind == "hello-server":
        hello = wire.check_server_hello(wire.unframe_hello(v.body), v.hex("pin"), v.hex("client-signature"))
        for key in ("identity", "ephemeral", "nonce", "signature"):
            _same(key, getattr(hello, key), v.hex(key))
    elif kind == "keys":
        shared = wire.x25519(v.hex("client-private"), v.hex("server-public"))
        _same("shared", shared, wire.x25519(v.hex("server-private"), v.hex("client-public")))
        _same("shared", shared, v.hex("shared"))
        salt = v.hex("client-nonce") + v.hex("server-nonce")
        prk, okm = wire.hkdf_sha256(salt, shared, wire.INFO, 72)
        _same("prk", prk, v.hex("prk"))
        _same("body", okm, v.body)
        keys = wire.Keys.derive(v.hex("client-nonce"), v.hex("server-nonce"), shared)
        split = (keys.key_c2s, keys.key_s2c, keys.base_c2s, keys.base_s2c)
        _same("split", split, tuple(v.hex(k) for k in ("key-c2s", "key-s2c", "base-c2s", "base-s2c")))
    elif kind == "frame":
        direction = wire.Direction(v.hex("key"), v.hex("nonce-base"), v.number("counter"))
        limit = v.number("limit-n", wire.N_MAX)
        _same("plaintext", wire.open_frame(v.body, direction, limit, v.number("limit", wire.MESSAGE_MAX)), v.hex("plaintext"))
    elif kind == "lz4":
        _same("plaintext", wire.unpack(v.body, v.number("limit", wire.MESSAGE_MAX)), v.hex("plaintext"))
    elif kind == "message":
        m = wire.decode(v.body)
        _same("type", m.type, v.number("type"))
        _same("flags", m.flags, v.number("flags"))
        _same("stream", m.stream, v.number("stream"))
        if "payload" in v.fields:
            _same("payload", m.payload, v.hex("payload"))
        found: dict[str, object] = {}
        for key, name in MESSAGE_FIELDS.items():
            if key in v.fields:
                value = m.fields.get(name)
                found[name] = value
                if isinstance(value, int):
                    _same(key, value, v.number(key))
                else:
                    _same(key, value.encode() if isinstance(value, str) else value, v.hex(key))
        _same("fields", set(m.fields), set(found))
    elif kind == "token":
        if wire.token_for(v.hex("session-key"), v.hex("conn-id").decode()) != v.body:
            raise wire.WireError("token")
    elif kind == "hkdf":
        prk, okm = wire.hkdf_sha256(v.hex("salt"), v.hex("ikm"), v.hex("info"), len(v.body))
        _same("prk", prk, v.hex("prk"))
        _same("body", okm, v.body)
    elif kind == "x25519":
        _same("body", wire.x25519(v.hex("private"), v.hex("public")), v.body)
    elif kind == "ed25519":
        if "seed" in v.fields and v.good:
            key = nacl.signing.SigningKey(v.hex("seed"))
            _same("public", bytes(key.verify_key), v.hex("public"))
            _same("signature", key.sign(v.hex("message")).signature, v.body)
        if not wire.verify(v.hex("public"), v.hex("message"), v.body):
            raise wire.WireError("signature")
    elif kind == "chacha20poly1305":
        try:
            plain = ChaCha20Poly1305(v.hex("key")).decrypt(v.hex("nonce"), v.body, v.hex("aad"))
        except InvalidTag as problem:
            raise wire.WireError("tag") from problem
        _same("plaintext", plain, v.hex("plaintext"))
    else:
        raise AssertionError(f"unknown kind {kind}")


def check(v: Vector) -> None:
    """AssertionError unless the twin sees what the file expects."""
    try:
        _evaluate(v)
    except wire.WireError as problem:
        if v.good:
            raise AssertionError(f"{v.name}: refused: {problem}") from problem
        _same(f"{v.name}: reason", problem.name, v.fields["reason"])
        return
    if not v.good:
        raise AssertionError(f"{v.name}: accepted, but must be refused ({v.fields['reason']})")
