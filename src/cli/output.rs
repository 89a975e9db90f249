//! Text for people, JSON for programs: the JSON shapes are those of the HTTP interface.
//!
//! Keys, reasons and payloads come from outside: in text their control characters are shown, never
//! sent to the terminal.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use halfmsg_producer::{ForeignView, HalfDetail, HalfView, JournalPage, Page};
use serde::Serialize;

use super::failure::Failure;
use super::journal;

/// The longest text of a cell.
const CELL: usize = 60;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(value).map_err(Failure::failed)?);
    Ok(())
}

/// Prints a list of half messages.
pub(crate) fn page(output: Output, page: &Page<HalfView>, what: &str) -> Result<(), Failure> {
    list(output, page, &format!("{what} half messages"), table)
}

/// Prints a list of copies of foreign records.
pub(crate) fn foreign(output: Output, page: &Page<ForeignView>) -> Result<(), Failure> {
    list(output, page, "foreign records", |records| {
        let mut table = plain(&["PLACE", "BYTES", "COPIED", "REASON", "HEADERS"]);
        for record in records {
            table.add_row([
                format!("{}@{}", record.partition, record.offset),
                record.bytes.to_string(),
                record.copied_at.clone(),
                cell(&record.reason),
                cell(&record.headers.join(", ")),
            ]);
        }
        table
    })
}

/// Prints a list of what operators did.
pub(crate) fn journal(output: Output, journal: &JournalPage) -> Result<(), Failure> {
    if output == Output::Json {
        return json(journal);
    }
    text(&journal.page, "acts", |acts| {
        let mut table =
            plain(&["BEGAN", "OPERATOR", "ACTION", "OF", "FORCED", "REASON", "OUTCOME"]);
        for act in acts {
            table.add_row([
                act.began_at.clone(),
                cell(&act.operator),
                cell(&act.action),
                journal::of(act),
                act.forced.map_or("-", |forced| if forced { "yes" } else { "no" }).to_owned(),
                cell(&act.reason),
                cell(journal::end(act)),
            ]);
        }
        table
    });
    Ok(())
}

fn list<T: Serialize>(
    output: Output,
    page: &Page<T>,
    what: &str,
    table: impl FnOnce(&[T]) -> Table,
) -> Result<(), Failure> {
    if output == Output::Json {
        return json(page);
    }
    text(page, what, table);
    Ok(())
}

fn text<T>(page: &Page<T>, what: &str, table: impl FnOnce(&[T]) -> Table) {
    match (&page.items[..], &page.missing_partitions[..]) {
        ([], []) => println!("no {what}"),
        ([], _) => println!("no {what} in what could be looked at"),
        (items, _) => println!("{}", table(items)),
    }
    if let Some(cursor) = &page.next_cursor {
        println!("there are more: --cursor {cursor}");
    }
}

/// Halves as a table.
pub(crate) fn table(halves: &[HalfView]) -> Table {
    let mut table = plain(&[
        "TRANSACTION ID",
        "STATE",
        "PURPOSE",
        "TOPIC",
        "KEY",
        "PLACE",
        "AGE",
        "CHECKS",
        "LAST",
    ]);
    for half in halves {
        table.add_row([
            half.transaction_id.clone(),
            half.state.to_owned(),
            cell(&half.purpose),
            cell(&half.topic),
            cell(half.key.as_deref().unwrap_or("-")),
            place(half),
            age(half.age_seconds),
            half.attempts.to_string(),
            cell(half.last_outcome.as_deref().unwrap_or("-")),
        ]);
    }
    table
}

/// Prints one half with everything that is known of it.
pub(crate) fn detail(output: Output, detail: &HalfDetail) -> Result<(), Failure> {
    if output == Output::Json {
        return json(detail);
    }
    let half = &detail.half;
    let line = |name: &str, value: &str| println!("{name:<14} {}", printable(value));
    line("transaction id", &half.transaction_id);
    if let Some(local) = &half.local_transaction_id {
        line("one of several", local);
    }
    line("state", half.state);
    line("application", detail.application.as_deref().unwrap_or("-"));
    line("purpose", &half.purpose);
    line("topic", &half.topic);
    line("key", half.key.as_deref().unwrap_or("-"));
    line("place", &place(half));
    line("stored", &format!("{} ({} ago)", half.stored_at, age(half.age_seconds)));
    line("epoch", &half.epoch.to_string());
    line("checks", &half.attempts.to_string());
    line("next check", half.next_check_at.as_deref().unwrap_or("-"));
    line("last outcome", half.last_outcome.as_deref().unwrap_or("-"));
    if let Some(since) = &half.failing_since {
        line("checks fail since", since);
    }
    for (name, value) in &detail.headers {
        line("header", &format!("{name}: {}", value.as_deref().unwrap_or("(null)")));
    }
    println!("\nhistory");
    for entry in &detail.history {
        let at = entry.at.as_deref().unwrap_or("-");
        println!("  {at:<24} {:<12} {}", entry.event, printable(&entry.detail));
    }
    if let (Some(payload), Some(bytes)) = (&detail.payload, detail.payload_bytes) {
        println!("\npayload ({bytes} bytes)\n{}", printable(payload));
    }
    Ok(())
}

/// Prints what became of one half.
pub(crate) fn settled(output: Output, half: &HalfView) -> Result<(), Failure> {
    if output == Output::Json {
        return json(half);
    }
    let last = half.last_outcome.as_deref().unwrap_or("-");
    println!("{} is {} ({})", half.transaction_id, half.state, printable(last));
    if let Some(warning) = &half.warning {
        eprintln!("halfmsg: {}", printable(warning));
    }
    Ok(())
}

/// A table without lines, which other programs can cut.
pub(crate) fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table
}

/// Where its HALF stands.
pub(crate) fn place(half: &HalfView) -> String {
    format!("{}@{}", half.partition, half.offset)
}

/// A text that fits into a table.
pub(crate) fn cell(text: &str) -> String {
    let text = printable(text).replace('\n', " ");
    if text.chars().count() <= CELL {
        return text;
    }
    text.chars().take(CELL - 1).chain(['…']).collect()
}

/// Without what a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Seconds in the largest fitting unit.
pub(crate) fn age(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_told_what_to_do() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(cell("a\nb"), "a b");
        assert_eq!(cell(&"x".repeat(CELL + 1)).chars().count(), CELL);
    }

    #[test]
    fn ages_are_short() {
        assert_eq!([age(5), age(300), age(90_000), age(864_000)], ["5 s", "5 min", "25 h", "10 d"]);
    }
}
