//! Build script of both programs: what the profile `small` needs of the linker. Cargo's profiles cannot say it.

#![allow(
    clippy::print_stdout,
    reason = "a build script talks to cargo on stdout"
)]

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=../common/small.ld");
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE-HASH/out; no variable tells a profile's own name.
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let small = out
        .ancestors()
        .nth(3)
        .and_then(Path::file_name)
        .is_some_and(|name| name == "small");
    if small && env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        let script = Path::new("../common/small.ld")
            .canonicalize()
            .expect("common/small.ld is there");
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        // Relocations take an eighth of their room; the libc must be glibc 2.36 or newer, as the linker then says in
        // the program. A linker that does not know it warns and goes on.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
    }
}
