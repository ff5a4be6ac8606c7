use super::*;
use crate::scratch::Scratch;
use std::cell::Cell;

/// How the world ends at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// The call fails and the program goes on: it must tidy up.
    Error,
    /// The power fails: nothing after this step happens, not even tidying up.
    PowerCut,
}

/// A real disk on which one step goes wrong; a failing write leaves half of the bytes behind.
struct BadDisk {
    step: Step,
    ending: Ending,
    dead: Cell<bool>,
}

impl BadDisk {
    fn new(step: Step, ending: Ending) -> Self {
        Self {
            step,
            ending,
            dead: Cell::new(false),
        }
    }

    fn at(&self, step: Step) -> io::Result<()> {
        if self.step == step || self.dead.get() {
            self.dead.set(self.ending == Ending::PowerCut);
            return Err(io::Error::other("injected"));
        }
        Ok(())
    }
}

impl Disk for BadDisk {
    fn create(&self, temp: &Path, access: Access) -> io::Result<File> {
        self.at(Step::Create)?;
        RealDisk.create(temp, access)
    }
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        if let Err(e) = self.at(Step::Write) {
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(e);
        }
        RealDisk.write(file, bytes)
    }
    fn sync(&self, file: &File) -> io::Result<()> {
        self.at(Step::Sync)?;
        RealDisk.sync(file)
    }
    fn rename(&self, temp: &Path, path: &Path) -> io::Result<()> {
        self.at(Step::Publish)?;
        RealDisk.rename(temp, path)
    }
    fn link(&self, temp: &Path, path: &Path) -> io::Result<()> {
        self.at(Step::Publish)?;
        RealDisk.link(temp, path)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.at(Step::SyncFolder)?;
        RealDisk.sync_folder(folder)
    }
    fn remove(&self, temp: &Path) {
        if !self.dead.get() {
            RealDisk.remove(temp);
        }
    }
}

const OLD: &[u8] = b"the old text, every byte of it";
const NEW: &[u8] = b"the new text, longer than the old one was";
const STEPS: [Step; 5] = [
    Step::Create,
    Step::Write,
    Step::Sync,
    Step::Publish,
    Step::SyncFolder,
];

#[test]
fn a_failing_replace_leaves_the_old_file_whole() {
    let mut seen = 0;
    for ending in [Ending::Error, Ending::PowerCut] {
        for step in STEPS {
            let dir = Scratch::new();
            let path = dir.path().join("config.json");
            fs::write(&path, OLD).unwrap();
            let error = write_with(
                &BadDisk::new(step, ending),
                &path,
                NEW,
                Access::Private,
                Publish::Replace,
            )
            .expect_err("the step must fail");
            assert_eq!(error.step, step);
            let expected = if step == Step::SyncFolder { NEW } else { OLD };
            assert_eq!(fs::read(&path).unwrap(), expected, "{step:?} {ending:?}");
            let litter = dir.names().len() - 1;
            let crash_litter = ending == Ending::PowerCut
                && matches!(step, Step::Write | Step::Sync | Step::Publish);
            assert_eq!(
                litter,
                usize::from(crash_litter),
                "{step:?} {ending:?}: {:?}",
                dir.names()
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn a_failing_create_leaves_no_file_or_a_whole_one() {
    for ending in [Ending::Error, Ending::PowerCut] {
        for step in STEPS {
            let dir = Scratch::new();
            let path = dir.path().join("key.hex");
            let error = write_with(
                &BadDisk::new(step, ending),
                &path,
                NEW,
                Access::Private,
                Publish::Exclusive,
            )
            .expect_err("the step must fail");
            assert_eq!(error.step, step);
            if step == Step::SyncFolder {
                assert_eq!(fs::read(&path).unwrap(), NEW);
            } else {
                assert!(!path.exists(), "{step:?} {ending:?}");
            }
            if ending == Ending::Error {
                assert_eq!(
                    dir.names().len(),
                    usize::from(step == Step::SyncFolder),
                    "{step:?}"
                );
            }
            // Litter of a crash never stands in the way of the next attempt.
            match create_exclusive(&path, NEW, Access::Private) {
                Ok(()) => assert_ne!(step, Step::SyncFolder),
                Err(e) => assert!(e.already_exists() && step == Step::SyncFolder, "{e}"),
            }
            assert_eq!(fs::read(&path).unwrap(), NEW);
        }
    }
}

#[test]
fn an_existing_file_is_never_replaced_by_create_exclusive() {
    let dir = Scratch::new();
    let path = dir.path().join("key.hex");
    create_exclusive(&path, OLD, Access::Private).unwrap();
    let error = create_exclusive(&path, NEW, Access::Private).unwrap_err();
    assert!(error.already_exists());
    assert_eq!(
        error.to_string(),
        format!("{} exists already and is left as it is", path.display())
    );
    assert_eq!(fs::read(&path).unwrap(), OLD);
    assert_eq!(dir.names(), ["key.hex"]);
}

#[test]
fn without_hard_links_the_name_is_checked_before_it_is_taken() {
    struct NoLinks;
    impl Disk for NoLinks {
        fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let dir = Scratch::new();
    let path = dir.path().join("key.hex");
    write_with(&NoLinks, &path, OLD, Access::Private, Publish::Exclusive).unwrap();
    let error = write_with(&NoLinks, &path, NEW, Access::Private, Publish::Exclusive).unwrap_err();
    assert!(error.already_exists());
    assert_eq!(fs::read(&path).unwrap(), OLD);
    assert_eq!(dir.names(), ["key.hex"]);
}

#[test]
fn of_many_creators_one_wins_and_nobody_sees_half_a_file() {
    let dir = Scratch::new();
    let path = dir.path().join("key.hex");
    let wins: usize = std::thread::scope(|scope| {
        let creators: Vec<_> = (0u8..8)
            .map(|n| {
                let path = &path;
                scope.spawn(move || {
                    let won = create_exclusive(path, &[n; 4096], Access::Private).is_ok();
                    let seen = fs::read(path).unwrap();
                    assert_eq!(seen.len(), 4096);
                    assert!(seen.iter().all(|&b| b == seen[0]));
                    usize::from(won)
                })
            })
            .collect();
        creators.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert_eq!(wins, 1);
    assert_eq!(dir.names(), ["key.hex"]);
}

#[cfg(unix)]
#[test]
fn private_files_are_for_their_owner_alone_and_links_stay_links() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Scratch::new();
    let (path, link) = (dir.path().join("real.json"), dir.path().join("link.json"));
    fs::write(&path, OLD).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    replace(&link, NEW, Access::Private).unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::read(&path).unwrap(), NEW);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_missing_folder_is_named_as_the_cause() {
    let dir = Scratch::new();
    let path = dir.path().join("no/such/key.hex");
    let error = create_exclusive(&path, NEW, Access::Private).unwrap_err();
    assert_eq!(error.step, Step::Create);
    assert_eq!(
        error.to_string(),
        format!(
            "cannot write {}: no file can be created in its folder (the folder does not exist; create it first)",
            path.display()
        )
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_only_place_is_named_as_the_cause() {
    // /proc takes no new files from anybody, root included.
    let error = replace(Path::new("/proc/no-such-key.hex"), NEW, Access::Private).unwrap_err();
    assert_eq!(error.step, Step::Create);
}

#[test]
fn read_small_has_bounds() {
    let dir = Scratch::new();
    let path = dir.path().join("file");
    fs::write(&path, [7; 100]).unwrap();
    assert_eq!(read_small(&path, 100).unwrap().len(), 100);
    assert!(matches!(
        read_small(&path, 99),
        Err(ReadError::TooBig { max: 99, .. })
    ));
    assert!(matches!(
        read_small(dir.path(), 99),
        Err(ReadError::NotAFile(_))
    ));
    assert!(matches!(
        read_small(&dir.path().join("none"), 9),
        Err(ReadError::NotFound(_))
    ));
    #[cfg(unix)]
    assert!(matches!(
        read_small(Path::new("/dev/zero"), 99),
        Err(ReadError::NotAFile(_))
    ));
}
