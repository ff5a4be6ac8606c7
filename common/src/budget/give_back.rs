//! Handing freed memory back to the system.
//!
//! glibc keeps what was freed: below the top of an arena for ever. Ten thousand connections that have
//! gone leave tens of megabytes, unless it is asked to give whole free pages back. Other C libraries
//! and systems do that by themselves.

/// Gives back what the allocator holds and nobody uses. Takes some microseconds for each megabyte; not for
/// a path that is walked often.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::trim();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    // The one function of the C library that std and rustix have no safe name for.
    #![allow(unsafe_code)]

    use std::ffi::c_int;

    // SAFETY: the declaration is that of <malloc.h>, `int malloc_trim(size_t pad)`. The function takes no
    // pointer, touches only memory that is free in the allocator's own books, takes the allocator's
    // locks itself and may be called by any thread at any time (malloc_trim(3): MT-Safe): nothing that a
    // safe caller can do breaks it.
    unsafe extern "C" {
        safe fn malloc_trim(pad: usize) -> c_int;
    }

    pub(super) fn trim() {
        // It returns whether anything was given back, which changes nothing for us.
        let _ = malloc_trim(0);
    }
}
