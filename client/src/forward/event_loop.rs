//! The loop of the forward job: listeners, local connections that wait, connections that are ready.
//!
//! ```text
//!  listener ─ accept ─ permit ─> plan ─┬─> pair (to the pool)
//!  inbox: Dialled ───────────────^     └─ ready: watched here, a look at whatever comes
//!  deadlines: what the plan waits for, a look at the files, at silent pairs, a listener that cools down
//! ```
//!
//! Nothing here blocks: dials run on workers.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use minitcptunnel_common::backoff::random;
use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::tls::{self, Established};
use minitcptunnel_common::codes::Code;
use minitcptunnel_common::duplex;
use minitcptunnel_common::evloop::{Deadlines, Inbox, Slots};
use minitcptunnel_common::metrics::Refusal;
use minitcptunnel_common::pki::{Problem, UnixTime};
use minitcptunnel_common::pool::{Watch, idle_look};
use minitcptunnel_common::relay::{Ended, Side, Why};
use minitcptunnel_common::resources;
use mio::{Events, Interest, Poll, Token};

use super::dial::{Dial, bow_out};
use super::listening::{Away, Kind, Listening, Local, Ready};
use super::plan::Next;

pub(super) const INBOX: Token = Token(0);
/// First token of everything that comes and goes.
const FIRST_FREE: usize = 1;
const EVENTS: usize = 256;
/// Performance: connections accepted in one go before other work gets its turn.
const ACCEPT_BATCH: usize = 128;
/// Longest an accept error keeps a listener from accepting.
const COOL_DOWN: Duration = Duration::from_millis(500);
/// How often certificates and keys are looked at; what is new must look the same twice.
const LOOK: Duration = Duration::from_secs(2);

/// For problems that last.
pub(super) const LASTS: &str = "; this does not pass by itself";

/// What other threads say to the loop.
pub(super) enum Event {
    /// A dial for this listener has come to its end.
    Dialled(Token, Box<Result<Established, Problem>>),
    /// The server has refused us when the connection from this address was a pair already.
    Refused(Token, SocketAddr, Problem),
    /// Answer this, to show that the loop turns.
    Alive(Sender<()>),
    /// Stop accepting and leave.
    Stop,
}

/// Every wait has a name.
enum Timer {
    /// The plan of this listener has something to do.
    Plan(Token),
    /// Its files are worth a look.
    Files(Token),
    /// Its pairs may have been silent for too long.
    Idle(Token),
    /// It may accept again.
    CoolDown(Token),
}

pub(super) enum Entry {
    Listening(Box<Listening>),
    /// A ready connection of this listener, and its number in the plan.
    Ready(Token, u64),
}

/// The loop's state.
pub(super) struct EventLoop {
    pub(super) poll: Poll,
    inbox: Receiver<Event>,
    mailbox: Inbox<Event>,
    pub(super) slots: Slots<Entry>,
    /// Those of the listeners.
    listeners: Vec<Token>,
    deadlines: Deadlines<Timer>,
    /// Listeners that still had visitors when their share of a turn was used up.
    more: BTreeSet<Token>,
    pub(super) now: Instant,
    stopping: bool,
}

impl EventLoop {
    pub(super) fn new(
        poll: Poll,
        inbox: Receiver<Event>,
        mailbox: Inbox<Event>,
        listening: Vec<Listening>,
    ) -> io::Result<Self> {
        let mut this = Self {
            poll,
            inbox,
            mailbox,
            slots: Slots::new(FIRST_FREE),
            listeners: Vec::new(),
            deadlines: Deadlines::default(),
            more: BTreeSet::new(),
            now: Instant::now(),
            stopping: false,
        };
        for mut one in listening {
            let token = this.slots.next_token();
            let registry = this.poll.registry();
            registry.register(&mut one.listener, token, Interest::READABLE)?;
            if let Some(idle) = one.server.timeouts.idle {
                this.deadlines
                    .add(this.now + idle_look(idle), Timer::Idle(token));
            }
            for end in one.certificates.ends(UnixTime::now()) {
                let (name, code) = (&one.server.name, Code::CERT_ENDS);
                log::warn!("forward {name}: {end} code={code}");
            }
            this.deadlines.add(this.now + LOOK, Timer::Files(token));
            this.slots.insert(Entry::Listening(Box::new(one)));
            this.listeners.push(token);
            this.go_on(token);
        }
        Ok(this)
    }

    /// Runs until told to stop. An error means that the poller itself is broken.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.stopping {
            self.now = Instant::now();
            let wait = if self.more.is_empty() {
                self.wait()
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, wait) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            self.now = Instant::now();
            let mut ready = std::mem::take(&mut self.more);
            ready.extend(events.iter().map(mio::event::Event::token));
            for token in ready {
                match self.slots.entry(token) {
                    Some(Entry::Listening(_)) => self.accept(token),
                    Some(Entry::Ready(listener, number)) => {
                        let (listener, number) = (*listener, *number);
                        self.look(listener, number);
                    }
                    None => {}
                }
            }
            while let Ok(event) = self.inbox.try_recv() {
                match event {
                    Event::Dialled(token, result) => self.dialled(token, *result),
                    Event::Refused(token, address, problem) => {
                        self.refused(token, address, &problem);
                    }
                    // Who does not wait for the answer any more does not need it.
                    Event::Alive(answer) => drop(answer.try_send(())),
                    Event::Stop => self.stopping = true,
                }
            }
            while let Some(timer) = self.deadlines.pop(self.now) {
                self.due(&timer);
            }
            self.say_what_was_kept();
        }
        // Whoever still waits is told by a reset that this was no end.
        for token in self.listeners.clone() {
            if let Some(listening) = self.listening(token) {
                let (waiting, ready) = listening.plan.end();
                waiting
                    .iter()
                    .for_each(|local| duplex::reset(&local.stream));
                ready.into_iter().for_each(|one| bow_out(one.established));
            }
        }
        Ok(())
    }

    pub(super) fn listening(&mut self, token: Token) -> Option<&mut Listening> {
        match self.slots.entry(token) {
            Some(Entry::Listening(listening)) => Some(listening),
            _ => None,
        }
    }

    fn wait(&mut self) -> Option<Duration> {
        let slots = &mut self.slots;
        let quiet = (self.listeners.iter()).filter_map(|token| match slots.entry(*token) {
            Some(Entry::Listening(listening)) => listening.deadline(),
            _ => None,
        });
        let quiet = quiet.min().map(|at| at.saturating_duration_since(self.now));
        [self.deadlines.wait(self.now), quiet]
            .into_iter()
            .flatten()
            .min()
    }

    fn accept(&mut self, token: Token) {
        let now = self.now;
        for _ in 0..ACCEPT_BATCH {
            let Some(listening) = self.listening(token).filter(|one| !one.cooling) else {
                return;
            };
            match listening.listener.accept() {
                Ok((stream, address)) => self.came(token, stream, address),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return self.go_on(token),
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    // Without descriptors or memory accepting goes on failing: the listener rests for a moment.
                    listening.cooling = true;
                    if resources::is_out_of_descriptors(&e) {
                        listening.say(Kind::Descriptors, now, format_args!(
                            "out of file descriptors; new connections wait. Raise the limit (ulimit -n, LimitNOFILE)"
                        ));
                    } else {
                        listening.say(
                            Kind::Accept,
                            now,
                            format_args!("cannot accept a connection: {e}"),
                        );
                    }
                    self.deadlines.add(now + COOL_DOWN, Timer::CoolDown(token));
                    return self.go_on(token);
                }
            }
        }
        self.more.insert(token);
        self.go_on(token);
    }

    fn came(&mut self, token: Token, stream: mio::net::TcpStream, address: SocketAddr) {
        let now = self.now;
        let Some(listening) = self.listening(token) else {
            return;
        };
        // Until it is a pair, whatever ends it is a cut.
        duplex::reset(&stream);
        let Some(place) = listening.places.take() else {
            listening.server.metrics.refusals.add(Refusal::Pairs);
            let limit = listening.places.limit();
            return listening.say(
                Kind::Room,
                now,
                format_args!(
                    "refused the connection from {address}: {limit} are carried or wait already (limits.connections)"
                ),
            );
        };
        let permit = match listening.server.pool.admit() {
            Ok(permit) => permit,
            Err(e) => {
                listening.server.metrics.refusals.add(e.refusal());
                return listening.say(
                    Kind::Room,
                    now,
                    format_args!("refused the connection from {address}: {e}"),
                );
            }
        };
        let local = Local {
            stream,
            address,
            permit,
            place,
        };
        self.drop_what_is_gone(token);
        let Some(listening) = self.listening(token) else {
            return;
        };
        if let Next::Serve(local, ready) = listening.plan.came(local, now) {
            self.serve(token, local, ready);
        }
    }

    /// What would be taken next may have ended a moment ago, and its event be still to come.
    fn drop_what_is_gone(&mut self, token: Token) {
        while let Some(listening) = self.listening(token)
            && let Some((number, ready)) = listening.plan.newest()
            && ready.established.look().is_err()
        {
            self.lose(token, number);
        }
    }

    /// A ready connection is taken out of the poller, and the two become a pair.
    fn serve(&mut self, token: Token, local: Local, mut ready: Ready) {
        ready.watch.deregister(self.poll.registry());
        self.slots.remove(ready.token);
        self.join(token, local, ready.established);
    }

    pub(super) fn join(&mut self, token: Token, local: Local, established: Established) {
        let (now, mailbox) = (self.now, self.mailbox.clone());
        let Some(listening) = self.listening(token) else {
            return;
        };
        let server = listening.server.clone();
        let Local {
            stream,
            address,
            permit,
            place,
        } = local;
        let socket = established.socket().clone();
        let external = match server.set_up(stream.into(), &socket) {
            Ok(external) => external,
            Err(e) => {
                return listening.say(
                    Kind::Accept,
                    now,
                    format_args!("the connection from {address} is of no use: {e}"),
                );
            }
        };
        let ledger = Ledger {
            budget: server.pool.budget().clone(),
            traffic: server.metrics.traffic.clone(),
        };
        let (name, metrics) = (server.name.clone(), server.metrics.clone());
        let peer = server.peer_of(&established);
        let on_end = move |ended: Ended| {
            drop(place);
            let active = metrics.traffic.snapshot().live;
            log::info!("connection ended forward={name} from={address} {ended} active={active}");
            // With TLS 1.3 a client's handshake is done before the server has looked at its certificate.
            if let Why::Failed(Side::Service, io::ErrorKind::PermissionDenied, what) = ended.why {
                let problem = Problem {
                    text: format!("{peer}: {what}"),
                    lasts: true,
                    code: Code::TLS_REFUSED,
                };
                mailbox.send(Event::Refused(token, address, problem));
            }
        };
        log::debug!("forward={} connection from {address}", server.name);
        let joined = server.pool.start(
            permit,
            server.owner,
            external,
            tls::duplex(established, socket, &ledger),
            server.metrics.traffic.clone(),
            on_end,
        );
        if let Err(e) = joined {
            server.metrics.refusals.add(Refusal::Resources);
            listening.say(
                Kind::Room,
                now,
                format_args!("refused the connection from {address}: {e}"),
            );
        }
    }

    /// Does what the plan says, and waits for what it waits for.
    pub(super) fn go_on(&mut self, token: Token) {
        let (now, mailbox) = (self.now, self.mailbox.clone());
        let Some(listening) = self.listening(token) else {
            return;
        };
        for local in listening.plan.expired(now) {
            listening.server.metrics.refusals.add(Refusal::Unreachable);
            listening.turned_away(local.address, Away::Waited, now);
        }
        for _ in 0..listening.plan.dial(now) {
            let server = listening.server.clone();
            let dial = Dial::new(mailbox.clone(), token);
            // Dropped unrun where there is no thread: it says so itself.
            let _ = server.clone().pool.task(move || dial.run(&server));
        }
        let (due, set) = (listening.plan.due(), listening.due);
        if due != set.map(|(at, _)| at) {
            if let Some((_, key)) = set {
                self.deadlines.cancel(key);
            }
            let set = due.map(|at| (at, self.deadlines.add(at, Timer::Plan(token))));
            if let Some(listening) = self.listening(token) {
                listening.due = set;
            }
        }
    }

    fn dialled(&mut self, token: Token, result: Result<Established, Problem>) {
        let now = self.now;
        let next = self.slots.next_token();
        let Some(listening) = self.listening(token) else {
            return;
        };
        match result {
            Err(problem) => {
                let pause = listening.plan.failed(now, random());
                let mut outlook = String::new();
                let mut given_up = Vec::new();
                if problem.lasts {
                    // Waiting would not help: an application is better told at once.
                    given_up = listening.plan.give_up();
                    outlook += LASTS;
                }
                if let Some(pause) = pause
                    && listening.plan.is_wanting()
                {
                    let (pause, waiting) = (pause.as_secs_f64(), listening.plan.waiting());
                    outlook +=
                        &format!("; next try in {pause:.1} s, connections that wait={waiting}");
                }
                // Each of those that were under way at once: one of them may know more than the others.
                listening.failed(&problem, &outlook, now);
                for local in given_up {
                    listening.server.metrics.refusals.add(Refusal::Unreachable);
                    listening.turned_away(local.address, Away::AtOnce(problem.code), now);
                }
            }
            Ok(established) => {
                listening.connected(now);
                let watch = Watch::new(established.socket().clone());
                match watch {
                    Ok(watch) => {
                        let ready = Ready {
                            established,
                            token: next,
                            watch,
                        };
                        self.connected(token, ready);
                    }
                    Err(e) => {
                        listening.plan.failed(now, random());
                        let problem = Problem {
                            text: e.to_string(),
                            lasts: false,
                            code: Code::CANNOT_ACCEPT,
                        };
                        listening.failed(&problem, "", now);
                    }
                }
            }
        }
        self.go_on(token);
    }

    fn refused(&mut self, token: Token, address: SocketAddr, problem: &Problem) {
        let now = self.now;
        if let Some(listening) = self.listening(token) {
            listening.failed(problem, LASTS, now);
            listening.turned_away(address, Away::AtOnce(problem.code), now);
        }
    }

    fn due(&mut self, timer: &Timer) {
        match *timer {
            Timer::Plan(token) => {
                if let Some(listening) = self.listening(token) {
                    listening.due = None;
                }
                self.go_on(token);
            }
            Timer::CoolDown(token) => {
                if let Some(listening) = self.listening(token) {
                    listening.cooling = false;
                }
                self.accept(token);
            }
            Timer::Files(token) => self.files_due(token),
            Timer::Idle(token) => self.idle_due(token),
        }
    }

    /// Follows the files, and warns before certificates end.
    fn files_due(&mut self, token: Token) {
        let due = self.now + LOOK;
        let Some(listening) = self.listening(token) else {
            return;
        };
        let news = listening.certificates.look(UnixTime::now());
        for (level, line) in news.lines {
            log::log!(level, "forward {}: {line}", listening.server.name);
        }
        if news.changed {
            // What is ready was made with the old ones.
            for mut ready in listening.plan.retire() {
                ready.watch.deregister(self.poll.registry());
                self.slots.remove(ready.token);
                bow_out(ready.established);
            }
            self.go_on(token);
        }
        self.deadlines.add(due, Timer::Files(token));
    }

    fn idle_due(&mut self, token: Token) {
        let now = self.now;
        let Some(listening) = self.listening(token) else {
            return;
        };
        let server = listening.server.clone();
        let Some(idle) = server.timeouts.idle else {
            return;
        };
        let cut = server.pool.abort_idle(server.owner, idle, now);
        if cut > 0 {
            log::info!(
                "forward {}: cut connections={cut} after {} s of silence (timeouts.idle)",
                server.name,
                idle.as_secs_f64()
            );
        }
        self.deadlines
            .add(now + idle_look(idle), Timer::Idle(token));
    }

    fn say_what_was_kept(&mut self) {
        let now = self.now;
        for n in 0..self.listeners.len() {
            if let Some(listening) = self.listening(self.listeners[n]) {
                listening.say_what_was_kept(now);
            }
        }
    }
}
