//! The committed fuzz corpus, replayed without any instrumentation: what fuzzing once reached stays reached, and what
//! it once broke stays mended. `scripts/fuzz` looks for more.

use std::fs;
use std::path::Path;

#[path = "fuzz/checks.rs"]
mod checks;

/// Runs every input of a target's corpus; the number guards against a folder that has gone empty.
#[expect(
    clippy::print_stdout,
    reason = "a panic does not name the input; the harness shows this with it"
)]
fn replay(target: &str, at_least: usize, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut seen = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        let path = entry.expect("a readable folder").path();
        let input = fs::read(&path).expect("a readable input");
        println!("{}", path.display());
        check(&input);
        seen += 1;
    }
    assert!(seen >= at_least, "{seen} inputs in {}", folder.display());
}

#[test]
fn hello() {
    replay("hello", 10, checks::hello);
}

#[test]
fn frame() {
    replay("frame", 10, checks::frame);
}

#[test]
fn messages() {
    replay("messages", 10, checks::messages);
}

#[test]
fn lz4() {
    replay("lz4", 10, checks::lz4);
}

#[test]
fn config() {
    replay("config", 10, checks::config);
}

#[test]
fn certificate() {
    replay("certificate", 10, checks::certificate);
}
