//! See `checks::lz4`; and where our own reading and the reference decoder both take a container, they agree.
#![no_main]

use std::io::Read;

#[allow(dead_code)]
#[path = "../checks.rs"]
mod checks;

const LIMIT: usize = 1 << 20;

fn reference(container: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    lz4::Decoder::new(container)
        .ok()?
        .take(LIMIT as u64 + 1)
        .read_to_end(&mut message)
        .ok()?;
    (message.len() <= LIMIT).then_some(message)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    checks::lz4(data);
    if let Some(container) = data.get(1..)
        && let (Some(ours), Some(theirs)) = (checks::unpack(container, LIMIT), reference(container))
    {
        assert_eq!(ours, theirs, "the reference decoder reads something else");
    }
});
