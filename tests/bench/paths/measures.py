"""What is measured: one function for each kind of path. Each returns its tables."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import tunnels
from load import MIB, Visitor
from network import FAR_ADDRESS, NEAR_ADDRESS
from report import Table

MBIT = 1_000_000


class Bench:
    """What all measurements share."""

    def __init__(self, options, folder, network, service, data):
        self.options, self.folder, self.network, self.service = options, folder, network, service
        self.visitor = Visitor(network.near, service, data)
        self.rathole = tunnels.find_rathole()

    @contextmanager
    def targets(self, settings, service=None, loopback=False):
        """Starts targets: name -> (programs or None, where the visitor connects)."""
        net = self.network
        service = service or self.service
        places = tunnels.Places(
            self.folder, self.options.bin_dir, net.near, net.near if loopback else net.far,
            "127.0.0.1" if loopback else NEAR_ADDRESS, service.port)
        with ExitStack() as stack:
            found = {}
            for name, how in settings.items():
                if how is None:
                    found[name] = None, ("127.0.0.1" if loopback else FAR_ADDRESS, service.port)
                    continue
                kind, arguments = how
                if kind is tunnels.rathole and (not self.rathole or self.options.quick and arguments):
                    continue
                if "limits" in arguments and not tunnels.client_takes(places, arguments["limits"]):
                    continue
                programs, address = kind(places, name, **arguments)
                stack.callback(programs.close)
                found[name] = programs, address
            yield found

    def say(self, text):
        print(f"paths: {text}", flush=True, file=self.options.progress)

    def quiesce(self):
        """Waits until the path is empty: what a reset has left in buffers is gone."""
        before = self.network.wire_bytes()
        for _ in range(40):
            time.sleep(0.1)
            now = self.network.wire_bytes()
            if sum(now) - sum(before) < 2000:
                return
            before = now

    def transfer(self, table, name, address, way, kind, size, limit, check_sum=True, visitor=None):
        """One transfer, or None with the trouble noted."""
        try:
            got = (visitor or self.visitor).transfer(address, way, kind, size, limit, check_sum)
        except OSError as e:
            table.trouble.append(f"{name}, {kind} {way} the service: {e}")
            return None
        if got["trouble"]:
            table.trouble.append(f"{name}, {kind} {way} the service: {got['trouble']}"
                                 f" ({got['bytes'] / MIB:.1f} of {size / MIB:.0f} MiB)")
        return got


PLAIN = {"ours": (tunnels.ours, {}), "rathole": (tunnels.rathole, {}), "rathole-noise": (tunnels.rathole, {"noise": True})}


def narrow(bench):
    """A narrow link with a short queue: does compression pay?"""
    rate, size = 20 * MBIT, (4 if bench.options.quick else 8) * MIB
    columns = []
    kinds = ("text", "mixed", "random")
    for kind in kinds:
        for way in ("to", "from"):
            columns.append((f"{kind} {way} Mbit/s", f"{kind}_{way}_mbit", 1))
    for kind in kinds:
        columns.append((f"{kind} wire/data", f"{kind}_wire", 2))
    table = Table(f"A link of 20 Mbit/s with a queue of 50 ms (tc tbf), {size // MIB} MiB in one stream: "
                  "Mbit/s of the data itself, to its last byte", columns)
    settings = {"direct": None, **{f"ours-{c}": (tunnels.ours, {"compression": c}) for c in ("off", "auto", "on")}, **PLAIN}
    del settings["ours"]
    with bench.network.shaped(rate), bench.targets(settings) as targets:
        for round_ in range(bench.options.rounds):
            for name, (_, address) in targets.items():
                bench.say(f"20 Mbit/s, round {round_ + 1}: {name}")
                for kind in kinds:
                    wire, done = 0, 0
                    for way in ("to", "from"):
                        before = bench.network.wire_bytes()
                        got = bench.transfer(table, name, address, way, kind, size, 20)
                        bench.quiesce()
                        table.add(name, f"{kind}_{way}_mbit", got["mbit"] if got else math.nan)
                        if got:
                            # The other direction has the acknowledgements.
                            wire += max(a - b for a, b in zip(bench.network.wire_bytes(), before))
                            done += got["bytes"]
                    table.add(name, f"{kind}_wire", wire / done if done else math.nan)
    for way in ("to", "from"):
        value = table.ratio("ours-auto", "ours-off", f"text_{way}_mbit")
        table.goal(f"text {way} the service, auto / off, at least 2.5", value, value >= 2.5)
        value = table.ratio("ours-auto", "ours-on", f"mixed_{way}_mbit")
        table.goal(f"mixed {way} the service, auto / on, at least 0.8", value, value >= 0.8)
        value = table.ratio("ours-auto", "ours-off", f"random_{way}_mbit")
        table.goal(f"random {way} the service, auto / off, at least 0.97", value, value >= 0.97)
    return [table]


def loopback(bench, service):
    """No link at all: does `auto` keep out of the way?"""
    seconds = 0.8 if bench.options.quick else 2.0
    cases = [(kind, way, 1) for kind in ("random", "text") for way in ("to", "from")] + [("text", "from", 8)]
    columns = [(f"{kind} {way}{f' x{streams}' if streams > 1 else ''} {unit}", f"{kind}_{way}_{streams}_{metric}", digits)
               for kind, way, streams in cases for unit, metric, digits in (("MB/s", "mb", 0), ("s/GiB", "cpu", 2))]
    table = Table(f"Loopback, no limit, {seconds} s: MB/s, and CPU seconds per GiB of both programs", columns)
    settings = {f"ours-{c}": (tunnels.ours, {"compression": c}) for c in ("off", "auto")}
    visitor = Visitor(bench.network.near, service, bench.visitor.data)
    # Far more than there is time for.
    size = 1 << 40
    with bench.targets(settings, service, loopback=True) as targets, ThreadPoolExecutor(8) as threads:
        for round_ in range(bench.options.rounds + 2):
            # In turn the one and the other goes first.
            order = list(targets.items())[::1 if round_ % 2 else -1]
            bench.say(f"loopback, round {round_ + 1}")
            for kind, way, streams in cases:
                for name, (programs, address) in order:
                    before = programs.cpu()
                    going = [threads.submit(visitor.transfer, address, way, kind, size, seconds, check_sum=False)
                             for _ in range(streams)]
                    try:
                        got = [one.result() for one in going]
                    except OSError as e:
                        table.trouble.append(f"{name}: {e}")
                        continue
                    time.sleep(0.1)
                    metric = f"{kind}_{way}_{streams}"
                    table.add(name, f"{metric}_mb", sum(one["mbit"] for one in got) / 8)
                    table.add(name, f"{metric}_cpu",
                              (programs.cpu() - before) / sum(one["bytes"] for one in got) * 1024 * MIB)
    for kind, way, streams in cases:
        value = table.ratio("ours-auto", "ours-off", f"{kind}_{way}_{streams}_mb")
        table.goal(f"{kind} {way} the service, {streams} at once, auto / off, at least 0.97", value, value >= 0.97)
    return [table]


def relay_note(table, told):
    ways = told["ways"]
    late = max(way["late_most"] for way in ways) * 1e3
    mean = max(way["late_mean"] for way in ways) * 1e3
    busy = told["cpu"]
    table.relay.append((busy, mean, late, sum(w["lost"] for w in ways), sum(w["packets"] for w in ways),
                        sum(w["overflowed"] for w in ways)))


def relay_summary(table):
    busy, mean, late = (max(one[i] for one in table.relay) for i in range(3))
    lost, passed, over = (sum(one[i] for one in table.relay) for i in (3, 4, 5))
    table.notes.append(
        f"the relay itself: at most {busy * 100:.0f} % of a core in a transfer, packets {mean:.2f} ms late on average at worst, "
        f"{late:.0f} ms at most; of {passed + lost + over} packets it lost {lost} by the setting and {over} at a full queue")
    if busy > 0.7:
        table.trouble.append("the relay was busy: figures may be its own")


def ceiling(bench, relay):
    """What the relay carries at all: the proof that it is not what is measured."""
    table = Table("The relay by itself, direct path", [
        ("Mbit/s, no rate set", "ceiling", 0), ("CPU of a core", "busy", 2),
        ("ping ms, 100 ms set", "ping", 1), ("Mbit/s, 50 set, 0 ms", "fifty", 1)])
    address = FAR_ADDRESS, bench.service.port
    for _ in range(2):
        relay.tell(delay=0, rate=0, queue=0.2, loss=0, seed=1)
        got = bench.transfer(table, "direct", address, "from", "random", 16 * MIB, 10)
        table.add("direct", "busy", relay.tell()["cpu"])
        table.add("direct", "ceiling", got["flow"] if got else math.nan)
        relay.tell(delay=0, rate=50 * MBIT, queue=0.2, loss=0, seed=1)
        got = bench.transfer(table, "direct", address, "from", "random", 4 * MIB, 10)
        # Of 1,500 bytes 1,448 are data.
        table.add("direct", "fifty", got["flow"] if got else math.nan)
        relay.tell(delay=0.05, rate=0, queue=0.2, loss=0, seed=1)
        sock = bench.visitor._connect(address, 5)
        started = time.monotonic()
        other = bench.visitor._connect(address, 5)
        table.add("direct", "ping", (time.monotonic() - started) * 1e3)
        sock.close()
        other.close()
    return table


def long_paths(bench, relay):
    """200 ms there and back, at two rates, without and with loss."""
    quick = bench.options.quick
    tables = []
    combinations = [(20, 0.0), (50, 0.01)] if quick else [(20, 0.0), (20, 0.01), (50, 0.0), (50, 0.01)]
    size, limit = (4 * MIB, 6) if quick else (16 * MIB, 25)
    for rate, loss in combinations:
        table = Table(
            f"200 ms there and back, {rate} Mbit/s, {loss * 100:.0f} % loss, a queue of 200 ms; random data, "
            f"one stream, {size // MIB} MiB or {limit} s: Mbit/s from the first byte to the last, seconds from connect",
            [(f"{way} {unit}", f"{way}_{metric}", digits) for way in ("to", "from")
             for unit, metric, digits in (("Mbit/s", "flow", 1), ("last byte s", "seconds", 2))])
        table.relay = []
        with bench.targets({"direct": None, **PLAIN}) as targets:
            for round_ in range(bench.options.rounds):
                for name, (_, address) in targets.items():
                    bench.say(f"200 ms, {rate} Mbit/s, {loss * 100:.0f} % loss, round {round_ + 1}: {name}")
                    for way in ("to", "from"):
                        relay.tell(delay=0.1, rate=rate * MBIT, queue=0.2, loss=loss, seed=round_ + 1)
                        got = bench.transfer(table, name, address, way, "random", size, limit)
                        relay_note(table, relay.tell())
                        whole = got and not got["trouble"]
                        table.add(name, f"{way}_flow", got["flow"] if got else math.nan)
                        table.add(name, f"{way}_seconds", got["seconds"] if whole else math.nan)
                        # Quickly: what is left over is dropped.
                        relay.tell(delay=0.01, rate=0, queue=0.2, loss=0, seed=1)
                        bench.quiesce()
        relay_summary(table)
        for way in ("to", "from"):
            value = table.ratio("ours", "rathole", f"{way}_flow")
            table.goal(f"{way} the service, ours / rathole, at least 0.98", value, value >= 0.98)
        tables.append(table)
    return tables


def first_bytes(bench, relay):
    """100 ms there and back: what a new connection costs."""
    table = Table("100 ms there and back, no rate: milliseconds from the visitor's connect", [
        ("first byte at the service", "there", 0), ("its answer at the visitor", "back", 0)])
    settings = {"direct": None, "ours": (tunnels.ours, {"limits": {"spare_channels": 0}}),
                "ours-spare": (tunnels.ours, {"limits": {"spare_channels": 8}}), **PLAIN}
    settings["ours"] = (tunnels.ours, {})
    relay.tell(delay=0.05, rate=0, queue=0.2, loss=0, seed=1)
    with bench.targets(settings) as targets:
        # What is opened in advance is there by then.
        time.sleep(1)
        for round_ in range(bench.options.rounds * 3):
            bench.say(f"100 ms, round {round_ + 1}")
            for name, (_, address) in targets.items():
                try:
                    there, back = bench.visitor.first_byte(address)
                except OSError as e:
                    table.trouble.append(f"{name}: {e}")
                    there = back = math.nan
                table.add(name, "there", there * 1e3)
                table.add(name, "back", back * 1e3)
            time.sleep(0.5)
    for name in ("ours", "ours-spare"):
        value = table.ratio(name, "rathole", "there")
        table.goal(f"{name} / rathole, first byte at the service, at most 1.05", value, value <= 1.05)
    return [table]


def cut(bench, relay):
    """A path that is gone for some seconds in the middle of a transfer."""
    away, size = (3.0, 6 * MIB) if bench.options.quick else (6.0, 12 * MIB)
    table = Table(
        f"50 ms there and back, 20 Mbit/s; after 1.5 s everything is dropped for {away:.0f} s; {size // MIB} MiB, random",
        [(f"{way} {unit}", f"{way}_{metric}", 2) for way in ("to", "from")
         for unit, metric in (("resumes after s", "resume"), ("last byte s", "seconds"))])
    with bench.targets({"direct": None, **PLAIN}) as targets:
        for round_ in range(1 if bench.options.quick else min(bench.options.rounds, 2)):
            for name, (_, address) in targets.items():
                bench.say(f"cut, round {round_ + 1}: {name}")
                for way in ("to", "from"):
                    relay.tell(delay=0.025, rate=20 * MBIT, queue=0.2, loss=0, seed=1)
                    healed = []

                    def knife():
                        time.sleep(1.5)
                        relay.tell(cut=True)
                        time.sleep(away)
                        relay.tell(cut=False)
                        healed.append(time.monotonic())

                    thread = threading.Thread(target=knife)
                    thread.start()
                    got = bench.transfer(table, name, address, way, "random", size, away + 25)
                    thread.join()
                    resume = [at for at, _ in got["notes"] if at > healed[0]] if got else []
                    table.add(name, f"{way}_resume", resume[0] - healed[0] if resume else math.nan)
                    table.add(name, f"{way}_seconds", got["seconds"] if got and not got["trouble"] else math.nan)
                    bench.quiesce()
    for way in ("to", "from"):
        value = table.samples("ours", f"{way}_seconds")
        table.goal(f"{way} the service, transfers of ours that came whole, of {len(value)}",
                   float(sum(map(math.isfinite, value))), all(map(math.isfinite, value)))
    return [table]
