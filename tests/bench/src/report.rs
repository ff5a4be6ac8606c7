//! What people and programs read: tables with medians and spread, ratios, JSON.

use std::fmt::Write;

use crate::options::Options;
use crate::run::{Results, Row};
use crate::stats::{median, spread};

/// A column: heading, metric, digits behind the point, whether its spread is shown.
type Column = (&'static str, &'static str, usize, bool);

const BULK: [Column; 8] = [
    ("1 to MB/s", "to1_mb_s", 0, true),
    ("1 from MB/s", "from1_mb_s", 0, true),
    ("8 to MB/s", "to8_mb_s", 0, true),
    ("8 from MB/s", "from8_mb_s", 0, true),
    ("1 to s/GiB", "to1_cpu_s_per_gib", 2, true),
    ("1 from s/GiB", "from1_cpu_s_per_gib", 2, true),
    ("8 to s/GiB", "to8_cpu_s_per_gib", 2, true),
    ("8 from s/GiB", "from8_cpu_s_per_gib", 2, true),
];

/// Each sleep is a wake-up, and those cost more than the copying on many machines.
const SLEEPS: [Column; 4] = [
    ("1 to sleeps/GiB", "to1_sleeps_per_gib", 0, true),
    ("1 from sleeps/GiB", "from1_sleeps_per_gib", 0, true),
    ("8 to sleeps/GiB", "to8_sleeps_per_gib", 0, true),
    ("8 from sleeps/GiB", "from8_sleeps_per_gib", 0, true),
];

const LATENCY: [Column; 11] = [
    ("ping p50", "ping_p50_us", 0, true),
    ("p99", "ping_p99_us", 0, true),
    ("beside bulk p50", "ping_beside_bulk_p50_us", 0, true),
    ("p99", "ping_beside_bulk_p99_us", 0, true),
    ("after silence", "ping_after_silence_p50_us", 0, true),
    ("new p50", "new_connection_p50_us", 0, true),
    ("p99", "new_connection_p99_us", 0, true),
    ("new, 5 ms apart, p50", "new_after_pause_p50_us", 0, true),
    ("p99", "new_after_pause_p99_us", 0, true),
    ("32 at once/s", "connections_per_second", 0, true),
    ("CPU us each", "cpu_us_per_connection", 0, true),
];

const MEMORY: [Column; 12] = [
    ("idle MiB", "pss_idle", 1, false),
    ("wake-ups/s", "idle_wakeups_per_second", 1, false),
    ("after load MiB", "pss_after_load", 1, false),
    ("500: KiB each", "held_500_kib_each", 1, false),
    ("threads", "held_500_threads", 0, false),
    ("1000: KiB each", "held_1000_kib_each", 1, false),
    ("threads", "held_1000_threads", 0, false),
    ("5000: KiB each", "held_5000_kib_each", 1, false),
    ("threads", "held_5000_threads", 0, false),
    ("9500: KiB each", "held_9500_kib_each", 1, false),
    ("threads", "held_9500_threads", 0, false),
    ("after held MiB", "pss_after_held", 1, false),
];

pub(crate) fn print(results: &Results, options: &Options) {
    println!(
        "\n{} rounds, {} s bulk windows, {:.0} s in all; load average before {}, after {}",
        options.rounds,
        options.window.as_secs_f64(),
        results.seconds,
        results.load_before,
        results.load_after
    );
    println!("{}", system());
    println!("Medians over the rounds, ± half the distance between the least and the largest.");
    for row in results.rows.iter().filter(|row| !row.version.is_empty()) {
        println!("{}: {}", row.name, row.version);
    }
    if !results.left_out.is_empty() {
        println!("left out: {}", results.left_out.join("; "));
    }
    table(
        "Bulk, random data: MB/s, and CPU seconds per GiB of both programs",
        &BULK,
        results,
    );
    table(
        "How often a thread of the tunnel went to sleep per GiB",
        &SLEEPS,
        results,
    );
    table(
        "Latency in microseconds; new connections",
        &LATENCY,
        results,
    );
    table(
        "Memory (PSS of both programs) and threads (of the one that has more)",
        &MEMORY,
        results,
    );
    ratios(results);
    for row in &results.rows {
        // The same trouble in every round needs to be said once.
        let mut said: Vec<&String> = Vec::new();
        for trouble in &row.trouble {
            if !said.contains(&trouble) {
                println!("trouble with {}: {trouble}", row.name);
                said.push(trouble);
            }
        }
    }
}

fn cell(row: &Row, (_, metric, digits, spreads): &Column) -> String {
    let samples = row.samples.get(*metric).map_or(&[][..], Vec::as_slice);
    let middle = median(samples);
    if !middle.is_finite() {
        return "-".to_owned();
    }
    let mut text = format!("{middle:.digits$}");
    if *spreads && samples.len() > 1 {
        let _ = write!(text, " ±{:.0}%", spread(samples) * 100.0);
    }
    text
}

fn table(title: &str, columns: &[Column], results: &Results) {
    let there = |column: &&Column| results.rows.iter().any(|row| cell(row, column) != "-");
    let columns: Vec<_> = columns.iter().filter(there).collect();
    if columns.is_empty() {
        return;
    }
    let mut lines = vec![vec![String::new()]];
    lines[0].extend(columns.iter().map(|column| column.0.to_owned()));
    for row in &results.rows {
        let mut line = vec![row.name.to_owned()];
        line.extend(columns.iter().map(|column| cell(row, column)));
        lines.push(line);
    }
    println!("\n{title}\n");
    grid(&lines);
}

/// Prints cells in columns: the first to the left, the others to the right.
pub(crate) fn grid(lines: &[Vec<String>]) {
    let width = |i: usize| {
        lines
            .iter()
            .map(|line| line[i].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
    for (n, line) in lines.iter().enumerate() {
        let mut text = format!("| {:<w$} |", line[0], w = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(text, " {cell:>width$} |");
        }
        println!("{text}");
        if n == 0 {
            let rules: Vec<_> = widths.iter().map(|w| "-".repeat(*w)).collect();
            println!("| {} |", rules.join(" | "));
        }
    }
}

/// Ours against each peer, round by round, so that what else the machine did meanwhile falls out.
fn ratios(results: &Results) {
    let is_ours = |row: &&Row| row.name.starts_with("ours");
    let columns: Vec<_> = BULK.iter().chain(&LATENCY).chain(&MEMORY).collect();
    for ours in results.rows.iter().filter(is_ours) {
        let others = results.rows.iter().filter(|row| !is_ours(row));
        for peer in others.filter(|row| row.name != "direct") {
            let mut text = String::new();
            for (_, metric, _, _) in &columns {
                let (Some(mine), Some(theirs)) =
                    (ours.samples.get(*metric), peer.samples.get(*metric))
                else {
                    continue;
                };
                let each: Vec<_> = mine.iter().zip(theirs).map(|(a, b)| a / b).collect();
                let middle = median(&each);
                if middle.is_finite() {
                    let _ = write!(text, " {metric}={middle:.2}");
                }
            }
            println!("\n{} / {}:{text}", ours.name, peer.name);
        }
    }
    println!();
}

/// Everything, for programs.
pub(crate) fn json(results: &Results, options: &Options) -> String {
    let mut out = String::from("{\n");
    let _ = writeln!(out, "  \"version\": 1,");
    let _ = writeln!(out, "  \"system\": {},", string(&system()));
    let _ = writeln!(out, "  \"rounds\": {},", options.rounds);
    let _ = writeln!(
        out,
        "  \"window_seconds\": {},",
        options.window.as_secs_f64()
    );
    let _ = writeln!(out, "  \"seconds\": {:.1},", results.seconds);
    let _ = writeln!(out, "  \"load_before\": {},", string(&results.load_before));
    let _ = writeln!(out, "  \"load_after\": {},", string(&results.load_after));
    out.push_str("  \"targets\": [\n");
    for (i, row) in results.rows.iter().enumerate() {
        let _ = writeln!(out, "    {{\n      \"name\": {},", string(row.name));
        let _ = writeln!(out, "      \"version\": {},", string(&row.version));
        let trouble: Vec<_> = row.trouble.iter().map(|t| string(t)).collect();
        let _ = writeln!(out, "      \"trouble\": [{}],", trouble.join(", "));
        out.push_str("      \"metrics\": {\n");
        for (j, (metric, samples)) in row.samples.iter().enumerate() {
            let each: Vec<_> = samples.iter().copied().map(number).collect();
            let _ = writeln!(
                out,
                "        {}: {{ \"median\": {}, \"samples\": [{}] }}{}",
                string(metric),
                number(median(samples)),
                each.join(", "),
                if j + 1 < row.samples.len() { "," } else { "" }
            );
        }
        let comma = if i + 1 < results.rows.len() { "," } else { "" };
        let _ = writeln!(out, "      }}\n    }}{comma}");
    }
    out.push_str("  ]\n}\n");
    out
}

fn number(x: f64) -> String {
    if x.is_finite() {
        format!("{x:.3}")
    } else {
        "null".to_owned()
    }
}

fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Processor, kernel and what decides how fast TCP sends.
fn system() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{model}, {cores} cores, Linux {}, TCP {}",
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/sys/net/ipv4/tcp_congestion_control").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(string("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }

    #[test]
    fn numbers_that_are_none_become_null() {
        assert_eq!(number(f64::NAN), "null");
        assert_eq!(number(1.5), "1.500");
    }
}
