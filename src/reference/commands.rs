//! Commands that documents name in the middle of a sentence or in README.md's table: the program
//! takes them.

use std::fs;

use clap::Parser;
use clap::error::ErrorKind;

use crate::Cli;

/// Between words of which one is taken, where a table would end its cell at a bar.
const ALTERNATIVE: &str = "\u{1}";
/// What documents write for something of the reader's own, and something that may stand there.
const STANDS_FOR: [(&str, &str); 8] = [
    ("<transaction id>", "01985f2e-7c1a-7f00-8000-000000000000"),
    ("<id>", "01985f2e-7c1a-7f00-8000-000000000000"),
    ("<partition>@<offset>", "3@17"),
    ("<partition>", "3"),
    ("<offset>", "17"),
    ("<shell>", "bash"),
    ("--to …", "--to start"),
    ("--reason …", "--reason text"),
];

/// Inline code that begins with the program's name, with the document.
fn named() -> Vec<(String, String)> {
    let root = super::root();
    let mut files = super::sources::files_below(&root.join("docs"));
    files.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root.join(name)));
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("a document");
        let mut codes =
            text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("halfmsg "));
        for code in codes.by_ref() {
            found.push((code.replace("\\|", "|"), path.display().to_string()));
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The commands of README.md's table, with each of the words that may stand in a place.
fn listed() -> Vec<String> {
    let text = fs::read_to_string(super::root().join("README.md")).expect("README.md");
    let (_, table) = text.split_once("\n| command | |\n").expect("the table of commands");
    let rows = table.lines().skip(1).take_while(|row| row.starts_with("| "));
    let cells = rows.map(|row| row.replace("\\|", ALTERNATIVE)).filter_map(|row| {
        let cell = row.split('|').nth(1)?;
        Some(cell.to_owned())
    });
    let codes = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>());
    let found: Vec<_> = codes.flat_map(|code| each(&code.replace(['[', ']'], ""))).collect();
    assert!(found.len() > 12, "{found:?}");
    found
}

/// Every command that one with alternatives stands for.
fn each(code: &str) -> Vec<String> {
    let mut all = vec!["halfmsg".to_owned()];
    for word in code.split(' ') {
        let ways: Vec<_> = word.split(ALTERNATIVE).collect();
        all = ways.iter().flat_map(|way| all.iter().map(move |so| format!("{so} {way}"))).collect();
    }
    all
}

#[test]
fn the_program_takes_the_commands_of_the_table() {
    for command in listed() {
        let command = filled(&command);
        if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
            assert!(is_incomplete(&error), "`{command}`: {error}");
        }
    }
}

#[test]
fn the_program_takes_every_command_that_is_named() {
    for (command, place) in named() {
        let Err(error) = Cli::try_parse_from(filled(&command).split_whitespace()) else { continue };
        assert!(is_incomplete(&error), "{place}: `{command}`: {error}");
    }
}

fn filled(command: &str) -> String {
    STANDS_FOR.iter().fold(command.to_owned(), |words, (from, to)| words.replace(from, to))
}

/// A command may be named without all that it needs.
fn is_incomplete(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    )
}
