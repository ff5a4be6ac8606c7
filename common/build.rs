//! Packs the explanations of the codes: 150 KB of text that is read once in a blue moon becomes 56 KB of the program.

use std::path::{Path, PathBuf};
use std::{env, fs};

use lz4::block::{CompressionMode, compress};

/// The strongest that LZ4 has; it costs the build some milliseconds.
const STRENGTH: CompressionMode = CompressionMode::HIGHCOMPRESSION(12);

fn main() {
    let into = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for lang in ["en", "ko", "fr"] {
        let from = Path::new("src/codes").join(lang).with_extension("txt");
        println!("cargo::rerun-if-changed={}", from.display());
        let text = fs::read(&from).expect("a text of the sources");
        // With its length in front, 4 bytes, little-endian.
        let packed = compress(&text, Some(STRENGTH), true).expect("LZ4 takes any text");
        fs::write(into.join(lang).with_extension("lz4"), packed).expect("room in OUT_DIR");
    }
}
