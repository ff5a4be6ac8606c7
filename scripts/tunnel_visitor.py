#!/usr/bin/env python3
"""The applications of scripts/test_tunnel.sh, at both outer ends of the tunnel.

    tunnel_visitor.py echo [HOST PORT]           an echo service, on a free port of 127.0.0.1 if not told; prints "echo PORT"
    tunnel_visitor.py ports N                    N ports that are free now
    tunnel_visitor.py message PORT               a line there and back
    tunnel_visitor.py bulk PORT MIB              random bytes both ways at once, compared by SHA-256
    tunnel_visitor.py half-close PORT            ends its own direction first, and still gets everything
    tunnel_visitor.py hold PORT [--reset]        holds a connection until it is cut; with --reset an orderly end will not do
    tunnel_visitor.py stranger PORT              TLS to the server without a certificate, which must come to nothing

The client's port is on 127.0.0.1, as is the server's for the stranger. Whatever is not as it should be is said, with exit code 1.
"""

import hashlib
import os
import signal
import socket
import socketserver
import ssl
import sys
import threading

PATIENCE = 30


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # The tunnel was cut: that is part of the test.


def echo(host="127.0.0.1", port=0):
    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with EchoServer((host, int(port)), Echo) as server:
        print(f"echo {server.server_address[1]}", flush=True)
        server.serve_forever()


def ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(count))]
    print(*(one.getsockname()[1] for one in held))


def visit(port):
    return socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE)


def exactly(stream, count):
    """Yields chunks until there have been so many bytes."""
    while count:
        chunk = stream.recv(min(count, 1 << 18))
        if not chunk:
            sys.exit(f"the connection ended {count} bytes early")
        count -= len(chunk)
        yield chunk


def message(port):
    line = f"Is this the echo service? asks {os.getpid()}.\n".encode()
    with visit(port) as stream:
        stream.sendall(line)
        back = b"".join(exactly(stream, len(line)))
    if back != line:
        sys.exit(f"sent {line!r}, got {back!r}")
    print(f"  sent and got back: {line.decode().strip()}")


def bulk(port, mib):
    block, count = os.urandom(1 << 20), int(mib)
    sent, got = hashlib.sha256(), hashlib.sha256()
    with visit(port) as stream:

        def send():
            for number in range(count):
                part = number.to_bytes(8, "big") + block[8:]
                sent.update(part)
                stream.sendall(part)

        sender = threading.Thread(target=send)
        sender.start()
        for chunk in exactly(stream, count << 20):
            got.update(chunk)
        sender.join()
    if sent.digest() != got.digest():
        sys.exit("what came back is not what was sent")
    print(f"  {count} MiB there and back, SHA-256 {got.hexdigest()[:16]}... on both sides")


def half_close(port):
    data = os.urandom(1 << 20)
    with visit(port) as stream:
        # Both at once: an echo that nobody reads takes nothing more.
        def send():
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        back = b"".join(iter(lambda: stream.recv(1 << 18), b""))
        sender.join()
    if back != data:
        sys.exit(f"sent {len(data)} bytes and the end, got {len(back)} back before the end")
    print("  sent 1 MiB and the end, got all of it back, and then the end")


def hold(port, *options):
    with visit(port) as stream:
        stream.sendall(b"held\n")
        list(exactly(stream, 5))
        print("held", flush=True)
        try:
            how = "more bytes" if stream.recv(1) else "an end"
        except ConnectionError:
            how = "a reset"
    if how == "an end" and "--reset" not in options:
        how += " (a port that is published in user space makes that of a reset)"
    elif how != "a reset":
        sys.exit(f"the server was killed, and the application saw {how} instead of a reset")
    print(f"  the server was killed, and the application saw {how}")


def stranger(port):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The stranger does not care who the server is; the server must care who the stranger is.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        try:
            with visit(port) as raw, context.wrap_socket(raw) as stream:
                stream.sendall(b"let me in\n")
                # With TLS 1.3 the refusal comes after the client's handshake is done.
                got = stream.recv(100)
        except ssl.SSLError as e:
            print(f"  {version.name}: refused, {e.reason or e}")
        except ConnectionError as e:
            print(f"  {version.name}: refused, {e.strerror}")
        else:
            if not got:
                print(f"  {version.name}: refused, without a word")
                continue
            sys.exit(f"{version.name}: nobody refused a client without a certificate, it got {got!r}")


if __name__ == "__main__":
    commands = {f.__name__.replace("_", "-"): f for f in (echo, ports, message, bulk, half_close, hold, stranger)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        commands[sys.argv[1]](*sys.argv[2:])
    except KeyboardInterrupt:
        pass
    except OSError as e:
        sys.exit(f"{sys.argv[1]}: {e}")
