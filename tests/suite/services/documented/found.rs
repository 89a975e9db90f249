//! The commands in README.md and docs/: blocks of them, and those in the middle of a sentence.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a block is opened by in which commands stand.
const SHELL: [&str; 4] = ["sh", "bash", "shell", "console"];
/// Everything else that a block may be.
const OTHERS: [&str; 2] = ["rust", "toml"];
/// Programs that this machine may not have; those that it has are found.
const PROGRAMS: [&str; 12] = [
    "cargo", "docker", "bash", "curl", "promtool", "psql", "kubectl", "mysql", "mariadb", "helm",
    "git", "jq",
];
/// This program.
const OWN: &str = "halfmsg";
const SCRIPTS: &str = "scripts/";
/// Kafka's own tools are commands by themselves.
const SCRIPT: &str = ".sh";
/// Methods of HTTP, some of which are programs, too.
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];
/// Between words of which one is taken, where a table would end its cell at a bar.
const ALTERNATIVE: &str = "\u{1}";

/// Commands as they stand in a document.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) file: String,
    pub(super) text: String,
}

impl Block {
    fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// Whether it is the one that begins so.
    pub(super) fn is(&self, file: &str, first: &str) -> bool {
        let line = self.first_line();
        let rest = line.strip_prefix(first).map(str::trim_start);
        // A comment may follow.
        self.file == file && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('#'))
    }

    /// One command each; a line that ends with a backslash goes on.
    pub(super) fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ");
        joined.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    }
}

/// The repository.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of documents") {
            let path = entry.expect("an entry of a directory").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

fn texts() -> impl Iterator<Item = (String, String)> {
    documents().into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("a document");
        let file = path.strip_prefix(root()).expect("it is below the root");
        (file.display().to_string(), text)
    })
}

/// Every block of commands.
pub(super) fn blocks() -> Vec<Block> {
    let mut found = Vec::new();
    for (file, text) in texts() {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(fence) = line.trim_start().strip_prefix("```") else { continue };
            let kind = fence.split(' ').next().unwrap_or_default();
            let inner = lines.by_ref().take_while(|line| line.trim_start() != "```");
            let text = inner.collect::<Vec<_>>().join("\n");
            let is_shell = SHELL.contains(&kind);
            assert!(is_shell || OTHERS.contains(&kind), "{file}: a block of '{kind}': {text}");
            if is_shell {
                found.push(Block { file: file.clone(), text });
            }
        }
    }
    found
}

/// The only block of this file that begins so.
pub(super) fn block(file: &str, first: &str) -> Block {
    let mut found = blocks().into_iter().filter(|block| block.is(file, first));
    let block = found.next().unwrap_or_else(|| panic!("{file} has no block '{first}'"));
    assert!(found.next().is_none(), "{file} has two blocks '{first}'");
    block
}

/// What stands between single backticks, each with its file, on one line.
fn codes() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (file, text) in texts() {
        let outside = text.split("```").step_by(2).collect::<Vec<_>>().join("");
        for code in outside.split('`').skip(1).step_by(2) {
            found.push((file.clone(), code.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    found
}

/// Commands between single backticks, each with its file.
pub(super) fn inline() -> Vec<(String, String)> {
    let is_command = |code: &str| {
        let program = code.split_once(' ').is_some_and(|(first, _)| is_program(first));
        let first = code.split(' ').next().unwrap_or_default();
        program || code.starts_with(SCRIPTS) || first.ends_with(SCRIPT)
    };
    let found: Vec<_> = codes().into_iter().filter(|(_, code)| is_command(code)).collect();
    assert!(found.len() > 5, "{found:?}");
    found
}

/// Whether a shell would find it. Those of `halfmsg` are [`own`].
fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_plain = !name.contains('/') && name != OWN && !METHODS.contains(&name);
    let is_there = || std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    PROGRAMS.contains(&name) || (is_plain && is_there())
}

/// Commands of this program: in the middle of a sentence, and in README.md's table, where it is left out.
pub(super) fn own() -> BTreeSet<String> {
    let prefix = format!("{OWN} ");
    let codes = codes().into_iter().map(|(_, code)| code);
    let mut found: BTreeSet<_> = codes.filter(|code| code.starts_with(&prefix)).collect();
    let text = fs::read_to_string(root().join("README.md")).expect("README.md");
    let (_, table) = text.split_once("\n| command | |\n").expect("the table of commands");
    let before = found.len();
    for row in table.lines().skip(1).take_while(|row| row.starts_with("| ")) {
        let row = row.replace("\\|", ALTERNATIVE).replace(['[', ']'], "");
        let cell = row.split('|').nth(1).unwrap_or_default();
        found.extend(cell.split('`').skip(1).step_by(2).flat_map(each));
    }
    assert!(before > 10 && found.len() > before + 8, "{found:?}");
    found
}

/// Every command that one with alternatives stands for.
fn each(code: &str) -> Vec<String> {
    code.split(' ').fold(vec![OWN.to_owned()], |all, word| {
        let ways = || word.split(ALTERNATIVE);
        all.iter().flat_map(|so| ways().map(move |way| format!("{so} {way}"))).collect()
    })
}

/// Names of cases, or what they begin with: `c22_…`.
pub(super) fn cases() -> Vec<(String, String)> {
    let is_case = |code: &str| {
        let number = code.strip_prefix('c').and_then(|rest| rest.split_once('_'));
        number.is_some_and(|(number, _)| number.len() == 2 && number.parse::<u8>().is_ok())
    };
    let found: Vec<_> = codes().into_iter().filter(|(_, code)| is_case(code)).collect();
    assert!(found.len() > 5, "{found:?}");
    found
}
