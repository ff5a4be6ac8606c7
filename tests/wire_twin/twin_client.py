"""A small client made from PROTOCOL.md: a stand-in for the client program in the twin's tests.

Like twin_server.py it understands just what the tests use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import signal
import socket
import sys

import wire
from twin_server import Sealed, carry

EXIT_REFUSED = 6
EXIT_IDENTITY = 4


class Final(Exception):
    """A refusal that another try cannot mend."""


class Client:
    """The whole program."""

    def __init__(self, config: dict) -> None:
        self.config = config
        self.address = (config["server_host"], config.get("server_port", 9000))
        self.identity = wire.Identity(bytes.fromhex(config["identity_private_key_hex"]))
        self.pin = bytes.fromhex(config["server_pub_key"])
        self.tunnels = {t["id"]: t for t in config["tunnels"]}
        self.times = {"connect": 10, "handshake": 10, "local_connect": 10, "heartbeat_interval": 30, "heartbeat_timeout": 15,
                      "backoff_min": 1, "backoff_max": 30, **config.get("timeouts", {})}
        self.tasks: set[asyncio.Task] = set()

    async def connect(self) -> Sealed:
        """C1 to C3."""
        async with asyncio.timeout(self.times["connect"]):
            reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ephemeral, nonce = wire.Ephemeral(), os.urandom(12)
            mine = wire.make_hello(wire.ROLE_CLIENT, self.identity, ephemeral.public, nonce)
            writer.write(mine)
            async with asyncio.timeout(self.times["handshake"]):
                if int.from_bytes(await reader.readexactly(4), "big") != wire.HELLO_LEN:
                    raise wire.WireError("hello-length")
                theirs = wire.check_server_hello(await reader.readexactly(wire.HELLO_LEN), self.pin, mine[-64:])
            keys = wire.Keys.derive(nonce, theirs.nonce, wire.x25519(ephemeral.private, theirs.ephemeral))
            return Sealed(reader, writer, keys, True)
        except BaseException:
            writer.close()
            raise

    async def run(self) -> int:
        """Sessions, one after another."""
        while True:
            try:
                await self.session(await self.connect())
                why = "the server closed the session"
            except Final as problem:
                print(problem, flush=True)
                return EXIT_REFUSED
            except (wire.WireError, OSError, asyncio.IncompleteReadError, TimeoutError) as problem:
                why = repr(problem)
            print(f"Disconnected: {why}", flush=True)
            await asyncio.sleep(self.times["backoff_min"])

    async def session(self, sealed: Sealed) -> None:
        """T2 to T6."""
        caps: set[str] = set()
        key = b""
        heard = asyncio.Event()

        async def beat() -> None:
            while True:
                await asyncio.sleep(self.times["heartbeat_interval"])
                heard.clear()
                await sealed.send(wire.heartbeat())
                async with asyncio.timeout(self.times["heartbeat_timeout"]):
                    await heard.wait()

        async def listen() -> None:
            nonlocal caps, key
            answered = False
            while plain := await sealed.recv(wire.N_MAX_CONTROL, 2 * wire.N_MAX_CONTROL):
                heard.set()
                if len(plain) < 6:
                    continue
                m = wire.decode(plain)
                if m.type == wire.AUTH_OK:
                    key = m.session_key
                    print("Connected to the server", flush=True)
                elif m.type in (wire.AUTH_FAIL, wire.ERROR):
                    if m.code == 2:
                        raise Final(f"refused: {m.text}")
                    raise wire.WireError("refused", f"{m.code} {m.text}")
                elif m.type == wire.HEARTBEAT and not answered:
                    answered = True
                    caps = set(wire.parse_caps(wire.ANSWER, m.payload) or ()) & set(wire.ALL_CAPS)
                elif m.type == wire.TUNNEL_STATUS and m.status.lower() == "open":
                    print(f"Tunnel {m.tunnel} is open on server port {m.port}", flush=True)
                elif m.type == wire.INCOMING_CONN:
                    task = asyncio.create_task(self.incoming(sealed, m, key, set(caps)))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)

        try:
            await sealed.send(wire.heartbeat(wire.caps_payload(wire.OFFER, wire.ALL_CAPS)))
            for t in self.tunnels.values():
                if t.get("auto_start"):
                    number = {"off": 1, "on": 2, "auto": 3}.get(t.get("compression"), 0)
                    await sealed.send(wire.open_tunnel(t["remote_port"], t["id"], number))
            tasks = [asyncio.create_task(beat()), asyncio.create_task(listen())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
        finally:
            sealed.close()

    async def incoming(self, control: Sealed, m: wire.Message, key: bytes, caps: set[str]) -> None:
        """T6 and E7."""
        t = self.tunnels.get(m.tunnel)
        try:
            if not t or not t.get("auto_start"):
                raise OSError("the tunnel is not enabled")
            async with asyncio.timeout(self.times["local_connect"]):
                reader, writer = await asyncio.open_connection(t.get("local_host", "127.0.0.1"), t["local_port"])
        except (OSError, TimeoutError) as problem:
            if "refuse" in caps:
                await control.send(wire.refuse_conn(m.conn, str(problem)))
            return
        try:
            sealed = await self.connect()
        except (wire.WireError, OSError, asyncio.IncompleteReadError, TimeoutError):
            writer.close()
            return
        await sealed.send(wire.data_conn_ready(wire.token_for(key, m.conn), m.conn))
        sealed.compression = t.get("compression") or self.config.get("compression", "auto")
        await carry(sealed, reader, writer, caps, True)


def main() -> None:
    """Reads the options the tests use."""
    options = argparse.ArgumentParser()
    options.add_argument("--config", required=True)
    options.add_argument("-v", action="store_true")
    config = json.loads(pathlib.Path(options.parse_args().config).read_text())

    async def run() -> int:
        task = asyncio.current_task()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await Client(config).run()
        except asyncio.CancelledError:
            return 0

    sys.exit(asyncio.run(run()))


if __name__ == "__main__":
    main()
