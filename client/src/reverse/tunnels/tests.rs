use super::*;

const TIMING: Timing = Timing {
    answer: Duration::from_secs(15),
    retry_min: Duration::from_secs(1),
    retry_max: Duration::from_secs(30),
};

fn tunnel(id: &str, remote_port: u16, auto_start: bool) -> Tunnel {
    Tunnel {
        id: id.into(),
        remote_port,
        local_host: "127.0.0.1".parse().unwrap(),
        local_port: 80,
        auto_start,
        compression: CompressionSetting::Off,
    }
}

fn id(text: &str) -> TunnelId {
    TunnelId::new(text).unwrap()
}

/// Two that start by themselves, one that does not; and a clock.
struct World {
    manager: TunnelManager,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let tunnels = [
            tunnel("web", 8080, true),
            tunnel("ssh", 2222, true),
            tunnel("off", 9999, false),
        ];
        Self {
            manager: TunnelManager::new(&tunnels, TIMING),
            now: Instant::now(),
        }
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    fn state(&self, name: &str) -> TunnelState {
        let mut states = self.manager.states();
        states
            .find(|(target, _)| target.id == id(name))
            .unwrap()
            .1
            .clone()
    }

    /// What opening messages ask for.
    fn begin(&mut self) -> Vec<String> {
        names(&self.manager.begin(self.now))
    }

    fn status(&mut self, name: &str, status: Status, reason: &str, port: u32) -> Option<Change> {
        self.manager
            .status(&id(name), &status, reason, port, self.now, u64::MAX)
    }

    fn tick(&mut self) -> (Vec<String>, Vec<Change>) {
        let mut out = Vec::new();
        let changes = self.manager.tick(self.now, || u64::MAX, &mut out);
        (names(&out), changes)
    }
}

fn names(messages: &[Message]) -> Vec<String> {
    messages
        .iter()
        .map(|message| match message {
            Message::OpenTunnel { port, tunnel, .. } => format!("open {tunnel} {port}"),
            Message::CloseTunnel { tunnel } => format!("close {tunnel}"),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_session_asks_for_what_is_wanted_and_the_next_one_again() {
    let mut w = World::new();
    assert_eq!(w.state("web"), TunnelState::Wanted);
    assert_eq!(w.state("off"), TunnelState::Closed);
    assert_eq!(w.begin(), ["open web 8080", "open ssh 2222"]);
    assert_eq!(w.state("web"), TunnelState::Opening);
    let opened = w.status("web", Status::Open, "", 8080);
    assert_eq!(
        opened,
        Some(Change::Opened {
            tunnel: id("web"),
            port: 8080
        })
    );
    assert_eq!(w.state("web"), TunnelState::Open { port: 8080 });
    assert_eq!(w.status("web", Status::Open, "", 8080), None, "no news");
    w.manager.lost();
    assert_eq!(w.state("web"), TunnelState::Wanted);
    assert_eq!(w.state("off"), TunnelState::Closed);
    assert_eq!(w.begin(), ["open web 8080", "open ssh 2222"]);
}

#[test]
fn the_port_is_the_servers_or_else_the_wanted_one() {
    for (said, shown) in [(4711, 4711), (0, 8080), (70_000, 8080)] {
        let mut w = World::new();
        w.begin();
        w.status("web", Status::Open, "", said);
        assert_eq!(w.state("web"), TunnelState::Open { port: shown });
    }
}

#[test]
fn a_refused_tunnel_is_asked_for_again_with_growing_waits() {
    let mut w = World::new();
    w.begin();
    w.status("ssh", Status::Open, "", 2222);
    let mut waits = Vec::new();
    for round in 0..7 {
        let Some(Change::Refused {
            reason,
            retry_in,
            repeated,
            ..
        }) = w.status("web", Status::Error, "in use", 0)
        else {
            panic!("not refused in round {round}")
        };
        assert_eq!(reason, "in use");
        assert_eq!(repeated, round > 0, "only the first one is news");
        waits.push(retry_in.as_secs());
        assert_eq!(w.manager.due(), Some(w.now + retry_in));
        w.pass(retry_in.as_secs_f64() - 0.001);
        assert_eq!(w.tick().0, [""; 0], "too early");
        w.pass(0.001);
        assert_eq!(w.tick().0, ["open web 8080"]);
    }
    assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30]);
    assert!(w.status("web", Status::Open, "", 8080).is_some());
    assert_eq!(w.manager.due(), None);
    // The waits begin anew, and the reason is news again.
    let Some(Change::Refused {
        retry_in, repeated, ..
    }) = w.status("web", Status::Error, "in use", 0)
    else {
        panic!("a tunnel that was open can fail")
    };
    assert_eq!((retry_in.as_secs(), repeated), (2, false));
}

#[test]
fn a_server_that_does_not_answer_is_asked_again() {
    let mut w = World::new();
    w.begin();
    w.status("ssh", Status::Open, "", 2222);
    assert_eq!(w.manager.due(), Some(w.now + TIMING.answer));
    w.pass(14.9);
    assert_eq!(w.tick(), (vec![], vec![]));
    w.pass(0.1);
    let (sent, changes) = w.tick();
    assert_eq!(sent, [""; 0]);
    assert!(
        matches!(&changes[..], [Change::Refused { reason, .. }] if reason == "no answer within 15 s")
    );
    w.pass(2.0);
    assert_eq!(w.tick().0, ["open web 8080"]);
    // The late answer to the first question is as good as one to the second.
    assert!(w.status("web", Status::Open, "", 8080).is_some());
}

#[test]
fn opening_and_closing_at_run_time() {
    let mut w = World::new();
    assert_eq!(w.manager.open(&id("off"), w.now), Ok(None), "no session");
    assert_eq!(w.state("off"), TunnelState::Wanted);
    assert_eq!(w.manager.close(&id("off")), Ok(None));
    w.begin();
    let message = w.manager.open(&id("off"), w.now).unwrap();
    assert_eq!(names(message.as_slice()), ["open off 9999"]);
    assert_eq!(w.manager.open(&id("off"), w.now), Ok(None), "asked already");
    w.status("off", Status::Open, "", 9999);
    let message = w.manager.close(&id("off")).unwrap();
    assert_eq!(names(message.as_slice()), ["close off"]);
    assert_eq!(w.manager.close(&id("off")), Ok(None), "closed already");
    assert_eq!(w.status("off", Status::Stopped, "", 0), None);
    assert_eq!(w.state("off"), TunnelState::Closed);
    let nobody = id("nobody");
    assert_eq!(
        w.manager.open(&nobody, w.now),
        Err(NoSuchTunnel(nobody.clone()))
    );
    assert_eq!(w.manager.close(&nobody), Err(NoSuchTunnel(nobody.clone())));
    assert_eq!(w.status("nobody", Status::Open, "", 1), None);
}

#[test]
fn an_answer_to_a_close_is_not_taken_for_one_to_the_next_open() {
    let mut w = World::new();
    w.begin();
    w.status("web", Status::Open, "", 8080);
    w.manager.close(&id("web")).unwrap().unwrap();
    w.manager.open(&id("web"), w.now).unwrap().unwrap();
    assert_eq!(w.status("web", Status::Stopped, "", 0), None);
    assert_eq!(w.state("web"), TunnelState::Opening);
    assert!(w.status("web", Status::Open, "", 8080).is_some());
    // With nothing outstanding, Stopped is news.
    assert!(matches!(
        w.status("web", Status::Stopped, "", 0),
        Some(Change::Refused { .. })
    ));
}

#[test]
fn a_close_withdraws_a_refused_tunnel_and_a_late_open() {
    let mut w = World::new();
    w.begin();
    w.status("web", Status::Error, "", 0);
    assert_eq!(w.manager.close(&id("web")), Ok(None), "nothing to close");
    w.pass(100.0);
    assert!(!w.tick().0.contains(&"open web 8080".to_owned()));
    assert_eq!(
        names(w.manager.close(&id("ssh")).unwrap().as_slice()),
        [""; 0],
        "refused for want of an answer by now"
    );
    assert_eq!(w.status("ssh", Status::Open, "", 2222), None);
    assert_eq!(w.state("ssh"), TunnelState::Closed);
}

#[test]
fn only_enabled_tunnels_have_a_target() {
    let mut w = World::new();
    assert!(w.manager.enabled().target(&id("web")).is_some());
    assert!(w.manager.enabled().target(&id("off")).is_none());
    assert!(w.manager.enabled().target(&id("nobody")).is_none());
    w.manager.open(&id("off"), w.now).unwrap();
    assert!(w.manager.enabled().target(&id("off")).is_some());
    w.manager.close(&id("web")).unwrap();
    assert!(w.manager.enabled().target(&id("web")).is_none());
}

#[test]
fn unknown_status_texts_change_nothing() {
    let mut w = World::new();
    w.begin();
    assert_eq!(w.status("web", Status::Other("Odd".into()), "", 0), None);
    assert_eq!(w.state("web"), TunnelState::Opening);
}
