//! Of what is said about the way to the server. Here belongs: how much is said, on a clock moved by hand.

use super::*;
use crate::forward::plan::{Bounds, Plan};

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How many lines these were, and how many events they told of.
#[derive(Default, Debug, PartialEq, Eq)]
struct Told {
    lines: u64,
    events: u64,
}

impl Told {
    fn hear(&mut self, say: Say) {
        let more = match say {
            Say::Nothing => return,
            Say::Line => 0,
            Say::LineAfter(more) => more.count,
        };
        self.lines += 1;
        self.events += 1 + more;
    }
}

/// As the loop does it, with a connection to keep ready and a name that nobody knows.
#[test]
fn a_day_without_the_server_is_some_thirty_lines() {
    let start = Instant::now();
    let end = start + s(86_400);
    let mut plan = Plan::<(), ()>::new(Bounds {
        keep: 1,
        patience: s(30),
        pauses: (s(1), s(30)),
    });
    let (mut news, mut told, mut now) = (News::default(), Told::default(), start);
    while now < end {
        for _ in 0..plan.dial(now) {
            plan.failed(now, 0).expect("each begins a pause");
            told.hear(news.failed("no such name", now));
        }
        now = plan.due().expect("it is tried on");
        assert_eq!(news.deadline(), None, "nothing to wake up for");
    }
    let tries = news.outage.as_ref().expect("it lasts").failures;
    assert!(tries > 86_400 / 30, "{tries}");
    assert!((24..=32).contains(&told.lines), "{told:?}");
    // All tries but those of the last hour.
    assert!(told.events + 240 > tries, "{told:?} of {tries}");
}

#[test]
fn another_reason_is_news_and_the_first_is_not_again() {
    let start = Instant::now();
    let mut news = News::default();
    assert_eq!(news.failed("no such name", start), Say::Line);
    assert_eq!(news.failed("no such name", start + s(1)), Say::Nothing);
    assert_eq!(news.failed("nobody listens", start + s(2)), Say::Line);
    assert_eq!(news.why(), Some("nobody listens"));
    assert_eq!(news.failed("no such name", start + s(3)), Say::Nothing);
}

#[test]
fn what_works_is_told_once_when_it_has_for_a_while() {
    let start = Instant::now();
    let at = |seconds| start + s(seconds);
    let mut news = News::default();
    // Where nothing failed there is nothing to tell.
    news.connected(start);
    assert_eq!((news.deadline(), news.tick(at(60))), (None, None));
    let _ = news.failed("nobody listens", at(100));
    let _ = news.failed("nobody listens", at(101));
    let _ = news.turned_away(at(102));
    news.connected(at(130));
    assert_eq!(news.why(), None, "it works by now");
    // More connections make it no longer.
    news.connected(at(135));
    assert_eq!(news.deadline(), Some(at(140)));
    assert_eq!(news.tick(at(139)), None);
    let over = Over {
        within: s(1),
        failures: 2,
        turned_away: 1,
    };
    assert_eq!(news.tick(at(140)), Some(over));
    assert_eq!((news.deadline(), news.tick(at(141))), (None, None));
    // And now it is news again, for both.
    assert_eq!(news.failed("nobody listens", at(142)), Say::Line);
    assert_eq!(news.turned_away(at(143)), Say::Line);
}

/// With TLS 1.3 every handshake is done before the refusal comes.
#[test]
fn a_server_that_takes_connections_and_refuses_them_is_told_once() {
    let start = Instant::now();
    let (mut news, mut told) = (News::default(), Told::default());
    for n in 0..100 {
        let now = start + s(30 * n);
        news.connected(now);
        assert_eq!(news.tick(now), None);
        told.hear(news.failed("refused", now + Duration::from_millis(20)));
    }
    // 50 minutes: at once, and after 1, 3, 7, 15 and 31.
    assert_eq!(told.lines, 6);
    assert_eq!(news.tick(start + s(9_000)), None);
}

/// A visitor may go while the first attempt still hangs.
#[test]
fn an_outage_is_counted_from_the_first_attempt_that_failed() {
    let start = Instant::now();
    let mut news = News::default();
    assert_eq!(news.turned_away(start), Say::Line);
    let _ = news.failed("no answer", start + s(30));
    let _ = news.failed("no answer", start + s(37));
    news.connected(start + s(40));
    let over = Over {
        within: s(7),
        failures: 2,
        turned_away: 1,
    };
    assert_eq!(news.tick(start + s(50)), Some(over));
}

#[test]
fn the_first_who_is_turned_away_is_told_and_the_others_are_counted() {
    let start = Instant::now();
    let (mut news, mut told) = (News::default(), Told::default());
    // The server has been away for long: that is no reason to say nothing.
    let _ = news.failed("no such name", start);
    let first = start + s(5_000);
    told.hear(news.turned_away(first));
    assert_eq!(
        told,
        Told {
            lines: 1,
            events: 1
        }
    );
    // Then somebody every second, for a day.
    (1..=86_400).for_each(|n| told.hear(news.turned_away(first + s(n))));
    assert!((24..=32).contains(&told.lines), "{told:?}");
    news.connected(first + s(90_000));
    let over = news.tick(first + s(90_010)).expect("it works");
    assert_eq!(over.turned_away, 86_401, "all of them, at the end");
}
