#!/usr/bin/env python3
"""Measures MiniTCPTunnel on paths that are narrow, long, lossy or cut, beside the direct path and rathole.

  scripts/bench --paths [OPTIONS]      as root: it makes network namespaces

  --quick           under three minutes: one round, fewer paths, smaller transfers, no noise
  --rounds N        how many interleaved rounds (1 with --quick, otherwise 3)
  --only NAME,...   only these parts: narrow, loopback, long, first, cut
  --congestion NAME the congestion control of all sockets (default: what the system gives everyone)
  --json FILE       everything measured, as JSON
  --bin-dir DIR     where our programs are (scripts/bench sets it)

tests/bench/README.md says what is measured and how.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

import measures
from load import Data, Service
from network import Network
from report import write_json

# Where tc is for an ordinary shell.
os.environ["PATH"] += os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))

PARTS = ("narrow", "loopback", "long", "first", "cut")


def arguments():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--congestion")
    parser.add_argument("--json")
    parser.add_argument("--bin-dir")
    options = parser.parse_args()
    if options.help:
        print(__doc__.strip())
        sys.exit(0)
    if options.rounds is not None and not 1 <= options.rounds <= 50:
        parser.error("--rounds is a number from 1 to 50")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.only = set(filter(None, options.only.split(",")))
    for name in options.only - {*PARTS}:
        parser.error(f"--only {name}: there are {', '.join(PARTS)}")
    if not options.bin_dir:
        parser.error("--bin-dir is missing; start it with scripts/bench --paths")
    options.progress = sys.stderr
    return options


def ended(number, _frame):
    sys.exit("paths: not done in time, giving up" if number == signal.SIGALRM else 128 + number)


def run(options, folder):
    started, load_before = time.monotonic(), os.getloadavg()
    data = Data()
    try:
        network = Network(options.congestion)
    except OSError as e:
        sys.exit(f"paths: {e}")
    services = [Service(network.far, data), Service(network.near, data)]
    tables = []

    def part(name):
        return not options.only or name in options.only

    def keep(more):
        for table in more:
            table.print()
        tables.extend(more)

    try:
        bench = measures.Bench(options, folder, network, services[0], data)
        if bench.rathole is None:
            bench.say("rathole is not installed, left out")
        print(f"{options.rounds} rounds, congestion control {network.congestion}, Linux {os.uname().release}, "
              f"load average {load_before[0]:.2f}; medians, ± half the distance between the least and the largest", flush=True)
        if part("narrow"):
            keep(measures.narrow(bench))
        if part("loopback"):
            keep(measures.loopback(bench, services[1]))
        if any(part(name) for name in ("long", "first", "cut")):
            with network.relayed() as relay:
                keep([measures.ceiling(bench, relay)])
                if part("long"):
                    keep(measures.long_paths(bench, relay))
                if part("first"):
                    keep(measures.first_bytes(bench, relay))
                if part("cut"):
                    keep(measures.cut(bench, relay))
    except OSError as e:
        sys.exit(f"paths: {e}")
    finally:
        for service in services:
            service.close()
        network.close()
    seconds = time.monotonic() - started
    load = [round(one, 2) for one in (load_before[0], os.getloadavg()[0])]
    print(f"\n{seconds:.0f} s in all; load average before {load[0]}, after {load[1]}")
    if options.json:
        write_json(options.json, {
            "version": 1, "rounds": options.rounds, "congestion": network.congestion, "load": load,
            "linux": os.uname().release, "seconds": round(seconds, 1)}, tables)


def main():
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("paths: only root may make network namespaces; start it as root, say with sudo")
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2")):
        if not shutil.which(tool):
            sys.exit(f"paths: {tool} is missing; it is in the package {package}")
    if not os.path.exists("/dev/net/tun"):
        sys.exit("paths: /dev/net/tun is missing; the relay needs TUN devices")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, ended)
    # Every wait has a limit of its own; this one is for what nobody thought of.
    signal.alarm(300 if options.quick else 600 + 900 * options.rounds)
    given = os.environ.get("MTT_BENCH_DIR")
    if given:
        run(options, given)
    else:
        with tempfile.TemporaryDirectory(prefix="minitcptunnel-paths.") as folder:
            run(options, folder)


if __name__ == "__main__":
    main()
