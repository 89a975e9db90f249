//! Commands that documents name in the middle of a sentence: the program takes them.

use std::fs;

use clap::Parser;
use clap::error::ErrorKind;

use crate::Cli;

/// What documents write for something of the reader's own, and something that may stand there.
const STANDS_FOR: [(&str, &str); 6] = [
    ("<transaction id>", "01985f2e-7c1a-7f00-8000-000000000000"),
    ("<id>", "01985f2e-7c1a-7f00-8000-000000000000"),
    ("<partition>@<offset>", "3@17"),
    ("<partition>", "3"),
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

#[test]
fn the_program_takes_every_command_that_is_named() {
    for (command, place) in named() {
        let mut words = command.clone();
        for (from, to) in STANDS_FOR {
            words = words.replace(from, to);
        }
        let Err(error) = Cli::try_parse_from(words.split_whitespace()) else { continue };
        // A command may be named without all that it needs.
        let is_known = matches!(
            error.kind(),
            ErrorKind::MissingRequiredArgument
                | ErrorKind::MissingSubcommand
                | ErrorKind::DisplayHelp
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
        assert!(is_known, "{place}: `{command}`: {error}");
    }
}
