"""A second implementation of the sealed wire, version 1, made from common/PROTOCOL.md alone.

It shares no line and no library with the Rust programs: Ed25519 is libsodium's (PyNaCl),
X25519 and ChaCha20-Poly1305 are OpenSSL's (cryptography), LZ4 blocks are liblz4's. HKDF,
the LZ4 frame layer and xxHash32 are written out here. Comments cite the steps of the text.

The first half touches no socket (hello, keys, frames, containers, messages, capabilities);
`Channel` at the end is one sealed connection over a blocking socket.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Callable, Iterable

import lz4.block
import nacl.exceptions
import nacl.signing
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class WireError(Exception):
    """Something the text tells a receiver to refuse. `name` is a short stable word for it."""

    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(f"{name}: {text}" if text else name)
        self.name = name


# --- section 2: hello -------------------------------------------------------------------

VERSION = 1
ROLE_SERVER = 0
ROLE_CLIENT = 1
HELLO_LEN = 143
SIGNED_LEN = 79


class Identity:
    """An Ed25519 identity made from its 32-byte seed."""

    def __init__(self, seed: bytes | None = None) -> None:
        self.seed = os.urandom(32) if seed is None else seed
        self._key = nacl.signing.SigningKey(self.seed)
        self.public: bytes = bytes(self._key.verify_key)

    def sign(self, data: bytes) -> bytes:
        """RFC 8032 signature of `data`."""
        return self._key.sign(data).signature


def verify(public: bytes, data: bytes, signature: bytes) -> bool:
    """Strict Ed25519 verification (libsodium refuses small-order keys and a large S)."""
    try:
        nacl.signing.VerifyKey(public).verify(data, signature)
        return True
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError, ValueError):
        return False


class Ephemeral:
    """An X25519 key pair, fresh for each connection (C1, S3) unless a test fixes it."""

    def __init__(self, private: bytes | None = None) -> None:
        self.private = os.urandom(32) if private is None else private
        self.public = x25519_public(self.private)


def x25519_public(private: bytes) -> bytes:
    """The public key of an X25519 private key."""
    key = X25519PrivateKey.from_private_bytes(private)
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def x25519(private: bytes, public: bytes) -> bytes:
    """S4 / C3: the shared secret; an all-zero result is refused."""
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as problem:
        raise WireError("zero-shared-secret", str(problem)) from problem
    if shared == bytes(32):
        raise WireError("zero-shared-secret")
    return shared


@dataclass(frozen=True)
class Hello:
    """The fields of a 143-byte hello."""

    version: int
    role: int
    identity: bytes
    ephemeral: bytes
    nonce: bytes
    signature: bytes

    @classmethod
    def parse(cls, body: bytes) -> "Hello":
        """Splits a hello body; its length is the first thing checked (S2, C2)."""
        if len(body) != HELLO_LEN:
            raise WireError("hello-length", str(len(body)))
        version, role = struct.unpack(">HB", body[:3])
        return cls(version, role, body[3:35], body[35:67], body[67:79], body[79:])

    def signed_part(self) -> bytes:
        """Bytes 0..79."""
        return struct.pack(">HB", self.version, self.role) + self.identity + self.ephemeral + self.nonce

    def body(self) -> bytes:
        """All 143 bytes."""
        return self.signed_part() + self.signature


def make_hello(
    role: int,
    identity: Identity,
    ephemeral: bytes,
    nonce: bytes,
    client_signature: bytes = b"",
    version: int = VERSION,
    claimed: bytes | None = None,
) -> bytes:
    """C1 and S3: a hello as sent, length included. A server passes the client's signature."""
    part = struct.pack(">HB", version, role) + (claimed or identity.public) + ephemeral + nonce
    body = part + identity.sign(part + client_signature)
    return struct.pack(">I", len(body)) + body


def unframe_hello(sent: bytes) -> bytes:
    """Takes the `u32` length off a hello as sent."""
    if len(sent) < 4:
        raise WireError("hello-truncated")
    (length,) = struct.unpack(">I", sent[:4])
    if length != HELLO_LEN:
        raise WireError("hello-length", str(length))
    if len(sent) < 4 + HELLO_LEN:
        raise WireError("hello-truncated")
    return sent[4 : 4 + HELLO_LEN]


def check_client_hello(body: bytes, allowed: Iterable[bytes], seen: set[bytes] | None = None) -> Hello:
    """S2, in its order: length, version, role, identity, signature, replay."""
    hello = Hello.parse(body)
    if hello.version != VERSION:
        raise WireError("hello-version", str(hello.version))
    if hello.role != ROLE_CLIENT:
        raise WireError("hello-role", str(hello.role))
    if hello.identity not in set(allowed):
        raise WireError("hello-identity")
    if not verify(hello.identity, hello.signed_part(), hello.signature):
        raise WireError("hello-signature")
    if seen is not None:
        if hello.ephemeral in seen:
            raise WireError("hello-replay")
        seen.add(hello.ephemeral)
    return hello


def check_server_hello(body: bytes, pin: bytes, client_signature: bytes) -> Hello:
    """C2: length, version, role, pin, signature over bytes 0..79 and the client's signature."""
    hello = Hello.parse(body)
    if hello.version != VERSION:
        raise WireError("hello-version", str(hello.version))
    if hello.role != ROLE_SERVER:
        raise WireError("hello-role", str(hello.role))
    if hello.identity != pin:
        raise WireError("hello-identity")
    if not verify(hello.identity, hello.signed_part() + client_signature, hello.signature):
        raise WireError("hello-signature")
    return hello


# --- section 3: keys --------------------------------------------------------------------

INFO = b"MINI_TCP_TUNNEL_V1"


def hkdf_sha256(salt: bytes, ikm: bytes, info: bytes, length: int) -> tuple[bytes, bytes]:
    """RFC 5869, written out. Returns the pseudo-random key and the output."""
    prk = hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()
    okm, block, i = b"", b"", 1
    while len(okm) < length:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        okm += block
        i += 1
    return prk, okm[:length]


@dataclass(frozen=True)
class Keys:
    """K2: what the 72 bytes split into."""

    key_c2s: bytes
    key_s2c: bytes
    base_c2s: bytes
    base_s2c: bytes

    @classmethod
    def derive(cls, client_nonce: bytes, server_nonce: bytes, shared: bytes) -> "Keys":
        """K1 and K2."""
        _, okm = hkdf_sha256(client_nonce + server_nonce, shared, INFO, 72)
        return cls(okm[:32], okm[32:64], okm[64:68], okm[68:72])


# --- section 4: frames ------------------------------------------------------------------

N_MIN = 16
N_MAX = 4_194_304
N_MAX_FIRST = 4_096
N_MAX_CONTROL = 65_536
MESSAGE_MAX = 8_388_608


class Direction:
    """F1: the key, nonce base and counter of one direction of one connection."""

    def __init__(self, key: bytes, base: bytes, counter: int = 0) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._base = base
        self.counter = counter

    def _nonce(self) -> bytes:
        if self.counter > 0xFFFF_FFFF_FFFF_FFFF:
            raise WireError("counter-wrapped")
        nonce = self._base + struct.pack(">Q", self.counter)
        self.counter += 1
        return nonce

    def seal(self, container: bytes) -> bytes:
        """One frame as sent, length included."""
        body = self._aead.encrypt(self._nonce(), container, None)
        if len(body) > N_MAX:
            raise WireError("frame-length", f"{len(body)} is too long to send")
        return struct.pack(">I", len(body)) + body

    def open(self, body: bytes) -> bytes:
        """The container inside a frame's body (F5)."""
        try:
            return self._aead.decrypt(self._nonce(), body, None)
        except InvalidTag as problem:
            raise WireError("frame-tag") from problem


def check_length(n: int, limit: int = N_MAX) -> None:
    """F3, before a byte of the body is read."""
    if not N_MIN <= n <= min(limit, N_MAX):
        raise WireError("frame-length", str(n))


def open_frame(sent: bytes, direction: Direction, limit: int = N_MAX, message_limit: int = MESSAGE_MAX) -> bytes:
    """A whole frame as sent -> message (F2 backwards)."""
    if len(sent) < 4:
        raise WireError("frame-truncated")
    (n,) = struct.unpack(">I", sent[:4])
    check_length(n, limit)
    if len(sent) < 4 + n:
        raise WireError("frame-truncated")
    return unpack(direction.open(sent[4 : 4 + n]), message_limit)


# --- section 5: LZ4 container -----------------------------------------------------------

MAGIC = bytes.fromhex("04224d18")
BLOCK_SIZES = {4: 65_536, 5: 262_144, 6: 1_048_576, 7: 4_194_304}
STORED = 0x8000_0000

_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
_M32 = 0xFFFF_FFFF


def xxh32(data: bytes, seed: int = 0) -> int:
    """xxHash32, the checksum of the LZ4 frame format."""

    def rotl(value: int, by: int) -> int:
        return ((value << by) | (value >> (32 - by))) & _M32

    length, at = len(data), 0
    if length >= 16:
        a, b, c, d = (seed + _P1 + _P2) & _M32, (seed + _P2) & _M32, seed & _M32, (seed - _P1) & _M32
        whole = length - length % 16
        for w, x, y, z in struct.iter_unpack("<4I", memoryview(data)[:whole]):
            a = rotl((a + w * _P2) & _M32, 13) * _P1 & _M32
            b = rotl((b + x * _P2) & _M32, 13) * _P1 & _M32
            c = rotl((c + y * _P2) & _M32, 13) * _P1 & _M32
            d = rotl((d + z * _P2) & _M32, 13) * _P1 & _M32
        at = whole
        h = (rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)) & _M32
    else:
        h = (seed + _P5) & _M32
    h = (h + length) & _M32
    while at + 4 <= length:
        h = rotl((h + int.from_bytes(data[at : at + 4], "little") * _P3) & _M32, 17) * _P4 & _M32
        at += 4
    while at < length:
        h = rotl((h + data[at] * _P5) & _M32, 11) * _P1 & _M32
        at += 1
    h = (h ^ (h >> 15)) * _P2 & _M32
    h = (h ^ (h >> 13)) * _P3 & _M32
    return h ^ (h >> 16)


def lz4_header(flg: int, bd: int, content_size: int | None = None, dictionary: int | None = None) -> bytes:
    """Magic, descriptor and the header checksum byte."""
    descriptor = bytes([flg, bd])
    if content_size is not None:
        descriptor += struct.pack("<Q", content_size)
    if dictionary is not None:
        descriptor += struct.pack("<I", dictionary)
    return MAGIC + descriptor + bytes([(xxh32(descriptor) >> 8) & 0xFF])


def lz4_block(data: bytes, dictionary: bytes = b"", stored: bool | None = None, checksum: bool = False) -> bytes:
    """One block: length, bytes, optional checksum. `stored=None` stores what would not shrink."""
    packed = data
    if stored is not True and data:
        extra = {"dict": dictionary} if dictionary else {}
        packed = lz4.block.compress(data, store_size=False, **extra)
        if stored is None and len(packed) >= len(data):
            packed = data
    is_stored = packed is data
    word = len(packed) | (STORED if is_stored else 0)
    tail = struct.pack("<I", xxh32(packed)) if checksum else b""
    return struct.pack("<I", word) + packed + tail


def block_id(size: int) -> int:
    """L1: the smallest block size that holds a message."""
    for number, limit in BLOCK_SIZES.items():
        if size <= limit:
            return number
    raise WireError("message-too-long", f"{size} bytes do not fit one block")


def pack(message: bytes, stored: bool | None = None) -> bytes:
    """L1: the container this side sends."""
    out = lz4_header(0x60, block_id(len(message)) << 4)
    if message:
        out += lz4_block(message, stored=True if stored else None)
    return out + bytes(4)


def pack_exotic(
    parts: list[bytes],
    linked: bool = False,
    block_sums: bool = False,
    content_sum: bool = False,
    size: bool = False,
    number: int = 4,
    stored: bool | None = None,
) -> bytes:
    """What L2 accepts beyond L1: one block for each of `parts`."""
    whole = b"".join(parts)
    flg = 0x40 | (0 if linked else 0x20) | (0x10 if block_sums else 0) | (8 if size else 0) | (4 if content_sum else 0)
    out = lz4_header(flg, number << 4, len(whole) if size else None)
    done = b""
    for part in parts:
        out += lz4_block(part, done[-65_536:] if linked else b"", stored, block_sums)
        done += part
    out += bytes(4)
    return out + (struct.pack("<I", xxh32(whole)) if content_sum else b"")


def unpack(container: bytes, limit: int = MESSAGE_MAX) -> bytes:
    """L2 and L3: the message of a container; expansion never passes `limit`."""
    view = container
    at = 0

    def take(count: int, what: str) -> bytes:
        nonlocal at
        if len(view) - at < count:
            raise WireError("lz4-truncated", what)
        piece = view[at : at + count]
        at += count
        return piece

    if not view:
        raise WireError("lz4-empty")
    magic = take(4, "magic")
    if 0x184D2A50 <= int.from_bytes(magic, "little") <= 0x184D2A5F:
        take(int.from_bytes(take(4, "skippable size"), "little"), "skippable bytes")
        return b""
    if magic != MAGIC:
        raise WireError("lz4-magic", magic.hex())
    start = at
    flg, bd = take(2, "descriptor")
    if flg >> 6 != 1 or flg & 0x02 or bd & 0x8F or (bd >> 4) not in BLOCK_SIZES:
        raise WireError("lz4-descriptor", f"{flg:02x} {bd:02x}")
    linked, block_sums, content_sum = not flg & 0x20, bool(flg & 0x10), bool(flg & 4)
    content_size = int.from_bytes(take(8, "content size"), "little") if flg & 8 else None
    if flg & 1:
        take(4, "dictionary id")
    descriptor = view[start:at]
    if take(1, "header checksum")[0] != (xxh32(descriptor) >> 8) & 0xFF:
        raise WireError("lz4-header-checksum")
    if flg & 1:
        raise WireError("lz4-dictionary")
    if content_size is not None and content_size > limit:
        raise WireError("message-too-long", "content size")

    block_max = BLOCK_SIZES[bd >> 4]
    out = bytearray()
    while True:
        word = int.from_bytes(take(4, "block length"), "little")
        if word == 0:
            break
        length = word & ~STORED
        if length > block_max:
            raise WireError("lz4-block-size", str(length))
        data = take(length, "block")
        if block_sums and int.from_bytes(take(4, "block checksum"), "little") != xxh32(data):
            raise WireError("lz4-block-checksum")
        room = min(block_max, limit - len(out))
        if word & STORED:
            plain = data
        else:
            extra = {"dict": bytes(out[-65_536:])} if linked and out else {}
            try:
                plain = lz4.block.decompress(data, uncompressed_size=room, **extra)
            except (lz4.block.LZ4BlockError, ValueError) as problem:
                raise WireError("lz4-block", str(problem)) from problem
        if len(plain) > room:
            raise WireError("message-too-long")
        out += plain
    if content_sum and int.from_bytes(take(4, "content checksum"), "little") != xxh32(bytes(out)):
        raise WireError("lz4-content-checksum")
    if content_size is not None and content_size != len(out):
        raise WireError("lz4-content-size", f"{content_size} told, {len(out)} found")
    return bytes(out)  # L2: what follows the end mark is ignored


def blocks_of(container: bytes) -> list[tuple[bool, int]]:
    """(stored, bytes in the container) of each block of a plain L1 container; for tests."""
    at, found = 7, []
    while True:
        word = int.from_bytes(container[at : at + 4], "little")
        if word == 0:
            return found
        found.append((bool(word & STORED), word & ~STORED))
        at += 4 + (word & ~STORED)


# --- section 6: messages ----------------------------------------------------------------

AUTH_OK = 2
AUTH_FAIL = 3
OPEN_TUNNEL = 10
CLOSE_TUNNEL = 11
TUNNEL_STATUS = 12
INCOMING_CONN = 20
DATA_CONN_READY = 21
REFUSE_CONN = 22
SPARE_READY = 23
ASSIGN = 24
DATA = 30
HEARTBEAT = 90
ERROR = 99

NAMES = {
    AUTH_OK: "AuthOk",
    AUTH_FAIL: "AuthFail",
    OPEN_TUNNEL: "OpenTunnel",
    CLOSE_TUNNEL: "CloseTunnel",
    TUNNEL_STATUS: "TunnelStatus",
    INCOMING_CONN: "IncomingConn",
    DATA_CONN_READY: "DataConnReady",
    REFUSE_CONN: "RefuseConn",
    SPARE_READY: "SpareReady",
    ASSIGN: "Assign",
    DATA: "Data",
    HEARTBEAT: "Heartbeat",
    ERROR: "Error",
}

FLAG_FIN = 1


def message(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """`u8 type | u8 flags | u32 stream id | payload`."""
    return struct.pack(">BBI", kind, flags, stream) + payload


def string(text: str | bytes) -> bytes:
    """A string behind its `u32` length in bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def auth_ok(session_key: bytes) -> bytes:
    """Type 2."""
    return message(AUTH_OK, session_key)


def auth_fail(code: int, text: str) -> bytes:
    """Type 3."""
    return message(AUTH_FAIL, bytes([code]) + string(text))


def error(code: int, text: str) -> bytes:
    """Type 99."""
    return message(ERROR, bytes([code]) + string(text))


def open_tunnel(port: int, tunnel: str, compression: int | None = None) -> bytes:
    """Type 10; the compression byte is E6."""
    return message(OPEN_TUNNEL, struct.pack(">I", port) + string(tunnel) + (b"" if compression is None else bytes([compression])))


def close_tunnel(tunnel: str) -> bytes:
    """Type 11."""
    return message(CLOSE_TUNNEL, string(tunnel))


def tunnel_status(status: str, tunnel: str, reason: str | None = None, port: int | None = None) -> bytes:
    """Type 12; reason and port are E4."""
    extra = b"" if reason is None else string(reason) + struct.pack(">I", port or 0)
    return message(TUNNEL_STATUS, string(status) + string(tunnel) + extra)


def incoming_conn(tunnel: str, conn: str, visitor: str | None = None) -> bytes:
    """Type 20; the visitor's address is E5."""
    return message(INCOMING_CONN, string(tunnel) + string(conn) + (b"" if visitor is None else string(visitor)))


def data_conn_ready(token: bytes, conn: str) -> bytes:
    """Type 21."""
    return message(DATA_CONN_READY, string(token) + string(conn))


def refuse_conn(conn: str, reason: str) -> bytes:
    """Type 22 (E7)."""
    return message(REFUSE_CONN, string(conn) + string(reason))


def spare_ready(token: bytes, keep: int, most: int) -> bytes:
    """Type 23 (E9)."""
    return message(SPARE_READY, string(token) + struct.pack(">HH", keep, most))


def assign(tunnel: str, conn: str, visitor: str) -> bytes:
    """Type 24 (E9)."""
    return message(ASSIGN, string(tunnel) + string(conn) + string(visitor))


def data(payload: bytes, flags: int = 0) -> bytes:
    """Type 30."""
    return message(DATA, payload, flags)


def fin() -> bytes:
    """E2: the authenticated end of a direction."""
    return message(DATA, b"", FLAG_FIN)


def heartbeat(payload: bytes = b"") -> bytes:
    """Type 90."""
    return message(HEARTBEAT, payload)


def token_for(session_key: bytes, conn: str) -> bytes:
    """T6: HMAC-SHA256(session key, the bytes of the conn id)."""
    return hmac.new(session_key, conn.encode(), hashlib.sha256).digest()


SPARE_LABEL = "MINI_TCP_TUNNEL_V1 spare data channel: longer than the 64 bytes of any conn id"


def spare_token(session_key: bytes) -> bytes:
    """E9: the token of a session's spare data channels."""
    return token_for(session_key, SPARE_LABEL)


class _Reader:
    """Takes fields off a payload."""

    def __init__(self, payload: bytes) -> None:
        self._rest = payload

    def raw(self, count: int) -> bytes:
        if len(self._rest) < count:
            raise WireError("message-truncated")
        piece, self._rest = self._rest[:count], self._rest[count:]
        return piece

    def u8(self) -> int:
        return self.raw(1)[0]

    def u16(self) -> int:
        """A big-endian number."""
        return int.from_bytes(self.raw(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.raw(4), "big")

    def text(self) -> str:
        try:
            return self.raw(self.u32()).decode()
        except UnicodeDecodeError as problem:
            raise WireError("message-utf8") from problem

    def more(self) -> bool:
        return bool(self._rest)


@dataclass
class Message:
    """A message taken apart. `fields` holds what section 6 lists for the type, by name."""

    type: int
    flags: int
    stream: int
    payload: bytes
    fields: dict[str, int | str | bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the type, or its number."""
        return NAMES.get(self.type, str(self.type))

    def __getattr__(self, key: str) -> int | str | bytes | None:
        if key.startswith("_"):
            raise AttributeError(key)
        return self.__dict__.get("fields", {}).get(key)


def split(plain: bytes) -> Message:
    """The six header bytes and the payload, nothing more."""
    if len(plain) < 6:
        raise WireError("message-short", str(len(plain)))
    kind, flags, stream = struct.unpack(">BBI", plain[:6])
    return Message(kind, flags, stream, plain[6:])


def decode(plain: bytes) -> Message:
    """A message with its fields. Extension fields that are not there are left out."""
    m = split(plain)
    r, f = _Reader(m.payload), m.fields
    if m.type == AUTH_OK:
        f["session_key"] = r.raw(32)
    elif m.type in (AUTH_FAIL, ERROR):
        f["code"] = r.u8()
        f["text"] = r.text()
    elif m.type == OPEN_TUNNEL:
        f["port"] = r.u32()
        f["tunnel"] = r.text()
        if r.more():
            f["compression"] = r.u8()
    elif m.type == CLOSE_TUNNEL:
        f["tunnel"] = r.text()
    elif m.type == TUNNEL_STATUS:
        f["status"] = r.text()
        f["tunnel"] = r.text()
        if r.more():
            f["reason"] = r.text()
            f["port"] = r.u32()
    elif m.type == INCOMING_CONN:
        f["tunnel"] = r.text()
        f["conn"] = r.text()
        if r.more():
            f["visitor"] = r.text()
    elif m.type == DATA_CONN_READY:
        if r.u32() != 32:
            raise WireError("message-token")
        f["token"] = r.raw(32)
        f["conn"] = r.text()
    elif m.type == REFUSE_CONN:
        f["conn"] = r.text()
        f["reason"] = r.text()
    elif m.type == SPARE_READY:
        if r.u32() != 32:
            raise WireError("message-token")
        f["token"] = r.raw(32)
        f["keep"] = r.u16()
        f["max"] = r.u16()
    elif m.type == ASSIGN:
        f["tunnel"] = r.text()
        f["conn"] = r.text()
        f["visitor"] = r.text()
    return m


# --- section 8: capabilities ------------------------------------------------------------

OFFER = b"MTT?"
ANSWER = b"MTT!"
# What the twin speaks. `spare` (E9) it only reads and writes as messages: it is never offered and never agreed.
ALL_CAPS = ("fin", "reason", "status", "visitor", "options", "refuse")
_NAME_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-")


def caps_payload(mark: bytes, names: Iterable[str]) -> bytes:
    """E1: an offer or an answer."""
    return mark + ",".join(names).encode()


def parse_caps(mark: bytes, payload: bytes) -> list[str] | None:
    """E1: the names behind `mark`, or None for an ordinary Heartbeat."""
    if not payload.startswith(mark) or len(payload) > 1024:
        return None
    rest = payload[len(mark) :]
    if not rest:
        return []
    names = rest.split(b",")
    if any(not 1 <= len(n) <= 32 or not _NAME_BYTES.issuperset(n) for n in names):
        return None
    return [n.decode() for n in names]


# --- one sealed connection over a blocking socket ---------------------------------------


class Ended(Exception):
    """The other side ended the connection; `reset` tells a reset from an end of stream."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "end of stream")
        self.reset = reset


class Channel:
    """A sealed connection after its hellos. Not for several threads per direction."""

    def __init__(self, sock: socket.socket, keys: Keys, client: bool, peer: bytes, rest: bytes = b"") -> None:
        self.sock = sock
        self.peer = peer
        c2s, s2c = Direction(keys.key_c2s, keys.base_c2s), Direction(keys.key_s2c, keys.base_s2c)
        self.out, self.into = (c2s, s2c) if client else (s2c, c2s)
        self._got = bytearray(rest)
        self.last_container = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, plain: bytes, stored: bool | None = None, deadline: float = 10.0) -> None:
        """Packs, seals and sends one message."""
        self.send_raw(self.out.seal(pack(plain, stored)), deadline)

    def send_container(self, container: bytes, deadline: float = 10.0) -> None:
        """Seals and sends a container made elsewhere."""
        self.send_raw(self.out.seal(container), deadline)

    def send_raw(self, raw: bytes, deadline: float = 10.0) -> None:
        """Sends bytes as they are."""
        self.sock.settimeout(deadline)
        try:
            self.sock.sendall(raw)
        except (ConnectionResetError, BrokenPipeError) as problem:
            raise Ended(True) from problem

    def recv(self, deadline: float = 10.0, limit: int = N_MAX) -> bytes:
        """The next message. TimeoutError keeps what came so far; Ended when the peer ended."""
        until = time.monotonic() + deadline
        self._fill(4, until)
        n = int.from_bytes(self._got[:4], "big")
        check_length(n, limit)
        self._fill(4 + n, until)
        body = bytes(self._got[4 : 4 + n])
        del self._got[: 4 + n]
        self.last_container = self.into.open(body)
        return unpack(self.last_container)

    def _fill(self, count: int, until: float) -> None:
        while len(self._got) < count:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("no whole frame before the deadline")
            self.sock.settimeout(left)
            try:
                piece = self.sock.recv(262_144)
            except (ConnectionResetError, BrokenPipeError) as problem:
                raise Ended(True) from problem
            if not piece:
                raise Ended(False)
            self._got += piece

    def recv_message(self, deadline: float = 10.0) -> Message:
        """The next message, taken apart."""
        return decode(self.recv(deadline))

    def wait_end(self, deadline: float = 10.0) -> Ended:
        """Reads and drops frames until the peer ends; TimeoutError when it does not."""
        until = time.monotonic() + deadline
        while True:
            try:
                self.recv(max(0.0, until - time.monotonic()))
            except Ended as end:
                return end

    def shut_write(self) -> None:
        """The TCP end of our direction, without FIN of E2."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close as the text means it."""
        self.sock.close()

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        reset(self.sock)


def reset(sock: socket.socket) -> None:
    """Closes a socket so that the other side sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def recv_exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    """`count` bytes, or Ended, or TimeoutError."""
    until = time.monotonic() + deadline
    got = b""
    while len(got) < count:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{len(got)} of {count} bytes before the deadline")
        sock.settimeout(left)
        try:
            piece = sock.recv(count - len(got))
        except (ConnectionResetError, BrokenPipeError) as problem:
            raise Ended(True) from problem
        if not piece:
            raise Ended(False)
        got += piece
    return got


def recv_hello(sock: socket.socket, deadline: float) -> bytes:
    """The body of a hello; the length is checked before the rest is read (S1)."""
    length = recv_exactly(sock, 4, deadline)
    if int.from_bytes(length, "big") != HELLO_LEN:
        raise WireError("hello-length", length.hex())
    return recv_exactly(sock, HELLO_LEN, deadline)


def connect(
    address: tuple[str, int],
    identity: Identity,
    pin: bytes,
    deadline: float = 10.0,
    on_hello: Callable[[bytes], None] | None = None,
) -> Channel:
    """C1, C2, C3: a client's sealed connection."""
    sock = socket.create_connection(address, timeout=deadline)
    try:
        ephemeral, nonce = Ephemeral(), os.urandom(12)
        mine = make_hello(ROLE_CLIENT, identity, ephemeral.public, nonce)
        if on_hello:
            on_hello(mine)
        sock.sendall(mine)
        theirs = check_server_hello(recv_hello(sock, deadline), pin, mine[-64:])
        keys = Keys.derive(nonce, theirs.nonce, x25519(ephemeral.private, theirs.ephemeral))
        return Channel(sock, keys, True, theirs.identity)
    except BaseException:
        sock.close()
        raise


def accept(
    sock: socket.socket,
    identity: Identity,
    allowed: Iterable[bytes],
    seen: set[bytes] | None = None,
    deadline: float = 10.0,
) -> Channel:
    """S1 to S4: a server's sealed connection."""
    try:
        theirs = check_client_hello(recv_hello(sock, deadline), allowed, seen)
        ephemeral, nonce = Ephemeral(), os.urandom(12)
        sock.sendall(make_hello(ROLE_SERVER, identity, ephemeral.public, nonce, theirs.signature))
        keys = Keys.derive(theirs.nonce, nonce, x25519(ephemeral.private, theirs.ephemeral))
        return Channel(sock, keys, False, theirs.identity)
    except BaseException:
        sock.close()
        raise
