"""Writes tests/vectors/*.txt. Deterministic; `--check` writes nothing and fails on a difference.

The published vectors are checked first: files are made only by a twin that reproduces them.
"""

from __future__ import annotations

import random
import struct
import sys

import nacl.signing
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import published as p
import vectors
import wire

made: dict[str, str] = {}


def hx(raw: bytes | str) -> str:
    """A field value: the hex expression of some bytes."""
    return " ".join(vectors.to_terms(raw.encode() if isinstance(raw, str) else raw))


def put(kind: str, name: str, comment: str, body: bytes, reason: str | None = None, **fields: str | int | bytes) -> None:
    """Adds a file. `reason` makes it a vector that must be refused."""
    head = [f"kind: {kind}", f"expect: {'error' if reason else 'ok'}"]
    if reason:
        head.append(f"reason: {reason}")
    head.append(f"comment: {comment}")
    for key, value in fields.items():
        head.append(f"{key.replace('_', '-')}: {hx(value) if isinstance(value, bytes) else value}".rstrip())
    name = f"{kind}-{'bad-' if reason else ''}{name}"
    assert name not in made, name
    made[name] = "\n".join(head) + "\n\n" + "\n".join(vectors.to_terms(body)) + "\n"


def check_published() -> None:
    """The published vectors, before anything is written."""
    server, client = wire.Identity(p.SERVER_SEED), wire.Identity(p.CLIENT_SEED)
    assert server.public == p.SERVER_PUBLIC and client.public == p.CLIENT_PUBLIC
    assert wire.x25519_public(p.CLIENT_EPHEMERAL) == p.CLIENT_EPHEMERAL_PUBLIC
    assert wire.x25519_public(p.SERVER_EPHEMERAL) == p.SERVER_EPHEMERAL_PUBLIC
    hello = wire.make_hello(wire.ROLE_CLIENT, client, p.CLIENT_EPHEMERAL_PUBLIC, p.CLIENT_NONCE)
    assert hello == p.CLIENT_HELLO
    answer = wire.make_hello(wire.ROLE_SERVER, server, p.SERVER_EPHEMERAL_PUBLIC, p.SERVER_NONCE, hello[-64:])
    assert answer == p.SERVER_HELLO
    wire.check_client_hello(wire.unframe_hello(hello), [client.public])
    wire.check_server_hello(wire.unframe_hello(answer), server.public, hello[-64:])
    shared = wire.x25519(p.CLIENT_EPHEMERAL, p.SERVER_EPHEMERAL_PUBLIC)
    assert shared == wire.x25519(p.SERVER_EPHEMERAL, p.CLIENT_EPHEMERAL_PUBLIC) == p.SHARED
    assert wire.hkdf_sha256(p.CLIENT_NONCE + p.SERVER_NONCE, shared, wire.INFO, 72)[0] == p.PRK
    keys = wire.Keys.derive(p.CLIENT_NONCE, p.SERVER_NONCE, shared)
    assert keys == wire.Keys(p.KEY_C2S, p.KEY_S2C, p.BASE_C2S, p.BASE_S2C)
    for name, way, counter, plain, container, sent in p.FRAMES:
        assert wire.open_frame(sent, direction(way, counter)) == plain, name
        if container is not None:
            assert direction(way, counter).seal(container) == sent, name
            assert wire.unpack(container) == plain, name
    assert wire.token_for(p.SESSION_KEY, p.CONN_ID) == p.TOKEN


def direction(way: str, counter: int) -> wire.Direction:
    """A direction of the published session."""
    key, base = (p.KEY_C2S, p.BASE_C2S) if way == "c2s" else (p.KEY_S2C, p.BASE_S2C)
    return wire.Direction(key, base, counter)


def hellos() -> None:
    """Section 2."""
    server, client = wire.Identity(p.SERVER_SEED), wire.Identity(p.CLIENT_SEED)
    other = wire.Identity(bytes(range(0x80, 0xA0)))
    eph, nonce = p.CLIENT_EPHEMERAL_PUBLIC, p.CLIENT_NONCE
    good = p.CLIENT_HELLO
    parts = dict(identity=client.public, ephemeral=eph, nonce=nonce, signature=good[-64:])
    made_from = dict(identity_seed=p.CLIENT_SEED, ephemeral_private=p.CLIENT_EPHEMERAL)

    def bad(name: str, comment: str, body: bytes, reason: str, **more: bytes) -> None:
        put("hello-client", name, comment, body, reason, **{"allowed": client.public, **more})

    put("hello-client", "good", "the published client hello", good, allowed=client.public, **parts, **made_from)
    put("hello-client", "good-second-allowed", "the key is the second of the allow list; others were seen", good,
        allowed=other.public + client.public, seen=p.SERVER_EPHEMERAL_PUBLIC, **parts, **made_from)
    put("hello-client", "good-followed", "the first frame came in the same segment", good + bytes.fromhex("0000002d2fa4"),
        allowed=client.public, **parts, **made_from)
    bad("length-142", "one byte short, honestly told", struct.pack(">I", 142) + good[4:-1], "hello-length")
    bad("length-144", "one byte long", struct.pack(">I", 144) + good[4:] + b"\0", "hello-length")
    bad("length-0", "nothing", bytes(4), "hello-length")
    bad("length-huge", "refused before any byte of the body", b"\xff\xff\xff\xff", "hello-length")
    bad("truncated", "the last byte never comes", good[:-1], "hello-truncated")
    bad("version-2", "well signed, version 2", wire.make_hello(1, client, eph, nonce, version=2), "hello-version")
    bad("version-0x0100", "version 1 with its bytes swapped", wire.make_hello(1, client, eph, nonce, version=0x100), "hello-version")
    bad("role-0", "well signed, but it says server", wire.make_hello(0, client, eph, nonce), "hello-role")
    bad("role-2", "no such role", wire.make_hello(2, client, eph, nonce), "hello-role")
    bad("identity-unknown", "well signed by a key that is not in the list", wire.make_hello(1, other, eph, nonce), "hello-identity")
    bad("signature-other-key", "an allowed identity, signed by another key",
        wire.make_hello(1, other, eph, nonce, claimed=client.public), "hello-signature")
    bad("signature-bit", "one bit of the signature differs", good[:-1] + bytes([good[-1] ^ 1]), "hello-signature")
    bad("nonce-bit", "one bit of the nonce differs", good[:82] + bytes([good[82] ^ 1]) + good[83:], "hello-signature")
    bad("ephemeral-bit", "one bit of the ephemeral key differs", good[:50] + bytes([good[50] ^ 1]) + good[51:], "hello-signature")
    order = 2**252 + 27742317777372353535851937790883648493
    large = int.from_bytes(good[-32:], "little") + order
    bad("signature-large-s", "S of the signature plus the group order (RFC 8032, 5.1.7)",
        good[:-32] + large.to_bytes(32, "little"), "hello-signature")
    bad("replay", "this ephemeral key was in a recent valid hello", good, "hello-replay", seen=eph)

    seph, snonce, csig = p.SERVER_EPHEMERAL_PUBLIC, p.SERVER_NONCE, good[-64:]
    answer = p.SERVER_HELLO
    context = dict(pin=server.public, client_signature=csig)

    def bad_answer(name: str, comment: str, body: bytes, reason: str, **more: bytes) -> None:
        put("hello-server", name, comment, body, reason, **{**context, **more})

    put("hello-server", "good", "the published server hello", answer, **context, identity=server.public, ephemeral=seph,
        nonce=snonce, signature=answer[-64:], identity_seed=p.SERVER_SEED, ephemeral_private=p.SERVER_EPHEMERAL)
    bad_answer("length-79", "only the signed part", struct.pack(">I", 79) + answer[4:83], "hello-length")
    bad_answer("version-2", "well signed, version 2", wire.make_hello(0, server, seph, snonce, csig, version=2), "hello-version")
    bad_answer("role-1", "well signed, but it says client", wire.make_hello(1, server, seph, snonce, csig), "hello-role")
    bad_answer("pin", "well signed by another server", wire.make_hello(0, other, seph, snonce, csig), "hello-identity")
    bad_answer("signature-unbound", "signs bytes 0..79 alone, not the client's signature",
               wire.make_hello(0, server, seph, snonce), "hello-signature")
    bad_answer("signature-other-hello", "answers another client hello (a replayed answer)", answer, "hello-signature",
               client_signature=wire.make_hello(1, client, seph, nonce)[-64:])
    bad_answer("reflected", "the client's own hello sent back", good, "hello-role")


def key_schedules() -> None:
    """Section 3."""
    put("keys", "published", "the published session", p.KEY_C2S + p.KEY_S2C + p.BASE_C2S + p.BASE_S2C,
        client_private=p.CLIENT_EPHEMERAL, client_public=p.CLIENT_EPHEMERAL_PUBLIC, client_nonce=p.CLIENT_NONCE,
        server_private=p.SERVER_EPHEMERAL, server_public=p.SERVER_EPHEMERAL_PUBLIC, server_nonce=p.SERVER_NONCE,
        shared=p.SHARED, prk=p.PRK, key_c2s=p.KEY_C2S, key_s2c=p.KEY_S2C, base_c2s=p.BASE_C2S, base_s2c=p.BASE_S2C)
    ours, theirs = bytes([0x11] * 32), bytes([0xEE] * 32)
    a, b = bytes(12), bytes([0xFF] * 12)
    shared = wire.x25519(ours, wire.x25519_public(theirs))
    prk, okm = wire.hkdf_sha256(a + b, shared, wire.INFO, 72)
    put("keys", "second", "another session, nonces of one byte value", okm,
        client_private=ours, client_public=wire.x25519_public(ours), client_nonce=a,
        server_private=theirs, server_public=wire.x25519_public(theirs), server_nonce=b,
        shared=shared, prk=prk, key_c2s=okm[:32], key_s2c=okm[32:64], base_c2s=okm[64:68], base_s2c=okm[68:72])
    put("keys", "zero-shared", "the server's ephemeral key is a point of small order", b"", "zero-shared-secret",
        client_private=ours, client_public=wire.x25519_public(ours), client_nonce=a,
        server_private=theirs, server_public=bytes(32), server_nonce=b)


def frames() -> None:
    """Section 4."""

    def put_frame(name: str, comment: str, way: str, counter: int, container: bytes, reason: str | None = None,
                  sent: bytes | None = None, plain: bytes | None = None, **more: int) -> None:
        key, base = (p.KEY_C2S, p.BASE_C2S) if way == "c2s" else (p.KEY_S2C, p.BASE_S2C)
        fields: dict[str, str | int | bytes] = dict(key=key, nonce_base=base, counter=counter, **more)
        if not reason:
            fields.update(container=container, plaintext=wire.unpack(container) if plain is None else plain)
        put("frame", name, comment, direction(way, counter).seal(container) if sent is None else sent, reason, **fields)

    for name, way, counter, plain, container, sent in p.FRAMES:
        if container is None:
            opened = direction(way, counter).open(sent[4:])
            assert wire.unpack(opened) == plain
            container = opened
        put_frame(f"published-{name}", f"published, {way}", way, counter, container, sent=sent)
    beat = wire.pack(wire.heartbeat(b"twin"))
    put_frame("counter-2-32", "the counter does not fit 32 bits", "c2s", 2**32 + 5, beat)
    put_frame("counter-last", "the last counter there is", "c2s", 2**64 - 1, beat)
    put_frame("n-at-first-limit", "N is exactly 4,096, the most of a first frame", "c2s", 0,
              lz4_stored(4_096 - 16 - 15, b"\x5a"), limit_n=4_096)
    put_frame("trailing", "bytes of the next frame came with it", "c2s", 7, beat,
              sent=direction("c2s", 7).seal(beat) + b"\0\0")

    good = direction("c2s", 0).seal(beat)
    put_frame("tag-bit", "one bit of the tag differs", "c2s", 0, b"", "frame-tag", good[:-1] + bytes([good[-1] ^ 0x80]))
    put_frame("cipher-bit", "one bit of the ciphertext differs", "c2s", 0, b"", "frame-tag", good[:4] + bytes([good[4] ^ 1]) + good[5:])
    put_frame("counter-off", "sealed with counter 1, opened with 0", "c2s", 0, b"", "frame-tag", direction("c2s", 1).seal(beat))
    put_frame("direction", "sealed with the keys of the other direction", "c2s", 0, b"", "frame-tag", direction("s2c", 0).seal(beat))
    put_frame("associated-data", "the length was taken as associated data", "c2s", 0, b"", "frame-tag",
              good[:4] + ChaCha20Poly1305(p.KEY_C2S).encrypt(p.BASE_C2S + bytes(8), beat, good[:4]))
    put_frame("counter-little-endian", "counter 1 written in little-endian order", "c2s", 1, b"", "frame-tag",
              good[:4] + ChaCha20Poly1305(p.KEY_C2S).encrypt(p.BASE_C2S + struct.pack("<Q", 1), beat, None))
    put_frame("n-0", "N = 0", "c2s", 0, b"", "frame-length", bytes(4))
    put_frame("n-15", "N = 15", "c2s", 0, b"", "frame-length", struct.pack(">I", 15) + bytes(15))
    put_frame("n-16", "N = 16 authenticates, but holds an empty container", "c2s", 0, b"", "lz4-empty", direction("c2s", 0).seal(b""))
    put_frame("n-above", "N = 4,194,305 is refused before the body", "c2s", 0, b"", "frame-length", struct.pack(">I", 4_194_305))
    put_frame("n-above-control", "N = 65,537 on a control channel", "c2s", 0, b"", "frame-length", struct.pack(">I", 65_537), limit_n=65_536)
    put_frame("n-above-first", "N = 4,097 as first frame", "c2s", 0, b"", "frame-length", struct.pack(">I", 4_097), limit_n=4_096)
    put_frame("truncated", "the last byte never comes", "c2s", 0, b"", "frame-truncated", good[:-1])


def lz4_stored(length: int, byte: bytes) -> bytes:
    """A container of exactly `length` + 15 bytes around a stored block of one byte value."""
    container = wire.lz4_header(0x60, 0x40) + struct.pack("<I", length | wire.STORED) + byte * length + bytes(4)
    assert len(container) == length + 15
    return container


def zeros_block(number: int) -> bytes:
    """A compressed block of exactly the block size of `number`, all zero bytes."""
    return wire.lz4_block(bytes(wire.BLOCK_SIZES[number]), stored=False)


def containers() -> None:
    """Section 5."""
    rng = random.Random(20)
    noise = rng.randbytes(200)
    text = b"a tunnel carries what it is given; " * 8
    whole = wire.data(text)

    def good(name: str, comment: str, container: bytes, plain: bytes, **more: int) -> None:
        assert wire.unpack(container, more.get("limit", wire.MESSAGE_MAX)) == plain, name
        put("lz4", name, comment, container, plaintext=plain, **more)

    def bad(name: str, comment: str, container: bytes, reason: str, **more: int) -> None:
        put("lz4", name, comment, container, reason, **more)

    good("compressed", "L1, a block that shrinks", wire.pack(whole), whole)
    good("stored", "L1, a block that would not shrink", wire.pack(wire.data(noise)), wire.data(noise))
    good("stored-shrinkable", "stored although it would shrink", wire.pack(whole, stored=True), whole)
    good("empty-message", "no block at all", wire.pack(b""), b"")
    good("empty-block", "a compressed block of no bytes (one zero token)", wire.lz4_header(0x60, 0x40) + bytes.fromhex("0100000000") + bytes(4), b"")
    good("content-size", "content size present", wire.pack_exotic([whole], size=True), whole)
    good("content-sum", "content checksum", wire.pack_exotic([whole], content_sum=True), whole)
    good("block-sums", "block checksums, compressed and stored", wire.pack_exotic([whole, noise, text], block_sums=True), whole + noise + text)
    good("linked", "linked blocks, each reaching into those before it",
         wire.pack_exotic([whole, noise + text, noise, text], linked=True), whole + noise + text + noise + text)
    good("linked-stored", "linked blocks, the reached one stored", wire.lz4_header(0x40, 0x40)
         + wire.lz4_block(noise, stored=True) + wire.lz4_block(noise + text, noise) + bytes(4), noise + noise + text)
    good("everything", "linked, both checksums, content size, block size 256 KiB",
         wire.pack_exotic([whole, text, noise], True, True, True, True, 5), whole + text + noise)
    many = [bytes([65 + i % 26]) * (1 + i) for i in range(20)]
    good("many-blocks", "twenty independent blocks", wire.pack_exotic(many), b"".join(many))
    good("block-256k", "BD 50", wire.pack(bytes(200_000)), bytes(200_000))
    good("block-1m", "BD 60", wire.pack(bytes(1_048_576)), bytes(1_048_576))
    good("block-4m", "BD 70, one full block of 4 MiB", wire.pack(bytes(4_194_304)), bytes(4_194_304))
    good("block-4m-stored", "BD 70, a stored block of 4 MiB", wire.pack(b"\x61" * 4_194_304, stored=True), b"\x61" * 4_194_304)
    good("limit-reached", "two blocks of 4 MiB: exactly 8,388,608 bytes",
         wire.lz4_header(0x60, 0x70) + zeros_block(7) * 2 + bytes(4), bytes(8_388_608))
    good("skippable", "a skippable frame is an empty message", bytes.fromhex("502a4d1805000000") + b"hello", b"")
    good("skippable-last", "the last skippable magic, no bytes", bytes.fromhex("5f2a4d1800000000"), b"")
    good("skippable-then-frame", "what follows a skippable frame is ignored", bytes.fromhex("502a4d1801000000") + b"x" + wire.pack(whole), b"")
    good("two-frames", "only the first frame counts", wire.pack(whole) + wire.pack(noise), whole)
    good("garbage-after", "bytes after the end mark are ignored", wire.pack(whole) + b"\xde\xad\xbe\xef", whole)

    plain = wire.pack(whole)
    bad("empty", "an empty container", b"", "lz4-empty")
    bad("no-end-mark", "the end mark is missing", plain[:-4], "lz4-truncated")
    bad("half-end-mark", "half an end mark", plain[:-2], "lz4-truncated")
    bad("truncated-block", "cut inside the block", plain[:20], "lz4-truncated")
    bad("truncated-header", "cut inside the header", plain[:6], "lz4-truncated")
    bad("truncated-magic", "three bytes", plain[:3], "lz4-truncated")
    bad("truncated-content-sum", "the content checksum is told, but missing",
        wire.pack_exotic([whole], content_sum=True)[:-4], "lz4-truncated")
    bad("truncated-skippable", "a skippable frame that tells more than there is", bytes.fromhex("502a4d1805000000") + b"hell", "lz4-truncated")
    bad("legacy", "the legacy magic", bytes.fromhex("02214c18") + wire.lz4_block(whole, stored=False), "lz4-magic")
    bad("magic", "no magic known", b"\x04\x22\x4d\x19" + plain[4:], "lz4-magic")
    bad("version", "frame version 2", wire.lz4_header(0xA0, 0x40) + plain[7:], "lz4-descriptor")
    bad("reserved-flg", "the reserved bit of FLG is set", wire.lz4_header(0x62, 0x40) + plain[7:], "lz4-descriptor")
    bad("reserved-bd", "a reserved bit of BD is set", wire.lz4_header(0x60, 0x41) + plain[7:], "lz4-descriptor")
    bad("block-size-3", "block size number 3 does not exist", wire.lz4_header(0x60, 0x30) + plain[7:], "lz4-descriptor")
    bad("header-sum", "wrong header checksum", plain[:6] + bytes([plain[6] ^ 1]) + plain[7:], "lz4-header-checksum")
    summed = wire.pack_exotic([whole], block_sums=True)
    bad("block-sum", "wrong block checksum", summed[:-5] + bytes([summed[-5] ^ 1]) + summed[-4:], "lz4-block-checksum")
    summed = wire.pack_exotic([whole], content_sum=True)
    bad("content-sum", "wrong content checksum", summed[:-1] + bytes([summed[-1] ^ 1]), "lz4-content-checksum")
    body = plain[7:]
    bad("content-size-more", "content size one too large", wire.lz4_header(0x68, 0x40, len(whole) + 1) + body, "lz4-content-size")
    bad("content-size-less", "content size one too small", wire.lz4_header(0x68, 0x40, len(whole) - 1) + body, "lz4-content-size")
    bad("dictionary", "a dictionary id", wire.lz4_header(0x61, 0x40, dictionary=7) + body, "lz4-dictionary")
    bad("block-too-long", "a block longer than its block size", wire.lz4_header(0x60, 0x40)
        + struct.pack("<I", 65_537 | wire.STORED) + bytes(65_537) + bytes(4), "lz4-block-size")
    bad("block-expands", "a block that expands above its block size", wire.lz4_header(0x60, 0x40)
        + wire.lz4_block(bytes(65_537), stored=False) + bytes(4), "lz4-block")
    bad("independent-reaches-back", "independent blocks, but one reaches before its start",
        wire.lz4_header(0x60, 0x40) + wire.lz4_block(noise, stored=True) + wire.lz4_block(noise + text, noise) + bytes(4), "lz4-block")
    bad("block-garbage", "the block is no LZ4 block", wire.lz4_header(0x60, 0x40) + struct.pack("<I", 4)
        + b"\xff\xff\xff\xff" + bytes(4), "lz4-block")
    bad("bomb", "25 blocks of 4 MiB: 100 MiB; expansion stops at 8 MiB",
        wire.lz4_header(0x60, 0x70) + zeros_block(7) * 25 + bytes(4), "lz4-block")
    bad("bomb-content-size", "tells 4 GiB and sends nothing", wire.lz4_header(0x68, 0x70, 1 << 32) + bytes(4), "message-too-long")
    bad("bomb-control", "131,073 bytes where a control channel takes 131,072",
        wire.lz4_header(0x60, 0x50) + wire.lz4_block(bytes(131_073), stored=False) + bytes(4), "lz4-block", limit=131_072)
    good("control-limit", "131,072 bytes where a control channel takes 131,072",
         wire.lz4_header(0x60, 0x50) + wire.lz4_block(bytes(131_072), stored=False) + bytes(4), bytes(131_072), limit=131_072)
    bad("limit-stored", "the limit holds for stored blocks too", lz4_stored(1_001, b"\x61"), "message-too-long", limit=1_000)


def messages() -> None:
    """Section 6."""
    token = p.TOKEN

    def good(name: str, comment: str, body: bytes, **fields: str | int | bytes) -> None:
        kind, flags, stream = struct.unpack(">BBI", body[:6])
        put("message", name, comment, body, type=kind, flags=flags, stream=stream, **fields)

    def bad(name: str, comment: str, body: bytes, reason: str = "message-truncated") -> None:
        put("message", name, comment, body, reason)

    web = b"web-server"
    good("auth-ok", "AuthOk", wire.auth_ok(p.SESSION_KEY), session_key=p.SESSION_KEY)
    good("auth-ok-longer", "bytes after the session key are ignored", wire.auth_ok(p.SESSION_KEY) + b"more", session_key=p.SESSION_KEY)
    good("auth-fail", "AuthFail, slot held", wire.auth_fail(1, "busy"), code=1, text=b"busy")
    good("error", "Error, newer session", wire.error(3, "newer"), code=3, text=b"newer")
    good("open-tunnel", "as an original sends it", wire.open_tunnel(8080, "web-server"), public_port=8080, tunnel_id=web)
    good("open-tunnel-compression", "with E6, port 0", wire.open_tunnel(0, "web-server", 2), public_port=0, tunnel_id=web, compression=2)
    good("open-tunnel-longer", "bytes after the compression byte are ignored", wire.open_tunnel(65_535, "t", 3) + b"\x01\x02",
         public_port=65_535, tunnel_id=b"t", compression=3)
    good("open-tunnel-utf8", "an id that is not ASCII", wire.open_tunnel(1, "Büro-\u2603"), public_port=1, tunnel_id="Büro-\u2603".encode())
    good("close-tunnel", "CloseTunnel", wire.close_tunnel("web-server"), tunnel_id=web)
    good("tunnel-status", "as an original sends it", wire.tunnel_status("Open", "web-server"), status=b"Open", tunnel_id=web)
    good("tunnel-status-extended", "with E4", wire.tunnel_status("Error", "web-server", "port 80 is taken", 0),
         status=b"Error", tunnel_id=web, reason_text=b"port 80 is taken", port=0)
    good("tunnel-status-open", "with E4, no reason, a real port", wire.tunnel_status("Open", "web-server", "", 40_001),
         status=b"Open", tunnel_id=web, reason_text=b"", port=40_001)
    good("incoming-conn", "as an original sends it", wire.incoming_conn("web-server", p.CONN_ID), tunnel_id=web, conn_id=p.CONN_ID.encode())
    good("incoming-conn-visitor", "with E5", wire.incoming_conn("web-server", "ab" * 16, "[2001:db8::1]:4711"),
         tunnel_id=web, conn_id=b"ab" * 16, visitor=b"[2001:db8::1]:4711")
    good("data-conn-ready", "DataConnReady", wire.data_conn_ready(token, p.CONN_ID), token=token, conn_id=p.CONN_ID.encode())
    good("refuse-conn", "RefuseConn (E7)", wire.refuse_conn(p.CONN_ID, "the local service is dead"),
         conn_id=p.CONN_ID.encode(), reason_text=b"the local service is dead")
    good("spare-ready", "SpareReady (E9)", wire.spare_ready(wire.spare_token(p.SESSION_KEY), 2, 64),
         token=wire.spare_token(p.SESSION_KEY), keep=2, max=64)
    good("spare-ready-longer", "bytes after the last field are ignored", wire.spare_ready(token, 0, 65_535) + b"more", token=token, keep=0, max=65_535)
    good("assign", "Assign (E9)", wire.assign("web-server", "ab" * 16, "192.0.2.1:4711"),
         tunnel_id=web, conn_id=b"ab" * 16, visitor=b"192.0.2.1:4711")
    good("data", "Data", wire.data(b"GET / HTTP/1.1\r\n"), payload=b"GET / HTTP/1.1\r\n")
    good("data-empty", "an empty Data message", wire.data(b""), payload=b"")
    good("data-fin", "FIN (E2)", wire.fin(), payload=b"")
    good("data-flags", "flags and stream id that a receiver ignores", wire.message(wire.DATA, b"x", 0xFE, 0xDEADBEEF), payload=b"x")
    good("heartbeat-empty", "Heartbeat", wire.heartbeat(), payload=b"")
    good("heartbeat-offer", "a capability offer (E1)", wire.heartbeat(b"MTT?fin,reason"), payload=b"MTT?fin,reason")
    good("unknown", "a type nobody knows", wire.message(77, b"?"), payload=b"?")

    bad("short-0", "no bytes", b"", "message-short")
    bad("short-5", "five bytes", wire.heartbeat()[:5], "message-short")
    bad("auth-ok-short", "31 bytes of session key", wire.auth_ok(p.SESSION_KEY[:31]))
    bad("auth-fail-empty", "no code", wire.message(wire.AUTH_FAIL))
    bad("open-tunnel-string", "the string tells one byte more than there is", wire.message(wire.OPEN_TUNNEL, bytes(4) + b"\0\0\0\x04web"))
    bad("open-tunnel-huge-string", "the string tells 4 GiB", wire.message(wire.OPEN_TUNNEL, bytes(4) + b"\xff\xff\xff\xffweb"))
    bad("open-tunnel-utf8", "the id is not UTF-8", wire.message(wire.OPEN_TUNNEL, bytes(4) + wire.string(b"\xff\xfe")), "message-utf8")
    bad("close-tunnel-empty", "no string", wire.message(wire.CLOSE_TUNNEL, b"\0\0"))
    bad("data-conn-ready-31", "a token of 31 bytes", wire.data_conn_ready(token[:31], p.CONN_ID), "message-token")
    bad("data-conn-ready-33", "a token of 33 bytes", wire.data_conn_ready(token + b"\0", p.CONN_ID), "message-token")
    bad("data-conn-ready-no-id", "no conn id", wire.message(wire.DATA_CONN_READY, wire.string(token)))
    bad("refuse-conn-no-reason", "no reason", wire.message(wire.REFUSE_CONN, wire.string(p.CONN_ID)))
    bad("spare-ready-31", "a token of 31 bytes", wire.spare_ready(token[:31], 2, 64), "message-token")
    bad("spare-ready-no-max", "no max", wire.spare_ready(token, 2, 64)[:-2])
    bad("assign-no-visitor", "no visitor", wire.message(wire.ASSIGN, wire.string("web-server") + wire.string(p.CONN_ID)))


def primitives() -> None:
    """Tokens and the vectors of the RFCs."""
    put("token", "published", "the published token", p.TOKEN, session_key=p.SESSION_KEY, conn_id=p.CONN_ID.encode())
    conn = "0123456789abcdef0123456789abcdef"
    put("token", "32-digits", "a conn id of this project", wire.token_for(p.SESSION_KEY, conn), session_key=p.SESSION_KEY, conn_id=conn.encode())
    put("token", "spare", "the token of spare channels (E9): its label in the place of a conn id", wire.spare_token(p.SESSION_KEY),
        session_key=p.SESSION_KEY, conn_id=wire.SPARE_LABEL.encode())
    put("token", "bit", "one bit of the token differs", p.TOKEN[:-1] + bytes([p.TOKEN[-1] ^ 1]), "token",
        session_key=p.SESSION_KEY, conn_id=p.CONN_ID.encode())
    put("token", "raw-id", "made over the bytes the id is the hex of", wire.hmac.new(p.SESSION_KEY, bytes.fromhex(p.CONN_ID), "sha256").digest(),
        "token", session_key=p.SESSION_KEY, conn_id=p.CONN_ID.encode())

    h = bytes.fromhex
    put("hkdf", "rfc5869-1", "RFC 5869, A.1", h("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"),
        salt=bytes(range(13)), ikm=b"\x0b" * 22, info=bytes(range(0xF0, 0xFA)),
        prk=h("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"))
    put("hkdf", "rfc5869-2", "RFC 5869, A.2",
        h("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
          "cc30c58179ec3e87c14c01d5c1f3434f1d87"),
        salt=bytes(range(0x60, 0xB0)), ikm=bytes(range(0x50)), info=bytes(range(0xB0, 0x100)),
        prk=h("06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244"))
    put("hkdf", "rfc5869-3", "RFC 5869, A.3", h("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
        salt=b"", ikm=b"\x0b" * 22, info=b"", prk=h("19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04"))

    put("x25519", "rfc7748-1", "RFC 7748, 5.2", h("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"),
        private=h("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
        public=h("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"))
    put("x25519", "rfc7748-2", "RFC 7748, 5.2, the public key has its top bit set",
        h("95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957"),
        private=h("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d"),
        public=h("e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493"))
    put("x25519", "rfc7748-3", "RFC 7748, 6.1", h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"),
        private=h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"),
        public=h("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"))
    put("x25519", "zero", "the public key 0", b"", "zero-shared-secret", private=p.CLIENT_EPHEMERAL, public=bytes(32))
    put("x25519", "one", "the public key 1", b"", "zero-shared-secret", private=p.CLIENT_EPHEMERAL, public=b"\x01" + bytes(31))
    put("x25519", "order-8", "a public key of order 8", b"", "zero-shared-secret", private=p.CLIENT_EPHEMERAL,
        public=h("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"))

    rfc8032 = [
        ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
         "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
         "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
        ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
         "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
         "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
        ("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
         "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
         "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
    ]
    for number, (seed, public, text, signature) in enumerate(rfc8032, 1):
        put("ed25519", f"rfc8032-{number}", f"RFC 8032, 7.1, test {number}", h(signature), seed=h(seed), public=h(public), message=h(text))
    key = nacl.signing.SigningKey(p.CLIENT_SEED)
    signature = key.sign(b"twin").signature
    put("ed25519", "message-bit", "signed another message", signature, "signature", public=p.CLIENT_PUBLIC, message=b"twim")
    put("ed25519", "small-order-key", "a key of small order that a lax check takes for every message",
        b"\x01" + bytes(63), "signature", public=b"\x01" + bytes(31), message=b"twin")

    ladies = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
    sealed = h("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
               "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116"
               "1ae10b594f09e26a7e902ecbd0600691")
    context = dict(key=bytes(range(0x80, 0xA0)), nonce=h("070000004041424344454647"), aad=h("50515253c0c1c2c3c4c5c6c7"))
    put("chacha20poly1305", "rfc8439", "RFC 8439, 2.8.2", sealed, **context, plaintext=ladies)
    put("chacha20poly1305", "tag-bit", "one bit of the tag differs", sealed[:-1] + bytes([sealed[-1] ^ 1]), "tag", **context)
    put("chacha20poly1305", "no-aad", "the associated data is missing", sealed, "tag", **{**context, "aad": b""})


def main() -> int:
    """Makes, checks and writes all files."""
    check_published()
    hellos()
    key_schedules()
    frames()
    containers()
    messages()
    primitives()
    vectors.FOLDER.mkdir(exist_ok=True)
    if "--check" in sys.argv[1:]:
        there = {path.stem: path.read_text("ascii") for path in vectors.FOLDER.glob("*.txt")}
        different = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
        print("\n".join(different) or f"{len(made)} files are as made")
        return 1 if different else 0
    for old in vectors.FOLDER.glob("*.txt"):
        if old.stem not in made:
            old.unlink()
    for name, text in made.items():
        (vectors.FOLDER / f"{name}.txt").write_text(text, "ascii")
    for v in vectors.read_all():
        vectors.check(v)
    print(f"{len(made)} files")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
