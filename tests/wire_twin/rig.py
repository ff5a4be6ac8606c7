"""What the tests of test_twin.py stand on: processes, visitors, local services, the twin's two roles.

Every wait has a deadline. Processes are ended by their own handle.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Callable, Iterable

import wire

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WAIT = float(os.environ.get("TWIN_WAIT", "10"))
"""The deadline of a step that should be quick."""

SERVER = wire.Identity(bytes(range(0x00, 0x20)))
ALICE = wire.Identity(bytes(range(0x20, 0x40)))
BOB = wire.Identity(bytes(range(0x80, 0xA0)))
MALLORY = wire.Identity(bytes(range(0xA0, 0xC0)))

use_twins = False
"""Run the tests against twin_server.py and twin_client.py: checks the tests, not the programs."""


def command(program: str) -> list[str]:
    """How to start `server` or `client`."""
    if use_twins:
        return [sys.executable, str(HERE / f"twin_{program}.py")]
    folder = pathlib.Path(os.environ.get("MTT_BIN_DIR") or "target/debug")
    return [str((ROOT / folder) / f"minitcptunnel-{program}")]


def same(found: object, wanted: object, what: str = "value") -> None:
    """An assertion that says both sides."""
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r:.300}, wanted {wanted!r:.300}")


_fixed_ports = iter(random.sample(range(20_000, 30_000), 500))


def free_port() -> int:
    """A port nobody has, and that the system gives to nobody who asks for any port."""
    while True:
        port = next(_fixed_ports)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Process:
    """A program under test and its log."""

    def __init__(self, args: list[str], cwd: pathlib.Path) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._over = False
        self.child = subprocess.Popen(
            args, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.child.stdout
        for line in self.child.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def log(self, pattern: str, deadline: float = WAIT) -> re.Match[str]:
        """The first log line that matches, past or to come."""
        until, at = time.monotonic() + deadline, 0
        with self._news:
            while True:
                for line in self.lines[at:]:
                    if found := re.search(pattern, line):
                        return found
                at = len(self.lines)
                if self._over or not self._news.wait(until - time.monotonic()):
                    raise AssertionError(f"no log line matches {pattern!r}; the program ended: {self._over}")

    def exit_code(self, deadline: float = WAIT) -> int:
        """Waits for the program's end."""
        try:
            return self.child.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError("the program did not end") from None

    def stop(self) -> None:
        """Ends it at once."""
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(WAIT)


class Rig(contextlib.ExitStack):
    """One test's belongings; leaving it ends and closes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory(prefix="twin-")))
        self.processes: list[Process] = []

    def keep(self, sock: socket.socket) -> socket.socket:
        """Closes a socket at the end."""
        self.callback(sock.close)
        return sock

    def start(self, args: list[str]) -> Process:
        """Starts a program."""
        process = Process(args, self.folder)
        self.processes.append(process)
        self.callback(process.stop)
        return process

    # --- the server program, the twin as client ---

    def server(self, **config: object) -> "ServerProgram":
        """Starts the server program with fast limits and the published identity."""
        (self.folder / "server_identity_key.hex").write_text(SERVER.seed.hex())
        os.chmod(self.folder / "server_identity_key.hex", 0o600)
        (self.folder / "allowed_clients.txt").write_text(f"{ALICE.public.hex()} alice\n{BOB.public.hex()} bob\n")
        limits = {"handshakes_per_second_per_address": 1000, "pending_handshakes_per_address": 512}
        whole = {"bind": "127.0.0.1", "limits": limits, **config}
        (self.folder / "server.json").write_text(json.dumps(whole))
        process = self.start(command("server") + ["--port", "0", "--config", str(self.folder / "server.json"), "-v"])
        return ServerProgram(self, process)

    def visit(self, port: int) -> socket.socket:
        """An external connection to a public port."""
        sock = self.keep(socket.create_connection(("127.0.0.1", port), timeout=WAIT))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    # --- the client program, the twin as server ---

    def lair(self) -> "Lair":
        """The twin as server."""
        return Lair(self)

    def client(self, lair: "Lair", tunnels: list[dict], pin: bytes | None = None, **more: object) -> Process:
        """Starts the client program; `more` goes into its configuration."""
        times = {"backoff_min": 0.1, "backoff_max": 0.3, **more.pop("timeouts", {})}  # type: ignore[dict-item]
        config = {
            "server_host": "127.0.0.1",
            "server_port": lair.port,
            "server_pub_key": (pin or SERVER.public).hex(),
            "identity_private_key_hex": ALICE.seed.hex(),
            "tunnels": tunnels,
            "timeouts": times,
            **more,
        }
        path = self.folder / "client_config.json"
        path.write_text(json.dumps(config))
        os.chmod(path, 0o600)
        return self.start(command("client") + ["--config", str(path), "-v"])

    def service(self) -> "Service":
        """A local service."""
        return Service(self)

    def dead_port(self) -> int:
        """A port that is taken, but refuses connections until the test ends."""
        sock = self.keep(socket.socket())
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class ServerProgram:
    """The running server program."""

    def __init__(self, rig: Rig, process: Process) -> None:
        self.rig, self.process = rig, process
        self.port = int(process.log(r"Control Server listening on .*?(\d+)\s*$")[1])
        self.address = ("127.0.0.1", self.port)

    def raw(self) -> socket.socket:
        """A TCP connection to the control port."""
        return self.rig.keep(socket.create_connection(self.address, timeout=WAIT))

    def connect(self, identity: wire.Identity = ALICE) -> wire.Channel:
        """A sealed connection."""
        channel = wire.connect(self.address, identity, SERVER.public, WAIT)
        self.rig.keep(channel.sock)
        return channel

    def control(self, caps: Iterable[str] | None = wire.ALL_CAPS, identity: wire.Identity = ALICE) -> "Control":
        """A control channel; `caps=None` behaves like an original."""
        return Control(self, caps, identity)


class Control:
    """The twin's control channel to the server program."""

    def __init__(self, server: ServerProgram, caps: Iterable[str] | None, identity: wire.Identity) -> None:
        self.server, self.identity = server, identity
        self.channel = server.connect(identity)
        self.key = b""
        self.caps: set[str] = set()
        self.late: list[wire.Message] = []
        if caps is not None:  # E1: the first frame of a client of this project
            self.channel.send(wire.heartbeat(wire.caps_payload(wire.OFFER, caps)))
            self.authorised()
            answer = self.expect(wire.HEARTBEAT)
            names = wire.parse_caps(wire.ANSWER, answer.payload)
            if names is None:
                raise AssertionError(f"the offer was answered with {answer.payload!r}")
            self.caps = set(names)

    def authorised(self) -> None:
        """T2: AuthOk is the first thing a server says."""
        self.key = self.expect(wire.AUTH_OK).session_key
        same(len(self.key), 32, "session key length")

    def expect(self, kind: int, deadline: float = WAIT) -> wire.Message:
        """The next message, which must be of this type."""
        m = self.channel.recv_message(deadline)
        same(m.name, wire.NAMES[kind], "message")
        same((m.flags, m.stream), (0, 0), "flags and stream id")
        return m

    def open(self, tunnel: str = "web", port: int = 0, compression: int | None = None) -> int:
        """Opens a tunnel and says its public port. As first frame it is what an original sends."""
        self.channel.send(wire.open_tunnel(port, tunnel, compression))
        if not self.key:
            self.authorised()
        m = self.expect(wire.TUNNEL_STATUS)
        same((m.status, m.tunnel), ("Open", tunnel), "status")
        if "status" in self.caps:
            same(m.reason, "", "reason")
            if port:
                same(m.port, port, "port")
            return int(m.port)  # type: ignore[arg-type]
        same(set(m.fields), {"status", "tunnel"}, "fields without `status`")
        return port or int(self.server.process.log(rf"Tunnel opened: {tunnel} on port (\d+)")[1])

    def incoming(self, tunnel: str = "web") -> str:
        """Waits for an IncomingConn and returns its conn id."""
        m = self.expect(wire.INCOMING_CONN)
        same(m.tunnel, tunnel, "tunnel")
        if not re.fullmatch(r"[0-9a-f]{32}", m.conn):
            raise AssertionError(f"conn id {m.conn!r}")
        return m.conn

    def pair(self, conn: str, channel: wire.Channel | None = None) -> wire.Channel:
        """T6: claims a waiting connection."""
        channel = channel or self.server.connect(self.identity)
        channel.send(wire.data_conn_ready(wire.token_for(self.key, conn), conn))
        return channel

    def beat(self, payload: bytes = b"are you there") -> None:
        """A heartbeat and its echo."""
        self.channel.send(wire.heartbeat(payload))
        same(self.expect(wire.HEARTBEAT).payload, payload, "heartbeat echo")

    def ends(self, deadline: float = WAIT) -> None:
        """The server ends the session, whatever it says before."""
        self.channel.wait_end(deadline)


class Service:
    """A local service of the client program."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.listener = rig.keep(socket.create_server(("127.0.0.1", 0)))
        self.port: int = self.listener.getsockname()[1]

    def accept(self, deadline: float = WAIT) -> socket.socket:
        """The next connection of the client program."""
        self.listener.settimeout(deadline)
        sock = self.rig.keep(self.listener.accept()[0])
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def nobody(self, seconds: float = 0.3) -> None:
        """Nobody connects for a moment."""
        self.listener.settimeout(seconds)
        try:
            self.listener.accept()
        except TimeoutError:
            return
        raise AssertionError("the local service was connected to")


class Lair:
    """The twin as server: hands out control and data channels by their first frame (T1).

    A data channel may be opened long before it is used, so every connection has its thread.
    """

    def __init__(self, rig: Rig, identity: wire.Identity = SERVER) -> None:
        self.rig, self.identity = rig, identity
        self.listener = rig.keep(socket.create_server(("127.0.0.1", 0)))
        self.port: int = self.listener.getsockname()[1]
        self.seen: set[bytes] = set()
        self.hellos: list[bytes] = []
        self.problems: list[str] = []
        self.controls: queue.Queue[tuple[wire.Channel, wire.Message]] = queue.Queue()
        self.datas: queue.Queue[tuple[wire.Channel, wire.Message]] = queue.Queue()

    def serve(self) -> "Lair":
        """Starts to accept."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def raw(self, deadline: float = WAIT) -> socket.socket:
        """The next TCP connection, for tests that say the hello themselves."""
        self.listener.settimeout(deadline)
        return self.rig.keep(self.listener.accept()[0])

    def _accept(self) -> None:
        self.listener.settimeout(None)
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock: socket.socket) -> None:
        try:
            channel = wire.accept(sock, self.identity, [ALICE.public], self.seen, WAIT)
            first = channel.recv_message(120)
            (self.datas if first.type == wire.DATA_CONN_READY else self.controls).put((channel, first))
        except (wire.Ended, TimeoutError, OSError):
            sock.close()
        except wire.WireError as problem:
            self.problems.append(str(problem))
            sock.close()

    def session(self, caps: Iterable[str] | None = wire.ALL_CAPS, tunnels: int = 1, deadline: float = WAIT) -> "Served":
        """Waits for a control channel and serves it; `caps=None` behaves like an original."""
        try:
            channel, first = self.controls.get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"no control channel came; {self.problems}") from None
        self.rig.keep(channel.sock)
        return Served(self, channel, first, caps, tunnels)


class Served:
    """A session of the client program with the twin."""

    def __init__(self, lair: Lair, channel: wire.Channel, first: wire.Message, caps: Iterable[str] | None, tunnels: int) -> None:
        self.lair, self.channel = lair, channel
        self.key = os.urandom(32)
        same(first.name, "Heartbeat", "first frame (E1)")
        offered = wire.parse_caps(wire.OFFER, first.payload)
        if offered is None:
            raise AssertionError(f"the first heartbeat is {first.payload!r}, not an offer")
        self.offered = offered
        channel.send(wire.auth_ok(self.key))
        self.caps = set() if caps is None else set(caps) & set(offered)
        answer = first.payload if caps is None else wire.caps_payload(wire.ANSWER, sorted(self.caps))
        channel.send(wire.heartbeat(answer))
        self.opened: list[wire.Message] = []
        for _ in range(tunnels):
            m = self.expect(wire.OPEN_TUNNEL)
            self.opened.append(m)
            more = ("", m.port) if "status" in self.caps else (None, None)
            channel.send(wire.tunnel_status("Open", m.tunnel, *more))  # type: ignore[arg-type]

    def expect(self, kind: int, deadline: float = WAIT) -> wire.Message:
        """The next message that is no Heartbeat (those are answered), which must be of this type."""
        until = time.monotonic() + deadline
        while True:
            m = self.channel.recv_message(max(0.0, until - time.monotonic()))
            if m.type == wire.HEARTBEAT and kind != wire.HEARTBEAT:
                self.channel.send(wire.heartbeat(m.payload))
                continue
            same(m.name, wire.NAMES[kind], "message")
            same((m.flags, m.stream), (0, 0), "flags and stream id")
            return m

    def announce(self, conn: str, tunnel: str = "web") -> None:
        """T5."""
        visitor = "192.0.2.7:4711" if "visitor" in self.caps else None
        self.channel.send(wire.incoming_conn(tunnel, conn, visitor))

    def data(self, conn: str, deadline: float = WAIT) -> wire.Channel:
        """T6: the data channel for a conn id, its token checked."""
        try:
            channel, first = self.lair.datas.get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"no data channel came; {self.lair.problems}") from None
        self.lair.rig.keep(channel.sock)
        same((first.conn, first.token), (conn, wire.token_for(self.key, conn)), "DataConnReady")
        same((first.flags, first.stream), (0, 0), "flags and stream id")
        return channel

    def pair(self, conn: str, service: Service, tunnel: str = "web") -> tuple[wire.Channel, socket.socket]:
        """A connection from the twin to the local service."""
        self.announce(conn, tunnel)
        channel = self.data(conn)
        return channel, service.accept()


# --- plain sockets ----------------------------------------------------------------------


def read(sock: socket.socket, count: int, deadline: float = WAIT) -> bytes:
    """Exactly `count` bytes."""
    return wire.recv_exactly(sock, count, deadline)


def read_end(sock: socket.socket, deadline: float = WAIT) -> tuple[bytes, str]:
    """Everything until the end, and whether that was `eof` or `reset`."""
    until, got = time.monotonic() + deadline, b""
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise AssertionError(f"no end of the connection; {len(got)} bytes came")
        sock.settimeout(left)
        try:
            piece = sock.recv(262_144)
        except ConnectionResetError:
            return got, "reset"
        except TimeoutError:
            continue
        if not piece:
            return got, "eof"
        got += piece


def expect_end(sock: socket.socket, how: str, data: bytes | None = b"", deadline: float = WAIT) -> None:
    """The connection ends like this after exactly these bytes (None: any)."""
    got, end = read_end(sock, deadline)
    same(end, how, "end of the connection")
    if data is not None:
        same(got, data, "bytes before the end")


def closed_silently(sock: socket.socket, deadline: float = WAIT) -> None:
    """"Close": the end, without a further byte."""
    got, _ = read_end(sock, deadline)
    same(got, b"", "bytes before the close")


def in_background(work: Callable[[], object]) -> Callable[[], None]:
    """Runs `work` in a thread; calling the result waits for it and passes its failure on."""
    problem: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failed:  # noqa: BLE001 - handed to the waiting thread
            problem.append(failed)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> None:
        thread.join(3 * WAIT)
        if thread.is_alive():
            raise AssertionError("background work did not end")
        if problem:
            raise problem[0]

    return join


# --- data channels ----------------------------------------------------------------------


def read_data(channel: wire.Channel, count: int, deadline: float = WAIT) -> bytes:
    """`count` bytes out of Data frames."""
    until, got = time.monotonic() + deadline, b""
    while len(got) < count:
        m = wire.split(channel.recv(max(0.0, until - time.monotonic())))
        same((m.type, m.flags, m.stream), (wire.DATA, 0, 0), "Data frame")
        got += m.payload
    same(len(got), count, "bytes in Data frames")
    return got


def expect_fin(channel: wire.Channel, deadline: float = WAIT) -> None:
    """E2: the next frame is FIN."""
    same(channel.recv(deadline), wire.fin(), "FIN")


def expect_cut(channel: wire.Channel, deadline: float = WAIT) -> bytes:
    """The TCP end without FIN; returns the bytes of Data frames before it."""
    until, got = time.monotonic() + deadline, b""
    while True:
        try:
            m = wire.split(channel.recv(max(0.0, until - time.monotonic())))
        except wire.Ended:
            return got
        same((m.type, m.flags), (wire.DATA, 0), "frame before a cut")
        got += m.payload


def nothing(channel: wire.Channel, seconds: float = 0.3) -> None:
    """No frame and no end for a moment."""
    try:
        plain = channel.recv(seconds)
    except TimeoutError:
        return
    raise AssertionError(f"an unexpected message: {plain[:40].hex()}")
