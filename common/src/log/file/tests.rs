use std::sync::{Arc, Mutex};
use std::thread;

use super::super::line::Style;
use super::super::queue::{self, Destination, Limits, Neighbour, Output, Queue};
use super::*;
use crate::scratch::Scratch;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Far more than any step takes; only a fault waits so long.
const AMPLE: Duration = Duration::from_secs(60);

/// A clock that stands still until it is moved.
#[derive(Clone)]
struct Hand(Arc<Mutex<SystemTime>>);

impl Hand {
    /// Monday, 2026-01-05, 12:00 UTC.
    fn at_noon() -> Self {
        Self(Arc::new(Mutex::new(
            UNIX_EPOCH + Duration::from_secs(1_767_614_400),
        )))
    }

    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }

    fn forward(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }

    fn back(&self, time: Duration) {
        *self.0.lock().unwrap() -= time;
    }

    fn file(&self, path: &Path, rotation: Rotation) -> LogFile {
        let clock = self.clone();
        LogFile::with_clock(path.to_owned(), rotation, Box::new(move || clock.now()))
    }
}

const NEVER: Rotation = Rotation {
    max_size: None,
    interval: None,
    keep: 3,
};

fn by_size(max_size: u64, keep: u32) -> Rotation {
    Rotation {
        max_size: Some(max_size),
        interval: None,
        keep,
    }
}

fn every(interval: Duration) -> Rotation {
    Rotation {
        max_size: None,
        interval: Some(interval),
        keep: 9,
    }
}

fn put(file: &mut LogFile, line: &str) {
    let line = format!("{line}\n");
    assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

fn queued(file: LogFile, elsewhere: Option<Neighbour>) -> (Queue, thread::JoinHandle<()>) {
    let (queue, outlet) = queue::queue(Limits::default());
    let output = Output {
        to: Destination::File(file),
        style: Style::Text { colour: false },
        elsewhere,
    };
    (queue, outlet.start(output).unwrap())
}

fn flush(queue: &Queue) {
    assert!(queue.flush(std::time::Instant::now() + AMPLE));
}

/// The queue that stdout would have, and what comes out of it.
fn overheard() -> (Queue, Arc<Mutex<Vec<u8>>>) {
    struct Ear(Arc<Mutex<Vec<u8>>>);
    impl Write for Ear {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let output = Output {
        to: Destination::Stdout(Box::new(Ear(Arc::clone(&heard)))),
        style: Style::Text { colour: false },
        elsewhere: None,
    };
    let (queue, outlet) = queue::queue(Limits::default());
    outlet.start(output).unwrap();
    (queue, heard)
}

/// What our own reports say, without the time.
fn reports(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| line.split_once("Z WARN  log: ").map_or(line, |(_, it)| it))
        .collect()
}

#[test]
fn four_threads_and_hundreds_of_rotations_split_and_lose_nothing() {
    const LINES: usize = 1500;
    const MOST: u64 = 500;
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    let (queue, thread) = queued(LogFile::new(path.clone(), by_size(MOST, 1000)), None);
    thread::scope(|scope| {
        for writer in 0..4 {
            let queue = queue.clone();
            scope.spawn(move || {
                for number in 0..LINES {
                    let fill = "x".repeat(number % 40);
                    queue.offer(format!("{writer} {number} {fill}\n"));
                }
            });
        }
    });
    drop(queue);
    thread.join().unwrap();

    let files = dir.names().len() as u32;
    assert!(files > 200, "{files}");
    let mut next = [0; 4];
    for number in (0..files).rev() {
        let text = match number {
            0 => text(&path),
            number => text(numbered(&path, number)),
        };
        assert!(text.len() as u64 <= MOST && text.ends_with('\n'), "{text}");
        for line in text.lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let (writer, number): (usize, usize) =
                (parts[0].parse().unwrap(), parts[1].parse().unwrap());
            assert_eq!(number, next[writer], "{line}");
            assert_eq!(parts[2].len(), number % 40, "{line}");
            next[writer] += 1;
        }
    }
    assert_eq!(next, [LINES; 4]);
}

#[test]
fn so_many_old_files_are_kept() {
    for keep in [0, 1, 3] {
        let dir = Scratch::new();
        let path = dir.path().join("a.log");
        let mut file = Hand::at_noon().file(&path, by_size(5, keep));
        for number in 0..6 {
            put(&mut file, &format!("{number}234"));
        }
        assert_eq!(text(&path), "5234\n");
        let mut names = vec!["a.log".to_owned()];
        for old in 1..=keep {
            names.push(format!("a.log.{old}"));
            assert_eq!(text(numbered(&path, old)), format!("{}234\n", 5 - old));
        }
        assert_eq!(dir.names(), names);
    }
}

#[test]
fn a_line_longer_than_a_file_has_one_to_itself() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    let mut file = Hand::at_noon().file(&path, by_size(8, 9));
    for line in ["longer than eight bytes", "a", "b", "longer again"] {
        put(&mut file, line);
    }
    assert_eq!(text(&path), "longer again\n");
    assert_eq!(text(numbered(&path, 1)), "a\nb\n");
    assert_eq!(text(numbered(&path, 2)), "longer than eight bytes\n");
    assert_eq!(dir.names().len(), 3);
}

/// As when the disk takes half of it and the rest later.
#[test]
fn the_rest_of_a_line_goes_where_it_began() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    let mut file = Hand::at_noon().file(&path, by_size(5, 3));
    assert_eq!(file.write(b"half").unwrap(), 4);
    put(&mut file, " and half");
    assert_eq!(text(&path), "half and half\n");
    put(&mut file, "new");
    assert_eq!(text(&path), "new\n");
    assert_eq!(text(numbered(&path, 1)), "half and half\n");
}

#[test]
fn a_gap_among_the_old_files_is_filled_before_one_is_lost() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    for number in [1, 3] {
        fs::write(numbered(&path, number), format!("old {number}\n")).unwrap();
    }
    let mut file = Hand::at_noon().file(&path, by_size(3, 3));
    put(&mut file, "aa");
    put(&mut file, "bb");
    assert_eq!(text(numbered(&path, 1)), "aa\n");
    assert_eq!(text(numbered(&path, 2)), "old 1\n");
    assert_eq!(text(numbered(&path, 3)), "old 3\n");
}

#[test]
fn a_new_day_begins_a_new_file_with_its_first_line() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    let clock = Hand::at_noon();
    let mut file = clock.file(&path, every(DAY));
    put(&mut file, "monday, noon");
    clock.forward(12 * HOUR - Duration::from_millis(1));
    put(&mut file, "monday, last millisecond");
    assert_eq!(dir.names(), ["a.log"]);
    clock.forward(Duration::from_millis(1));
    // Nothing happens before there is something to say.
    assert_eq!(dir.names(), ["a.log"]);
    put(&mut file, "tuesday");
    assert_eq!(text(&path), "tuesday\n");
    assert_eq!(
        text(numbered(&path, 1)),
        "monday, noon\nmonday, last millisecond\n"
    );
    // A clock that is put back is no new day, nor is the same day again.
    clock.back(HOUR);
    put(&mut file, "monday, it says");
    assert_eq!(dir.names().len(), 2);
    // Days without a line leave no files.
    clock.forward(5 * DAY);
    put(&mut file, "saturday");
    assert_eq!(dir.names().len(), 3);
}

#[test]
fn hours_and_weeks_begin_where_people_expect_it() {
    let cases = [
        // From Monday noon: still in it, no longer in it.
        (HOUR, HOUR - Duration::from_millis(1), HOUR),
        (
            7 * DAY,
            7 * DAY - 12 * HOUR - Duration::from_millis(1),
            7 * DAY - 12 * HOUR,
        ),
    ];
    for (interval, inside, outside) in cases {
        let noon = Hand::at_noon().now();
        assert_eq!(stretch(noon, interval), stretch(noon + inside, interval));
        assert_ne!(stretch(noon, interval), stretch(noon + outside, interval));
    }
    // Sunday before.
    let noon = Hand::at_noon().now();
    assert_ne!(
        stretch(noon, 7 * DAY),
        stretch(noon - 12 * HOUR - Duration::from_millis(1), 7 * DAY)
    );
}

#[test]
fn what_a_program_of_yesterday_left_is_put_away_by_that_of_today() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    let clock = Hand::at_noon();
    for (age, files) in [(HOUR, 1), (DAY, 2)] {
        fs::write(&path, "left\n").unwrap();
        let left = OpenOptions::new().append(true).open(&path).unwrap();
        left.set_modified(clock.now() - age).unwrap();
        put(&mut clock.file(&path, every(DAY)), "today");
        assert_eq!(dir.names().len(), files, "{age:?}");
    }
    assert_eq!(text(&path), "today\n");
}

#[test]
fn a_moved_file_is_let_go_of_within_a_second() {
    let dir = Scratch::new();
    let (path, moved) = (dir.path().join("a.log"), dir.path().join("moved"));
    let clock = Hand::at_noon();
    let mut file = clock.file(&path, NEVER);
    put(&mut file, "one");
    clock.forward(LOOK);
    put(&mut file, "two");
    fs::rename(&path, &moved).unwrap();
    put(&mut file, "within the second");
    clock.forward(LOOK);
    put(&mut file, "after it");
    assert_eq!(text(&moved), "one\ntwo\nwithin the second\n");
    assert_eq!(text(&path), "after it\n");
    // The same when another file has the name already, as with logrotate's `create`.
    fs::rename(&path, &moved).unwrap();
    fs::write(&path, "").unwrap();
    clock.forward(LOOK);
    put(&mut file, "into the new one");
    assert_eq!(text(&path), "into the new one\n");
    // And when the folder is gone with it, which Windows does not let happen while a file in it is open.
    if cfg!(windows) {
        return;
    }
    fs::remove_file(&path).unwrap();
    let inner = dir.path().join("logs").join("inner.log");
    let mut file = clock.file(&inner, NEVER);
    put(&mut file, "a folder was made");
    fs::remove_dir_all(dir.path().join("logs")).unwrap();
    clock.forward(LOOK);
    put(&mut file, "and made again");
    assert_eq!(text(&inner), "and made again\n");
}

#[test]
fn reopening_divides_the_lines_exactly() {
    let dir = Scratch::new();
    let (path, moved) = (dir.path().join("a.log"), dir.path().join("moved"));
    // The clock stands still: nothing is noticed by itself.
    let (queue, _thread) = queued(Hand::at_noon().file(&path, NEVER), None);
    queue.offer("before\n".to_owned());
    flush(&queue);
    fs::rename(&path, &moved).unwrap();
    queue.offer("still before\n".to_owned());
    queue.reopen();
    flush(&queue);
    // There already, for whoever set its owner and waits for it.
    assert_eq!(text(&path), "");
    queue.offer("after\n".to_owned());
    flush(&queue);
    assert_eq!(text(&moved), "before\nstill before\n");
    assert_eq!(text(&path), "after\n");
}

#[test]
fn a_file_cut_short_by_others_is_measured_anew() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    let clock = Hand::at_noon();
    let mut file = clock.file(&path, by_size(10, 3));
    put(&mut file, "12345678");
    // As logrotate's `copytruncate`.
    fs::write(&path, "").unwrap();
    clock.forward(LOOK);
    put(&mut file, "abcdefgh");
    assert_eq!(dir.names(), ["a.log"]);
    assert_eq!(text(&path), "abcdefgh\n");
}

#[test]
fn a_line_that_was_torn_by_a_crash_is_ended() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    for (left, expected) in [("torn", "torn\nnew\n"), ("whole\n", "whole\nnew\n")] {
        fs::write(&path, left).unwrap();
        put(&mut Hand::at_noon().file(&path, NEVER), "new");
        assert_eq!(text(&path), expected);
    }
}

#[test]
fn a_rotation_that_fails_costs_no_line_and_is_tried_again() {
    let dir = Scratch::new();
    let path = dir.path().join("a.log");
    let clock = Hand::at_noon();
    let mut file = clock.file(&path, by_size(4, 1));
    // In the way of the rename.
    let obstacle = numbered(&path, 1);
    fs::create_dir_all(obstacle.join("full")).unwrap();
    for line in ["aaa", "bbb", "ccc"] {
        put(&mut file, line);
    }
    assert_eq!(text(&path), "aaa\nbbb\nccc\n");
    fs::remove_dir_all(&obstacle).unwrap();
    put(&mut file, "ddd");
    assert_eq!(text(&path), "aaa\nbbb\nccc\nddd\n", "not at every line");
    clock.forward(ROTATE_AGAIN);
    put(&mut file, "eee");
    assert_eq!(text(&obstacle), "aaa\nbbb\nccc\nddd\n");
    assert_eq!(text(&path), "eee\n");
}

#[test]
fn a_folder_that_cannot_be_made_costs_counted_lines_and_is_told_once() {
    let dir = Scratch::new();
    let folder = dir.path().join("logs");
    let path = folder.join("a.log");
    fs::write(&folder, "in the way").unwrap();
    let (elsewhere, heard) = overheard();
    let (queue, _thread) = queued(
        LogFile::new(path.clone(), NEVER),
        Some(elsewhere.neighbour()),
    );
    for line in ["a\n", "b\n", "c\n"] {
        queue.offer(line.to_owned());
    }
    flush(&queue);
    fs::remove_file(&folder).unwrap();
    queue.offer("d\n".to_owned());
    flush(&queue);
    flush(&elsewhere);
    let written = text(&path);
    let lines = reports(&written);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with(&format!("log lines lost here: 3 ({} could", path.display())),
        "{lines:?}"
    );
    assert_eq!(lines[1], "d");
    let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
    let heard = reports(&heard);
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].contains("a.log cannot be written: "), "{heard:?}");
    assert!(heard[1].ends_with("a.log is written again; lines missing in it: 3"));
}

/// stdout and the file as a program has them, by what becomes of each: what the file has in the end about stdout, and
/// that no line of its own is missing.
#[test]
fn a_stdout_that_is_gone_is_told_in_the_file_once() {
    /// A pipe: its reader is there, or has gone.
    struct Pipe(bool);
    impl Write for Pipe {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if self.0 {
                Ok(text.len())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for (read, disk, told) in [
        (true, true, 0),
        (false, true, 1),
        (true, false, 0),
        // Both fail: it is told as soon as the file can be written.
        (false, false, 1),
    ] {
        let dir = Scratch::new();
        let folder = dir.path().join("logs");
        let path = folder.join("a.log");
        if !disk {
            fs::write(&folder, "in the way").unwrap();
        }
        let (stdout, to_stdout) = queue::queue(Limits::default());
        let (file, to_file) = queue::queue(Limits::default());
        let style = Style::Text { colour: true };
        to_stdout
            .start(Output {
                to: Destination::Stdout(Box::new(Pipe(read))),
                style,
                elsewhere: Some(file.neighbour()),
            })
            .unwrap();
        to_file
            .start(Output {
                to: Destination::File(LogFile::new(path.clone(), NEVER)),
                style: style.plain(),
                elsewhere: Some(stdout.neighbour()),
            })
            .unwrap();
        let flush_all = || [&file, &stdout, &file].map(flush);
        for number in 0..100 {
            for queue in [&file, &stdout] {
                queue.offer(format!("line {number}\n"));
            }
        }
        flush_all();
        if !disk {
            fs::remove_file(&folder).unwrap();
        }
        for queue in [&file, &stdout] {
            queue.offer("last\n".to_owned());
        }
        flush_all();
        let written = text(&path);
        let news: Vec<&str> = reports(&written)
            .into_iter()
            .filter(|line| line.contains("stdout"))
            .collect();
        assert_eq!(news.len(), told, "{read} {disk}: {written}");
        for news in news {
            assert!(
                news.starts_with("stdout cannot be written: ") && news.ends_with(" code=E1308"),
                "no colour: {news:?}"
            );
        }
        let own = written.lines().filter(|line| line.starts_with("l")).count();
        assert_eq!(own, if disk { 101 } else { 1 }, "{written}");
    }
}

/// What only Unix has.
#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_costs_counted_lines_and_nothing_else() {
        let dir = Scratch::new();
        let (path, real) = (dir.path().join("a.log"), dir.path().join("real"));
        symlink("/dev/full", &path).unwrap();
        let clock = Hand::at_noon();
        let (elsewhere, heard) = overheard();
        let (queue, _thread) = queued(
            clock.file(&path, by_size(1, 3)),
            Some(elsewhere.neighbour()),
        );
        for line in ["a\n", "b\n", "c\n"] {
            queue.offer(line.to_owned());
        }
        flush(&queue);
        fs::remove_file(&path).unwrap();
        symlink(&real, &path).unwrap();
        clock.forward(LOOK);
        queue.offer("d\n".to_owned());
        flush(&queue);
        flush(&elsewhere);
        let said = format!(
            "{} could not be written: No space left on device (os error 28)",
            path.display()
        );
        let old = text(numbered(&path, 1));
        assert_eq!(
            reports(&old),
            [format!("log lines lost here: 3 ({said}) code=E1304")]
        );
        assert_eq!(text(&path), "d\n");
        let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
        assert_eq!(
            reports(&heard),
            [
                format!(
                    "the log file {} cannot be written: No space left on device (os error 28); \
                     until it can be, lines are here alone code=E1302",
                    path.display()
                ),
                format!(
                    "the log file {} is written again; lines missing in it: 3",
                    path.display()
                )
            ]
        );
    }

    #[test]
    fn a_device_is_never_put_away_however_much_it_took() {
        let dir = Scratch::new();
        let path = dir.path().join("a.log");
        symlink("/dev/null", &path).unwrap();
        let mut file = Hand::at_noon().file(&path, by_size(1, 3));
        for line in ["a", "b", "c"] {
            put(&mut file, line);
        }
        assert_eq!(dir.names(), ["a.log"]);
    }

    #[test]
    fn others_may_not_read_it() {
        let dir = Scratch::new();
        let path = dir.path().join("logs").join("a.log");
        let mut file = Hand::at_noon().file(&path, by_size(1, 1));
        put(&mut file, "a");
        put(&mut file, "b");
        for path in [path.clone(), numbered(&path, 1)] {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            // Whatever the umask takes away besides.
            assert_eq!(mode & 0o137, 0, "{mode:o}");
            assert_eq!(mode & 0o600, 0o600, "{mode:o}");
        }
    }

    #[test]
    fn a_pipe_is_refused_instead_of_waited_for() {
        let dir = Scratch::new();
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = Hand::at_noon().file(&path, NEVER).write(b"x\n");
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
