#!/usr/bin/env python3
"""The local side of scripts/demo.

    demo_service.py serve FOLDER            an HTTP server over FOLDER and an echo service, each on a free port;
                                            prints "http PORT" and "echo PORT" when both listen
    demo_service.py talk HOST PORT          a conversation with the echo service, one line at a time
    demo_service.py set FILE KEY=JSON...    set top-level keys of a JSON file
"""

import http.server
import json
import socket
import socketserver
import sys
import threading
import time
from functools import partial


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Echo(socketserver.StreamRequestHandler):
    """Greets, answers each line at once, says goodbye when the visitor has finished his side."""

    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wfile.write(b"hello, who is there?\n")
        count = 0
        for line in self.rfile:
            count += 1
            self.wfile.write(b"you said: " + line)
        # Reached only when the end of the visitor's direction came through while ours is still open.
        self.wfile.write(f"goodbye after {count} lines\n".encode())


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


def serve(folder):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    echo = EchoServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    print(f"http {web.server_address[1]}")
    print(f"echo {echo.server_address[1]}", flush=True)
    web.serve_forever()


def talk(host, port):
    with socket.create_connection((host, int(port)), timeout=10) as visitor:
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = visitor.makefile("rb")

        def expect(wanted, took=""):
            got = reader.readline().decode().rstrip("\n")
            print(f"  service> {got}{took}")
            if got != wanted:
                sys.exit(f"the service should have said {wanted!r}")

        expect("hello, who is there?")
        for line in ("a visitor from outside", "is this quick?", "여기도 들립니다"):
            print(f"  visitor> {line}")
            start = time.perf_counter()
            visitor.sendall(line.encode() + b"\n")
            reader.peek(1)
            expect(f"you said: {line}", f"   ({(time.perf_counter() - start) * 1000:.1f} ms)")
        print("  visitor> (finishes his side, and still listens)")
        visitor.shutdown(socket.SHUT_WR)
        expect("goodbye after 3 lines")
        if reader.read() != b"":
            sys.exit("there should be nothing after the goodbye")


def set_keys(file, *pairs):
    with open(file, encoding="utf-8") as f:
        content = json.load(f)
    for pair in pairs:
        key, value = pair.split("=", 1)
        content[key] = json.loads(value)
    with open(file, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    commands = {"serve": serve, "talk": talk, "set": set_keys}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        commands[sys.argv[1]](*sys.argv[2:])
    except KeyboardInterrupt:
        pass
