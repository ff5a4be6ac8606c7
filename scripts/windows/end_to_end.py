#!/usr/bin/env python3
"""The programs of one system beside those of the other, and the server as a service of NSSM.

    end_to_end.py server TARGET yes|no     the server under wine, the client on Linux; "yes" is the reduced form
    end_to_end.py client TARGET yes|no     the other way round
    end_to_end.py nssm TARGET yes|no       the server as a service: installed, stopped, killed, removed

TARGET is cargo's target folder, with debug programs of both systems; MTT_WINE is told by scripts/test-windows.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import tunnel_visitor as visitor  # noqa: E402

RUNNER = HERE / "wine-run"
WINE = pathlib.Path(os.environ["MTT_WINE"])
PATIENCE = 60
# Longer than anything is awake for: a direction rests after 20 ms, a worker leaves after 5 s.
REST = 15
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (ERROR|WARN |INFO |DEBUG|TRACE) [a-z_:]+: .+")


def say(text):
    print(f"  {text}", flush=True)


def until(what, condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not (result := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"waited {patience} s in vain: {what}")
        time.sleep(0.05)
    return result


class Log:
    """A file that a program writes its log into, looked at while it does. Behind those it had before, if it is rotated."""

    def __init__(self, path):
        self.path = path

    def files(self):
        """NSSM calls an old one NAME-TIME.log. The youngest is the last."""
        return [*sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")), *([self.path] if self.path.exists() else [])]

    def text(self):
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):
                files = self.files()
                text = b"".join(file.read_bytes() for file in files)
                # Else one was moved meanwhile, and something may be there twice.
                if files == self.files():
                    # Strictly: what is not UTF-8 ends the run.
                    return text.decode("utf-8")
        sys.exit(f"{self.path} is moved all the time")

    def wait(self, pattern, times=1):
        found = until(f"{pattern!r} in {self.path}", lambda: (f if len(f := re.findall(pattern, self.text())) >= times else None))
        return found[-1]

    def check(self):
        # Of all files together: NSSM may begin a new one within a line, and just be at it.
        text = until(f"a line's end in {self.path}", lambda: (text if (text := self.text()).endswith("\n") else None))
        if "\x1b" in text or "\r" in text:
            sys.exit(f"{self.path} has colours or carriage returns")
        if bad := [line for line in text.splitlines() if not LINE.fullmatch(line)]:
            sys.exit(f"{self.path} has lines that are none: {bad[:3]}")
        return len(text.splitlines())


class Program:
    """One of the programs, of either system."""

    def __init__(self, target, folder, name, windows):
        self.windows = windows
        path = target / ("x86_64-pc-windows-gnu/debug" if windows else "debug") / f"minitcptunnel-{name}"
        self.command = [RUNNER, f"{path}.exe"] if windows else [path]
        self.folder, self.name = folder, name
        self.config = f"{name}_config.json"
        self.log = Log(folder / f"{name}.log")
        self.process = None

    def configure(self, content):
        (self.folder / self.config).write_text(json.dumps(content, indent=2))

    def ask(self, *arguments):
        # Into a file: wine's server would keep a pipe open.
        out = self.folder / "asked.out"
        with open(out, "wb") as to:
            subprocess.run([*self.command, *arguments, "--config", self.config], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.STDOUT, timeout=PATIENCE, check=True)
        return out.read_text()

    def start(self):
        with open(self.log.path, "ab") as to:
            self.process = subprocess.Popen([*self.command, "--config", self.config, "-v"], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=to, stderr=to)

    def stop(self, words):
        """Ctrl+C, which wine makes of SIGINT."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE)
        if code != 0:
            sys.exit(f"the {self.name} ended with {code} after Ctrl+C")
        self.log.wait(words)
        self.process = None
        say(f"{self.name}: stopped by Ctrl+C, exit code 0, {words!r} is logged; {self.log.check()} whole lines in its log")

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def echo_service():
    class Server(visitor.EchoServer):
        request_queue_size = 512

    server = Server(("127.0.0.1", 0), visitor.Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def ask_back(stream, line):
    stream.sendall(line)
    back = b"".join(visitor.exactly(stream, len(line)))
    if back != line:
        sys.exit(f"sent {line!r}, got {back!r}")


def crowd(port, count):
    """Connections that are all open at once, each with its own bytes."""
    barrier, wrong = threading.Barrier(count), []

    def one():
        try:
            data = os.urandom(20_000)
            with visitor.visit(port) as stream:
                barrier.wait(PATIENCE)
                stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)
                back = b"".join(iter(lambda: stream.recv(1 << 16), b""))
            if hashlib.sha256(back).digest() != hashlib.sha256(data).digest():
                wrong.append(f"{len(back)} bytes of {len(data)}")
        except (OSError, threading.BrokenBarrierError) as e:
            wrong.append(repr(e))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    if wrong or any(thread.is_alive() for thread in threads):
        sys.exit(f"of {count} connections at once {len(wrong)} failed: {wrong[:3]}")
    say(f"{count} connections open at once, 20 kB and the end through each, all of it back")


def ready(port):
    def try_it():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
            stream.sendall(b"?")
            return stream.recv(1) == b"?"
        return False

    until(f"something answers on port {port}", try_it)


def traffic(port, quick):
    ready(port)
    resting = [visitor.visit(port) for _ in range(20)]
    for number, stream in enumerate(resting):
        ask_back(stream, b"before %d\n" % number)
    asleep = time.monotonic()
    visitor.message(port)
    visitor.bulk(port, 4 if quick else 32)
    visitor.half_close(port)
    crowd(port, 50 if quick else 200)
    time.sleep(max(0, REST - (time.monotonic() - asleep)))
    for number, stream in enumerate(resting):
        # A keystroke in passing, what needs a worker, and another keystroke.
        ask_back(stream, b"after %d\n" % number)
        ask_back(stream, os.urandom(100_000) if number % 5 == 0 else b"and again\n")
        ask_back(stream, b"z")
    say(f"20 connections rested for {time.monotonic() - asleep:.0f} s and woke up")
    # An end that comes to one that rests.
    for stream in resting:
        stream.shutdown(socket.SHUT_WR)
    for stream in resting:
        if stream.recv(1) != b"":
            sys.exit("more than was sent came back")
        stream.close()
    say("each was told of the end, and ended")


def cut(stream):
    """Closes with a reset: what is cut must not look like an end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def expect_cut(stream, who):
    with contextlib.suppress(ConnectionResetError):
        got = stream.recv(1)
        sys.exit(f"{who} got {got!r} instead of a reset")
    stream.close()


def cuts(port, service):
    """A reset at either end arrives as one at the other; both are told by Linux, which never mistakes one for an end."""
    service.settimeout(PATIENCE)
    for asleep in (False, True):
        for of_visitor in (True, False):
            visitor_end = visitor.visit(port)
            visitor_end.sendall(b"?")
            service_end, _ = service.accept()
            service_end.settimeout(PATIENCE)
            if service_end.recv(1) != b"?":
                sys.exit("the service got something else than was sent")
            service_end.sendall(b"!")
            if visitor_end.recv(1) != b"!":
                sys.exit("the visitor got something else than was sent")
            if asleep:
                # A direction rests after 20 ms.
                time.sleep(1)
            ends = [visitor_end, service_end] if of_visitor else [service_end, visitor_end]
            cut(ends[0])
            expect_cut(ends[1], "the service" if of_visitor else "the visitor")
    say("resets of visitors and of the service arrived as resets, awake and at rest")


def cut_by_the_end(port, service, client, server):
    """What runs when its program stops is cut, and does not end."""
    visitor_end = visitor.visit(port)
    visitor_end.sendall(b"?")
    service_end, _ = service.accept()
    service_end.settimeout(PATIENCE)
    service_end.recv(1)
    # Whichever is under wine stops first, and it is its own end of the connection that is looked at.
    if server.windows:
        server.stop("Server stopped: uptime=")
        expect_cut(visitor_end, "the visitor of a server that stopped")
        client.stop("Stopped ")
    else:
        client.stop("Stopped ")
        expect_cut(service_end, "the service of a client that stopped")
        server.stop("Server stopped: uptime=")
    say("what still ran when the program under wine had stopped was reset")


def is_private(path):
    """Wine keeps an access list as the bits of Unix: what the list gives to everybody are those of the others."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o007:
        sys.exit(f"{path} is open to everybody: {mode:o}")
    say(f"{path.name} is not open to others (wine shows its access list as mode {mode:03o})")


def settings(service, watched=None):
    port, public, second = free_ports(3)
    server = {"port": port, "bind": "127.0.0.1", "limits": {"handshakes_per_second_per_address": 1000}}
    client = {
        "server_host": "127.0.0.1",
        "server_port": port,
        "server_pub_key": "0" * 64,
        "identity_private_key_hex": None,
        "tunnels": [{"id": "echo", "remote_port": public, "local_port": service, "auto_start": True}],
        "timeouts": {"backoff_min": 0.2, "backoff_max": 1},
    }
    if watched:
        client["tunnels"].append({"id": "watched", "remote_port": second, "local_port": watched, "auto_start": True})
        # What runs at the end is to be cut, not waited for.
        server["grace"] = client["grace"] = 1
    return server, client, [public, second]


def introduce(server_key, client):
    """The client makes its key, and learns the server's."""
    content = json.loads((client.folder / client.config).read_text())
    content["server_pub_key"] = server_key
    client.configure(content)
    return re.search(r"CLIENT PUBLIC KEY: ([0-9a-f]{64})", client.ask("keygen"))[1]


def pair(mode, target, quick):
    folder = fresh(WINE / f"run-{mode}")
    server = Program(target, folder, "server", mode == "server")
    client = Program(target, folder, "client", mode == "client")
    service = socket.create_server(("127.0.0.1", 0))
    of_server, of_client, (public, second) = settings(echo_service(), service.getsockname()[1])
    server.configure(of_server)
    client.configure(of_client)
    try:
        # The first start makes the key.
        server.start()
        server_key = server.log.wait(r"Pin in client config\): ([0-9a-f]{64})")
        server.stop("Server stopped: uptime=")
        (folder / "allowed_clients.txt").write_text(introduce(server_key, client) + " 방문자\n")
        is_private(folder / ("server_identity_key.hex" if mode == "server" else "client_config.json"))
        server.start()
        server.log.wait("Control Server listening on", 2)
        if "every user of this machine" in server.log.text():
            sys.exit("the server warns of the key file that it has made itself")
        client.start()
        client.log.wait("Tunnel echo is open on server port")
        traffic(public, quick)
        client.log.wait("Tunnel watched is open on server port")
        cuts(second, service)
        watched = server if mode == "server" else client
        # While it runs: nothing is held back until there is more of it.
        watched.log.wait("conn_id|New public connection|to_service=")
        say(f"{watched.log.check()} whole lines of UTF-8 without colours in the log of the running {watched.name}")
        cut_by_the_end(second, service, client, server)
    finally:
        client.end()
        server.end()


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


SERVICE = "MiniTCPTunnelTest"
# NSSM's own AppThrottle is 1.5 s.
THROTTLE = 2
DRIVE = "C:\\mtt"


class Nssm:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, *arguments, good=(0,)):
        out = WINE / "nssm.out"
        with open(out, "wb") as to:
            done = subprocess.run([RUNNER, self.folder / "nssm.exe", *arguments], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=to, stderr=to, timeout=2 * PATIENCE)
        text = out.read_bytes().replace(b"\0", b"").decode("utf-8", "replace").strip()
        if good and done.returncode not in good:
            sys.exit(f"nssm {' '.join(arguments)} ended with {done.returncode}: {text}")
        return text

    def wait(self, status):
        until(f"the service is {status}", lambda: status in self("status", SERVICE, good=()))


def processes(folder):
    """The service's own process, in our prefix."""
    prefix = f"WINEPREFIX={WINE / 'prefix'}".encode()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().split(b"\0")[0].lower().endswith(b"mtt\\minitcptunnel-server.exe") and prefix in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def nssm(target, quick):
    folder = fresh(WINE / "prefix/drive_c/mtt")
    shutil.copy(target / "x86_64-pc-windows-gnu/debug/minitcptunnel-server.exe", folder)
    shutil.copy(WINE / "shim/bcryptprimitives.dll", folder)
    shutil.copy(WINE / "nssm.exe", folder)
    outside = fresh(WINE / "run-nssm")
    client = Program(target, outside, "client", False)
    of_server, of_client, (public, _) = settings(echo_service())
    (folder / "server_config.json").write_text(json.dumps(of_server))
    # Made by somebody who does not know about access lists: that is warned of.
    (folder / "server_identity_key.hex").write_text(secrets.token_hex(32))
    client.configure(of_client)
    server = Program(target, folder, "server", True)
    server_key = re.findall(r"[0-9a-f]{64}", server.ask("pubkey"))[-1]
    (folder / "allowed_clients.txt").write_text(introduce(server_key, client) + " 방문자\n")
    log, run = Log(folder / "service.log"), Nssm(folder)
    try:
        run("install", SERVICE, f"{DRIVE}\\minitcptunnel-server.exe", "--config", f"{DRIVE}\\server_config.json", "-v")
        for name, value in (("AppDirectory", DRIVE), ("AppStdout", f"{DRIVE}\\service.log"), ("AppStderr", f"{DRIVE}\\service.log"), ("AppStopMethodConsole", "10000")):
            run("set", SERVICE, name, value)
        run("start", SERVICE)
        run.wait("SERVICE_RUNNING")
        say("installed with AppStdout, and running")
        log.wait("Control Server listening on")
        log.wait("holds a secret key but every user of this machine may open it")
        client.start()
        log.wait("Tunnel opened: echo")
        traffic(public, quick)
        log.wait("New public connection from")
        say(f"{log.check()} whole lines of UTF-8 without colours while it runs")

        began = time.monotonic()
        run("stop", SERVICE)
        run.wait("SERVICE_STOPPED")
        log.wait("Stopping; a second signal stops at once")
        totals = log.wait("Server stopped: .*")
        say(f"stopped by NSSM's Ctrl+C in {time.monotonic() - began:.1f} s: {totals}")

        # From here on NSSM reads what the program says through a pipe, and begins new files under way.
        for name, value in (("AppRotateFiles", "1"), ("AppRotateOnline", "1"), ("AppRotateBytes", "4096")):
            run("set", SERVICE, name, value)
        run("start", SERVICE)
        log.wait("Control Server listening on", 2)
        ready(public)
        say("started again, with rotation by NSSM; the client came back, traffic goes through")
        count, visit = 200 if quick else 1000, "New public connection from"
        files, visits = len(log.files()), log.text().count(visit)
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", public)):
                pass
        log.wait(visit, visits + count)
        if len(log.files()) < files + 2:
            sys.exit("NSSM began no new files")
        say(f"{count} visitors, each with its line; {log.check()} whole lines in {len(log.files())} files")

        (victim,) = until("the process of the service", lambda: list(processes(folder)))
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        log.wait("Control Server listening on", 3)
        ready(public)
        again = time.monotonic()
        say(f"killed; NSSM started it again, and traffic goes through after {again - began:.1f} s")
        visitor.bulk(public, 1)

        # NSSM takes a program for started that has run for its AppThrottle. Until then a stop of one that it starts
        # again does stop it, but 3 times of 12 NSSM told the service manager afterwards that the service runs; nothing
        # shows from outside when that time is over.
        time.sleep(max(0, THROTTLE - (time.monotonic() - again)))
        run("stop", SERVICE)
        run.wait("SERVICE_STOPPED")
        log.wait("Server stopped: ", 2)
        run("remove", SERVICE, "confirm")
        if "SERVICE_" in (left := run("status", SERVICE, good=())):
            sys.exit(f"removed, and still there: {left}")
        if list(processes(folder)):
            sys.exit("removed, and its process still runs")
        say(f"removed; {log.check()} whole lines in the log of three runs")
        client.stop("Stopped ")
    finally:
        client.end()
        run("stop", SERVICE, good=())
        run("remove", SERVICE, "confirm", good=())


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("server", "client", "nssm"):
        sys.exit(__doc__)
    mode, target, quick = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3] == "yes"
    if mode == "nssm":
        nssm(target, quick)
    else:
        pair(mode, target, quick)
