//! docs/tutorial.md is this crate: its blocks are these files, word for word, and its program runs.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The blocks of each file, in their order, and how many blocks are commands for a shell.
fn blocks(tutorial: &str) -> (BTreeMap<String, Vec<String>>, usize) {
    let (mut files, mut commands) = (BTreeMap::<String, Vec<String>>::new(), 0);
    let mut lines = tutorial.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        match fence.split_once(" file=") {
            Some((_, file)) => files.entry(file.into()).or_default().push(block.join("\n") + "\n"),
            None => {
                assert_eq!(fence, "sh", "a block that is neither a file nor a command: {block:?}");
                commands += 1;
            }
        }
    }
    (files, commands)
}

#[test]
fn every_block_is_a_file_of_this_crate() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tutorial = std::fs::read_to_string(here.join("../docs/tutorial.md")).unwrap();
    let (files, commands) = blocks(&tutorial);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        "Cargo.toml",
        "src/book.rs",
        "src/lib.rs",
        "src/main.rs",
        "src/payment.rs",
        "tests/payments.rs",
    ];
    assert_eq!(names, expected);
    assert_eq!(commands, 3);
    for (name, blocks) in files {
        let file = std::fs::read_to_string(here.join(&name)).unwrap();
        let mut told = blocks.join("\n");
        let mut found = file.as_str();
        if name == "Cargo.toml" {
            // The reader's crate stands beside the repository, this one in it.
            told = told.replace("../halfmsg/", "../");
            found = &file[file.find("[dependencies]").unwrap()..];
        }
        assert!(
            told == found,
            "docs/tutorial.md and tutorial/{name} differ:\n{told}\n---\n{found}"
        );
    }
}

/// It has the deadlines that a program has by default, some seconds: the machine may stand still once, or
/// twice.
#[test]
fn the_program_runs_to_its_end() {
    let mut failures = Vec::new();
    while failures.len() < 3 {
        let output = Command::new(env!("CARGO_BIN_EXE_payments")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            assert!(said.ends_with("booked\n"), "{said}");
            return;
        }
        failures.push(format!("{said}{}", String::from_utf8_lossy(&output.stderr)));
    }
    panic!("{}", failures.join("\n"));
}
