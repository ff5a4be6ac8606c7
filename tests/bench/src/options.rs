//! The command line.

use std::path::PathBuf;
use std::time::Duration;

pub(crate) const HELP: &str = "\
Measures MiniTCPTunnel beside the direct path and its peers, on loopback.

  scripts/bench [OPTIONS]          the table of the reverse tunnel
  scripts/bench --forward [OPTIONS] the same for the forward tunnel over mutual TLS, beside what is used for that
  scripts/bench --ladder [OPTIONS] our own layers instead: AEAD, + frame, + socket, + relay, whole tunnel
  scripts/bench --ciphers [OPTIONS] of these only the AEAD and + frame, beside orion's
  scripts/bench --count [--save]   instructions of the per-frame path, held against tests/bench/counts.txt (needs valgrind)

  --quick           under two minutes: short windows, two rounds, 1,000 held connections (--forward: 500)
  --full            also 9,500 held connections
  --rounds N        how many interleaved rounds (2 with --quick, otherwise 5)
  --seconds S       how long each bulk transfer is measured (0.5 with --quick, otherwise 1.5)
  --only NAME,...   only these: direct, ours, rathole, rathole-noise, rathole-tls, bore, ssh, wstunnel;
                    with --forward: direct, ours, ours-ready, stunnel, haproxy, nginx, ghostunnel, ssh, wstunnel
  --no-held         leave the held connections out
  --json FILE       everything measured, as JSON
  --bin-dir DIR     where our programs are (scripts/bench sets it)

Peers are taken from $MTT_PEERS_BIN (a folder) and PATH; what is not there is left out. To install them:
  cargo install rathole bore-cli --root DIR      then MTT_PEERS_BIN=DIR/bin
  apt-get install openssh-server                 for ssh -R and -L
  apt-get install stunnel4 haproxy nginx-light libnginx-mod-stream     for --forward
  wstunnel is not in these registries: take it from its own releases
";

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The forward tunnel and its peers, instead of the reverse tunnel and its.
    pub(crate) forward: bool,
    pub(crate) rounds: usize,
    /// Measured part of a bulk transfer, and the longest that a latency measurement may take.
    pub(crate) window: Duration,
    /// Part of a bulk transfer before that.
    pub(crate) warm_up: Duration,
    /// Samples of each latency.
    pub(crate) pings: usize,
    pub(crate) connections: usize,
    /// How many connections are held open.
    pub(crate) held: Vec<usize>,
    pub(crate) only: Vec<String>,
    /// Of the ladder only what has no socket.
    pub(crate) ciphers: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) bin_dir: PathBuf,
    /// When something must have gone wrong.
    pub(crate) limit: Duration,
}

pub(crate) enum Command {
    Help,
    Run(Options),
    Ladder(Options),
    /// Whether to make what is counted the new baseline.
    Count(bool),
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
        let (mut quick, mut full, mut ladder, mut held) = (false, false, false, true);
        let (mut ciphers, mut count, mut save, mut forward) = (false, false, false, false);
        let (mut rounds, mut seconds, mut json, mut bin_dir) = (None, None, None, None);
        let mut only = Vec::new();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "-h" | "--help" => return Ok(Command::Help),
                "--quick" => quick = true,
                "--full" => full = true,
                "--forward" => forward = true,
                "--ladder" => ladder = true,
                "--ciphers" => (ladder, ciphers) = (true, true),
                "--count" => count = true,
                "--save" => save = true,
                "--no-held" => held = false,
                "--rounds" => rounds = Some(number(&value()?, 1.0, 1000.0)? as usize),
                "--seconds" => seconds = Some(number(&value()?, 0.05, 60.0)?),
                "--json" => json = Some(PathBuf::from(value()?)),
                "--bin-dir" => bin_dir = Some(PathBuf::from(value()?)),
                "--only" => only.extend(value()?.split(',').map(str::to_owned)),
                other => return Err(format!("unknown option '{other}'")),
            }
        }
        if count {
            return Ok(Command::Count(save));
        }
        let rounds = rounds.unwrap_or(if quick { 2 } else { 5 });
        let seconds = seconds.unwrap_or(if quick { 0.5 } else { 1.5 });
        let mut levels = match (held, quick, forward) {
            (false, ..) => vec![],
            (true, true, false) => vec![1000],
            (true, false, false) => vec![1000, 5000],
            // A thread and a quarter of a MiB for each are a lot, and some of these peers do that.
            (true, true, true) => vec![500],
            (true, false, true) => vec![500, 1000],
        };
        if full && held && !forward {
            levels.push(9500);
        }
        let options = Self {
            forward,
            rounds,
            window: Duration::from_secs_f64(seconds),
            warm_up: Duration::from_millis(if quick { 150 } else { 300 }),
            pings: if quick { 1000 } else { 5000 },
            connections: if quick { 200 } else { 1000 },
            held: levels,
            only,
            ciphers,
            json,
            bin_dir: bin_dir
                .or_else(|| Some(std::env::current_exe().ok()?.parent()?.to_owned()))
                .unwrap_or_default(),
            // At most ten targets, with room for slow machines.
            limit: Duration::from_secs_f64(300.0 + rounds as f64 * 10.0 * 12.0 * (seconds + 1.0)),
        };
        Ok(if ladder {
            Command::Ladder(options)
        } else {
            Command::Run(options)
        })
    }
}

fn number(text: &str, min: f64, max: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("'{text}' is not a number from {min} to {max}")),
    }
}
