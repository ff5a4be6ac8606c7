"""Namespaces and the path between them.

    near: visitor, tunnel server ══ the path ══ far: tunnel client, service

The namespaces have no names: they live as long as a process that is in them, or one that holds them open. So they
vanish with this program however it ends, and nothing outside them is ever touched.
"""

import ctypes
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

NEAR_ADDRESS, FAR_ADDRESS = "10.201.77.1", "10.201.77.2"

CLONE_NEWNET = 0x4000_0000
PR_SET_PDEATHSIG = 1
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x4004_54CA, 0x0001, 0x1000

libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def die_with_parent():
    """For children: nobody outlives this program, not even when it is killed."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Namespace:
    """A network namespace of its own, with loopback up."""

    def __init__(self):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        check(libc.unshare(CLONE_NEWNET), "cannot make a network namespace")
        try:
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            check(libc.setns(home, CLONE_NEWNET), "cannot return from a network namespace")
            os.close(home)
        self.ip("link", "set", "lo", "up")
        with self.inside():
            # What one transfer has learnt about the path must not help the next.
            Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")

    def close(self):
        os.close(self.fd)

    @property
    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def enter(self):
        check(libc.setns(self.fd, CLONE_NEWNET), "cannot enter a network namespace")

    @contextmanager
    def inside(self):
        """Sockets made meanwhile belong to this namespace, for ever."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.enter()
        try:
            yield
        finally:
            check(libc.setns(home, CLONE_NEWNET), "cannot return from a network namespace")
            os.close(home)

    def start(self, command, **options):
        """Starts a program in here that dies with us."""
        def prepare():
            die_with_parent()
            self.enter()
        return subprocess.Popen(command, preexec_fn=prepare, **options)

    def run(self, *command):
        done = subprocess.run(command, preexec_fn=self.enter, capture_output=True, text=True, timeout=20)
        if done.returncode != 0:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, *arguments):
        return self.run("ip", *arguments)

    def congestion(self, name=None):
        with self.inside():
            file = Path("/proc/sys/net/ipv4/tcp_congestion_control")
            if name:
                try:
                    file.write_text(name)
                except OSError as e:
                    raise OSError(f"congestion control {name}: {e.strerror}; namespaces may use what the system "
                                  "has in net.ipv4.tcp_allowed_congestion_control") from e
            return file.read_text().strip()

    def tun(self):
        """A TUN device named `path`: its file descriptor."""
        with self.inside():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"path", IFF_TUN | IFF_NO_PI))
        return fd

    def received(self, device):
        """Bytes that have come in through a device."""
        with self.inside():
            text = Path("/proc/thread-self/net/dev").read_text()
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{device}:"))
        return int(line.split(":")[1].split()[0])


class Network:
    """The two namespaces. `link` is what joins them, one at a time."""

    def __init__(self, congestion=None):
        self.near, self.far = Namespace(), Namespace()
        self.congestion = [space.congestion(congestion) for space in (self.near, self.far)][0]

    def close(self):
        for space in (self.near, self.far):
            space.close()

    def _address(self):
        for space, address in ((self.near, NEAR_ADDRESS), (self.far, FAR_ADDRESS)):
            space.ip("addr", "add", f"{address}/24", "dev", "path")
            space.ip("link", "set", "path", "up")

    def wire_bytes(self):
        """Bytes that have crossed the path: to the far side, to the near side."""
        return [space.received("path") for space in (self.far, self.near)]

    @contextmanager
    def shaped(self, rate):
        """A veth pair with a token bucket of `rate` bit/s at both ends and a queue of 50 ms: no delay of its own."""
        self.near.ip("link", "add", "path", "type", "veth", "peer", "name", "path", "netns", self.far.path)
        try:
            self._address()
            for space in (self.near, self.far):
                space.run("tc", "qdisc", "add", "dev", "path", "root", "tbf",
                          "rate", str(rate), "burst", "16kb", "latency", "50ms")
            yield
        finally:
            self.near.ip("link", "del", "path")

    @contextmanager
    def relayed(self):
        """Two TUN devices and the relay between them."""
        fds = [self.near.tun(), self.far.tun()]
        # It needs no namespace any more, only the devices.
        program = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("relay.py")), *map(str, fds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds, preexec_fn=die_with_parent)
        for fd in fds:
            os.close(fd)
        try:
            self._address()
            yield Relay(program)
        finally:
            program.kill()
            program.wait()


class Relay:
    def __init__(self, program):
        self.program = program

    def tell(self, **command):
        """What was counted since the last setting; `command` is in force when this returns."""
        self.program.stdin.write(json.dumps(command) + "\n")
        self.program.stdin.flush()
        line = self.program.stdout.readline()
        if not line:
            raise OSError("the relay has ended")
        return json.loads(line)
