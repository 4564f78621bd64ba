//! How commands print: results to stdout, everything else (progress, notes, errors) to stderr; with `--json` one JSON value.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Where and in what form a command reports.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Print JSON instead of text.
    pub json: bool,
}

impl Output {
    /// Prints the result: `value` as JSON, or `text` for people.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) {
        if self.json {
            let json = serde_json::to_string_pretty(value).expect("results are plain data with text keys");
            print_line(&json);
        } else {
            print_line(text().trim_end());
        }
    }

    /// A note for people, on stderr; silent under `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    /// A progress bar over `total` things on stderr. Where stderr is no terminal it stays silent and [`ProgressLines`]
    /// reports instead.
    pub fn progress(&self, total: u64, unit: &str) -> ProgressBar {
        let template = format!("{{msg:14}} [{{bar:32}}] {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::with_draw_target(Some(total), self.draw_target()).with_style(style.progress_chars("=> "))
    }

    /// A spinner with a message on stderr.
    pub fn spinner(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.draw_target());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    fn draw_target(&self) -> ProgressDrawTarget {
        if self.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
    }
}

/// Reports progress line by line where no bar can be drawn (a log file, a CI run), at most every [`LINE_INTERVAL`].
#[derive(Debug)]
pub struct ProgressLines {
    enabled: bool,
    last: std::time::Instant,
}

/// Least time between two progress lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

impl ProgressLines {
    /// Silent on a terminal (the bar speaks there) and under `--json`.
    pub fn new(output: Output) -> Self {
        Self { enabled: !output.json && !std::io::stderr().is_terminal(), last: std::time::Instant::now() }
    }

    /// Prints `text` unless a line was printed just now.
    pub fn tick(&mut self, text: impl FnOnce() -> String) {
        if self.enabled && self.last.elapsed() >= LINE_INTERVAL {
            self.last = std::time::Instant::now();
            eprintln!("{}", text());
        }
    }
}

/// Prints a line to stdout. A reader that went away (`susui ... | head`) is not an error.
pub fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints without a line end and at once, for answers that arrive in pieces.
pub fn print_piece(text: &str) {
    let mut out = std::io::stdout();
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}

/// A table with aligned columns, two spaces apart; the first row is the header.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A row of a table.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Milliseconds with one decimal, as all latencies are printed.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// Bytes for people, in binary units.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![row(["NODE", "STATE"]), row(["1", "alive"]), row(["1000", ""])];
        assert_eq!(table(&rows), "NODE  STATE\n1     alive\n1000\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn sizes_and_times_for_people() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(milliseconds(Duration::from_micros(1249)), 1.2);
    }
}
