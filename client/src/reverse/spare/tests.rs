//! What the whole client can show only after minutes, or not at all.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use minitcptunnel_common::config;
use minitcptunnel_common::metrics::Refusals;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::wire::keys::DirectionKey;
use mio::{Poll, Token};

use super::ahead::AHEAD_MAX;
use super::*;
use crate::config::{Pinning, check};

/// Spares of a session with a server that has gone: nothing can be opened.
struct World {
    spares: Arc<Spares>,
    listener: TcpListener,
    /// The inbox's.
    _poll: Poll,
}

impl World {
    /// One is kept, and not more.
    fn new(agreed: bool) -> Self {
        let text = format!(
            r#"{{"server_host": "127.0.0.1", "identity_private_key_hex": "{}",
                "limits": {{"spare_channels": 1, "max_spare_channels": 1}}}}"#,
            "07".repeat(32)
        );
        let typed = config::parse(Path::new("client_config.json"), &text).unwrap();
        let checked = check(typed.raw, typed.places, Pinning::InsecureOptional).unwrap();
        let config = checked.config;
        let poll = Poll::new().unwrap();
        let (inbox, _) = Inbox::new(&poll, Token(0)).unwrap();
        let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let proxy = LocalProxy::new(
            Pool::new(8).unwrap(),
            config.timeouts.local_connect,
            Arc::new(Refusals::default()),
        );
        let spares = Spares::new(Parts {
            server: Arc::new(Server::new(&config).unwrap()),
            address,
            session: 1,
            key: SessionKey::new([1; 32]),
            agreed,
            inbox,
            proxy,
            enabled: Enabled::default(),
        });
        Self {
            spares,
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            _poll: poll,
        }
    }

    /// What the plan has begun.
    fn opening(&self) -> Opening {
        assert_eq!(self.spares.lock().plan.open(Instant::now()), 1);
        let spares = Some(self.spares.clone());
        Opening { spares }
    }

    /// A channel, and the server's end of it.
    fn channel(&self) -> (Channel, TcpStream) {
        let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (far, _) = self.listener.accept().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let key = || DirectionKey::from_parts([2; 32], [3; 4]);
        let channel = Channel {
            stream,
            sealer: Sealer::new(&key()),
            opener: Opener::new(&key()),
        };
        (channel, far)
    }

    /// A channel that has served a visitor, as the server sees it.
    fn used(&self) -> TcpStream {
        let (channel, far) = self.channel();
        self.spares.on_reuse()(Recovered {
            socket: Socket::new(channel.stream).unwrap(),
            sealer: channel.sealer,
            opener: channel.opener,
            rest: Vec::new(),
        });
        far
    }

    fn waiting(&self) -> Vec<u64> {
        self.spares.lock().waiting.keys().copied().collect()
    }
}

/// Waits until the other end has closed it, as an end or as a reset.
fn ended(mut far: TcpStream) {
    let end = far.read(&mut [0]);
    let over = |e: &io::Error| e.kind() == ErrorKind::ConnectionReset;
    assert!(
        matches!(&end, Ok(0)) || end.as_ref().is_err_and(over),
        "{end:?}"
    );
}

#[test]
fn one_that_came_to_nothing_is_counted_out_even_by_a_panic() {
    let world = World::new(true);
    let opening = world.opening();
    let panics = move || {
        let _opening = opening;
        resume_unwind(Box::new(()));
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    let due = world.spares.due().expect("a wait");
    assert_eq!(world.spares.lock().plan.open(due), 1, "begun again");
}

#[test]
fn a_server_that_closes_nothing_does_not_fill_our_descriptors() {
    let world = World::new(true);
    let most = 1 + OPENING_MAX;
    let mut used: Vec<TcpStream> = (0..most + 3).map(|_| world.used()).collect();
    let all: Vec<u64> = (1..=used.len() as u64).collect();
    // A crowd has gone, and the server's closing may be on its way.
    let now = Instant::now();
    let young = now + EXCESS_MAX - Duration::from_secs(5);
    assert_eq!(world.spares.lock().excess(most, young).count(), 0);
    world.spares.beat(young);
    assert_eq!(world.waiting(), all);
    world.spares.beat(now + EXCESS_MAX);
    used.drain(..3).for_each(ended);
    assert_eq!(world.waiting(), all[3..]);
    // Those that came meanwhile are not to blame.
    let newest = world.used();
    used.push(newest);
    assert_eq!(world.waiting().len(), most + 1);
    let later = now + EXCESS_MAX;
    assert_eq!(world.spares.lock().excess(most, later).count(), 0);
}

#[test]
fn one_opened_ahead_goes_when_it_is_too_old() {
    let world = World::new(false);
    let (channel, far) = world.channel();
    world.spares.put_aside(channel, world.opening());
    let now = Instant::now();
    let due = world.spares.due().expect("an age at which it goes");
    assert!(due <= now + AHEAD_MAX);
    world.spares.fill_at(due - Duration::from_millis(1));
    assert_eq!(world.spares.due(), Some(due), "it waits still");
    world.spares.fill_at(due);
    ended(far);
    assert!(world.spares.due() != Some(due));
}
