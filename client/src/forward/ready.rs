//! Connections that are kept ready for whoever may come: put into the poller, looked at when something comes, lost.
//!
//! ```text
//!  dialled ─> connected ─┬─ something comes ─> look ─┬─ tickets, a greeting: kept
//!                        │                           └─ an end or an error ──────> lost, and another is dialled
//!                        └─ a local connection comes ─> the plan hands it out
//! ```

use minitcptunnel_common::backoff::random;
use mio::Token;

use super::dial::{bow_out, in_words_of};
use super::event_loop::{Entry, EventLoop, LASTS};
use super::listening::Ready;
use super::plan::Next;

impl EventLoop {
    pub(super) fn connected(&mut self, token: Token, ready: Ready) {
        let Some(listening) = self.listening(token) else {
            return;
        };
        match listening.plan.connected(ready) {
            Next::Serve(local, ready) => self.join(token, local, ready.established),
            Next::Kept(number) => {
                self.slots.insert(Entry::Ready(token, number));
                let registry = match self.poll.registry().try_clone() {
                    Ok(registry) => registry,
                    Err(_) => return self.lose(token, number),
                };
                let Some(listening) = self.listening(token) else {
                    return;
                };
                let registered = (listening.plan.ready(number))
                    .is_some_and(|ready| ready.watch.register(&registry, ready.token).is_ok());
                if !registered {
                    self.lose(token, number);
                }
            }
        }
    }

    /// Something has come on a ready connection: tickets, the service's greeting, or its end.
    pub(super) fn look(&mut self, listener: Token, number: u64) {
        let Some(listening) = self.listening(listener) else {
            return;
        };
        let server = listening.server.clone();
        let Some(ready) = listening.plan.ready(number) else {
            return;
        };
        let looked = ready.established.look();
        match looked {
            Ok(true) if cfg!(windows) => self.watch_again(listener, number),
            Ok(_) => {}
            Err(e) => {
                let (mut problem, peer) = (in_words_of(&e), server.peer_of(&ready.established));
                if problem.lasts {
                    let now = self.now;
                    if let Some(listening) = self.listening(listener) {
                        problem.text = format!("{peer}: {}", problem.text);
                        listening.failed(&problem, LASTS, now);
                    }
                }
                self.lose(listener, number);
                self.go_on(listener);
            }
        }
    }

    /// For the poller that tells once.
    fn watch_again(&mut self, listener: Token, number: u64) {
        let registry = self.poll.registry().try_clone();
        let ready = self
            .listening(listener)
            .and_then(|listening| listening.plan.ready(number));
        let (Ok(registry), Some(ready)) = (registry, ready) else {
            return self.lose(listener, number);
        };
        if ready.watch.again(&registry, ready.token).is_err() {
            self.lose(listener, number);
        }
    }

    pub(super) fn lose(&mut self, listener: Token, number: u64) {
        let now = self.now;
        let Some(listening) = self.listening(listener) else {
            return;
        };
        if let Some(mut ready) = listening.plan.lost(number, now, random()) {
            log::debug!(
                "forward {}: a ready connection is gone",
                listening.server.name
            );
            ready.watch.deregister(self.poll.registry());
            self.slots.remove(ready.token);
            bow_out(ready.established);
        }
    }
}
