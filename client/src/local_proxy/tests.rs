//! The proxy with a far end that a test can hold, fail and watch.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};

use minitcptunnel_common::channel::sealed::Compression;

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// What the proxy did to the far end.
#[derive(Debug, PartialEq, Eq)]
enum Did {
    Refuse(String),
    Discard,
}

/// Its dial gives what the test sends it, when the test sends it.
struct Held {
    dial: Mutex<Receiver<Result<TcpStream, String>>>,
    did: Sender<Did>,
}

impl FarEnd for Held {
    type Channel = TcpStream;

    fn dial(&self) -> Result<TcpStream, String> {
        self.dial.lock().unwrap().recv_timeout(SOON).unwrap()
    }

    fn join(&self, channel: TcpStream) -> io::Result<Duplex> {
        duplex::tcp(channel)
    }

    fn refuse(&self, reason: &str) {
        self.did.send(Did::Refuse(reason.into())).unwrap();
    }

    fn discard(&self, _: TcpStream) {
        self.did.send(Did::Discard).unwrap();
    }
}

struct Rig {
    pool: Pool,
    proxy: LocalProxy,
    target: Arc<Target>,
}

struct Served {
    dial: Sender<Result<TcpStream, String>>,
    did: Receiver<Did>,
}

impl Rig {
    fn new(pairs: usize, port: u16) -> Self {
        let pool = Pool::new(pairs).unwrap();
        Self {
            proxy: LocalProxy::new(pool.clone(), SOON, Arc::default()),
            pool,
            target: Arc::new(Target {
                id: TunnelId::new("web").unwrap(),
                host: "127.0.0.1".into(),
                port,
                compression: Compression::Off,
                traffic: Arc::default(),
            }),
        }
    }

    fn serve(&self) -> Served {
        let (dial, held) = channel();
        let (does, did) = channel();
        let far = Held {
            dial: Mutex::new(held),
            did: does,
        };
        let call = Call {
            target: self.target.clone(),
            conn: ConnId::new("c1").unwrap(),
            visitor: None,
            owner: 1,
        };
        self.proxy.serve(call, far);
        Served { dial, did }
    }

    fn is_idle_soon(&self) {
        assert!(self.pool.drain(Instant::now() + SOON), "a permit was lost");
    }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port that refuses: bound, so that nobody else gets it, but not listening.
fn dead_port() -> (socket2::Socket, u16) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// Two ends of one connection.
fn connected() -> (TcpStream, TcpStream) {
    let (listener, port) = listener();
    let near = TcpStream::connect(("127.0.0.1", port)).unwrap();
    (near, listener.accept().unwrap().0)
}

#[test]
fn both_ends_are_joined_whichever_comes_first() {
    for far_first in [true, false] {
        let (service, port) = listener();
        let rig = Rig::new(4, port);
        let (far, mut visitor) = connected();
        let served = rig.serve();
        let mut service = if far_first {
            served.dial.send(Ok(far)).unwrap();
            service.accept().unwrap().0
        } else {
            let service = service.accept().unwrap().0;
            served.dial.send(Ok(far)).unwrap();
            service
        };
        visitor.write_all(b"ping").unwrap();
        let mut four = [0; 4];
        service.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"ping");
        service.write_all(b"pong").unwrap();
        visitor.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"pong");
        drop((visitor, service));
        rig.is_idle_soon();
        assert!(served.did.try_recv().is_err(), "nothing was refused");
        let traffic = rig.target.traffic.snapshot();
        assert_eq!((traffic.to_service, traffic.from_service), (4, 4));
        assert_eq!((traffic.live, traffic.total), (0, 1));
    }
}

#[test]
fn a_dead_service_is_told_before_the_far_end_has_come() {
    let (_bound, port) = dead_port();
    let rig = Rig::new(4, port);
    let served = rig.serve();
    let Did::Refuse(reason) = served.did.recv_timeout(SOON).unwrap() else {
        panic!("discarded before there was anything to discard")
    };
    assert!(reason.starts_with("local service: "), "{reason}");
    assert_eq!(
        rig.pool.live(),
        1,
        "the other worker still holds the permit"
    );
    served.dial.send(Ok(connected().0)).unwrap();
    assert_eq!(served.did.recv_timeout(SOON), Ok(Did::Discard));
    rig.is_idle_soon();
    assert_eq!(rig.proxy.refusals.of(Refusal::ByClient), 1);
    assert_eq!(rig.target.traffic.snapshot().total, 0);
}

#[test]
fn a_far_end_that_fails_resets_the_service() {
    let (service, port) = listener();
    let rig = Rig::new(4, port);
    let served = rig.serve();
    let service = service.accept().unwrap().0;
    served.dial.send(Err("no way".into())).unwrap();
    assert_eq!(
        served.did.recv_timeout(SOON),
        Ok(Did::Refuse("data channel: no way".into()))
    );
    // Through a socket of ours: a system that tells of a reset only once may have told the poll before the read.
    let mut service = duplex::tcp(service).unwrap();
    let told = loop {
        match service.source.read(&mut [0]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            told => break told,
        }
    };
    assert!(told.is_err(), "the service takes it for an orderly end");
    rig.is_idle_soon();
}

#[test]
fn a_full_pool_refuses_at_once() {
    let (_service, port) = listener();
    let rig = Rig::new(1, port);
    let first = rig.serve();
    let second = rig.serve();
    assert_eq!(
        second.did.try_recv(),
        Ok(Did::Refuse("the limit on pairs is reached".into()))
    );
    assert_eq!(rig.proxy.refusals.of(Refusal::Pairs), 1);
    first.dial.send(Err("enough".into())).unwrap();
    rig.is_idle_soon();
}
