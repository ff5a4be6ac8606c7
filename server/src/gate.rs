//! The gate: how many strangers may knock, from where and how often. Pure; the clock is an argument.
//!
//! ```text
//!  accept ─ knock ─┬─> Enter
//!                  ├─> EnterFor(token)   full: the stranger who has waited longest makes room
//!                  └─> Refuse            too many attempts per second from this address
//! ```
//!
//! Someone who sends a hello at once passes even through a flood of silent connections, because
//! room is made at the cost of those who said nothing for longest. Addresses with an authenticated
//! session are *known*: their data channels come in bursts, only the total bound holds for them, and
//! strangers from elsewhere make room before they do, however many there are. Addresses whose session
//! has just been lost are *expected*: they may try as often, but wait among the strangers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use mio::Token;

/// Performance: addresses whose rate is remembered at once. Beyond that, unknown addresses share one
/// bucket: a flood from everywhere is slowed as a whole instead of filling memory.
const RATES_MAX: usize = 4096;
/// How many seconds' worth of attempts an address may save up.
const BURST_SECONDS: f64 = 3.0;

/// What becomes of a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Knock {
    /// There is room.
    Enter,
    /// There is room once this one is closed.
    EnterFor(Token),
    /// Too many attempts per second from its address.
    Refuse,
}

/// Attempts that an address may still make.
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: f64, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.left = (self.left + gained).min(rate * BURST_SECONDS);
        self.at = now;
        let some = self.left >= 1.0;
        if some {
            self.left -= 1.0;
        }
        some
    }
}

/// See the module head.
pub(crate) struct Gate {
    max: usize,
    max_per_address: usize,
    rate: Option<f64>,
    count: u64,
    /// Who waits, oldest first.
    pending: BTreeMap<u64, (Token, IpAddr)>,
    /// Those of them who came from nowhere known.
    strangers: BTreeSet<u64>,
    by_token: HashMap<Token, u64>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    rates: HashMap<IpAddr, Bucket>,
    shared: Option<Bucket>,
}

/// The part of an address that one party controls: all of IPv4, the /64 of IPv6.
pub(crate) fn party(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

impl Gate {
    /// At most `max` strangers in all, `max_per_address` of one party, and `rate` attempts per second
    /// of one party, if that is bounded.
    pub(crate) fn new(max: usize, max_per_address: usize, rate: Option<usize>) -> Self {
        Self {
            max,
            max_per_address,
            rate: rate.map(|rate| rate as f64),
            count: 0,
            pending: BTreeMap::new(),
            strangers: BTreeSet::new(),
            by_token: HashMap::new(),
            by_address: HashMap::new(),
            rates: HashMap::new(),
            shared: None,
        }
    }

    /// A connection of `address` has been accepted. `expected`: a session of that party is live, or was
    /// until a moment ago.
    pub(crate) fn knock(&mut self, address: IpAddr, expected: bool, now: Instant) -> Knock {
        let party = party(address);
        if !expected {
            if !self.may_try(party, now) {
                return Knock::Refuse;
            }
            if let Some(own) = self
                .by_address
                .get(&party)
                .filter(|own| own.len() >= self.max_per_address)
            {
                let oldest = own
                    .first()
                    .expect("at least max_per_address, which is not 0");
                return Knock::EnterFor(self.pending[oldest].0);
            }
        }
        match self.oldest() {
            Some(oldest) if self.pending.len() >= self.max => Knock::EnterFor(oldest),
            _ => Knock::Enter,
        }
    }

    fn may_try(&mut self, party: IpAddr, now: Instant) -> bool {
        let Some(rate) = self.rate else {
            return true;
        };
        let full = || Bucket {
            left: rate * BURST_SECONDS,
            at: now,
        };
        if self.rates.len() >= RATES_MAX && !self.rates.contains_key(&party) {
            // Whoever has been quiet for long enough has a full bucket, as a newcomer would.
            let forget = Duration::from_secs_f64(BURST_SECONDS);
            self.rates
                .retain(|_, bucket| now.saturating_duration_since(bucket.at) < forget);
            if self.rates.len() >= RATES_MAX {
                return self.shared.get_or_insert_with(full).take(rate, now);
            }
        }
        let bucket = self.rates.entry(party).or_insert_with(full);
        bucket.take(rate, now)
    }

    /// It waits now, under this token. `known`: a session of that party is live.
    pub(crate) fn enter(&mut self, token: Token, address: IpAddr, known: bool) {
        let party = party(address);
        self.count += 1;
        if !known {
            self.strangers.insert(self.count);
        }
        self.pending.insert(self.count, (token, party));
        self.by_token.insert(token, self.count);
        self.by_address.entry(party).or_default().insert(self.count);
    }

    /// It waits no longer: authenticated, or gone.
    pub(crate) fn leave(&mut self, token: Token) {
        let Some(count) = self.by_token.remove(&token) else {
            return;
        };
        let Some((_, party)) = self.pending.remove(&count) else {
            return;
        };
        self.strangers.remove(&count);
        if let Some(own) = self.by_address.get_mut(&party) {
            own.remove(&count);
            if own.is_empty() {
                self.by_address.remove(&party);
            }
        }
    }

    /// The stranger that has waited longest, or if all are known the longest of those: who makes room, also
    /// when the system runs out of descriptors.
    pub(crate) fn oldest(&self) -> Option<Token> {
        let count = self
            .strangers
            .first()
            .or_else(|| self.pending.keys().next())?;
        Some(self.pending[count].0)
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }
}

/// How long an address is expected back after its last session was lost.
const EXPECTED_FOR: Duration = Duration::from_secs(60);
/// Performance: addresses that are expected at a time.
const EXPECTED_MAX: usize = 1024;

/// Where sessions were lost a moment ago: a client that comes back must not share its attempts with
/// strangers of the same address. Bounded: past that, whoever has been away for longest is forgotten.
#[derive(Default)]
pub(crate) struct Expected {
    lost: HashMap<IpAddr, Instant>,
}

impl Expected {
    /// The last session of this address's party was lost.
    pub(crate) fn lost(&mut self, address: IpAddr, now: Instant) {
        self.lost
            .retain(|_, at| now.saturating_duration_since(*at) < EXPECTED_FOR);
        let party = party(address);
        if self.lost.len() >= EXPECTED_MAX && !self.lost.contains_key(&party) {
            let longest = self.lost.iter().min_by_key(|(_, at)| **at);
            if let Some(longest) = longest.map(|(party, _)| *party) {
                self.lost.remove(&longest);
            }
        }
        self.lost.insert(party, now);
    }

    /// Whether this address's party lost its last session a moment ago.
    pub(crate) fn knows(&self, address: IpAddr, now: Instant) -> bool {
        let lost = self.lost.get(&party(address));
        lost.is_some_and(|at| now.saturating_duration_since(*at) < EXPECTED_FOR)
    }
}

/// Performance: hellos remembered per generation.
const REPLAYS: usize = 32 * 1024;

/// Remembers the ephemeral keys of recent valid hellos, so that a copied hello costs the server a
/// look-up instead of a key agreement (S2). Bounded: two generations, the older is forgotten.
#[derive(Default)]
pub(crate) struct ReplayMemory {
    young: HashSet<[u8; 16]>,
    old: HashSet<[u8; 16]>,
}

impl ReplayMemory {
    fn mark(ephemeral: &[u8; 32]) -> [u8; 16] {
        *ephemeral.first_chunk().expect("32 bytes begin with 16")
    }

    /// Whether this key was in a recent valid hello.
    pub(crate) fn knows(&self, ephemeral: &[u8; 32]) -> bool {
        let mark = Self::mark(ephemeral);
        self.young.contains(&mark) || self.old.contains(&mark)
    }

    /// Remembers the key of a valid hello. `false`: it was known already.
    pub(crate) fn remember(&mut self, ephemeral: &[u8; 32]) -> bool {
        if self.knows(ephemeral) {
            return false;
        }
        if self.young.len() >= REPLAYS {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(Self::mark(ephemeral))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn enter(gate: &mut Gate, token: usize, from: IpAddr, now: Instant) {
        match gate.knock(from, false, now) {
            Knock::Enter => {}
            Knock::EnterFor(old) => gate.leave(old),
            Knock::Refuse => panic!("refused"),
        }
        gate.enter(Token(token), from, false);
    }

    #[test]
    fn the_oldest_of_an_address_and_then_of_all_makes_room() {
        let now = Instant::now();
        let mut gate = Gate::new(4, 2, Some(1000));
        for (token, from) in [(1, 1), (2, 1), (3, 2)] {
            enter(&mut gate, token, address(from), now);
        }
        assert_eq!(
            gate.knock(address(1), false, now),
            Knock::EnterFor(Token(1))
        );
        assert_eq!(gate.knock(address(2), false, now), Knock::Enter);
        assert_eq!(gate.knock(address(1), true, now), Knock::Enter, "known");
        enter(&mut gate, 4, address(3), now);
        assert_eq!(
            gate.knock(address(9), false, now),
            Knock::EnterFor(Token(1))
        );
        assert_eq!(gate.knock(address(9), true, now), Knock::EnterFor(Token(1)));
        gate.leave(Token(1));
        gate.leave(Token(1));
        assert_eq!(gate.len(), 3);
        assert_eq!(gate.oldest(), Some(Token(2)));
        assert_eq!(gate.knock(address(9), false, now), Knock::Enter);
    }

    #[test]
    fn the_known_wait_in_peace_while_strangers_come_and_go() {
        let now = Instant::now();
        let mut gate = Gate::new(3, 10, Some(100_000));
        gate.enter(Token(1), address(1), true);
        for token in 2..1000 {
            enter(&mut gate, token, address(token as u8), now);
        }
        assert_eq!(gate.len(), 3);
        assert_eq!(gate.oldest(), Some(Token(998)), "Token(1) is still there");
        // A crowd of the known makes room among itself, and leaves nobody out.
        gate.enter(Token(1000), address(1), true);
        gate.leave(Token(998));
        gate.leave(Token(999));
        gate.enter(Token(1001), address(1), true);
        assert_eq!(
            gate.knock(address(9), false, now),
            Knock::EnterFor(Token(1))
        );
        assert_eq!(gate.strangers.len(), 0);
    }

    #[test]
    fn attempts_per_second_are_bounded_and_come_back_with_time() {
        let start = Instant::now();
        let mut gate = Gate::new(1000, 1000, Some(10));
        let tries = |gate: &mut Gate, now, known| {
            (0..100)
                .filter(|_| gate.knock(address(1), known, now) != Knock::Refuse)
                .count()
        };
        assert_eq!(tries(&mut gate, start, false), 30, "a burst");
        assert_eq!(tries(&mut gate, start, true), 100, "known");
        assert_eq!(tries(&mut gate, start + Duration::from_secs(1), false), 10);
        assert_eq!(
            gate.knock(address(2), false, start),
            Knock::Enter,
            "another"
        );
    }

    #[test]
    fn a_flood_from_everywhere_fills_no_memory() {
        let now = Instant::now();
        let mut gate = Gate::new(100, 100, Some(10));
        let mut refused = 0;
        for n in 0..100_000u32 {
            let from = IpAddr::from((0x0A00_0000 + n).to_be_bytes());
            match gate.knock(from, false, now) {
                Knock::Refuse => refused += 1,
                Knock::EnterFor(old) => {
                    gate.leave(old);
                    gate.enter(Token(n as usize), from, false);
                }
                Knock::Enter => gate.enter(Token(n as usize), from, false),
            }
        }
        assert_eq!(gate.rates.len(), RATES_MAX);
        assert_eq!(gate.len(), 100);
        assert_eq!(gate.by_address.len(), 100);
        assert!(refused > 90_000, "{refused}");
        let later = now + Duration::from_secs(10);
        let newcomer = IpAddr::from([192, 0, 2, 1]);
        assert_ne!(gate.knock(newcomer, false, later), Knock::Refuse);
        assert_eq!(gate.rates.len(), 1);
    }

    #[test]
    fn an_ipv6_network_is_one_party() {
        let a: IpAddr = "2001:db8:1:2:3::1".parse().unwrap();
        let b: IpAddr = "2001:db8:1:2:ffff::9".parse().unwrap();
        let c: IpAddr = "2001:db8:1:3::1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(party(a), party(b));
        assert_ne!(party(a), party(c));
        assert_eq!(party(mapped), address(1));
    }

    #[test]
    fn the_expected_try_as_often_as_they_like_and_still_make_room() {
        let now = Instant::now();
        let mut gate = Gate::new(2, 1, Some(1));
        gate.enter(Token(1), address(1), true);
        for token in 2..100 {
            if let Knock::EnterFor(old) = gate.knock(address(2), true, now) {
                gate.leave(old);
            }
            gate.enter(Token(token), address(2), false);
        }
        assert_eq!(
            gate.oldest(),
            Some(Token(99)),
            "they made room, Token(1) did not"
        );
    }

    #[test]
    fn a_lost_session_is_expected_back_for_a_bounded_while() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let mut expected = Expected::default();
        assert!(!expected.knows(address(1), start));
        expected.lost(address(1), start);
        assert!(expected.knows(address(1), second(59)));
        assert!(!expected.knows(address(2), second(59)));
        assert!(!expected.knows(address(1), second(60)));
        // Lost again: from then on.
        expected.lost(address(1), second(30));
        assert!(expected.knows(address(1), second(89)));
        assert!(!expected.knows(address(1), second(90)));
        let a = "2001:db8:1:2:3::1".parse().unwrap();
        let b = "2001:db8:1:2:ffff::9".parse().unwrap();
        expected.lost(a, second(30));
        assert!(expected.knows(b, second(31)), "the same /64");
    }

    #[test]
    fn losing_sessions_everywhere_fills_no_memory() {
        let start = Instant::now();
        let mut expected = Expected::default();
        let from = |n: u32| IpAddr::from((0x0A00_0000 + n).to_be_bytes());
        let at = |n: u32| start + Duration::from_millis(n.into());
        let most = EXPECTED_MAX as u32;
        for n in 0..3 * most {
            expected.lost(from(n), at(n));
            // This one is lost again and again, and stays.
            expected.lost(from(0), at(n));
        }
        assert_eq!(expected.lost.len(), EXPECTED_MAX);
        let now = at(3 * most);
        assert!(expected.knows(from(0), now));
        assert!(expected.knows(from(3 * most - 1), now));
        assert!(!expected.knows(from(1), now), "away for longest");
    }

    #[test]
    fn replays_are_known_for_a_bounded_while() {
        let key = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            key
        };
        let mut memory = ReplayMemory::default();
        assert!(memory.remember(&key(0)));
        assert!(!memory.remember(&key(0)));
        for n in 1..=REPLAYS as u32 {
            assert!(memory.remember(&key(n)));
        }
        assert!(memory.knows(&key(0)), "a generation later");
        for n in 0..2 * REPLAYS as u32 {
            memory.remember(&key(1_000_000 + n));
        }
        assert!(!memory.knows(&key(0)));
        assert!(memory.young.len() + memory.old.len() <= 2 * REPLAYS);
    }
}
