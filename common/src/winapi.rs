//! What std leaves out of Windows, each as one safe function. The only room with `unsafe`, which calls into Windows
//! cannot do without; crates that wrap these calls were looked at, and each does only one of them (winapi-util: the
//! number of a file; ctrlc: console events, but not which, and it cannot hold one up; windows-acl: unmaintained since 2021).
//!
//! | function | for |
//! | --- | --- |
//! | [`create_private`] | a file that nobody else could ever read, not even while it is empty |
//! | [`is_open_to_all`] | the warning about a key file that somebody else has made |
//! | [`file_id`] | whether a log file is still the one that is open |
//! | [`on_console_event`] | Ctrl+C, and that the system goes down |

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::windows::ffi::OsStrExt as _;
use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::OnceLock;

use windows_sys::Win32::Foundation::{
    ERROR_SUCCESS, GENERIC_ALL, GENERIC_READ, GENERIC_WRITE, INVALID_HANDLE_VALUE, LocalFree,
};
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, GetNamedSecurityInfoW, SDDL_REVISION_1,
    SE_FILE_OBJECT,
};
use windows_sys::Win32::Security::{
    ACCESS_ALLOWED_ACE, ACE_HEADER, ACL, DACL_SECURITY_INFORMATION, GetAce, INHERIT_ONLY_ACE,
    IsWellKnownSid, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, WELL_KNOWN_SID_TYPE,
    WinAnonymousSid, WinAuthenticatedUserSid, WinBuiltinGuestsSid, WinBuiltinUsersSid,
    WinInteractiveSid, WinNetworkSid, WinWorldSid,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, CREATE_NEW, CreateFileW, FILE_ATTRIBUTE_NORMAL, FILE_READ_DATA,
    FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, GetFileInformationByHandle,
};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT,
    SetConsoleCtrlHandler,
};

/// Everything (FA) to the owner of the file (OW), to the system (SY), which services run as, and to the
/// administrators (BA), who could take it anyway; nothing to anybody else, and nothing from the folder (P). As
/// OpenSSH wants it.
const OWNER_ONLY: &str = "D:P(A;;FA;;;OW)(A;;FA;;;SY)(A;;FA;;;BA)";

/// Groups that are as good as everybody.
const ALL: [WELL_KNOWN_SID_TYPE; 7] = [
    WinWorldSid,
    WinAuthenticatedUserSid,
    WinBuiltinUsersSid,
    WinBuiltinGuestsSid,
    WinInteractiveSid,
    WinNetworkSid,
    WinAnonymousSid,
];

/// With any of these a file can be read.
const READ: u32 = FILE_READ_DATA | GENERIC_READ | GENERIC_ALL;

/// A security descriptor that Windows has allocated.
struct Descriptor(PSECURITY_DESCRIPTOR);

impl Descriptor {
    fn parse(text: &str) -> io::Result<Self> {
        let text = terminated(text.encode_utf16())?;
        let mut descriptor = null_mut();
        // SAFETY: `text` ends with a zero and outlives the call; `descriptor` is a place for one pointer; the length
        // may be null.
        let done = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                null_mut(),
            )
        };
        if done == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(descriptor))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a call that says "free it with LocalFree", and nobody else has it.
        unsafe { LocalFree(self.0) };
    }
}

/// As Windows takes texts. A zero inside would cut the rest off.
fn terminated(text: impl Iterator<Item = u16>) -> io::Result<Vec<u16>> {
    let mut wide: Vec<u16> = text.collect();
    if wide.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    wide.push(0);
    Ok(wide)
}

/// A new file for writing that only its owner, the system and the administrators may open. It is made so: there is
/// no moment at which it has the rights of its folder. On a file system without access lists (FAT) everybody may
/// read everything; [`is_open_to_all`] says so when the key is read.
///
/// # Errors
/// `AlreadyExists`, and whatever else Windows says; then there is no file.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    create(path, OWNER_ONLY)
}

fn create(path: &Path, rule: &str) -> io::Result<File> {
    let path = terminated(path.as_os_str().encode_wide())?;
    let descriptor = Descriptor::parse(rule)?;
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: descriptor.0,
        bInheritHandle: 0,
    };
    // SAFETY: `path` ends with a zero; it, `attributes` and the descriptor in them outlive the call, which keeps none
    // of them; a template is not given.
    let handle = unsafe {
        CreateFileW(
            path.as_ptr(),
            GENERIC_WRITE,
            FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
            &raw const attributes,
            CREATE_NEW,
            FILE_ATTRIBUTE_NORMAL,
            null_mut(),
        )
    };
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: an open handle to a file, which nobody else has.
    Ok(unsafe { File::from_raw_handle(handle) })
}

/// Whether a group that is as good as everybody may read this file. Named users and groups are their owner's choice.
///
/// # Errors
/// If its access list cannot be asked for.
pub(crate) fn is_open_to_all(path: &Path) -> io::Result<bool> {
    let path = terminated(path.as_os_str().encode_wide())?;
    let (mut list, mut descriptor) = (null_mut::<ACL>(), null_mut());
    // SAFETY: `path` ends with a zero and outlives the call; the two places take a pointer each, the other three
    // things are not asked for.
    let error = unsafe {
        GetNamedSecurityInfoW(
            path.as_ptr(),
            SE_FILE_OBJECT,
            DACL_SECURITY_INFORMATION,
            null_mut(),
            null_mut(),
            &raw mut list,
            null_mut(),
            &raw mut descriptor,
        )
    };
    if error != ERROR_SUCCESS {
        return Err(io::Error::from_raw_os_error(error.cast_signed()));
    }
    // The list lies in it.
    let _descriptor = Descriptor(descriptor);
    if list.is_null() {
        // No list at all is no rule at all.
        return Ok(true);
    }
    // SAFETY: the call has succeeded, so this is the list in the descriptor, which is kept until the end.
    let count = unsafe { (*list).AceCount };
    for number in 0..u32::from(count) {
        let mut entry = null_mut();
        // SAFETY: `list` is valid as above, `number` is below its count, `entry` takes a pointer into it.
        if unsafe { GetAce(list, number, &raw mut entry) } == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: every entry begins with a header, and Windows has given us where this one is.
        let header = unsafe { entry.cast::<ACE_HEADER>().read_unaligned() };
        // ACCESS_ALLOWED_ACE_TYPE. The others are about denying, auditing and objects of a directory service.
        if header.AceType != 0 || u32::from(header.AceFlags) & INHERIT_ONLY_ACE != 0 {
            continue;
        }
        let allowed = entry.cast::<ACCESS_ALLOWED_ACE>();
        // SAFETY: the type says that it is one of these; entries are aligned to four bytes.
        let mask = unsafe { (&raw const (*allowed).Mask).read() };
        // The identity begins where this last field is, and is as long as it says itself.
        // SAFETY: only the address of a field of the entry is taken.
        let who = unsafe { (&raw mut (*allowed).SidStart).cast() };
        // SAFETY: `who` is a valid identity within the list.
        if mask & READ != 0
            && ALL
                .iter()
                .any(|all| unsafe { IsWellKnownSid(who, *all) } != 0)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The number of the file on its volume, which it keeps under every name. (The number of the volume is left out: who
/// asks twice about one path means one volume.)
///
/// # Errors
/// What Windows says.
pub(crate) fn file_id(file: &File) -> io::Result<u64> {
    // SAFETY: numbers only, of which zero is one.
    let mut about: BY_HANDLE_FILE_INFORMATION = unsafe { std::mem::zeroed() };
    // SAFETY: the handle is open as long as `file` is borrowed, and `about` is a place for the answer.
    if unsafe { GetFileInformationByHandle(file.as_raw_handle(), &raw mut about) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(about.nFileIndexHigh) << 32 | u64::from(about.nFileIndexLow))
}

/// What Windows tells a program through its console, and a service through one that nobody sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConsoleEvent {
    /// Ctrl+C; also how NSSM stops a service.
    CtrlC,
    /// Ctrl+Break.
    CtrlBreak,
    /// The window is closed. The process is ended when this is answered, or after 5 s.
    Close,
    /// Some user logs off.
    Logoff,
    /// The system goes down. The process is ended when this is answered, or after some 20 s.
    Shutdown,
}

impl ConsoleEvent {
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            CTRL_C_EVENT => Self::CtrlC,
            CTRL_BREAK_EVENT => Self::CtrlBreak,
            CTRL_CLOSE_EVENT => Self::Close,
            CTRL_LOGOFF_EVENT => Self::Logoff,
            CTRL_SHUTDOWN_EVENT => Self::Shutdown,
            _ => return None,
        })
    }
}

static ANSWER: OnceLock<fn(ConsoleEvent) -> bool> = OnceLock::new();

/// Runs in a thread that Windows makes for each event.
extern "system" fn on_event(number: u32) -> i32 {
    match (ConsoleEvent::of(number), ANSWER.get()) {
        (Some(event), Some(answer)) => answer(event).into(),
        _ => 0,
    }
}

/// Calls `answer` for every event from now on, each in a thread of its own. What it answers with `false` goes to who was
/// there before, at last to Windows itself. Only the first caller is heard.
///
/// # Errors
/// What Windows says.
pub(crate) fn on_console_event(answer: fn(ConsoleEvent) -> bool) -> io::Result<()> {
    let _ = ANSWER.set(answer);
    // Who starts us may have switched Ctrl+C off for its children, as a new process group does.
    // SAFETY: null is allowed, and means just that: Ctrl+C is heard again.
    unsafe { SetConsoleCtrlHandler(None, 0) };
    // SAFETY: the function has the signature that is asked for, is there as long as the program, and touches nothing
    // but a static that was set before.
    if unsafe { SetConsoleCtrlHandler(Some(on_event), 1) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_private_file_is_open_to_nobody_else_from_its_first_moment() {
        let folder = Scratch::new();
        let path = folder.path().join("key");
        let mut file = create_private(&path).unwrap();
        assert!(!is_open_to_all(&path).unwrap(), "while it is empty");
        file.write_all(b"secret").unwrap();
        drop(file);
        assert!(!is_open_to_all(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"secret", "we may read it");
        let again = create_private(&path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let other = folder.path().join("other");
        drop(create(&other, "D:P(A;;FA;;;OW)(A;;FR;;;WD)").unwrap());
        assert!(is_open_to_all(&other).unwrap(), "who may is seen");
    }

    #[test]
    fn the_rule_for_private_files_is_one_that_windows_reads() {
        assert!(Descriptor::parse(OWNER_ONLY).is_ok());
        assert!(Descriptor::parse("D:P(A;;FA;;;nobody)").is_err());
    }

    #[test]
    fn a_file_keeps_its_number_and_its_successor_has_another() {
        let folder = Scratch::new();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let open = File::create(&one).unwrap();
        let id = file_id(&open).unwrap();
        fs::rename(&one, &two).unwrap();
        assert_eq!(file_id(&open).unwrap(), id);
        assert_eq!(file_id(&File::open(&two).unwrap()).unwrap(), id);
        let next = OpenOptions::new().write(true).create_new(true).open(&one);
        assert_ne!(file_id(&next.unwrap()).unwrap(), id);
    }

    #[test]
    fn a_path_with_a_zero_in_it_is_refused() {
        let e = create_private(Path::new("a\0b")).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
    }
}
