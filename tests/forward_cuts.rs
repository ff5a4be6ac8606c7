//! How connections of the forward tunnel end when they do not end well. Here belongs: whatever cuts them, damages
//! them or kills a program in the middle, and that neither side takes a part for the whole.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use rig::{Bytes, End, ForwardWorld, PATIENCE, Service, connect, read_end, reset};

const MIB: u64 = 1024 * 1024;

/// What somebody on the way does to what the server says, behind so many bytes of it.
#[derive(Clone, Copy, Debug)]
enum Meddling {
    /// Ends it as TCP ends, and says no more.
    Ends,
    /// Turns a bit over.
    Flips,
}

/// A relay to `server` for one connection.
fn meddler(server: u16, meddling: Meddling, after: u64) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || -> io::Result<()> {
        let (mut near, _) = listener.accept()?;
        let mut far = connect((Ipv4Addr::LOCALHOST, server));
        let (mut from, mut to) = (near.try_clone()?, far.try_clone()?);
        thread::spawn(move || io::copy(&mut from, &mut to));
        io::copy(&mut Read::by_ref(&mut far).take(after), &mut near)?;
        match meddling {
            Meddling::Ends => near.shutdown(Shutdown::Write),
            Meddling::Flips => {
                let mut byte = [0];
                far.read_exact(&mut byte)?;
                near.write_all(&[byte[0] ^ 1])?;
                io::copy(&mut far, &mut near).map(drop)
            }
        }
    });
    port
}

#[test]
fn a_part_is_never_taken_for_the_whole() {
    for version in ["1.2", "1.3"] {
        for (meddling, said) in [
            (
                Meddling::Ends,
                "the TLS connection was cut: it ended without a close_notify",
            ),
            (Meddling::Flips, "damage in the TLS connection"),
        ] {
            let endless = Service::source(3, u64::MAX);
            let mut world = ForwardWorld::to(endless.port()).client("preconnected", 0);
            let (server, port) = world.start_server();
            world.client["tls"]["min_version"] = version.into();
            let (client, local) = world.start_client(meddler(port, meddling, MIB));
            let mut stream = connect((Ipv4Addr::LOCALHOST, local));
            Bytes::new(3)
                .expect(&mut stream, MIB / 2)
                .expect("the beginning");
            let at = format!("{version} {meddling:?}");
            let (rest, end) = read_end(&mut stream);
            assert_eq!(end, End::Reset, "{at}");
            assert!((rest.len() as u64) < MIB / 2, "{at}: {}", rest.len());
            let ended = client.log.wait("connection ended *", PATIENCE);
            assert!(ended.contains(said), "{at}: {ended}");
            server.log.wait("connection ended *failed *", PATIENCE);
        }
    }
}

#[test]
fn a_killed_program_leaves_no_ends() {
    for killed in ["server", "client"] {
        let (told, heard) = mpsc::channel();
        let target = Service::start(move |mut stream| {
            rig::send(&mut stream, 3, MIB)?;
            // Nobody writes any more: the system tells of a reset once, and it must be this read that hears it.
            let _ = told.send(io::copy(&mut stream, &mut io::sink()));
            Ok(())
        });
        let mut tunnel = ForwardWorld::to(target.port())
            .client("preconnected", 0)
            .run();
        let mut stream = tunnel.visit();
        Bytes::new(3)
            .expect(&mut stream, MIB)
            .expect("the beginning");
        tunnel.program(killed).kill();
        assert_eq!(read_end(&mut stream).1, End::Reset, "{killed} killed");
        let at_target = heard
            .recv_timeout(PATIENCE)
            .expect("the target hears of it");
        let kind = at_target.map_err(|e| e.kind());
        assert_eq!(kind, Err(io::ErrorKind::ConnectionReset), "{killed} killed");
    }
}

#[test]
fn a_reset_is_passed_on() {
    let resetting = Service::start(|mut stream| {
        stream.read_exact(&mut [0; 4])?;
        reset(stream);
        Ok(())
    });
    let tunnel = ForwardWorld::to(resetting.port()).run();
    let mut stream = tunnel.visit();
    stream.write_all(b"ping").expect("write");
    assert_eq!(read_end(&mut stream), (vec![], End::Reset));

    let (told, heard) = mpsc::channel();
    let target = Service::start(move |mut stream: TcpStream| {
        stream.read_exact(&mut [0; 4])?;
        stream.write_all(b"more")?;
        let _ = told.send(io::copy(&mut stream, &mut io::sink()));
        Ok(())
    });
    let tunnel = ForwardWorld::to(target.port())
        .client("preconnected", 0)
        .run();
    let mut stream = tunnel.visit();
    stream.write_all(b"ping").expect("write");
    stream.read_exact(&mut [0; 4]).expect("answered");
    reset(stream);
    let kind = heard
        .recv_timeout(PATIENCE)
        .expect("heard")
        .map_err(|e| e.kind());
    assert_eq!(kind, Err(io::ErrorKind::ConnectionReset));
}
