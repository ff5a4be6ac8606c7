"""A small server made from PROTOCOL.md: a stand-in for the server program in the twin's tests.

It takes the options, files and configuration keys the tests use and prints the log lines they
read. It is a test double: one task per direction, no limits but those of the text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import signal
import socket
import struct
import time

import wire

SERVER_CAPS = set(wire.ALL_CAPS)


class Sealed:
    """A sealed connection over asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keys: wire.Keys, client: bool) -> None:
        self.reader, self.writer = reader, writer
        c2s, s2c = wire.Direction(keys.key_c2s, keys.base_c2s), wire.Direction(keys.key_s2c, keys.base_s2c)
        self.out, self.into = (c2s, s2c) if client else (s2c, c2s)
        self.compression = "auto"

    async def recv(self, limit: int = wire.N_MAX, message_limit: int = wire.MESSAGE_MAX) -> bytes | None:
        """The next message; None at the TCP end. A reset is a ConnectionResetError."""
        try:
            head = await self.reader.readexactly(4)
        except asyncio.IncompleteReadError as problem:
            if problem.partial:
                raise wire.WireError("frame-truncated") from problem
            return None
        n = int.from_bytes(head, "big")
        wire.check_length(n, limit)
        try:
            body = await self.reader.readexactly(n)
        except asyncio.IncompleteReadError as problem:
            raise wire.WireError("frame-truncated") from problem
        return wire.unpack(self.into.open(body), message_limit)

    def put(self, plain: bytes) -> None:
        """Seals and queues a message."""
        if not self.writer.is_closing():
            self.writer.write(self.out.seal(wire.pack(plain, stored=True if self.compression == "off" else None)))

    async def send(self, plain: bytes) -> None:
        """Seals and sends a message."""
        self.put(plain)
        await self.writer.drain()

    def close(self) -> None:
        """Drops the connection."""
        self.writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with a TCP reset."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
    writer.transport.abort()


async def carry(sealed: Sealed, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caps: set[str],
                client_side: bool) -> None:
    """T7 and E2: both directions between a plain connection and its data channel."""
    with_fin = "fin" in caps
    heard = time.monotonic()
    fin_seen = asyncio.Event()

    async def outward() -> None:
        """Plain connection -> Data frames."""
        while piece := await reader.read(262_144):
            await sealed.send(wire.data(piece))
        if with_fin:
            await sealed.send(wire.fin())
            return
        if client_side:  # section 9: shut our side only after 5 s of silence
            while (left := heard + 5 - time.monotonic()) > 0:
                await asyncio.sleep(left)
        sealed.writer.write_eof()

    async def inward() -> None:
        """Data frames -> plain connection, until the TCP end."""
        nonlocal heard
        closed = False
        while plain := await sealed.recv():
            heard = time.monotonic()
            m = wire.split(plain)
            if fin_seen.is_set():
                raise wire.WireError("frame-after-fin")
            if m.type == wire.CLOSE_TUNNEL and not with_fin and not client_side:
                writer.write_eof()  # section 9: the end of c2s
                closed = True
            elif m.type != wire.DATA:
                raise wire.WireError("data-channel-type", m.name)
            elif with_fin and m.flags & wire.FLAG_FIN:
                if m.payload:
                    raise wire.WireError("fin-with-payload")
                writer.write_eof()
                fin_seen.set()
            elif m.payload and not closed:
                writer.write(m.payload)
                await writer.drain()
        if with_fin and not fin_seen.is_set():
            raise wire.WireError("cut")
        if not with_fin and not closed:
            writer.write_eof()

    out, into = asyncio.create_task(outward()), asyncio.create_task(inward())
    # With FIN both directions have an end of their own; without, the channel's end is the end
    # of everything for a server (section 9), and of one direction for a client.
    if with_fin:
        finished: asyncio.Future = asyncio.gather(out, fin_seen.wait())
    else:
        finished = asyncio.gather(out, into) if client_side else into
    try:
        waiting = {finished, into, out}
        while not finished.done():
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting -= done
            for task in done:
                task.result()
        finished.result()
        writer.close()
    except (wire.WireError, OSError):
        reset(writer)
    finally:
        for task in (out, into, finished):
            task.cancel()
        sealed.close()


class Waiting:
    """An external connection that waits for its data channel."""

    def __init__(self, conn: str, tunnel: "Tunnel", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.conn, self.tunnel, self.reader, self.writer = conn, tunnel, reader, writer
        host, port = writer.get_extra_info("peername")[:2]
        host = host.removeprefix("::ffff:")
        self.visitor = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Tunnel:
    """A listener on a public port."""

    def __init__(self, tunnel: str, session: "Session", compression: int) -> None:
        self.id, self.session, self.compression = tunnel, session, compression
        self.listener: asyncio.Server | None = None
        self.port = 0
        self.claimed = True


class Session:
    """One control channel's life."""

    def __init__(self, identity: bytes, sealed: Sealed) -> None:
        self.identity, self.sealed = identity, sealed
        self.key = os.urandom(32)
        self.caps: set[str] = set()
        self.beaten = False
        self.tunnels: dict[str, Tunnel] = {}
        self.replaced = False

    def status(self, status: str, tunnel: str, reason: str = "", port: int = 0) -> None:
        """Sends a TunnelStatus, extended where agreed (E4)."""
        more = (reason, port) if "status" in self.caps else (None, None)
        self.sealed.put(wire.tunnel_status(status, tunnel, *more))

    def leave(self, code: int, text: str) -> None:
        """E3, then close."""
        if "reason" in self.caps:
            self.sealed.put(wire.error(code, text))
        self.sealed.close()


class Server:
    """The whole program."""

    def __init__(self, config: dict, folder: pathlib.Path) -> None:
        self.config, self.folder = config, folder
        self.times = {"hello": 10, "first_frame": 120, "pairing": 10, "session_silence": 90, **config.get("timeouts", {})}
        seed = (folder / config.get("identity_key_file", "server_identity_key.hex")).read_text().strip()
        self.identity = wire.Identity(bytes.fromhex(seed))
        allowed = (folder / config.get("allowed_clients_file", "allowed_clients.txt")).read_text()
        rows = [line.partition("#")[0].split() for line in allowed.splitlines()]
        self.allowed = [bytes.fromhex(row[0]) for row in rows if row]
        self.seen: set[bytes] = set()
        self.sessions: dict[bytes, Session] = {}
        self.waiting: dict[str, Waiting] = {}

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        bind = self.config.get("bind", "127.0.0.1")
        listener = await asyncio.start_server(self.connection, bind, self.config.get("port", 9000))
        print(f"Server Identity Public Key (Pin in client config): {self.identity.public.hex()}", flush=True)
        print(f"Control Server listening on {listener.sockets[0].getsockname()[1]}", flush=True)
        await stop.wait()
        for session in self.sessions.values():
            session.leave(4, "the server shuts down")
        await asyncio.sleep(0)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """S1 to S4 and T1."""
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(self.times["hello"]):
                if int.from_bytes(await reader.readexactly(4), "big") != wire.HELLO_LEN:
                    raise wire.WireError("hello-length")
                theirs = wire.check_client_hello(await reader.readexactly(wire.HELLO_LEN), self.allowed, self.seen)
            ephemeral, nonce = wire.Ephemeral(), os.urandom(12)
            shared = wire.x25519(ephemeral.private, theirs.ephemeral)
            writer.write(wire.make_hello(wire.ROLE_SERVER, self.identity, ephemeral.public, nonce, theirs.signature))
            sealed = Sealed(reader, writer, wire.Keys.derive(theirs.nonce, nonce, shared), False)
            async with asyncio.timeout(self.times["first_frame"]):
                first = await sealed.recv(wire.N_MAX_FIRST, 2 * wire.N_MAX_FIRST)
            if first is None:
                raise wire.WireError("no-first-frame")
            m = wire.split(first)
            if m.type == wire.DATA_CONN_READY:
                await self.data_channel(theirs.identity, sealed, wire.decode(first))
            else:
                await self.control_channel(theirs.identity, sealed, first)
        except (wire.WireError, OSError, asyncio.IncompleteReadError, TimeoutError) as problem:
            print(f"connection ended: {problem!r}", flush=True)
        finally:
            writer.close()

    async def control_channel(self, identity: bytes, sealed: Sealed, first: bytes | None) -> None:
        """T2 to T4."""
        old = self.sessions.get(identity)
        if old is None and len(self.sessions) >= self.config.get("max_clients", 1):
            print("Another control session is active. Connection ignored.", flush=True)
            await sealed.send(wire.auth_fail(1, "another client holds the slot"))
            return
        session = Session(identity, sealed)
        self.sessions[identity] = session
        if old:  # E8
            old.replaced = True
            session.tunnels, old.tunnels = old.tunnels, {}
            for tunnel in session.tunnels.values():
                tunnel.session, tunnel.claimed = session, False
                asyncio.get_running_loop().call_later(10, self.forget, tunnel)
            old.leave(3, "the same identity opened a newer session")
        await sealed.send(wire.auth_ok(session.key))
        try:
            while first is not None and first != b"":
                await self.control_message(session, first)
                async with asyncio.timeout(self.times["session_silence"]):
                    first = await sealed.recv(wire.N_MAX_CONTROL, 2 * wire.N_MAX_CONTROL)
        except TimeoutError:
            session.leave(7, "silent for too long")
        finally:
            if not session.replaced:
                if self.sessions.get(identity) is session:
                    del self.sessions[identity]
                for tunnel in list(session.tunnels.values()):
                    self.close_tunnel(tunnel)
                for w in [w for w in self.waiting.values() if w.tunnel.session is session]:
                    self.drop(w)

    def forget(self, tunnel: Tunnel) -> None:
        """E8: nobody claimed this listener."""
        if not tunnel.claimed:
            self.close_tunnel(tunnel)
            tunnel.session.tunnels.pop(tunnel.id, None)

    def close_tunnel(self, tunnel: Tunnel) -> None:
        """Closes the listener only."""
        if tunnel.listener:
            tunnel.listener.close()
            tunnel.listener = None

    def drop(self, w: Waiting) -> None:
        """Gives up a waiting connection."""
        if self.waiting.get(w.conn) is w:
            del self.waiting[w.conn]
            reset(w.writer)

    async def control_message(self, session: Session, plain: bytes) -> None:
        """One message of a control channel."""
        if len(plain) < 6:
            return
        try:
            m = wire.decode(plain)
        except wire.WireError as problem:
            if plain[0] == wire.OPEN_TUNNEL and "status" in session.caps:
                session.status("Error", "", f"cannot be read: {problem}")
            return
        if m.type == wire.HEARTBEAT:
            offer = None if session.beaten else wire.parse_caps(wire.OFFER, m.payload)
            session.beaten = True
            if offer is not None:
                session.caps = set(offer) & SERVER_CAPS
                m.payload = wire.caps_payload(wire.ANSWER, sorted(session.caps))
            await session.sealed.send(wire.heartbeat(m.payload))
        elif m.type == wire.OPEN_TUNNEL:
            await self.open_tunnel(session, m)
        elif m.type == wire.CLOSE_TUNNEL:
            tunnel = session.tunnels.pop(m.tunnel, None)
            if tunnel:
                self.close_tunnel(tunnel)
                session.status("Stopped", m.tunnel)
            else:
                session.status("Error", m.tunnel, "no such tunnel")
        elif m.type == wire.REFUSE_CONN:
            w = self.waiting.get(m.conn)
            if w and w.tunnel.session is session:
                self.drop(w)

    async def open_tunnel(self, session: Session, m: wire.Message) -> None:
        """T3 and the claim of E8."""
        there = session.tunnels.get(m.tunnel)
        if there and m.port in (0, there.port) and not there.claimed or there and there.port == m.port:
            again = not there.claimed
            there.claimed, there.compression = True, m.compression or 0
            session.status("Open", there.id, "", there.port)
            if again:
                for w in self.waiting.values():
                    if w.tunnel is there:
                        self.announce(w)
            return
        if there:
            self.close_tunnel(session.tunnels.pop(m.tunnel))
        tunnel = Tunnel(m.tunnel, session, m.compression or 0)
        try:
            if m.port > 65535:
                raise OSError("no such port")
            bind = self.config.get("tunnel_bind") or self.config.get("bind", "127.0.0.1")
            tunnel.listener = await asyncio.start_server(lambda r, w: self.external(tunnel, r, w), bind, m.port)
        except OSError as problem:
            print(f"Failed to open tunnel: {problem}", flush=True)
            session.status("Error", m.tunnel, str(problem))
            return
        tunnel.port = tunnel.listener.sockets[0].getsockname()[1]
        session.tunnels[m.tunnel] = tunnel
        print(f"Tunnel opened: {m.tunnel} on port {tunnel.port}", flush=True)
        session.status("Open", m.tunnel, "", tunnel.port)

    async def external(self, tunnel: Tunnel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """T5."""
        w = Waiting(os.urandom(16).hex(), tunnel, reader, writer)
        self.waiting[w.conn] = w
        asyncio.get_running_loop().call_later(self.times["pairing"], self.drop, w)
        if tunnel.claimed:
            self.announce(w)

    def announce(self, w: Waiting) -> None:
        """Sends IncomingConn, with E5 where agreed."""
        session = w.tunnel.session
        session.sealed.put(wire.incoming_conn(w.tunnel.id, w.conn, w.visitor if "visitor" in session.caps else None))

    async def data_channel(self, identity: bytes, sealed: Sealed, m: wire.Message) -> None:
        """T6."""
        w = self.waiting.get(m.conn)
        if not w:
            raise wire.WireError("conn-unknown")
        session = w.tunnel.session
        if session.identity != identity or not wire.hmac.compare_digest(wire.token_for(session.key, w.conn), m.token):
            raise wire.WireError("token")
        del self.waiting[w.conn]
        setting = {1: "off", 2: "on", 3: "auto"}.get(w.tunnel.compression)
        sealed.compression = setting or self.config.get("compression", "auto")
        await carry(sealed, w.reader, w.writer, set(session.caps), False)


def main() -> None:
    """Reads the options the tests use."""
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int)
    options.add_argument("--bind")
    options.add_argument("--config", required=True)
    options.add_argument("-v", action="store_true")
    given = options.parse_args()
    path = pathlib.Path(given.config)
    config = json.loads(path.read_text())
    for key in ("port", "bind"):
        if getattr(given, key) is not None:
            config[key] = getattr(given, key)
    asyncio.run(Server(config, path.parent).run())


if __name__ == "__main__":
    main()
