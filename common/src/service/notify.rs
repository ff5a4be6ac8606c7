//! What a running program tells the manager that started it: ready, how it is, alive, stopping.
//!
//! ```text
//!  systemd (sd_notify, without its library)      NOTIFY_SOCKET   one datagram per message
//!                                                WATCHDOG_USEC   somebody has to say "alive" this often
//!  the service manager of Windows                the states of a native service (scm)
//!  neither                                       nothing happens, nothing is spent
//! ```
//!
//! "Alive" is said by a thread that has no reason to hang, so it must not speak for itself: each time it puts a
//! question into the inbox of every loop and waits for the answers, however long that takes. A loop that hangs gives
//! none, and the manager hears nothing more.

use crossbeam_channel::Sender;

/// Puts the question whether it is alive into a loop's inbox, to be answered from its turn; `false` if the loop has
/// ended (its owner knows, and does what is to be done).
pub type Probe = Box<dyn Fn(Sender<()>) -> bool + Send>;

/// Whether somebody listens to what is said here.
#[must_use]
pub fn is_heard() -> bool {
    system::is_heard()
}

/// The program does its work from now on. Where the manager wants to hear from it regularly, it does as long as all
/// loops answer.
pub fn ready(status: &str, probes: Vec<Probe>) {
    system::ready(status, probes);
}

/// What a person who asks the manager is shown.
pub fn status(text: &str) {
    system::status(text);
}

/// The program ends, which may take as long as running connections are given.
pub fn stopping() {
    system::stopping();
}

#[cfg(unix)]
mod system {
    use std::env;
    use std::ffi::OsString;
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::thread;
    use std::time::Duration;

    use super::Probe;
    use crate::codes::Code;

    /// Longest that a message without which we would be restarted waits for room in the manager's queue.
    const PATIENCE: Duration = Duration::from_secs(1);

    pub(super) fn is_heard() -> bool {
        env::var_os("NOTIFY_SOCKET").is_some()
    }

    pub(super) fn ready(status: &str, probes: Vec<Probe>) {
        if !is_heard() {
            return;
        }
        say(&format!("READY=1\nSTATUS={}", one_line(status)));
        let Some(within) = watchdog(
            env::var("WATCHDOG_USEC").ok().as_deref(),
            env::var("WATCHDOG_PID").ok().as_deref(),
            std::process::id(),
        ) else {
            return;
        };
        let keep_alive = move || {
            super::keep_alive(
                &probes,
                || say("WATCHDOG=1"),
                // A third of it: one may be late, or lost.
                || thread::sleep(within / 3),
            );
        };
        let started = thread::Builder::new()
            .name("watchdog".to_owned())
            .stack_size(128 * 1024)
            .spawn(keep_alive);
        if let Err(e) = started {
            log::error!(
                "The system refused a thread for the watchdog ({e}): the service manager will start this program again code={}",
                Code::NO_RESOURCES
            );
        }
    }

    pub(super) fn status(text: &str) {
        if is_heard() {
            say(&format!("STATUS={}", one_line(text)));
        }
    }

    pub(super) fn stopping() {
        if is_heard() {
            say("STOPPING=1");
        }
    }

    /// A line break would begin another message.
    fn one_line(text: &str) -> String {
        text.replace(['\n', '\r'], " ")
    }

    fn say(message: &str) {
        let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
            return;
        };
        // Who does not listen has his reasons; the work goes on.
        if let Err(e) = send(&socket, message.as_bytes()) {
            log::debug!("NOTIFY_SOCKET does not take {message:?}: {e}");
        }
    }

    pub(super) fn send(socket: &OsString, message: &[u8]) -> io::Result<()> {
        let address = address(socket.as_bytes())?;
        let sender = UnixDatagram::unbound()?;
        if message.starts_with(b"STATUS=") {
            // A manager whose queue is full must not hold up a loop: what it cannot take is lost.
            sender.set_nonblocking(true)?;
        } else {
            // What it restarts us without, and a thread that may wait says.
            sender.set_write_timeout(Some(PATIENCE))?;
        }
        sender.send_to_addr(message, &address).map(drop)
    }

    /// A path, or with `@` in front a name in the abstract namespace of Linux.
    fn address(socket: &[u8]) -> io::Result<SocketAddr> {
        match socket {
            [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket)),
            #[cfg(any(target_os = "linux", target_os = "android"))]
            [b'@', name @ ..] => {
                use std::os::linux::net::SocketAddrExt;
                SocketAddr::from_abstract_name(name)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// How often the manager wants to hear from this process, if it does.
    pub(super) fn watchdog(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
        let usec: u64 = usec?.parse().ok()?;
        // The variables are inherited; they may be meant for a parent.
        let meant = pid.is_none_or(|pid| pid.parse() == Ok(own));
        (meant && usec > 0).then(|| Duration::from_micros(usec))
    }
}

#[cfg(windows)]
mod system {
    use super::Probe;
    use crate::service::scm;

    pub(super) fn is_heard() -> bool {
        scm::is_service()
    }

    /// It has no watchdog.
    pub(super) fn ready(_: &str, _: Vec<Probe>) {
        scm::running();
    }

    pub(super) fn status(_: &str) {}

    pub(super) fn stopping() {
        scm::stopping();
    }
}

/// Says that the program is alive, as often as `pause` lets it and for as long as its loops answer. Returns when no
/// loop is left.
#[cfg(unix)]
fn keep_alive(probes: &[Probe], mut alive: impl FnMut(), mut pause: impl FnMut()) {
    loop {
        let (answer, answers) = crossbeam_channel::bounded(probes.len());
        let asked = probes.iter().filter(|ask| ask(answer.clone())).count();
        drop(answer);
        // A loop that ends with the question in its inbox gives the place back instead of an answer.
        let answered = answers.iter().take(asked).count();
        if answered == 0 {
            return;
        }
        alive();
        pause();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::thread;
    use std::time::Duration;

    use crossbeam_channel::{Receiver, bounded, unbounded};

    use super::system::{send, watchdog};
    use super::*;
    use crate::scratch::Scratch;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A loop's inbox, and the way to ask it.
    fn inbox() -> (Probe, Receiver<Sender<()>>) {
        let (sender, receiver) = unbounded::<Sender<()>>();
        (
            Box::new(move |answer| sender.send(answer).is_ok()),
            receiver,
        )
    }

    #[test]
    fn messages_reach_paths_and_abstract_names() {
        let dir = Scratch::new();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        send(&path.clone().into_os_string(), b"READY=1\nSTATUS=well").unwrap();
        let mut room = [0; 64];
        let n = listener.recv(&mut room).unwrap();
        assert_eq!(&room[..n], b"READY=1\nSTATUS=well");
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let name = format!("minitcptunnel-test-{}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            let listener = UnixDatagram::bind_addr(&address).unwrap();
            send(&format!("@{name}").into(), b"STOPPING=1").unwrap();
            let n = listener.recv(&mut room).unwrap();
            assert_eq!(&room[..n], b"STOPPING=1");
        }
        send(&"vsock:2:1234".into(), b"READY=1").unwrap_err();
        send(&"".into(), b"READY=1").unwrap_err();
        drop(listener);
        send(&path.into_os_string(), b"READY=1").unwrap_err();
    }

    #[test]
    fn the_watchdog_is_for_this_process_or_for_nobody() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("8"), 7), None);
        assert_eq!(watchdog(Some("1000000"), Some(""), 7), None);
        assert_eq!(watchdog(Some("0"), None, 7), None);
        assert_eq!(watchdog(Some("soon"), None, 7), None);
        assert_eq!(watchdog(None, None, 7), None);
    }

    #[test]
    fn a_loop_that_hangs_is_heard_as_silence_until_it_goes_on() {
        let (ask_well, well) = inbox();
        let (ask_other, other) = inbox();
        let (alive, heard) = bounded(0);
        let (pause, go_on) = bounded(0);
        let thread = thread::spawn(move || {
            let probes = [ask_well, ask_other];
            keep_alive(
                &probes,
                || alive.send(()).unwrap(),
                || pause.send(()).unwrap(),
            );
        });
        let answer = |loop_: &Receiver<Sender<()>>| {
            loop_.recv_timeout(PATIENCE).unwrap().send(()).unwrap();
        };
        answer(&well);
        answer(&other);
        heard.recv_timeout(PATIENCE).unwrap();
        go_on.recv_timeout(PATIENCE).unwrap();
        // The one answers, the other has its question and hangs.
        answer(&well);
        let question = other.recv_timeout(PATIENCE).unwrap();
        heard.recv_timeout(Duration::from_millis(300)).unwrap_err();
        question.send(()).unwrap();
        heard.recv_timeout(PATIENCE).unwrap();
        go_on.recv_timeout(PATIENCE).unwrap();
        // One may end in order, and the other speaks for the program; without any, nobody does.
        answer(&well);
        drop(other.recv_timeout(PATIENCE).unwrap());
        drop(other);
        heard.recv_timeout(PATIENCE).unwrap();
        drop(well);
        go_on.recv_timeout(PATIENCE).unwrap();
        thread.join().unwrap();
        assert!(heard.recv().is_err(), "nothing more is said");
    }
}
