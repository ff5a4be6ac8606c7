"""A path with delay, loss and a rate, between two TUN devices: what netem would do, where the kernel has none.

    namespace A: TUN ──> loss ──> queue at the rate, bounded ──> delay ──> TUN :namespace B     and the same back

    python3 relay.py FD_A FD_B     file descriptors of the two devices, inherited

One line of JSON on standard input is one command, and each is answered by one line:

    {"delay": s, "rate": bit/s (0: none), "queue": s, "loss": 0..1, "seed": n}   set, start counting anew
    {"cut": true}                                                                drop everything from now on
    {}                                                                           only tell

The rate counts whole IP packets. The queue is bounded in time: what would wait longer than `queue` is dropped, as a
router would. Loss is random, by a generator of each direction's own, so that the same seed meets the same sequence.
"""

import gc
import json
import os
import random
import select
import signal
import sys
import time
from collections import deque

PACKET = 2048
# Packets taken from one device before the other gets its turn.
BATCH = 64


class Direction:
    """One way through the path."""

    def __init__(self, source, sink, number):
        self.source, self.sink, self.number = source, sink, number
        self.waiting = deque()
        self.set({})

    def set(self, how):
        self.delay = how.get("delay", 0.0)
        self.rate = how.get("rate", 0.0)
        self.queue = how.get("queue", 0.2)
        self.loss = how.get("loss", 0.0)
        self.random = random.Random(how.get("seed", 1) * 2 + self.number).random
        self.free_at = 0.0
        self.packets = self.bytes = self.lost = self.overflowed = 0
        self.late = self.late_most = 0.0

    def take(self, now, cut):
        """Whatever has been sent into the device."""
        for _ in range(BATCH):
            try:
                packet = os.read(self.source, PACKET)
            except BlockingIOError:
                return
            if cut:
                continue
            if self.loss and self.random() < self.loss:
                self.lost += 1
                continue
            due = now
            if self.rate:
                free_at = max(now, self.free_at) + len(packet) * 8 / self.rate
                if free_at - now > self.queue:
                    self.overflowed += 1
                    continue
                self.free_at = due = free_at
            self.waiting.append((due + self.delay, packet))

    def give(self, now):
        """Whatever is due."""
        while self.waiting and self.waiting[0][0] <= now:
            due, packet = self.waiting.popleft()
            self.packets += 1
            self.bytes += len(packet)
            self.late += now - due
            self.late_most = max(self.late_most, now - due)
            try:
                os.write(self.sink, packet)
            except OSError:
                # The device is full or down: a packet is lost, as on any wire.
                self.overflowed += 1

    def told(self):
        return {
            "packets": self.packets, "bytes": self.bytes, "lost": self.lost, "overflowed": self.overflowed,
            "late_mean": self.late / max(self.packets, 1), "late_most": self.late_most,
        }


def main():
    a, b = int(sys.argv[1]), int(sys.argv[2])
    # Whoever started it ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fd in (a, b):
        os.set_blocking(fd, False)
    ways = [Direction(a, b, 0), Direction(b, a, 1)]
    cut = False
    since, used = time.monotonic(), time.process_time()
    try:
        # On a busy machine the path must not be what suffers.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        pass
    # Nothing here makes cycles, and a collection would come at the wrong moment.
    gc.disable()
    while True:
        dues = [way.waiting[0][0] for way in ways if way.waiting]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else 5.0
        ready, _, _ = select.select([a, b, 0], [], [], timeout)
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(now, cut)
            way.give(now)
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            command = json.loads(line)
            told = {"ways": [way.told() for way in ways],
                    "cpu": (time.process_time() - used) / max(now - since, 1e-9)}
            if "cut" in command:
                cut = command["cut"]
                # Also what is already on its way.
                for way in ways:
                    way.waiting.clear()
            elif command:
                for way in ways:
                    way.set(command)
                since, used = now, time.process_time()
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
