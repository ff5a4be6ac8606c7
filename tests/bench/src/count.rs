//! Instructions of the per-frame path, exactly: unlike time they do not depend on what else the machine does.
//!
//! ```text
//!  count ──> valgrind ─> bench loop STEP SIZE FEW  ─┐
//!        └─> valgrind ─> bench loop STEP SIZE MANY ─┴─> difference / (MANY - FEW): start-up cancels out
//! ```
//!
//! What the kernel does is not in it. valgrind has no AVX-512: the figures are those of the AVX2 code. They hold
//! for one compiler and one set of crates, which is why `counts.txt` names them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::Command;

use minitcptunnel_common::wire::DATA_PAYLOAD_MAX;

use crate::process::Folder;
use crate::report::grid;

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/counts.txt");
const LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
/// How often each step is run; the few are enough for buffers to grow.
const TIMES: [i64; 2] = [20, 120];
/// More than this is a growth, as a part of the baseline...
const TOLERANCE: f64 = 0.03;
/// ...and in instructions.
const SLACK: i64 = 50;
/// Whose versions the figures depend on.
const CRATES: [&str; 8] = [
    "chacha20",
    "chacha20poly1305",
    "curve25519-dalek",
    "ed25519-dalek",
    "lz4-sys",
    "orion",
    "poly1305",
    "sha2",
];

/// A figure: steps added up and taken away.
struct Figure {
    name: &'static str,
    sum: &'static [(i64, &'static str)],
    sizes: &'static [usize],
}

/// The largest is that of a full data frame.
const SIZES: [usize; 3] = [1024, 16 * 1024, DATA_PAYLOAD_MAX];

const FIGURES: [Figure; 6] = [
    Figure::of("seal", &[(1, "seal")], &SIZES),
    Figure::of("open", &[(1, "seal + open"), (-1, "seal")], &SIZES),
    Figure::of(
        "turn besides seal",
        &[(1, "turn out"), (-1, "seal")],
        &SIZES,
    ),
    Figure::of(
        "turn besides open",
        &[
            (1, "turn both"),
            (-1, "turn out"),
            (-1, "seal + open"),
            (1, "seal"),
        ],
        &SIZES,
    ),
    Figure::of("pack text", &[(1, "pack")], &SIZES),
    Figure::of("hellos", &[(1, "hello")], &[0]),
];

impl Figure {
    const fn of(
        name: &'static str,
        sum: &'static [(i64, &'static str)],
        sizes: &'static [usize],
    ) -> Self {
        Self { name, sum, sizes }
    }
}

pub(crate) fn run(save: bool) -> io::Result<()> {
    let folder = Folder::new()?;
    let saved = std::fs::read_to_string(BASELINE).unwrap_or_default();
    let circumstances = circumstances()?;
    for line in circumstances.lines() {
        if !saved.lines().any(|known| known == line) {
            eprintln!("bench: not as in the baseline: {line}");
        }
    }
    let baseline = figures(&saved);
    let mut counted = HashMap::new();
    let mut text = circumstances;
    let mut grown = 0;
    let mut lines = vec![
        [
            "step",
            "bytes",
            "instructions",
            "a byte",
            "baseline",
            "change",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for figure in &FIGURES {
        for &size in figure.sizes {
            let mut now = 0;
            for (sign, step) in figure.sum {
                let count = match counted.get(&(*step, size)) {
                    Some(count) => *count,
                    None => instructions(&folder, step, size)?,
                };
                counted.insert((*step, size), count);
                now += sign * count;
            }
            let key = format!("{} {size}", figure.name);
            let before = baseline.get(key.as_str()).copied();
            let change = before.map(|before| now as f64 / before as f64 - 1.0);
            grown += usize::from(before.is_some_and(|before| has_grown(before, now)));
            text += &format!("{key} = {now}\n");
            lines.push(vec![
                figure.name.to_owned(),
                size.to_string(),
                now.to_string(),
                if size > 0 {
                    format!("{:.2}", now as f64 / size as f64)
                } else {
                    "-".to_owned()
                },
                before.map_or("-".to_owned(), |before| before.to_string()),
                change.map_or("-".to_owned(), |change| format!("{:+.1} %", change * 100.0)),
            ]);
        }
    }
    println!("\nInstructions a frame, outside the kernel.\n");
    grid(&lines);
    if save {
        return std::fs::write(BASELINE, text);
    }
    match grown {
        0 => Ok(()),
        n => Err(io::Error::other(format!(
            "{n} figures have grown by more than {:.0} %; --save accepts them",
            TOLERANCE * 100.0
        ))),
    }
}

fn has_grown(before: i64, now: i64) -> bool {
    let more = now - before;
    more > SLACK && more as f64 > before as f64 * TOLERANCE
}

/// The `name size = count` lines of a baseline.
fn figures(text: &str) -> HashMap<&str, i64> {
    text.lines()
        .filter_map(|line| {
            let (name, count) = line.split_once(" = ")?;
            Some((name, count.parse().ok()?))
        })
        .collect()
}

/// What the figures depend on besides our own code, one line each.
fn circumstances() -> io::Result<String> {
    let mut text = "# Written by ./scripts/bench --count --save\n".to_owned();
    text += &said(Command::new("rustc").arg("--version"))?;
    text += &said(Command::new("valgrind").arg("--version"))?;
    // Whatever this CPU has above it, valgrind shows the program no more.
    #[cfg(target_arch = "x86_64")]
    let set = if std::arch::is_x86_feature_detected!("avx2") {
        "avx2"
    } else {
        "sse2"
    };
    #[cfg(not(target_arch = "x86_64"))]
    let set = std::env::consts::ARCH;
    text += &format!("instruction set {set}\n");
    let lock = std::fs::read_to_string(LOCK)?;
    for name in CRATES {
        let versions = lock.split("[[package]]").filter_map(|package| {
            let mut lines = package.lines().skip(1);
            (lines.next()? == format!("name = \"{name}\"")).then(|| lines.next())?
        });
        for version in versions {
            text += &format!("{name} {version}\n");
        }
    }
    Ok(text)
}

fn said(command: &mut Command) -> io::Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{} is needed: {e}", program.display())))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Instructions of one round of a step.
fn instructions(folder: &Folder, step: &str, size: usize) -> io::Result<i64> {
    eprintln!("bench: counting {step} {size}");
    let [few, many] = TIMES;
    let (less, more) = (
        collected(folder.path(), step, size, few)?,
        collected(folder.path(), step, size, many)?,
    );
    Ok((more - less) / (many - few))
}

/// Instructions of a whole run, by what callgrind says at its end.
fn collected(folder: &Path, step: &str, size: usize, times: i64) -> io::Result<i64> {
    let profile = folder.join("callgrind.out");
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["loop", step, &size.to_string(), &times.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    match (output.status.success(), collected) {
        (true, Some((_, count))) => count.trim().parse().map_err(io::Error::other),
        _ => Err(io::Error::other(format!("valgrind, {step} {size}: {said}"))),
    }
}
