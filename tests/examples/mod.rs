//! Runs the examples of a package: each is in the list, is short, and ends by itself with success.
//!
//! `cargo test` builds a package's examples before its tests; `cargo test --test …` does not, and an
//! old program would be run: that is refused.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of an example.
const MOST_LINES: usize = 59;
/// An example has the deadlines that a program has, some seconds: the machine may stand still once, or twice.
const TRIES: usize = 3;

/// Every example of the package is in the list, and short.
pub(crate) fn listed_and_short(package: &str, listed: &[&str]) {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new(package).join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= MOST_LINES, "{name} has {lines} lines, at most {MOST_LINES}");
            found.push(name);
        }
    }
    found.sort();
    assert_eq!(found, listed, "the examples and their list differ");
}

/// Runs one; its output is shown if it fails each time.
pub(crate) fn run(package: &str, name: &str) {
    let program = program(name);
    let source = Path::new(package).join("examples").join(format!("{name}.rs"));
    let changed = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
    assert!(
        changed(&program) >= changed(&source) && program.exists(),
        "{} is missing or old: cargo build --examples, or cargo test without --test, makes it",
        program.display()
    );
    let mut failures = Vec::new();
    while failures.len() < TRIES {
        let output = Command::new(&program).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            assert!(!said.is_empty(), "{name} says nothing");
            return;
        }
        let failed = String::from_utf8_lossy(&output.stderr);
        failures.push(format!("{name} ended with {}: {said}{failed}", output.status));
    }
    panic!("{}", failures.join("\n"));
}

/// Examples are beside the directory of the tests.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// A test for each example, and one for the list.
macro_rules! examples {
    ($($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                $crate::examples::run(env!("CARGO_MANIFEST_DIR"), stringify!($name));
            }
        )+

        #[test]
        fn each_is_listed_and_short() {
            let listed = [$(stringify!($name)),+];
            $crate::examples::listed_and_short(env!("CARGO_MANIFEST_DIR"), &listed);
        }
    };
}
pub(crate) use examples;
