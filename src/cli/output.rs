//! Data to standard output, everything else to standard error; a reader that goes away is no panic.
//!
//! Invariant: nothing in `cli` uses `print!` or `eprint!`, which panic on a closed pipe.

use std::io::{ErrorKind, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{Cell, ContentArrangement, Table};
use serde_json::Value;

use super::error::CliError;

/// How rows are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns for people
    #[default]
    Table,
    /// JSON for programs
    Json,
}

/// `-o table|json`, wherever there are rows.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct FormatArgs {
    /// How to print it
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t)]
    pub format: OutputFormat,
}

/// Writes data to standard output.
pub fn emit(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(CliError::pipe_closed()),
        Err(error) => Err(CliError::new(format!("can't write to standard output: {error}"))),
    }
}

/// Writes to standard error; where nobody can read it, there is nobody to tell.
pub fn note(text: &str) {
    std::io::stderr().lock().write_all(text.as_bytes()).ok();
}

/// A `warning: …` line on standard error.
pub fn warn(text: &str) {
    note(&format!("warning: {}\n", printable(text)));
}

/// Text in which somebody else's words may stand, for a terminal: nothing in it moves the cursor or turns the line round.
pub fn printable(text: &str) -> String {
    let acts =
        |c: char| c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if acts(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Prints JSON, indented, with a newline at the end.
pub fn emit_json(value: &Value) -> Result<(), CliError> {
    emit(&format!("{value:#}\n"))
}

/// Prints rows below a header line; a terminal bounds the width, a pipe does not.
pub fn emit_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), CliError> {
    let mut table = plain_table(header, rows);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    emit(&render(&table))
}

fn plain_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().map(|title| Cell::new(title.to_uppercase())));
    table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| printable(cell)).collect::<Vec<_>>()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Trailing blanks help nobody who pipes a table.
fn render(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes for a person: `512 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract().abs() < 0.05 || unit == 0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_header_and_no_trailing_blanks() {
        let table = plain_table(&["name", "size"], [vec!["a".into(), "1 B".into()], vec!["longer".into(), String::new()]]);
        assert_eq!(render(&table), "NAME    SIZE\na       1 B\nlonger\n");
    }

    #[test]
    fn bytes_are_rounded_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(512 << 20), "512 MiB");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
