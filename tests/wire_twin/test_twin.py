"""The twin against its vectors, and against the real server and client programs.

    test_twin.py [--self] [--jobs N] [--list] [PART OF A NAME ...]

`--self` takes twin_server.py and twin_client.py in place of the programs: that checks the
tests. Prints one line for a failure and `N passed, N failed` at the end.
"""

from __future__ import annotations

import itertools
import argparse
import concurrent.futures
import random
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Callable

import published as p
import rig as r
import vectors
import wire
from rig import ALICE, BOB, MALLORY, SERVER, WAIT, Rig, same

MIB = random.Random(1).randbytes(1 << 20)
TESTS: dict[str, Callable[[], None]] = {}
WEB = "web"


def unit(work: Callable[[], None]) -> Callable[[], None]:
    """A test without processes."""
    TESTS[f"unit.{work.__name__}"] = work
    return work


def rigged(group: str) -> Callable[[Callable[[Rig], None]], Callable[[Rig], None]]:
    """A test with a rig of its own."""

    def add(work: Callable[[Rig], None]) -> Callable[[Rig], None]:
        def run() -> None:
            with Rig() as rig:
                try:
                    work(rig)
                except BaseException as problem:
                    tail = [f"    | {line}" for process in rig.processes for line in process.lines[-12:]]
                    problem.add_note("\n".join(["    log of the program:"] + tail))
                    raise

        TESTS[f"{group}.{work.__name__}"] = run
        return work

    return add


server = rigged("server")
"""The twin is the client, the server program is under test."""
client = rigged("client")
"""The twin is the server, the client program is under test."""


# === the twin alone ======================================================================


@unit
def published_vectors() -> None:
    import make_vectors

    make_vectors.check_published()


@unit
def vector_files() -> None:
    every = vectors.read_all()
    assert len(every) > 100, len(every)
    for v in every:
        vectors.check(v)


@unit
def xxh32_known_values() -> None:
    same(wire.xxh32(b""), 0x02CC5D05)
    same(wire.xxh32(b"a"), 0x550D7456)
    same(wire.xxh32(b"abc"), 0x32D153FF)
    same(wire.xxh32(b"Nobody inspects the spammish repetition"), 0xE2293B2F)


@unit
def containers_against_liblz4() -> None:
    import lz4.frame

    rng = random.Random(5)
    for size in (1, 5, 6, 100, 65_535, 65_536, 65_537, 300_000):
        plain = (rng.randbytes(size // 2 + 1) + bytes(size))[:size]
        same(lz4.frame.decompress(wire.pack(plain)), plain, "liblz4 reads ours")
        same(lz4.frame.decompress(wire.pack(plain, stored=True)), plain, "liblz4 reads ours, stored")
        for linked in (False, True):
            for sums in (False, True):
                theirs = lz4.frame.compress(
                    plain, block_size=4, block_linked=linked, content_checksum=sums, block_checksum=sums, store_size=sums
                )
                same(wire.unpack(theirs), plain, "we read liblz4's")


@unit
def capability_forms() -> None:
    same(wire.parse_caps(wire.OFFER, b"MTT?fin,reason"), ["fin", "reason"])
    for ordinary in (b"", b"MTT", b"MTT!fin", b"MTT?Fin", b"MTT?a,,b", b"MTT?a,", b"MTT? a", b"MTT?" + b"a" * 33, b"mtt?fin"):
        same(wire.parse_caps(wire.OFFER, ordinary), None, repr(ordinary))
    same(wire.parse_caps(wire.OFFER, b"MTT?" + b",".join([b"a" * 16] * 60)), ["a" * 16] * 60)
    same(wire.parse_caps(wire.OFFER, b"MTT?" + b",".join([b"a" * 16] * 61)), None, "1,040 bytes")


@unit
def counter_does_not_wrap() -> None:
    last = wire.Direction(bytes(32), bytes(4), 2**64 - 1)
    last.seal(b"x")
    try:
        last.seal(b"x")
    except wire.WireError as problem:
        same(problem.name, "counter-wrapped")
    else:
        raise AssertionError("the counter wrapped")


# === the server program ==================================================================

# --- hello ---


@server
def identity_is_the_files(rig: Rig) -> None:
    s = rig.server()
    same(s.process.log(r"Pin in client config\): ([0-9a-fA-F]{64})")[1].lower(), p.SERVER_PUBLIC.hex())
    same(s.connect().peer, p.SERVER_PUBLIC, "identity in the hello")


@server
def wrong_pin_is_noticed(rig: Rig) -> None:
    s = rig.server()
    try:
        wire.connect(s.address, ALICE, MALLORY.public)
    except wire.WireError as problem:
        same(problem.name, "hello-identity")
    else:
        raise AssertionError("a wrong pin was accepted")


@server
def bad_hellos_close_without_an_answer(rig: Rig) -> None:
    s = rig.server()
    nonce = bytes(12)

    def hello(**more: object) -> bytes:
        role = more.pop("role", wire.ROLE_CLIENT)
        who = more.pop("who", ALICE)
        return wire.make_hello(role, who, wire.Ephemeral().public, nonce, **more)  # type: ignore[arg-type]

    good = hello()
    cases = {
        "length 0": bytes(4),
        "length 142": struct.pack(">I", 142) + good[4:-1],
        "length 144": struct.pack(">I", 144) + good[4:] + b"\0",
        "length 4 GiB": b"\xff\xff\xff\xff",
        "version 0": hello(version=0),
        "version 2": hello(version=2),
        "role server": hello(role=wire.ROLE_SERVER),
        "role 2": hello(role=2),
        "unknown key": hello(who=MALLORY),
        "other key's signature": hello(who=MALLORY, claimed=ALICE.public),
        "signature bit": good[:-1] + bytes([good[-1] ^ 1]),
        "zero signature": good[:-64] + bytes(64),
        "nonce bit": good[:80] + bytes([good[80] ^ 1]) + good[81:],
    }
    for what, sent in cases.items():
        sock = s.raw()
        sock.sendall(sent)
        try:
            r.closed_silently(sock)
        except AssertionError as problem:
            raise AssertionError(f"{what}: {problem}") from None
    s.control().beat()


@server
def a_replayed_hello_closes(rig: Rig) -> None:
    s = rig.server()
    hello = wire.make_hello(wire.ROLE_CLIENT, ALICE, wire.Ephemeral().public, bytes(12))
    first, second = s.raw(), s.raw()
    first.sendall(hello)
    r.read(first, 147)
    second.sendall(hello)
    r.closed_silently(second)


@server
def a_zero_shared_secret_closes(rig: Rig) -> None:
    s = rig.server()
    sock = s.raw()
    sock.sendall(wire.make_hello(wire.ROLE_CLIENT, ALICE, bytes(32), bytes(12)))
    got, _ = r.read_end(sock)
    assert len(got) in (0, 147), len(got)


@server
def a_hello_in_single_bytes(rig: Rig) -> None:
    s = rig.server()
    ephemeral, nonce = wire.Ephemeral(), bytes(12)
    hello = wire.make_hello(wire.ROLE_CLIENT, ALICE, ephemeral.public, nonce)
    sock = s.raw()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in hello:
        sock.sendall(bytes([byte]))
    theirs = wire.check_server_hello(wire.recv_hello(sock, WAIT), SERVER.public, hello[-64:])
    keys = wire.Keys.derive(nonce, theirs.nonce, wire.x25519(ephemeral.private, theirs.ephemeral))
    channel = wire.Channel(sock, keys, True, theirs.identity)
    for byte in channel.out.seal(wire.pack(wire.heartbeat(b"slow"))):
        sock.sendall(bytes([byte]))
    same(channel.recv_message().name, "AuthOk")
    same(channel.recv_message().payload, b"slow")


@server
def hello_and_first_frame_have_deadlines(rig: Rig) -> None:
    s = rig.server(timeouts={"hello": 0.5, "first_frame": 0.5})
    half, silent = s.raw(), s.connect()
    half.sendall(b"\0\0\0\x8f\0\x01")
    r.closed_silently(half, 5)
    same(silent.wait_end(5).reset in (True, False), True)


@server
def nothing_before_the_first_frame(rig: Rig) -> None:
    s = rig.server()
    channel = s.connect()
    r.nothing(channel, 0.5)
    channel.send(wire.heartbeat(b"now"))
    same(channel.recv_message().name, "AuthOk")
    same(channel.recv_message().payload, b"now")


@server
def server_hellos_are_fresh(rig: Rig) -> None:
    s = rig.server()
    hellos = []
    for _ in range(3):
        mine = wire.make_hello(wire.ROLE_CLIENT, ALICE, wire.Ephemeral().public, bytes(12))
        sock = s.raw()
        sock.sendall(mine)
        hellos.append(wire.check_server_hello(wire.recv_hello(sock, WAIT), SERVER.public, mine[-64:]))
    same(len({h.ephemeral for h in hellos}), 3, "ephemeral keys")
    same(len({h.nonce for h in hellos}), 3, "nonces")


# --- frames and containers ---


@server
def bad_first_frames_close(rig: Rig) -> None:
    s = rig.server()
    good = wire.pack(wire.heartbeat())
    cases: dict[str, Callable[[wire.Channel], bytes]] = {
        "N = 15": lambda c: struct.pack(">I", 15) + bytes(15),
        "N = 4,097": lambda c: struct.pack(">I", 4_097),
        "tag": lambda c: c.out.seal(good)[:-1] + b"\0",
        "five bytes": lambda c: c.out.seal(wire.pack(wire.heartbeat()[:5])),
        "no bytes": lambda c: c.out.seal(wire.pack(b"")),
        "empty container": lambda c: c.out.seal(b""),
        "no container": lambda c: c.out.seal(wire.heartbeat()),
    }
    for what, make in cases.items():
        channel = s.connect()
        channel.send_raw(make(channel))
        try:
            m = channel.recv_message()
        except wire.Ended:
            continue
        raise AssertionError(f"{what} was answered with {m.name}")
    s.control().beat()


@server
def bad_frames_end_a_session(rig: Rig) -> None:
    s = rig.server()
    plain = wire.heartbeat(b"never echoed")
    good = wire.pack(plain)
    dictionary = wire.lz4_header(0x61, 0x40, dictionary=1) + good[7:]
    summed = wire.pack_exotic([plain], content_sum=True)
    cases: dict[str, Callable[[wire.Channel], bytes]] = {
        "N = 0": lambda c: bytes(4),
        "N = 15": lambda c: struct.pack(">I", 15) + bytes(15),
        "N = 65,537": lambda c: struct.pack(">I", 65_537),
        "N = 4 GiB": lambda c: b"\xff\xff\xff\xff",
        "tag": lambda c: (lambda f: f[:-1] + bytes([f[-1] ^ 1]))(c.out.seal(good)),
        "empty container": lambda c: c.out.seal(b""),
        "no end mark": lambda c: c.out.seal(good[:-4]),
        "dictionary": lambda c: c.out.seal(dictionary),
        "legacy magic": lambda c: c.out.seal(bytes.fromhex("02214c18") + good[7:-4]),
        "header checksum": lambda c: c.out.seal(good[:6] + bytes([good[6] ^ 1]) + good[7:]),
        "content checksum": lambda c: c.out.seal(summed[:-1] + bytes([summed[-1] ^ 1])),
        "content size": lambda c: c.out.seal(wire.lz4_header(0x68, 0x40, len(plain) + 1) + good[7:]),
        "131,073 bytes": lambda c: c.out.seal(wire.pack(wire.heartbeat(bytes(131_067)))),
        "no bytes at all": lambda c: c.out.seal(wire.pack(b"")),
        "skippable frame": lambda c: c.out.seal(bytes.fromhex("502a4d1800000000")),
    }
    for what, make in cases.items():
        c = s.control()
        c.channel.send_raw(make(c.channel))
        try:
            while (m := c.channel.recv_message()).type == wire.ERROR:
                pass
        except wire.Ended:
            continue
        except TimeoutError:
            raise AssertionError(f"{what}: the session goes on") from None
        raise AssertionError(f"{what} was answered with {m.name}")


@server
def a_replayed_frame_ends_a_session(rig: Rig) -> None:
    c = rig.server().control()
    frame = c.channel.out.seal(wire.pack(wire.heartbeat(b"once")))
    c.channel.send_raw(frame)
    same(c.expect(wire.HEARTBEAT).payload, b"once")
    c.channel.send_raw(frame)
    c.ends()


@server
def every_container_of_l2(rig: Rig) -> None:
    c = rig.server().control()
    text = b"over and over and " * 40
    parts = [wire.heartbeat(text[:300]), text, random.Random(2).randbytes(90), text]
    whole = b"".join(parts)[6:]
    containers = {
        "stored": wire.pack(b"".join(parts), stored=True),
        "two frames": wire.pack(b"".join(parts)) + wire.pack(b"other"),
        "bytes after": wire.pack(b"".join(parts)) + b"\xff\xff",
        **{
            f"linked {linked} sums {sums} content {content} size {size} number {number}": wire.pack_exotic(
                parts, linked, sums, content, size, number
            )
            for linked in (False, True)
            for sums in (False, True)
            for content in (False, True)
            for size in (False, True)
            for number in (4, 7)
        },
    }
    for what, container in containers.items():
        c.channel.send_container(container)
        same(c.expect(wire.HEARTBEAT).payload, whole, what)


# --- control channel ---


@server
def capabilities_are_answered(rig: Rig) -> None:
    c = rig.server().control(["zz-unknown", *wire.ALL_CAPS, "9"])
    same(c.caps, set(wire.ALL_CAPS), "capabilities")
    c.beat(b"MTT?fin")  # only the first negotiates
    c.beat(b"")


@server
def only_what_was_offered(rig: Rig) -> None:
    same(rig.server().control(["status", "fin"]).caps, {"status", "fin"})


@server
def odd_offers_are_ordinary_heartbeats(rig: Rig) -> None:
    s = rig.server(max_clients=2)
    for odd in (b"MTT?FIN", b"MTT?fin,,status", b"MTT?fin status", b"MTT!fin", b"MTT?" + b"a" * 33, b"MTT?" + b"fin," * 300 + b"fin", b"\xff\x00"):
        channel = s.connect()
        channel.send(wire.heartbeat(odd))
        same(channel.recv_message().name, "AuthOk")
        same(channel.recv_message().payload, odd, "echo")
        channel.send(wire.heartbeat(b"MTT?fin"))
        same(channel.recv_message().payload, b"MTT?fin", "echo of the second")
        channel.close()


@server
def the_first_heartbeat_may_follow_open_tunnel(rig: Rig) -> None:
    c = rig.server().control(None)
    port = c.open()
    c.channel.send(wire.heartbeat(b"MTT?visitor,status"))
    same(sorted(wire.parse_caps(wire.ANSWER, c.expect(wire.HEARTBEAT).payload) or []), ["status", "visitor"])
    visitor = rig.visit(port)
    same(c.expect(wire.INCOMING_CONN).visitor, f"127.0.0.1:{visitor.getsockname()[1]}")


@server
def an_original_opens_a_tunnel(rig: Rig) -> None:
    c = rig.server().control(None)
    port = r.free_port()
    same(c.open(port=port), port)
    c.beat(b"")
    visitor = rig.visit(port)
    m = c.expect(wire.INCOMING_CONN)
    same(set(m.fields), {"tunnel", "conn"}, "fields without `visitor`")
    data = c.pair(m.conn)
    visitor.sendall(b"hello")
    same(r.read_data(data, 5), b"hello")


@server
def port_0_is_any_port(rig: Rig) -> None:
    c = rig.server().control()
    one, two = c.open("one"), c.open("two")
    assert one and two and one != two, (one, two)
    rig.visit(two)
    c.incoming("two")
    rig.visit(one)
    c.incoming("one")


@server
def a_port_in_use_is_an_error(rig: Rig) -> None:
    taken = rig.keep(socket.create_server(("127.0.0.1", 0)))
    c = rig.server().control()
    c.channel.send(wire.open_tunnel(taken.getsockname()[1], WEB))
    m = c.expect(wire.TUNNEL_STATUS)
    same((m.status, m.tunnel, m.port), ("Error", WEB, 0))
    assert m.reason, "no reason"
    c.channel.send(wire.open_tunnel(70_000, WEB))
    same(c.expect(wire.TUNNEL_STATUS).status, "Error")
    c.open()


@server
def an_unreadable_open_tunnel_is_an_error(rig: Rig) -> None:
    c = rig.server().control()
    for payload in (b"", b"\0\0\x1f\x90", b"\0\0\x1f\x90\0\0\0\x05web", b"\0\0\x1f\x90\xff\xff\xff\xffweb"):
        c.channel.send(wire.message(wire.OPEN_TUNNEL, payload))
        same(c.expect(wire.TUNNEL_STATUS).status, "Error", payload.hex())
    c.beat()


@server
def closing_a_tunnel(rig: Rig) -> None:
    c = rig.server().control()
    port = c.open(port=r.free_port())
    visitor = rig.visit(port)
    data = c.pair(c.incoming())
    visitor.sendall(b"a")
    same(r.read_data(data, 1), b"a")
    c.channel.send(wire.close_tunnel(WEB))
    m = c.expect(wire.TUNNEL_STATUS)
    same((m.status, m.tunnel), ("Stopped", WEB))
    refused(port)
    visitor.sendall(b"b")  # running connections finish
    same(r.read_data(data, 1), b"b")
    data.send(wire.data(b"c"))
    same(r.read(visitor, 1), b"c")
    for tunnel in (WEB, "never"):
        c.channel.send(wire.close_tunnel(tunnel))
        m = c.expect(wire.TUNNEL_STATUS)
        same((m.status, m.tunnel), ("Error", tunnel))


def refused(port: int, deadline: float = WAIT) -> None:
    """Nobody listens on the port (any more)."""
    until = time.monotonic() + deadline
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass  # the listener was closed while this one waited in its queue: not yet an answer
        if time.monotonic() > until:
            raise AssertionError(f"port {port} still takes connections")
        time.sleep(0.05)  # between two looks; the loop has its deadline


@server
def a_tunnel_moves_to_a_new_port(rig: Rig) -> None:
    c = rig.server().control()
    old, new = c.open(port=r.free_port()), r.free_port()
    c.open(port=new)
    rig.visit(new)
    c.incoming()
    refused(old)


@server
def the_listener_goes_with_the_session(rig: Rig) -> None:
    s = rig.server()
    c = s.control()
    port = c.open(port=r.free_port())
    c.channel.close()
    refused(port)
    same(s.control().open(port=port), port)


@server
def odd_messages_on_a_control_channel(rig: Rig) -> None:
    c = rig.server().control()
    for odd in (b"\x5a", b"\x5a\0\0\0\0", wire.message(77, b"unknown"), wire.message(0), wire.message(255, bytes(100))):
        c.channel.send(odd)
    c.channel.send(wire.message(wire.HEARTBEAT, b"flags", 0xFF, 0xFFFFFFFF))
    same(c.expect(wire.HEARTBEAT).payload, b"flags")
    c.channel.send(wire.open_tunnel(0, WEB, 0) + b"what comes after is ignored")
    same(c.expect(wire.TUNNEL_STATUS).status, "Open")


@server
def an_unknown_type_may_be_first(rig: Rig) -> None:
    channel = rig.server().connect()
    channel.send(wire.message(77, b"unknown"))
    same(channel.recv_message().name, "AuthOk")
    channel.send(wire.heartbeat(b"x"))
    same(channel.recv_message().payload, b"x")


@server
def no_bytes_end_a_session(rig: Rig) -> None:
    s = rig.server()
    c = s.control()
    port = c.open(port=r.free_port())
    c.channel.send(b"")
    c.ends()
    refused(port)


@server
def the_slot_is_held(rig: Rig) -> None:
    s = rig.server()
    c = s.control()
    late = s.connect(BOB)
    late.send(wire.heartbeat(b"MTT?reason"))
    m = late.recv_message()
    same((m.name, m.code), ("AuthFail", 1))
    late.wait_end()
    original = s.connect(BOB)
    original.send(wire.open_tunnel(0, WEB))
    same(original.recv_message().name, "AuthFail")
    c.beat()
    c.channel.close()
    until = time.monotonic() + WAIT
    while True:  # the server needs a moment to notice
        again = s.connect(BOB)
        again.send(wire.heartbeat())
        m = again.recv_message()
        if m.type == wire.AUTH_OK:
            return
        same((m.name, m.code), ("AuthFail", 1))
        assert time.monotonic() < until, "the slot stays held"
        time.sleep(0.05)  # between two looks; the loop has its deadline


@server
def two_slots(rig: Rig) -> None:
    s = rig.server(max_clients=2)
    a, b = s.control(), s.control(identity=BOB)
    port_a, port_b = a.open(), b.open()  # the same id in two sessions
    rig.visit(port_b)
    conn = b.incoming()
    rig.visit(port_a)
    a.incoming()
    stranger = a.pair(conn)  # T6: the key and the identity must be the session's
    stranger.wait_end()
    thief = wire.connect(s.address, ALICE, SERVER.public)
    thief.send(wire.data_conn_ready(wire.token_for(b.key, conn), conn))
    thief.wait_end()
    b.pair(conn).send(wire.data(b"x"))
    a.beat()


@server
def silence_ends_a_session(rig: Rig) -> None:
    c = rig.server(timeouts={"session_silence": 0.8}).control()
    for _ in range(4):
        time.sleep(0.3)  # any frame counts; not a synchronisation
        c.beat()
    m = c.expect(wire.ERROR)
    same(m.code, 7, "code")
    c.ends()


@server
def shutting_down_is_said(rig: Rig) -> None:
    s = rig.server(grace=1)
    c = s.control()
    s.process.child.send_signal(signal.SIGTERM)
    same(c.expect(wire.ERROR).code, 4, "code")
    c.ends()
    same(s.process.exit_code(), 0, "exit code")


@server
def errors_only_where_agreed(rig: Rig) -> None:
    s = rig.server()
    c = s.control([])
    s.control()  # takes over
    try:
        m = c.channel.recv_message()
    except wire.Ended:
        return
    raise AssertionError(f"an unagreed {m.name}")


# --- data channels ---


def paired(rig: Rig, caps: tuple[str, ...] | None = wire.ALL_CAPS, **config: object) -> tuple[r.Control, socket.socket, wire.Channel]:
    """A server, a session, a visitor and its data channel, tried with a byte each way."""
    c = rig.server(**config).control(caps)
    port = c.open()
    visitor, data = join(rig, c, port)
    return c, visitor, data


def join(rig: Rig, c: r.Control, port: int) -> tuple[socket.socket, wire.Channel]:
    """A visitor and its data channel."""
    visitor = rig.visit(port)
    m = c.expect(wire.INCOMING_CONN)
    data = c.pair(m.conn)  # type: ignore[arg-type]
    visitor.sendall(b"?")
    same(r.read_data(data, 1), b"?")
    data.send(wire.data(b"!"))
    same(r.read(visitor, 1), b"!")
    return visitor, data


def mebibyte_both_ways(plain: socket.socket, data: wire.Channel) -> None:
    """1 MiB each way at once, unchanged."""

    def feed() -> None:
        plain.settimeout(30)
        plain.sendall(MIB)

    def speak() -> None:
        for at in range(0, len(MIB), 50_000):
            data.send(wire.data(MIB[at : at + 50_000]), deadline=30)

    # One thread for each direction of each end.
    jobs = [r.in_background(feed), r.in_background(speak)]
    found: list[bytes] = []
    listener = socket.socket(fileno=socket.dup(plain.fileno()))
    try:
        jobs.append(r.in_background(lambda: found.append(r.read(listener, len(MIB), 30))))
        same(r.read_data(data, len(MIB), 30) == MIB, True, "bytes into the data channel")
        for wait in jobs:
            wait()
        same(found[0] == MIB, True, "bytes out of the data channel")
    finally:
        listener.close()


@server
def a_mebibyte_and_both_ends(rig: Rig) -> None:
    c, visitor, data = paired(rig)
    mebibyte_both_ways(visitor, data)
    visitor.shutdown(socket.SHUT_WR)
    r.expect_fin(data)
    data.send(wire.fin())
    r.expect_end(visitor, "eof")
    data.wait_end()
    c.beat()


@server
def a_mebibyte_as_an_original(rig: Rig) -> None:
    c, visitor, data = paired(rig, None)
    mebibyte_both_ways(visitor, data)
    data.send(wire.data(b"last"))
    data.close()
    r.expect_end(visitor, "eof", b"last")
    c.beat()


@server
def the_visitor_ends_first(rig: Rig) -> None:
    _, visitor, data = paired(rig)
    visitor.sendall(b"request")
    visitor.shutdown(socket.SHUT_WR)
    same(r.read_data(data, 7), b"request")
    r.expect_fin(data)
    r.nothing(data)
    data.send(wire.data(MIB))
    data.send(wire.data(b"the end"))
    data.send(wire.fin())
    r.expect_end(visitor, "eof", MIB + b"the end")


@server
def the_client_ends_first(rig: Rig) -> None:
    _, visitor, data = paired(rig)
    data.send(wire.data(b"banner"))
    data.send(wire.fin())
    r.expect_end(visitor, "eof", b"banner")
    visitor.sendall(b"still here")
    same(r.read_data(data, 10), b"still here")
    visitor.sendall(MIB)
    same(r.read_data(data, len(MIB)) == MIB, True, "bytes after the other end")
    visitor.shutdown(socket.SHUT_WR)
    r.expect_fin(data)


@server
def an_originals_visitor_ends_first(rig: Rig) -> None:
    _, visitor, data = paired(rig, None)
    visitor.sendall(b"request")
    visitor.shutdown(socket.SHUT_WR)
    same(r.read_data(data, 7), b"request")
    data.send(wire.data(b"answer"))
    same(r.read(visitor, 6), b"answer")
    same(r.expect_cut(data, 14), b"")  # the TCP end, no FIN
    data.close()
    r.expect_end(visitor, "eof")


@server
def a_cut_is_a_reset(rig: Rig) -> None:
    c, visitor, data = paired(rig)
    data.send(wire.data(b"half an ans"))
    same(r.read(visitor, 11), b"half an ans")
    data.close()
    r.expect_end(visitor, "reset")
    visitor, data = join(rig, c, c.open("cut2"))
    data.shut_write()
    r.expect_end(visitor, "reset")
    visitor, data = join(rig, c, c.open("cut3"))
    data.reset()
    r.expect_end(visitor, "reset")
    c.beat()


@server
def a_cut_inside_a_frame_is_a_reset(rig: Rig) -> None:
    _, visitor, data = paired(rig)
    data.send_raw(data.out.seal(wire.pack(wire.data(b"never whole")))[:-1])
    data.shut_write()
    r.expect_end(visitor, "reset")


@server
def a_cut_after_the_visitors_end_is_a_reset(rig: Rig) -> None:
    _, visitor, data = paired(rig)
    visitor.shutdown(socket.SHUT_WR)
    r.expect_fin(data)
    data.send(wire.data(b"half"))
    same(r.read(visitor, 4), b"half")
    data.close()
    r.expect_end(visitor, "reset")


@server
def an_originals_cut_is_an_end(rig: Rig) -> None:
    _, visitor, data = paired(rig, None)
    data.send(wire.data(b"half"))
    data.shut_write()
    r.expect_end(visitor, "eof", b"half")


@server
def without_fin_the_flag_is_ignored(rig: Rig) -> None:
    _, visitor, data = paired(rig, ("status", "reason"))
    data.send(wire.fin())
    data.send(wire.data(b"goes on", flags=1))
    same(r.read(visitor, 7), b"goes on")
    visitor.sendall(b"too")
    same(r.read_data(data, 3), b"too")
    data.close()
    r.expect_end(visitor, "eof")


@server
def an_original_closes_with_close_tunnel(rig: Rig) -> None:
    _, visitor, data = paired(rig, None)
    data.send(wire.data(b"bye"))
    data.send(wire.close_tunnel(WEB))
    r.expect_end(visitor, "eof", b"bye")


@server
def an_empty_message_ends_an_originals_direction(rig: Rig) -> None:
    _, visitor, data = paired(rig, None)
    data.send(wire.data(b"bye"))
    data.send(b"")
    r.expect_end(visitor, "eof", b"bye")


@server
def a_visitors_reset_is_a_cut(rig: Rig) -> None:
    _, visitor, data = paired(rig)
    wire.reset(visitor)
    same(r.expect_cut(data), b"")


@server
def damage_resets_the_visitor(rig: Rig) -> None:
    c, visitor, data = paired(rig)
    cases = {
        "FIN with a payload": wire.data(b"never", flags=1),
        "heartbeat": wire.heartbeat(b"never"),
        "unknown type": wire.message(77, b"never"),
        "AuthOk": wire.auth_ok(bytes(32)),
        "CloseTunnel": wire.close_tunnel(WEB),
        "second DataConnReady": wire.data_conn_ready(bytes(32), "x"),
        "one byte": b"\x1e",
        "five bytes": b"\x1e\0\0\0\0",
    }
    for i, (what, plain) in enumerate(cases.items()):
        if i:
            visitor, data = join(rig, c, c.open(f"t{i}"))
        data.send(plain)
        try:
            r.expect_end(visitor, "reset")
            data.wait_end()
        except (AssertionError, TimeoutError) as problem:
            raise AssertionError(f"{what}: {problem}") from None
    visitor, data = join(rig, c, c.open("tag"))
    frame = data.out.seal(wire.pack(wire.data(b"never")))
    data.send_raw(frame[:-1] + bytes([frame[-1] ^ 1]))
    r.expect_end(visitor, "reset")
    visitor, data = join(rig, c, c.open("bomb"))
    blocks = wire.lz4_block(bytes(4_194_304), stored=False) * 25
    data.send_container(wire.lz4_header(0x60, 0x70) + blocks + bytes(4))
    end = r.read_end(visitor)
    same(end[1], "reset", "a bomb")
    assert len(end[0]) <= wire.MESSAGE_MAX, len(end[0])
    c.beat()


@server
def a_frame_after_fin_is_damage(rig: Rig) -> None:
    c, visitor, data = paired(rig)
    data.send(wire.fin())
    data.send(wire.data(b"never"))
    got, _ = r.read_end(visitor)
    same(got, b"")
    # In one segment, so that the receiver cannot but see it.
    visitor, data = join(rig, c, c.open("second"))
    data.send_raw(b"".join(data.out.seal(wire.pack(wire.fin())) for _ in range(2)))
    data.wait_end()


@server
def refused_connections_are_reset(rig: Rig) -> None:
    c = rig.server().control()
    port = c.open()
    visitor = rig.visit(port)
    conn = c.incoming()
    began = time.monotonic()
    c.channel.send(wire.refuse_conn(conn, "the local service is dead"))
    r.expect_end(visitor, "reset")
    assert time.monotonic() - began < 2, "not at once"
    c.pair(conn).wait_end()  # it waits no more
    c.channel.send(wire.refuse_conn("nobody", "unknown ids do no harm"))
    c.channel.send(wire.refuse_conn(conn, "nor does a second time"))
    c.beat()


@server
def bad_tokens_close(rig: Rig) -> None:
    s = rig.server()
    c = s.control()
    port = c.open()
    visitor = rig.visit(port)
    conn = c.incoming()
    token = wire.token_for(c.key, conn)
    cases = {
        "one bit": wire.data_conn_ready(token[:-1] + bytes([token[-1] ^ 1]), conn),
        "zeros": wire.data_conn_ready(bytes(32), conn),
        "another key's": wire.data_conn_ready(wire.token_for(bytes(32), conn), conn),
        "unknown id": wire.data_conn_ready(wire.token_for(c.key, "0" * 32), "0" * 32),
        "empty id": wire.data_conn_ready(wire.token_for(c.key, ""), ""),
        "long id": wire.data_conn_ready(wire.token_for(c.key, "a" * 65), "a" * 65),
        "31 bytes": wire.data_conn_ready(token[:31], conn),
        "cut short": wire.data_conn_ready(token, conn)[:-1],
    }
    for what, first in cases.items():
        channel = s.connect()
        channel.send(first)
        try:
            same(r.expect_cut(channel), b"")
        except TimeoutError:
            raise AssertionError(f"{what}: not closed") from None
    other = s.connect(BOB)  # the right token from another identity
    other.send(wire.data_conn_ready(token, conn))
    same(r.expect_cut(other), b"")
    data = c.pair(conn)  # the visitor still waits
    visitor.sendall(b"x")
    same(r.read_data(data, 1), b"x")
    again = c.pair(conn)  # a token works once
    same(r.expect_cut(again), b"")
    data.send(wire.data(b"y"))
    same(r.read(visitor, 1), b"y")


@server
def pairing_has_a_deadline(rig: Rig) -> None:
    c = rig.server(timeouts={"pairing": 0.5}).control()
    visitor = rig.visit(c.open())
    conn = c.incoming()
    r.read_end(visitor, 5)
    same(r.expect_cut(c.pair(conn)), b"")


@server
def a_data_channel_opened_long_before(rig: Rig) -> None:
    s = rig.server()
    early = [s.connect() for _ in range(3)]
    c = s.control()
    port = c.open()
    for data in early:
        visitor = rig.visit(port)
        visitor.sendall(b"before the channel")
        c.pair(c.incoming(), data)
        same(r.read_data(data, 18), b"before the channel")
        data.send(wire.data(b"ok"))
        same(r.read(visitor, 2), b"ok")


@server
def bytes_and_end_before_pairing(rig: Rig) -> None:
    c = rig.server().control()
    visitor = rig.visit(c.open())
    visitor.sendall(b"all I have")
    visitor.shutdown(socket.SHUT_WR)
    data = c.pair(c.incoming())
    same(r.read_data(data, 10), b"all I have")
    r.expect_fin(data)
    data.send(wire.data(b"thanks"))
    data.send(wire.fin())
    r.expect_end(visitor, "eof", b"thanks")


def frame_shapes(plain: socket.socket, data: wire.Channel) -> None:
    """Large, small, empty, dribbled, stored and odd Data frames into a plain connection."""
    big = MIB[:700_000] + bytes(300_000)
    expected = big + big + MIB + b"abc" + b"dribble" + b"flags" + bytes(3_000_000)
    wait = r.in_background(lambda: same(r.read(plain, len(expected), 30) == expected, True, "bytes"))
    data.send(wire.data(big), stored=True, deadline=30)
    data.send(wire.data(big), deadline=30)
    raw = wire.data(MIB)
    cut = [raw[i : i + 262_144] for i in range(0, len(raw), 262_144)]
    data.send_container(wire.pack_exotic(cut, linked=True, size=True, number=5), deadline=30)
    for byte in (b"a", b"", b"b", b"", b"c"):
        data.send(wire.data(byte))
    for byte in data.out.seal(wire.pack(wire.data(b"dribble"))):
        data.send_raw(bytes([byte]))
    data.send(wire.message(wire.DATA, b"flags", 0xFE, 0xFFFFFFFF))
    data.send(wire.data(bytes(3_000_000)), deadline=30)
    wait()


@server
def every_shape_of_data_frame(rig: Rig) -> None:
    _, visitor, data = paired(rig)
    frame_shapes(visitor, data)
    visitor.sendall(b"x")
    same(r.read_data(data, 1), b"x")


@server
def many_visitors(rig: Rig) -> None:
    c = rig.server().control()
    port = c.open()
    visitors = [rig.visit(port) for _ in range(12)]
    by_port = {v.getsockname()[1]: v for v in visitors}
    pairs = []
    for _ in visitors:
        m = c.expect(wire.INCOMING_CONN)
        pairs.append((by_port.pop(int(m.visitor.rpartition(":")[2])), c.pair(m.conn), m.conn))
    same(len({conn for _, _, conn in pairs}), 12, "conn ids")
    for i, (visitor, data, _) in enumerate(pairs):
        visitor.sendall(bytes([i]) * 1000)
        data.send(wire.data(bytes([100 + i]) * 1000))
    for i, (visitor, data, _) in enumerate(pairs):
        same(r.read_data(data, 1000), bytes([i]) * 1000)
        same(r.read(visitor, 1000), bytes([100 + i]) * 1000)


@server
def compression_is_chosen(rig: Rig) -> None:
    def all_stored(c: r.Control, compression: int) -> bool:
        visitor, data = join(rig, c, c.open(f"c{compression}", 0, compression))
        visitor.sendall(b"a" * 60_000)
        left, stored = 60_000, True
        while left:
            left -= len(wire.split(data.recv()).payload)
            stored = stored and all(block[0] for block in wire.blocks_of(data.last_container))
        return stored

    on, off = rig.server(compression="on").control(), None
    same([all_stored(on, n) for n in (0, 1, 2)], [False, True, False], "stored with the server's setting on")
    all_stored(on, 3)  # auto: its own choice, but it carries the bytes
    with Rig() as second:
        off = second.server(compression="off").control()
        same([all_stored(off, n) for n in (0, 1, 2)], [True, True, False], "stored with the server's setting off")


@server
def frames_are_of_l1(rig: Rig) -> None:
    c, visitor, data = paired(rig)
    visitor.sendall(MIB + bytes(1 << 20))
    left = 2 << 20
    while left:
        left -= len(wire.split(data.recv()).payload)
        container = data.last_container
        same((container[:5].hex(), container[5] & 0x8F), ("04224d1860", 0), "header")
        blocks = wire.blocks_of(container)
        same(len(blocks), 1, "blocks")
        same(container[-4:], bytes(4), "end mark")
    c.channel.send(wire.heartbeat(b"x"))
    c.channel.recv()
    same(c.channel.last_container[:6].hex(), "04224d186040", "header")


@server
def a_session_end_spares_running_connections_of_a_successor(rig: Rig) -> None:
    """E8 in full."""
    s = rig.server()
    old = s.control()
    port = old.open(port=r.free_port())
    running, running_data = join(rig, old, port)
    waiting = rig.visit(port)
    waiting.sendall(b"early")
    conn = old.incoming()

    new = s.control()
    assert new.key != old.key, "the session key is not fresh"
    m = old.expect(wire.ERROR)
    same(m.code, 3, "code")
    old.ends()
    between = rig.visit(port)  # the listener stays open
    running.sendall(b"not touched")
    same(r.read_data(running_data, 11), b"not touched")

    new.channel.send(wire.open_tunnel(port, WEB, 0))
    found: dict[str, str] = {}
    status = 0
    while not status or len(found) < 2:
        m = new.channel.recv_message()
        if m.type == wire.TUNNEL_STATUS:
            same((m.status, m.tunnel, m.port), ("Open", WEB, port))
            status += 1
        else:
            same((m.name, m.tunnel), ("IncomingConn", WEB))
            found[m.visitor] = m.conn
    name = f"127.0.0.1:{waiting.getsockname()[1]}"
    same(found[name], conn, "conn id of the waiting connection")
    data = new.pair(conn)
    same(r.read_data(data, 5), b"early")
    data2 = new.pair(found[f"127.0.0.1:{between.getsockname()[1]}"])
    data2.send(wire.data(b"hi"))
    same(r.read(between, 2), b"hi")
    running_data.send(wire.data(b"nor this way"))
    same(r.read(running, 12), b"nor this way")
    running_data.send(wire.fin())
    r.expect_end(running, "eof")


@server
def an_original_is_taken_over(rig: Rig) -> None:
    s = rig.server()
    old = s.control(None)
    port = old.open(port=r.free_port())
    new = s.control(None)
    same(new.open(port=port), port)
    old.ends()
    rig.visit(port)
    new.expect(wire.INCOMING_CONN)


@server
def unclaimed_listeners_close_after_ten_seconds(rig: Rig) -> None:
    s = rig.server()
    old = s.control()
    port = old.open(port=r.free_port())
    new = s.control()
    began = time.monotonic()
    old.ends()
    time.sleep(8 - (time.monotonic() - began))  # it must still be there at 8 s
    rig.visit(port)
    refused(port, 6)
    new.beat()


# === the client program ==================================================================


# Nobody listens there: the twin's server only notes the number.
_remote_ports = itertools.count(18_100)


def tunnel(service_port: int, name: str = WEB, **more: object) -> dict:
    """A tunnel of the client's configuration."""
    return {"id": name, "remote_port": next(_remote_ports), "local_port": service_port, "auto_start": True, **more}


def serving(
    rig: Rig, caps: tuple[str, ...] | None = wire.ALL_CAPS, **more: object
) -> tuple[r.Served, r.Service, r.Process]:
    """A client program with one tunnel, its session and its local service."""
    lair, service = rig.lair().serve(), rig.service()
    process = rig.client(lair, [tunnel(service.port)], **more)
    return lair.session(caps), service, process


@client
def hello_and_first_frame(rig: Rig) -> None:
    lair = rig.lair()
    rig.client(lair, [])
    sock = lair.raw()
    body = wire.recv_hello(sock, WAIT)
    hello = wire.check_client_hello(body, [ALICE.public])
    ephemeral = wire.Ephemeral()
    sock.sendall(wire.make_hello(wire.ROLE_SERVER, SERVER, ephemeral.public, bytes(12), hello.signature))
    keys = wire.Keys.derive(hello.nonce, bytes(12), wire.x25519(ephemeral.private, hello.ephemeral))
    channel = wire.Channel(sock, keys, False, hello.identity)
    first = channel.recv_message()  # no AuthOk was sent: a client must not wait for it
    same((first.name, first.flags, first.stream), ("Heartbeat", 0, 0))
    offered = wire.parse_caps(wire.OFFER, first.payload)
    same(set(offered or ()) >= {"fin", "reason", "status", "visitor", "refuse"}, True, f"offer {offered}")
    same(channel.last_container[:6].hex(), "04224d186040", "container header (L1)")


def bad_server_hello(name: str, answer: Callable[[wire.Hello, bytes], bytes], pin: bytes | None = None) -> None:
    """Adds a test: the client must close and must not send a frame."""

    def run(rig: Rig) -> None:
        lair = rig.lair()
        process = rig.client(lair, [], pin=pin)
        sock = lair.raw()
        hello = wire.check_client_hello(wire.recv_hello(sock, WAIT), [ALICE.public])
        sock.sendall(answer(hello, wire.Ephemeral().public))
        r.closed_silently(sock)
        if pin and not r.use_twins:
            process.log("does NOT match expected key")

    run.__name__ = f"bad_server_hello_{name}"
    client(run)


bad_server_hello("pin", lambda h, e: wire.make_hello(0, SERVER, e, bytes(12), h.signature), MALLORY.public)
bad_server_hello("other_identity", lambda h, e: wire.make_hello(0, MALLORY, e, bytes(12), h.signature))
bad_server_hello("claimed_identity", lambda h, e: wire.make_hello(0, MALLORY, e, bytes(12), h.signature, claimed=SERVER.public))
bad_server_hello("unbound", lambda h, e: wire.make_hello(0, SERVER, e, bytes(12)))
bad_server_hello("other_hello", lambda h, e: wire.make_hello(0, SERVER, e, bytes(12), bytes(64)))
bad_server_hello("role", lambda h, e: wire.make_hello(1, SERVER, e, bytes(12), h.signature))
bad_server_hello("version", lambda h, e: wire.make_hello(0, SERVER, e, bytes(12), h.signature, version=2))
bad_server_hello("reflected", lambda h, e: struct.pack(">I", 143) + h.body())
bad_server_hello("length", lambda h, e: struct.pack(">I", 144) + bytes(144))
bad_server_hello("zero_ephemeral", lambda h, e: wire.make_hello(0, SERVER, bytes(32), bytes(12), h.signature))


@client
def tunnels_are_opened(rig: Rig) -> None:
    lair, service = rig.lair().serve(), rig.service()
    process = rig.client(
        lair,
        [
            tunnel(service.port, "one", remote_port=18_081, compression="off"),
            tunnel(service.port, "two", remote_port=18_082, compression="on"),
            tunnel(service.port, "three", remote_port=18_083, compression="auto"),
            tunnel(service.port, "idle", auto_start=False),
        ],
    )
    session = lair.session(tunnels=3)
    opened = {m.tunnel: (m.port, m.compression) for m in session.opened}
    same({k: v[0] for k, v in opened.items()}, {"one": 18_081, "two": 18_082, "three": 18_083}, "tunnels")
    same(all(v[1] in (0, 1, 2, 3) for v in opened.values()), True, f"E6 is always sent: {opened}")
    process.log(r"two.* 18082", WAIT)
    r.nothing(session.channel)


@client
def an_original_server_is_served(rig: Rig) -> None:
    session, service, process = serving(rig, None)
    channel, local = session.pair("1a2b3c4d", service)
    local.sendall(b"banner")
    same(r.read_data(channel, 6), b"banner")
    channel.send(wire.data(b"GET"))
    same(r.read(local, 3), b"GET")
    mebibyte_both_ways(local, channel)


@client
def a_session_is_up_without_waiting_for_the_answer(rig: Rig) -> None:
    """Section 9: an original sends AuthOk after the first frame and may never answer in kind."""
    session, service, process = serving(rig, None)
    process.log("Connected to", WAIT)


@client
def the_answer_may_name_few(rig: Rig) -> None:
    session, service, _ = serving(rig, ("refuse",))
    session.announce("ab" * 16, "nobody")
    same(session.expect(wire.REFUSE_CONN).conn, "ab" * 16)
    channel, local = session.pair("cd" * 16, service)
    channel.close()
    r.expect_end(local, "eof")  # no `fin`: a cut is an end


@client
def a_session_again(rig: Rig) -> None:
    lair, service = rig.lair().serve(), rig.service()
    rig.client(lair, [tunnel(service.port, "one"), tunnel(service.port, "two")])
    for how in (wire.Channel.close, wire.Channel.reset, lambda c: c.send(b""), lambda c: c.send_raw(bytes(4)), None):
        session = lair.session(tunnels=2)
        same({m.tunnel for m in session.opened}, {"one", "two"}, "tunnels")
        channel, local = session.pair("ef" * 16, service, "one")
        channel.send(wire.data(b"x"))
        same(r.read(local, 1), b"x")
        if how:
            how(session.channel)
    same(len(lair.problems), 0, f"hellos {lair.problems}")  # fresh keys every time


@client
def auth_fail_1_is_tried_again(rig: Rig) -> None:
    lair, service = rig.lair().serve(), rig.service()
    process = rig.client(lair, [tunnel(service.port)])
    for _ in range(2):
        channel, _ = lair.controls.get(timeout=WAIT)
        channel.send(wire.auth_fail(1, "another client holds the slot"))
        channel.wait_end()
    lair.session()
    same(process.child.poll(), None, "exit code")


@client
def auth_fail_2_is_final(rig: Rig) -> None:
    lair, service = rig.lair().serve(), rig.service()
    process = rig.client(lair, [tunnel(service.port)])
    channel, _ = lair.controls.get(timeout=WAIT)
    channel.send(wire.auth_fail(2, "this identity is not admitted"))
    same(process.exit_code(), 6, "exit code")


@client
def error_2_is_final(rig: Rig) -> None:
    session, _, process = serving(rig)
    session.channel.send(wire.error(2, "this identity is no longer admitted"))
    same(process.exit_code(), 6, "exit code")


@client
def error_4_is_tried_again(rig: Rig) -> None:
    session, _, process = serving(rig)
    session.channel.send(wire.error(4, "the server shuts down"))
    session.channel.close()
    session.lair.session()


@client
def odd_messages_on_the_control_channel(rig: Rig) -> None:
    session, service, process = serving(rig)
    for odd in (b"\x0c", b"\0\0\0\0\0", wire.message(77, b"unknown"), wire.message(0)):
        session.channel.send(odd)
    channel, local = session.pair("12" * 16, service)
    channel.send(wire.data(b"x"))
    same(r.read(local, 1), b"x")


@client
def the_control_channel_takes_l2(rig: Rig) -> None:
    session, service, _ = serving(rig)
    plain = wire.incoming_conn("web", "34" * 16, "192.0.2.1:1")
    session.channel.send_container(wire.pack_exotic([plain[:9], plain[9:30], plain[30:]], True, True, True, True, 7) + b"after")
    session.data("34" * 16)
    service.accept()


@client
def heartbeats_come_and_are_needed(rig: Rig) -> None:
    session, service, _ = serving(rig, timeouts={"heartbeat_interval": 0.3, "heartbeat_timeout": 0.6})
    for _ in range(3):
        beat = session.expect(wire.HEARTBEAT)
        same(wire.parse_caps(wire.OFFER, beat.payload), None, "a second offer")
        session.channel.send(wire.heartbeat(beat.payload))
    session.expect(wire.HEARTBEAT)  # not answered
    session.lair.session()  # it gives up and comes again


@client
def any_frame_counts_for_an_answer(rig: Rig) -> None:
    session, service, _ = serving(rig, timeouts={"heartbeat_interval": 0.2, "heartbeat_timeout": 0.6})
    until = time.monotonic() + 2
    while time.monotonic() < until:
        session.expect(wire.HEARTBEAT)
        session.channel.send(wire.message(77))
    session.expect(wire.HEARTBEAT)


@client
def a_mebibyte_and_both_ends(rig: Rig) -> None:  # noqa: F811 - the client's
    session, service, _ = serving(rig)
    channel, local = session.pair("56" * 16, service)
    mebibyte_both_ways(local, channel)
    local.shutdown(socket.SHUT_WR)
    r.expect_fin(channel)
    channel.send(wire.fin())
    r.expect_end(local, "eof")
    channel.wait_end()


@client
def the_service_ends_first(rig: Rig) -> None:
    session, service, _ = serving(rig)
    channel, local = session.pair("57" * 16, service)
    local.sendall(b"banner")
    local.shutdown(socket.SHUT_WR)
    same(r.read_data(channel, 6), b"banner")
    r.expect_fin(channel)
    r.nothing(channel)
    channel.send(wire.data(MIB))
    channel.send(wire.fin())
    r.expect_end(local, "eof", MIB)


@client
def the_visitor_ends_first(rig: Rig) -> None:  # noqa: F811 - the client's
    session, service, _ = serving(rig)
    channel, local = session.pair("58" * 16, service)
    channel.send(wire.data(b"request"))
    channel.send(wire.fin())
    r.expect_end(local, "eof", b"request")
    send = r.in_background(lambda: local.sendall(MIB))
    same(r.read_data(channel, len(MIB)) == MIB, True, "bytes after the other end")
    send()
    local.shutdown(socket.SHUT_WR)
    r.expect_fin(channel)


@client
def a_cut_is_a_reset(rig: Rig) -> None:  # noqa: F811 - the client's
    session, service, _ = serving(rig)
    for i, how in enumerate((wire.Channel.close, wire.Channel.shut_write, wire.Channel.reset)):
        channel, local = session.pair(f"{i:032x}", service)
        channel.send(wire.data(b"half"))
        same(r.read(local, 4), b"half")
        how(channel)
        r.expect_end(local, "reset")


@client
def an_originals_end_of_channel(rig: Rig) -> None:
    session, service, _ = serving(rig, None)
    channel, local = session.pair("59" * 16, service)
    channel.send(wire.data(b"half"))
    channel.close()
    r.expect_end(local, "eof", b"half")


@client
def against_an_original_the_end_waits_for_silence(rig: Rig) -> None:
    session, service, _ = serving(rig, None)
    channel, local = session.pair("60" * 16, service)
    local.sendall(b"request")
    local.shutdown(socket.SHUT_WR)
    same(r.read_data(channel, 7), b"request")
    for _ in range(3):  # the other direction is not silent
        r.nothing(channel, 1)
        channel.send(wire.data(b"more"))
        same(r.read(local, 4), b"more")
    last = time.monotonic()
    same(r.expect_cut(channel, 12), b"")  # no FIN
    waited = time.monotonic() - last
    assert 4.5 <= waited <= 9, f"shut after {waited:.1f} s of silence"


@client
def an_original_server_sees_no_new_frames(rig: Rig) -> None:
    lair = rig.lair().serve()
    rig.client(lair, [tunnel(rig.dead_port())])
    session = lair.session(None)
    session.announce("61" * 16)
    session.announce("62" * 16, "nobody")
    session.channel.send(wire.heartbeat(b"not an offer"))
    until = time.monotonic() + 1
    while time.monotonic() < until:
        try:
            m = session.channel.recv_message(0.2)
        except TimeoutError:
            continue
        assert m.type != wire.REFUSE_CONN, "an unagreed RefuseConn"


@client
def a_dead_service_is_refused_at_once(rig: Rig) -> None:
    lair = rig.lair().serve()
    rig.client(lair, [tunnel(rig.dead_port())])
    session = lair.session()
    began = time.monotonic()
    session.announce("63" * 16)
    m = session.expect(wire.REFUSE_CONN)
    same(m.conn, "63" * 16)
    assert m.reason, "no reason"
    assert time.monotonic() - began < 1, f"{time.monotonic() - began:.2f} s"


@client
def what_is_not_enabled_is_refused(rig: Rig) -> None:
    lair, service = rig.lair().serve(), rig.service()
    rig.client(lair, [tunnel(service.port), tunnel(service.port, "idle", auto_start=False)])
    session = lair.session()
    for i, name in enumerate(("idle", "never heard of", "")):
        session.announce(f"{i:032x}", name)
        same(session.expect(wire.REFUSE_CONN).conn, f"{i:032x}")
    service.nobody()


@client
def a_reset_of_the_service_is_a_cut(rig: Rig) -> None:
    session, service, _ = serving(rig)
    channel, local = session.pair("64" * 16, service)
    channel.send(wire.data(b"x"))
    same(r.read(local, 1), b"x")
    wire.reset(local)
    same(r.expect_cut(channel), b"")


@client
def damage_does_not_reach_the_service(rig: Rig) -> None:
    session, service, _ = serving(rig)
    cases = {
        "FIN with a payload": wire.data(b"never", flags=1),
        "heartbeat": wire.heartbeat(b"never"),
        "unknown type": wire.message(77, b"never"),
        "AuthOk": wire.auth_ok(bytes(32)),
        "IncomingConn": wire.incoming_conn("web", "x"),
        "CloseTunnel": wire.close_tunnel(WEB),
        "one byte": b"\x1e",
        "five bytes": b"\x1e\0\0\0\0",
    }
    for i, (what, plain) in enumerate(cases.items()):
        channel, local = session.pair(f"{i:032x}", service)
        channel.send(plain)
        try:
            r.expect_end(local, "reset")
            channel.wait_end()
        except (AssertionError, TimeoutError) as problem:
            raise AssertionError(f"{what}: {problem}") from None
    channel, local = session.pair("65" * 16, service)
    frame = channel.out.seal(wire.pack(wire.data(b"never")))
    channel.send_raw(frame[:-1] + bytes([frame[-1] ^ 1]))
    r.expect_end(local, "reset")
    channel, local = session.pair("66" * 16, service)
    channel.send_raw(struct.pack(">I", 4_194_305))
    r.expect_end(local, "reset")


@client
def a_frame_after_fin_is_damage(rig: Rig) -> None:  # noqa: F811 - the client's
    session, service, _ = serving(rig)
    channel, local = session.pair("67" * 16, service)
    channel.send(wire.fin())
    channel.send(wire.data(b"never"))
    same(r.read_end(local)[0], b"")
    # In one segment, so that the receiver cannot but see it.
    channel, local = session.pair("76" * 16, service)
    channel.send_raw(b"".join(channel.out.seal(wire.pack(wire.fin())) for _ in range(2)))
    channel.wait_end()


@client
def wrong_types_against_an_original(rig: Rig) -> None:
    session, service, _ = serving(rig, None)
    channel, local = session.pair("68" * 16, service)
    channel.send(wire.message(77, b"never"))
    same(r.read_end(local)[0], b"")


@client
def every_shape_of_data_frame(rig: Rig) -> None:  # noqa: F811 - the client's
    session, service, _ = serving(rig)
    channel, local = session.pair("69" * 16, service)
    frame_shapes(local, channel)
    local.sendall(b"x")
    same(r.read_data(channel, 1), b"x")


@client
def frames_are_of_l1(rig: Rig) -> None:  # noqa: F811 - the client's
    session, service, _ = serving(rig)
    channel, local = session.pair("70" * 16, service)
    send = r.in_background(lambda: local.sendall(MIB + bytes(1 << 20)))
    left = 2 << 20
    while left:
        left -= len(wire.split(channel.recv()).payload)
        container = channel.last_container
        same((container[:5].hex(), container[5] & 0x8F), ("04224d1860", 0), "header")
        same(len(wire.blocks_of(container)), 1, "blocks")
        same(container[-4:], bytes(4), "end mark")
    send()


@client
def compression_follows_the_configuration(rig: Rig) -> None:
    lair, service = rig.lair().serve(), rig.service()
    rig.client(lair, [tunnel(service.port, "off", compression="off"), tunnel(service.port, "on", compression="on")], compression="auto")
    session = lair.session(tunnels=2)
    for i, (name, stored) in enumerate((("off", True), ("on", False))):
        channel, local = session.pair(f"{i:032x}", service, name)
        local.sendall(b"a" * 50_000)
        left = 50_000
        while left:
            left -= len(wire.split(channel.recv()).payload)
            same({block[0] for block in wire.blocks_of(channel.last_container)}, {stored}, f"{name}: stored")


@client
def many_connections(rig: Rig) -> None:
    session, service, _ = serving(rig)
    conns = [f"{i:032x}" for i in range(10)]
    for conn in conns:
        session.announce(conn)
    channels = {}
    for _ in conns:
        channel, first = session.lair.datas.get(timeout=WAIT)
        rig.keep(channel.sock)
        same(first.token, wire.token_for(session.key, first.conn), "token")
        channels[first.conn] = channel
    same(sorted(channels), conns, "conn ids")
    for conn, channel in channels.items():
        channel.send(wire.data(conn.encode()))
    seen = set()
    for _ in conns:
        local = service.accept()
        said = r.read(local, 32)
        seen.add(said.decode())
        local.sendall(said)
    same(sorted(seen), conns, "what the service heard")
    for conn, channel in channels.items():
        same(r.read_data(channel, 32), conn.encode(), "echo")


@client
def a_data_channel_outlives_its_session(rig: Rig) -> None:
    """Running connections are not touched by a new session (E8, seen from the client)."""
    session, service, _ = serving(rig)
    channel, local = session.pair("71" * 16, service)
    channel.send(wire.data(b"x"))
    same(r.read(local, 1), b"x")
    session.channel.close()
    session.lair.session()
    channel.send(wire.data(b"y"))
    same(r.read(local, 1), b"y")
    local.sendall(b"z")
    same(r.read_data(channel, 1), b"z")


# === running =============================================================================


def main() -> int:
    """Runs what the arguments name."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--self", action="store_true", help="take the twin's own programs")
    options.add_argument("--jobs", type=int, default=8)
    options.add_argument("--list", action="store_true")
    options.add_argument("--trace", action="store_true", help="whole tracebacks")
    options.add_argument("names", nargs="*")
    given = options.parse_args()
    r.use_twins = given.self
    chosen = [name for name in TESTS if not given.names or any(part in name for part in given.names)]
    if given.list:
        print("\n".join(chosen))
        return 0
    began = time.monotonic()

    def run(name: str) -> tuple[float, BaseException | None]:
        start = time.monotonic()
        try:
            TESTS[name]()
            return time.monotonic() - start, None
        except Exception as problem:  # noqa: BLE001 - a test failed, whatever it raised
            return time.monotonic() - start, problem

    slow = "unclaimed_listeners against_an_original_the_end originals_visitor_ends".split()
    chosen.sort(key=lambda name: not any(part in name for part in slow))  # the long ones first
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for name, (took, problem) in zip(chosen, pool.map(run, chosen)):
            if problem is None:
                continue
            failed += 1
            frames = traceback.extract_tb(problem.__traceback__)
            here = [f"{frame.name}:{frame.lineno}" for frame in frames if frame.filename == __file__][-2:]
            print(f"FAILED {name} ({took:.1f} s, at {' > '.join(here)}): {type(problem).__name__}: {problem}", flush=True)
            for note in getattr(problem, "__notes__", []):
                print(note)
            if given.trace:
                traceback.print_exception(problem)
    print(f"{len(chosen) - failed} passed, {failed} failed in {time.monotonic() - began:.0f} s")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
