"""The tunnels that are measured, each in front of the same service: ours in several settings, and rathole."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

START = 15
TICKS = os.sysconf("SC_CLK_TCK")


class Programs:
    """The programs of one tunnel, in the two namespaces, ended together."""

    def __init__(self, folder, name):
        self.folder, self.name = Path(folder), name
        self.running = []

    def start(self, space, role, command):
        log = open(self.folder / f"{self.name}-{role}.log", "wb")
        with log:
            program = space.start([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.running.append(program)
        return Path(log.name), program

    def line(self, started, pattern):
        """What the pattern finds in the output of a program, once it is there."""
        log, program = started
        deadline = time.monotonic() + START
        while True:
            ended = program.poll() is not None
            said = log.read_text(errors="replace")
            found = re.search(pattern, said)
            if found:
                return found[found.lastindex or 0]
            if ended or time.monotonic() > deadline:
                raise OSError(f"{log} has no {pattern!r}; it ends with {said[-300:]!r}")
            time.sleep(0.02)

    def cpu(self):
        """CPU seconds used so far, threads that are gone included."""
        total = 0
        for program in self.running:
            fields = Path(f"/proc/{program.pid}/stat").read_text().rsplit(") ", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def close(self):
        for program in self.running:
            program.kill()
        for program in self.running:
            program.wait()


class Places:
    """Where everything is on the path that is measured."""

    def __init__(self, folder, bin_dir, near, far, server, service_port):
        self.folder, self.bin_dir = Path(folder), Path(bin_dir)
        self.near, self.far = near, far
        # The address of the tunnel server as the client sees it.
        self.server = server
        self.service_port = service_port
        self.ports = iter(range(21000, 30000))


def client_takes(places, limits):
    """Whether our client knows these keys of `limits`."""
    file = places.folder / "probe.json"
    file.write_text(json.dumps({
        "server_host": "127.0.0.1", "server_port": 1, "server_pub_key": "11" * 32,
        "identity_private_key_hex": "22" * 32, "tunnels": [], "limits": limits}))
    file.chmod(0o600)
    done = subprocess.run([places.bin_dir / "minitcptunnel-client", "check", "--config", file],
                          capture_output=True, text=True, timeout=20)
    return not any(key in done.stdout + done.stderr for key in limits)


def ours(places, name, compression="auto", limits=None):
    programs = Programs(places.folder, name)
    try:
        return _ours(programs, places, name, compression, limits or {})
    except BaseException:
        programs.close()
        raise


def _ours(programs, places, name, compression, limits):
    def write(role, content):
        file = places.folder / f"{name}-{role}.json"
        file.write_text(json.dumps(content))
        file.chmod(0o600)
        return file

    public = next(places.ports)
    client = {"server_host": places.server, "server_port": 1, "server_pub_key": None,
              "identity_private_key_hex": None, "compression": compression, "limits": limits,
              "tunnels": [{"id": "bench", "remote_port": public, "local_host": "127.0.0.1",
                           "local_port": places.service_port, "auto_start": True}]}
    file = write("client", client)
    said = subprocess.run([places.bin_dir / "minitcptunnel-client", "keygen", "--config", file],
                          capture_output=True, text=True, timeout=20).stdout
    key = re.search("CLIENT PUBLIC KEY: ([0-9a-f]{64})", said)[1]
    client["identity_private_key_hex"] = json.loads(file.read_text())["identity_private_key_hex"]
    allowed = places.folder / f"{name}-allowed_clients.txt"
    allowed.write_text(f"{key} bench\n")
    server = write("server", {
        "bind": "0.0.0.0", "compression": compression, "allowed_clients_file": str(allowed),
        "identity_key_file": str(places.folder / f"{name}-server_key.hex")})
    started = programs.start(places.near, "server", [
        places.bin_dir / "minitcptunnel-server", "--port", "0", "--config", server])
    client["server_pub_key"] = programs.line(started, r"Pin in client config\): ([0-9a-f]{64})")
    client["server_port"] = int(programs.line(started, r"Control Server listening on \D*(?:[\d.]+:)?(\d+)"))
    write("client", client)
    started = programs.start(places.far, "client", [
        places.bin_dir / "minitcptunnel-client", "--config", file])
    programs.line(started, "is open on server port")
    return programs, ("127.0.0.1", public)


def find_rathole():
    return shutil.which("rathole", path=os.pathsep.join(
        filter(None, [os.environ.get("MTT_PEERS_BIN"), os.environ.get("PATH")])))


def rathole(places, name, noise=False):
    program = find_rathole()
    programs = Programs(places.folder, name)
    control, public = next(places.ports), next(places.ports)
    server_extra = client_extra = ""
    if noise:
        said = subprocess.run([program, "--genkey"], capture_output=True, text=True, timeout=20).stdout
        private, own = (re.search(rf"{which} Key:\s*(\S+)", said)[1] for which in ("Private", "Public"))
        server_extra = (f'[server.transport]\ntype = "noise"\n[server.transport.noise]\n'
                        f'local_private_key = "{private}"\n')
        client_extra = (f'[client.transport]\ntype = "noise"\n[client.transport.noise]\n'
                        f'remote_public_key = "{own}"\n')
    files = {
        "server": f'[server]\nbind_addr = "0.0.0.0:{control}"\ndefault_token = "bench"\n{server_extra}'
                  f'[server.services.bench]\nbind_addr = "127.0.0.1:{public}"\n',
        "client": f'[client]\nremote_addr = "{places.server}:{control}"\ndefault_token = "bench"\n{client_extra}'
                  f'[client.services.bench]\nlocal_addr = "127.0.0.1:{places.service_port}"\n',
    }
    try:
        for role, space in (("server", places.near), ("client", places.far)):
            file = places.folder / f"{name}-{role}.toml"
            file.write_text(files[role])
            started = programs.start(space, role, [program, f"--{role}", file])
            programs.line(started, "Listening at" if role == "server" else "Control channel established")
    except BaseException:
        programs.close()
        raise
    return programs, ("127.0.0.1", public)
