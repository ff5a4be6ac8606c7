//! Name to connected TCP stream, under one deadline.
//!
//! ```text
//!             one deadline
//! |--------------------------------------------------|
//! resolve            connect [a]   connect [b]   connect [c]
//! (helper thread,    at most 1/3   at most 1/2   all of
//!  IP literals skip)  of the rest   of the rest   the rest
//! ```
//!
//! * The deadline covers everything. An attempt that fails early hands what it did not use to the ones after it.
//! * The addresses of the two families take turns, beginning with the family the system put first, so that a
//!   broken IPv6 (or IPv4) route costs one share of the time, not all of it.
//! * The system's resolver cannot be told to stop. It therefore runs on a helper thread which is left behind
//!   when the deadline passes; there are never more than [`MAX_RESOLVERS`] of these, so a resolver that hangs
//!   costs a few threads and not one per connection.
//!
//! Streams come back blocking and with nodelay set.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use crate::codes::{Code, Coded};
use crate::resources;

/// Names being resolved at once, in the whole program. Performance: names are few and answers are quick; more
/// than this many only wait when the resolver hangs, and then more threads would not help.
pub const MAX_RESOLVERS: usize = 16;

/// Addresses tried for one name. Performance: a name with more would leave each attempt too little time.
pub const MAX_ADDRESSES: usize = 8;

/// A connection that has been silent this long is probed. Performance.
pub const KEEPALIVE_TIME: Duration = Duration::from_secs(30);

/// Time between probes without an answer. Performance.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered probes that end a connection: a dead peer is noticed after 30 + 3 x 10 s of silence. While
/// sent data is unacknowledged the system's own retransmission rules instead (minutes). Performance.
pub const KEEPALIVE_RETRIES: u32 = 3;

/// The stack of a resolver thread. getaddrinfo and its plug-ins (nss, mDNS) want more than our own code does.
const RESOLVER_STACK: usize = 512 * 1024;

/// Why there is no connection: the stage that failed.
#[derive(Debug)]
pub enum DialError {
    /// The name does not lead to an address. Check the spelling, or the resolver of the system.
    Resolve {
        /// The name as it was given.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline passed while the name was being resolved. Trying again later may help.
    ResolveTimedOut {
        /// The name as it was given.
        host: String,
    },
    /// No address accepted the connection before the deadline. Trying again later may help.
    Connect {
        /// The name as it was given.
        host: String,
        /// The port as it was given.
        port: u16,
        /// Every address, in the order of the attempts, with what came of it. Never empty.
        attempts: Vec<Attempt>,
    },
}

/// One address that did not work.
#[derive(Debug)]
pub struct Attempt {
    /// The address that was tried.
    pub address: SocketAddr,
    /// What came of it.
    pub error: io::Error,
}

impl DialError {
    /// The kind of the last failure, for callers that count or map failures.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Resolve { source, .. } => source.kind(),
            Self::ResolveTimedOut { .. } => io::ErrorKind::TimedOut,
            Self::Connect { attempts, .. } => attempts
                .last()
                .map_or(io::ErrorKind::Other, |attempt| attempt.error.kind()),
        }
    }
}

/// For connections to the server; others have a code for their service.
impl Coded for DialError {
    fn code(&self) -> Code {
        match self {
            Self::Resolve { .. } | Self::ResolveTimedOut { .. } => Code::NAME_UNKNOWN,
            Self::Connect { attempts, .. } => match attempts.last().map(|last| &last.error) {
                Some(e) => code_of(e),
                None => Code::SERVER_UNREACHABLE,
            },
        }
    }
}

/// The code for a server that cannot be connected to.
#[must_use]
pub fn code_of(e: &io::Error) -> Code {
    match e.kind() {
        _ if resources::is_out_of_descriptors(e) => Code::NO_DESCRIPTORS,
        io::ErrorKind::ConnectionRefused => Code::SERVER_ABSENT,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Code::SERVER_TIMEOUT,
        _ => Code::SERVER_UNREACHABLE,
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The name in quotes and escaped: it may come from a file with invisible characters.
            Self::Resolve { host, source } => {
                write!(f, "cannot find the address of {host:?}: {source}")
            }
            Self::ResolveTimedOut { host } => {
                write!(
                    f,
                    "finding the address of {host:?} took too long; is the name service reachable?"
                )
            }
            Self::Connect {
                host,
                port,
                attempts,
            } => {
                write!(f, "cannot connect to {}: ", host_port(host, *port))?;
                if let [only] = attempts.as_slice()
                    && literal(host) == Some(only.address.ip())
                {
                    return write!(f, "{}", only.error);
                }
                for (index, attempt) in attempts.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{}: {}", attempt.address, attempt.error)?;
                }
                Ok(())
            }
        }
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The display says it all, so a chain would say it twice; a name's error is kept for its code.
        match self {
            Self::Resolve { source, .. } => source.source(),
            Self::ResolveTimedOut { .. } | Self::Connect { .. } => None,
        }
    }
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Connects to `host` (a name, an address, or an IPv6 address in brackets) within `timeout`.
///
/// # Errors
///
/// The stage that failed, with every address that was tried.
pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, DialError> {
    let now = Instant::now();
    // A timeout beyond what the clock can express means "practically never".
    let deadline = now
        .checked_add(timeout)
        .unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 3600));
    connect_until(host, port, deadline)
}

/// Connects to `host` (a name, an address, or an IPv6 address in brackets) before `deadline`.
///
/// # Errors
///
/// The stage that failed, with every address that was tried.
pub fn connect_until(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, DialError> {
    let addresses = resolve_until(host, port, deadline)?;
    try_each(
        &in_turn(&addresses),
        deadline,
        Instant::now,
        |address, share| {
            let stream = TcpStream::connect_timeout(&address, share)?;
            refuse_self(&stream)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        },
    )
    .map_err(|attempts| DialError::Connect {
        host: host.to_owned(),
        port,
        attempts,
    })
}

/// The addresses of `host`, as the system orders them, before `deadline`. Literals need no name service.
///
/// # Errors
///
/// [`DialError::Resolve`] or [`DialError::ResolveTimedOut`]; an empty list is an error too.
pub fn resolve_until(
    host: &str,
    port: u16,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Some(ip) = literal(host) {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let failed = |source| DialError::Resolve {
        host: host.to_owned(),
        source,
    };
    let name = unbracketed(host);
    // Some systems take the empty name for "this machine", and none knows names with brackets.
    let wrong = if name.is_empty() {
        Some("the host name is empty")
    } else if name.contains(['[', ']']) {
        Some("brackets belong around IPv6 addresses only")
    } else {
        None
    };
    if let Some(wrong) = wrong {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, wrong)));
    }
    let name = name.to_owned();
    let answer = on_helper_thread(&RESOLVERS, deadline, move || {
        (name.as_str(), port).to_socket_addrs().map(Vec::from_iter)
    });
    match answer {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(failed(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        ))),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) | Err(Unanswered::NoThread(error)) => Err(failed(error)),
        Err(Unanswered::TimedOut) => Err(DialError::ResolveTimedOut {
            host: host.to_owned(),
        }),
    }
}

/// `host:port` for people and for parsers: an IPv6 address gets its brackets, exactly once.
#[must_use]
pub fn host_port(host: &str, port: u16) -> String {
    let host = unbracketed(host);
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Lets the system notice a peer that vanished: [`KEEPALIVE_TIME`], [`KEEPALIVE_INTERVAL`] and
/// [`KEEPALIVE_RETRIES`], as far as the system can be told. Takes the stream types of std and of mio.
///
/// # Errors
///
/// What the system said; the connection itself is not harmed.
pub fn set_keepalive<'s, S>(stream: &'s S) -> io::Result<()>
where
    SockRef<'s>: From<&'s S>,
{
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME);
    #[cfg(any(
        target_os = "linux",
        target_os = "android",
        target_os = "macos",
        target_os = "ios",
        target_os = "freebsd",
        target_os = "netbsd",
        target_os = "dragonfly",
        target_os = "illumos",
        target_os = "windows",
    ))]
    let keepalive = keepalive
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// `host` as an address, if it is one; brackets are for IPv6 only.
fn literal(host: &str) -> Option<IpAddr> {
    match IpAddr::from_str(unbracketed(host)) {
        Ok(IpAddr::V4(_)) if host.starts_with('[') => None,
        Ok(ip) => Some(ip),
        Err(_) => None,
    }
}

/// `[::1]` without its brackets. Anything else in brackets is left alone, and refused later.
fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .filter(|inner| inner.contains(':'))
        .unwrap_or(host)
}

/// The order of the attempts: families take turns, order within a family kept, doubles left out, at most
/// [`MAX_ADDRESSES`].
fn in_turn(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses
        .iter()
        .partition(|address| address.is_ipv6() == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::new();
    loop {
        let (a, b) = (first.next(), second.next());
        if a.is_none() && b.is_none() {
            return order;
        }
        for address in a.into_iter().chain(b) {
            if order.len() < MAX_ADDRESSES && !order.contains(&address) {
                order.push(address);
            }
        }
    }
}

/// Tries the addresses one after the other, each with an equal share of the time that is left.
fn try_each<T>(
    addresses: &[SocketAddr],
    deadline: Instant,
    mut now: impl FnMut() -> Instant,
    mut attempt: impl FnMut(SocketAddr, Duration) -> io::Result<T>,
) -> Result<T, Vec<Attempt>> {
    let mut failed = Vec::with_capacity(addresses.len());
    for (index, &address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(now());
        // At most MAX_ADDRESSES, so the number fits.
        let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let outcome = if share.is_zero() {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no time was left to try it",
            ))
        } else {
            attempt(address, share)
        };
        match outcome {
            Ok(stream) => return Ok(stream),
            Err(error) => failed.push(Attempt { address, error }),
        }
    }
    Err(failed)
}

/// TCP lets a socket connect to itself: dialling a dead service on this machine, whose port lies among those
/// the system hands out to dialling sockets, sooner or later gets its own port as the near end. The
/// "connection" then echoes, and holds the port against the service that should have it.
fn refuse_self(stream: &TcpStream) -> io::Result<()> {
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "nothing listens there (the connection met itself)",
        ));
    }
    Ok(())
}

/// Why a helper thread gave no answer.
#[derive(Debug)]
enum Unanswered {
    /// The deadline passed, waiting for a permit or for the answer.
    TimedOut,
    /// The system gave no thread, or the thread died.
    NoThread(io::Error),
}

/// How many helper threads may still be started.
struct Permits {
    left: Mutex<usize>,
    returned: Condvar,
}

static RESOLVERS: Permits = Permits::new(MAX_RESOLVERS);

impl Permits {
    const fn new(count: usize) -> Self {
        Self {
            left: Mutex::new(count),
            returned: Condvar::new(),
        }
    }

    /// The count is right at every moment the lock is free, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_until(&'static self, deadline: Instant) -> Option<Permit> {
        let mut left = self.lock();
        while *left == 0 {
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return None;
            }
            left = self
                .returned
                .wait_timeout(left, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *left -= 1;
        Some(Permit(self))
    }
}

/// The right to one helper thread; comes back when the thread ends, however it ends.
struct Permit(&'static Permits);

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.returned.notify_one();
    }
}

/// Runs `work`, which may hang, and waits for it until `deadline`. A thread that hangs keeps its permit.
fn on_helper_thread<T: Send + 'static>(
    permits: &'static Permits,
    deadline: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let permit = permits.take_until(deadline).ok_or(Unanswered::TimedOut)?;
    // Room for the one answer: the helper never waits for a caller who has gone.
    let (answer, wait) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("resolver".to_owned())
        .stack_size(RESOLVER_STACK)
        .spawn(move || {
            let permit = permit;
            let result = work();
            // The permit first, so that whoever has the answer may also count on the permit.
            drop(permit);
            // The caller may have given up; then nobody needs the answer.
            let _ = answer.send(result);
        })
        .map_err(Unanswered::NoThread)?;
    match wait.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(result) => Ok(result),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Unanswered::TimedOut),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Unanswered::NoThread(io::Error::other(
            "the resolver thread died",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Long enough that no test on a busy machine reaches it.
    const AMPLE: Duration = Duration::from_secs(60);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(30)
    }

    #[test]
    fn host_and_port_as_people_write_them() {
        let table = [
            ("example.org", 80, "example.org:80"),
            ("192.0.2.1", 9000, "192.0.2.1:9000"),
            ("::1", 22, "[::1]:22"),
            ("[::1]", 22, "[::1]:22"),
            ("fe80::1%eth0", 5, "[fe80::1%eth0]:5"),
            ("[name]", 5, "[name]:5"),
        ];
        for (host, port, text) in table {
            assert_eq!(host_port(host, port), text);
        }
    }

    #[test]
    fn literals_need_no_name_service() {
        let table = [
            ("127.0.0.1", Some(IpAddr::V4(Ipv4Addr::LOCALHOST))),
            ("::1", Some(IpAddr::V6(Ipv6Addr::LOCALHOST))),
            ("[::1]", Some(IpAddr::V6(Ipv6Addr::LOCALHOST))),
            ("[127.0.0.1]", None),
            ("[[::1]]", None),
            ("[::1", None),
            ("localhost", None),
            ("", None),
        ];
        for (host, ip) in table {
            assert_eq!(literal(host), ip, "{host:?}");
        }
        // A literal is an answer even when no time is left.
        let passed = Instant::now();
        assert_eq!(
            resolve_until("[::1]", 7, passed).unwrap(),
            [address("[::1]:7")]
        );
    }

    #[test]
    fn names_that_cannot_be_are_not_asked_for() {
        for host in ["", "[]", "[localhost]", "[127.0.0.1]", "::1]"] {
            let error = resolve_until(host, 80, Instant::now() + AMPLE).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }

    #[test]
    fn families_take_turns() {
        let mixed = [
            "[::1]:1",
            "[::2]:1",
            "[::1]:1",
            "[::3]:1",
            "1.0.0.1:1",
            "1.0.0.2:1",
        ]
        .map(address);
        let order = ["[::1]:1", "1.0.0.1:1", "[::2]:1", "1.0.0.2:1", "[::3]:1"].map(address);
        assert_eq!(in_turn(&mixed), order);
        // The family the system prefers goes first.
        let v4_first = ["1.0.0.1:1", "[::1]:1", "1.0.0.2:1"].map(address);
        assert_eq!(in_turn(&v4_first), v4_first);
        assert_eq!(in_turn(&[]), []);
        let many: Vec<SocketAddr> = (1..=100)
            .map(|last| SocketAddr::from(([1, 0, 0, last], 1)))
            .collect();
        assert_eq!(in_turn(&many), many[..MAX_ADDRESSES]);
    }

    /// The clock is moved by hand: each attempt says how long it took.
    fn shares(addresses: usize, deadline: u64, took: &[u64]) -> (Vec<u64>, Vec<Attempt>) {
        let start = Instant::now();
        let elapsed = Cell::new(Duration::ZERO);
        let mut took = took.iter();
        let mut given = Vec::new();
        let addresses: Vec<SocketAddr> = (1..=addresses)
            .map(|port| SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap())))
            .collect();
        let failed = try_each(
            &addresses,
            start + Duration::from_secs(deadline),
            || start + elapsed.get(),
            |_, share| {
                given.push(share.as_secs());
                elapsed.set(elapsed.get() + Duration::from_secs(*took.next().unwrap()));
                io::Result::<()>::Err(io::ErrorKind::ConnectionRefused.into())
            },
        )
        .unwrap_err();
        (given, failed)
    }

    #[test]
    fn every_attempt_gets_its_share_and_hands_on_the_rest() {
        // All hang until their share is over.
        assert_eq!(shares(3, 12, &[4, 4, 4]).0, [4, 4, 4]);
        // The first fails at once: the others have more.
        assert_eq!(shares(3, 12, &[0, 6, 6]).0, [4, 6, 6]);
        // The only address may use it all.
        assert_eq!(shares(1, 12, &[12]).0, [12]);
        // A system that overstays its share takes from the next; what has no time left is not tried.
        let (given, failed) = shares(3, 12, &[4, 8]);
        assert_eq!(given, [4, 4]);
        let kinds: Vec<io::ErrorKind> = failed.iter().map(|a| a.error.kind()).collect();
        assert_eq!(
            kinds,
            [
                io::ErrorKind::ConnectionRefused,
                io::ErrorKind::ConnectionRefused,
                io::ErrorKind::TimedOut
            ]
        );
    }

    #[test]
    fn the_first_address_that_answers_wins() {
        let addresses = ["1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1"].map(address);
        let mut tried = Vec::new();
        let got = try_each(&addresses, Instant::now() + AMPLE, Instant::now, |to, _| {
            tried.push(to);
            if to == addresses[1] {
                Ok("connected")
            } else {
                Err(io::ErrorKind::ConnectionRefused.into())
            }
        });
        assert_eq!(got.unwrap(), "connected");
        assert_eq!(tried, addresses[..2]);
    }

    /// A helper that answers only when the test lets it.
    fn hang(permits: &'static Permits, deadline: Instant) -> (mpsc::Sender<()>, bool) {
        let (release, gate) = mpsc::channel::<()>();
        let outcome = on_helper_thread(permits, deadline, move || {
            // Ends when the test drops its end.
            let _ = gate.recv();
        });
        (release, matches!(outcome, Err(Unanswered::TimedOut)))
    }

    #[test]
    fn a_hanging_resolver_does_not_outlast_the_deadline_and_keeps_its_permit() {
        static TWO: Permits = Permits::new(2);
        let (first, timed_out) = hang(&TWO, soon());
        assert!(timed_out);
        let (second, timed_out) = hang(&TWO, soon());
        assert!(timed_out);
        assert_eq!(*TWO.lock(), 0);
        // No permit left: the work is never started, and the caller is told in time.
        let refused = on_helper_thread(&TWO, soon(), || panic!("started without a permit"));
        assert!(matches!(refused, Err::<(), _>(Unanswered::TimedOut)));
        // As soon as one comes back, others may go on.
        drop(first);
        let answer = on_helper_thread(&TWO, Instant::now() + AMPLE, || 7);
        assert_eq!(answer.unwrap(), 7);
        drop(second);
    }

    #[test]
    fn a_helper_that_dies_is_reported_and_gives_its_permit_back() {
        static ONE: Permits = Permits::new(1);
        let died = on_helper_thread(&ONE, Instant::now() + AMPLE, || {
            // Unwinds without the noise of a panic message.
            std::panic::resume_unwind(Box::new(()))
        });
        assert!(matches!(died, Err::<(), _>(Unanswered::NoThread(_))));
        assert_eq!(
            on_helper_thread(&ONE, Instant::now() + AMPLE, || 7).unwrap(),
            7
        );
    }

    #[test]
    fn connects_by_address_and_by_name() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // localhost may lead to ::1 first; the IPv4 address must get its turn.
        for host in ["127.0.0.1", "localhost"] {
            let mut near = connect(host, port, AMPLE).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            assert!(near.nodelay().unwrap());
            near.write_all(b"x").unwrap();
            let mut byte = [0];
            far.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
        }
    }

    #[test]
    fn a_refusal_names_the_address() {
        // Bound but not listening: nobody else can take the port, and connecting is refused.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address("127.0.0.1:0").into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        let error = connect("127.0.0.1", port, AMPLE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("cannot connect to 127.0.0.1:{port}: ")),
            "{text}"
        );
        // Said once: the address is the name.
        assert_eq!(text.matches("127.0.0.1").count(), 1, "{text}");
        assert_eq!(
            io::Error::from(error).kind(),
            io::ErrorKind::ConnectionRefused
        );
    }

    #[test]
    fn every_attempt_is_in_the_message() {
        let attempt = |text, kind: io::ErrorKind| Attempt {
            address: address(text),
            error: kind.into(),
        };
        let error = DialError::Connect {
            host: "example.org".to_owned(),
            port: 9000,
            attempts: vec![
                attempt("[2001:db8::1]:9000", io::ErrorKind::TimedOut),
                attempt("192.0.2.1:9000", io::ErrorKind::ConnectionRefused),
            ],
        };
        assert_eq!(
            error.to_string(),
            "cannot connect to example.org:9000: [2001:db8::1]:9000: timed out; \
             192.0.2.1:9000: connection refused"
        );
    }

    #[test]
    fn a_timeout_beyond_the_clock_is_no_panic() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(connect("127.0.0.1", port, Duration::MAX).is_ok());
        let error = connect("127.0.0.1", port, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_connection_to_itself_is_a_refusal() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address("127.0.0.1:0").into()).unwrap();
        let own = socket.local_addr().unwrap();
        socket.connect(&own).unwrap();
        let error = refuse_self(&TcpStream::from(socket)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn keepalive_is_set_on_streams_of_std_and_mio() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let std = TcpStream::connect(to).unwrap();
        set_keepalive(&std).unwrap();
        let mio = mio::net::TcpStream::from_std(TcpStream::connect(to).unwrap());
        set_keepalive(&mio).unwrap();
        for socket in [SockRef::from(&std), SockRef::from(&mio)] {
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_TIME);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        }
    }
}
