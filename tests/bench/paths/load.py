"""What goes through: the data, the service that swallows or sends it, and the visitor.

A visitor's first line says what it wants, as JSON: {"do": "echo" | "take" | "give", "data", "bytes", "until"}. Times
are the system's monotonic clock, which all processes and namespaces share. Everything ends at `until`.
"""

import hashlib
import json
import os
import random
import select
import signal
import socket
import struct
import threading
import time

from network import die_with_parent

MIB = 1 << 20
CHUNK = 256 * 1024
# A gap shorter than this between two arrivals is not worth a note.
NOTE = 0.01
SAMPLE = 16 * MIB


def text(size):
    """Log lines of a web service: what LZ4 shrinks to about a third."""
    draw = random.Random(20)
    agents = ["Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0", "curl/8.5.0",
              "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36"]
    paths = ["/", "/index.html", "/api/v1/orders", "/api/v1/orders/search", "/static/app.js", "/static/site.css",
             "/images/logo.svg", "/login", "/healthz"]
    lines, length, at = [], 0, 1_767_225_600.0
    while length < size:
        at += draw.expovariate(50)
        clock = time.strftime("%d/%b/%Y:%H:%M:%S", time.gmtime(at))
        line = (f'203.0.113.{draw.randrange(256)} - - [{clock}.{int(at * 1000) % 1000:03} +0000] '
                f'"{draw.choice(("GET", "GET", "GET", "POST"))} {draw.choice(paths)}?id={draw.getrandbits(32)} HTTP/1.1" '
                f'{draw.choice((200, 200, 200, 304, 404))} {draw.randrange(200, 60_000)} "-" "{draw.choice(agents)}" '
                f'rt={draw.random():.6f}\n')
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()[:size]


class Data:
    """16 MiB of each kind, sent over and over when more is wanted."""

    def __init__(self):
        words, noise = text(SAMPLE), random.Random(21).randbytes(SAMPLE)
        # In turn a MiB of the one and of the other, as pages and their pictures.
        mixed = b"".join((noise, words)[i % 2][i * MIB:(i + 1) * MIB] for i in range(SAMPLE // MIB))
        self.kinds = {"text": words, "random": noise, "mixed": mixed}
        self.sums = {}

    def pieces(self, kind, size):
        view = memoryview(self.kinds[kind])
        at = 0
        while at < size:
            start = at % SAMPLE
            n = min(CHUNK, size - at, SAMPLE - start)
            yield view[start:start + n]
            at += n

    def sum(self, kind, size):
        key = (kind, size)
        if key not in self.sums:
            digest = hashlib.sha256()
            for piece in self.pieces(kind, size):
                digest.update(piece)
            self.sums[key] = digest.hexdigest()
        return self.sums[key]


def left(until):
    """Seconds until then; a deadline that has passed ends the transfer."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def send(sock, data, want):
    try:
        for piece in data.pieces(want["data"], want["bytes"]):
            while piece:
                sock.settimeout(left(want["until"]))
                piece = piece[sock.send(piece):]
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        # The receiver tells what came.
        pass


def receive(sock, want):
    """Reads to the end. What came, when, and its SHA-256 if the whole came."""
    buffer = bytearray(CHUNK)
    digest = hashlib.sha256() if want.get("sum", True) else None
    size, notes, trouble = 0, [], None
    at = time.monotonic()
    try:
        while True:
            sock.settimeout(left(want["until"]))
            n = sock.recv_into(buffer)
            if n == 0:
                break
            at = time.monotonic()
            size += n
            if digest:
                digest.update(memoryview(buffer)[:n])
            if not notes or at - notes[-1][0] > NOTE:
                notes.append((at, size))
    except TimeoutError:
        trouble = "not done in time"
        at = time.monotonic()
    except OSError as e:
        trouble = f"broke: {e}"
    return {"bytes": size, "last": at, "notes": notes, "trouble": trouble,
            "sum": digest.hexdigest() if digest and not trouble else None}


def end(sock):
    """A reset, so that nothing of this is under way when the next begins."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Service:
    """The local service, in a process and a namespace of its own."""

    def __init__(self, space, data):
        with space.inside():
            listener = socket.create_server(("0.0.0.0", 0), backlog=64)
        self.port = listener.getsockname()[1]
        self.reports, reports = os.pipe()
        self.said = b""
        self.pid = os.fork()
        if self.pid == 0:
            die_with_parent()
            # A signal for the whole group is the parent's to act on.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, signal.SIG_DFL)
            try:
                self._serve(listener, data, reports)
            finally:
                os._exit(1)
        listener.close()
        os.close(reports)

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reports)

    @staticmethod
    def _serve(listener, data, reports):
        lock = threading.Lock()

        def serve(sock):
            try:
                sock.settimeout(20)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # One byte at a time would be slow, but it is one line.
                first = sock.recv(1)
                at = time.monotonic()
                line = first
                while line and not line.endswith(b"\n"):
                    line += sock.recv(1)
                want = json.loads(line)
                if want["do"] == "echo":
                    sock.sendall(struct.pack("!d", at))
                elif want["do"] == "give":
                    send(sock, data, want)
                    # Until the visitor has read all and closes.
                    sock.settimeout(max(0.1, want["until"] - time.monotonic()))
                    sock.recv(1)
                else:
                    report = (json.dumps(receive(sock, want)) + "\n").encode()
                    with lock:
                        while report:
                            report = report[os.write(reports, report):]
            except (OSError, ValueError):
                # The visitor sees it.
                pass
            end(sock)

        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    def report(self, until):
        """What the service received."""
        while b"\n" not in self.said:
            ready, _, _ = select.select([self.reports], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            self.said += os.read(self.reports, 65536)
        line, self.said = self.said.split(b"\n", 1)
        return json.loads(line)


class Visitor:
    def __init__(self, space, service, data):
        self.space, self.service, self.data = space, service, data

    def _connect(self, address, timeout):
        with self.space.inside():
            sock = socket.socket()
        sock.settimeout(timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(address)
        return sock

    def first_byte(self, address, timeout=5):
        """Seconds from before connect: until the service has the first byte, until its answer is here."""
        start = time.monotonic()
        sock = self._connect(address, timeout)
        try:
            sock.sendall(b'{"do": "echo"}\n')
            answer = b""
            while len(answer) < 8:
                more = sock.recv(8)
                if not more:
                    raise OSError("ended without an answer")
                answer += more
            back = time.monotonic() - start
            return struct.unpack("!d", answer)[0] - start, back
        finally:
            end(sock)

    def transfer(self, address, way, kind, size, limit, check_sum=True):
        """One transfer. `way` is "to" or "from" the service."""
        start = time.monotonic()
        want = {"do": "take" if way == "to" else "give", "data": kind, "bytes": size,
                "until": start + limit, "sum": check_sum}
        sock = self._connect(address, limit)
        try:
            sock.sendall((json.dumps(want) + "\n").encode())
            if way == "to":
                send(sock, self.data, want)
                got = self.service.report(want["until"] + 3)
                if got is None:
                    raise OSError("the service never told what came")
            else:
                got = receive(sock, want)
        finally:
            end(sock)
        if check_sum and not got["trouble"] and got["sum"] != self.data.sum(kind, size):
            got["trouble"] = f"{got['bytes']} of {size} bytes with another SHA-256"
        got["start"] = start
        got["seconds"] = got["last"] - start
        got["mbit"] = got["bytes"] * 8e-6 / got["seconds"]
        # Without what opening the connection took, which is measured by itself.
        first = got["notes"][0][0] if got["notes"] else start
        got["flow"] = got["bytes"] * 8e-6 / max(got["last"] - first, 1e-6)
        return got
