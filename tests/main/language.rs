//! The text of the repository contains none of the terms that this project replaced by standard ones.

use std::fs;
use std::path::{Path, PathBuf};

/// Terms that no text contains. They match whole words, in upper and lower case.
const BANNED: &[&str] = &[
    "door",
    "doors",
    "station",
    "stations",
    "budget",
    "budgets",
    "stranger",
    "strangers",
    "twin",
    "twins",
    "patience",
    "refuse",
    "refused",
    "refuses",
    "refusing",
    "refusal",
    "refusals",
    "outgoing",
    "trial",
    "road",
    "roads",
    "by construction",
    "by choice",
    "in the words of",
    "is told",
    "are told",
    "the same with",
    "at once",
    "carrier",
    "carriers",
    "somebody",
    "nobody",
    "whoever",
    "he",
    "his",
    "himself",
];

/// Phrases that are allowed, with the files where they are allowed. `*` is every file.
const ALLOWED: &[(&str, &str)] = &[
    // The list above.
    ("tests/main/language.rs", "*"),
    // The operating system's term.
    ("*", "connection refused"),
    ("*", "connectionrefused"),
    // Keys of the conformance vectors, and their reader.
    ("tests/vectors/", "*"),
    ("tests/conformance.rs", "carriers"),
    ("fuzz/", "carriers"),
    // The table of names before the first release.
    ("CHANGELOG.md", "|"),
];

const FOLDERS: &[&str] = &["src", "examples", "tests", "benches", "fuzz"];
const KINDS: &[&str] = &["rs", "md", "toml", "sql", "lua", "proto", "sh", "yaml", "yml"];
/// Folders that builds and fuzzers write.
const GENERATED: &[&str] = &["target", "corpus", "artifacts", "coverage"];

fn collect(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !GENERATED.contains(&name.as_str()) {
                collect(&path, found);
            }
        } else if KINDS.iter().any(|kind| path.extension().is_some_and(|extension| extension == *kind)) {
            found.push(path);
        }
    }
}

/// All texts: the folders of code, and the documents, the manifest and the recipes beside them.
fn texts(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        // The published package has no fuzz targets.
        if root.join(folder).is_dir() {
            collect(&root.join(folder), &mut found);
        }
    }
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let is_text = path.extension().is_some_and(|extension| extension == "md" || extension == "toml");
        if is_text || path.file_name().is_some_and(|name| name == "justfile") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns whether the text contains the term as a whole word. Parts of identifiers such as `with_door` are words as well.
fn contains(text: &str, term: &str) -> bool {
    text.match_indices(term).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + term.len()..].chars().next();
        !before.is_some_and(|c| is_word(c) && c != '_') && !after.is_some_and(|c| is_word(c) && c != '_')
    })
}

/// Splits identifiers in camel case, so that `BodyDoors` contains the word `doors`, and removes what is allowed.
fn words(line: &str, file: &str) -> String {
    let mut text = String::with_capacity(line.len() + 8);
    let mut before = ' ';
    for c in line.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            text.push('_');
        }
        text.push(c);
        before = c;
    }
    let mut text = text.to_lowercase();
    for (place, phrase) in ALLOWED {
        if *place == "*" || file.starts_with(place) {
            match *phrase {
                "*" => text.clear(),
                "|" if text.starts_with('|') => text.clear(),
                "|" => {}
                phrase => text = text.replace(phrase, "").replace(&phrase.replace("nr", "n_r"), ""),
            }
        }
    }
    text
}

/// Returns the banned terms in a text, with their line numbers. A phrase may be broken over two lines.
fn findings(text: &str, file: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    let mut end_of_line = String::new();
    for (at, line) in text.lines().enumerate() {
        let line = words(line, file);
        let comment = line.trim().trim_start_matches(['/', '!', '#', '>', '*']).trim_start().to_owned();
        let joined = format!("{end_of_line} {comment}");
        for term in BANNED {
            let is_broken = term.contains(' ') && contains(&joined, term) && !contains(&end_of_line, term);
            if contains(&line, term) || is_broken {
                found.push((at + 1, *term));
            }
        }
        end_of_line = comment;
    }
    found
}

#[test]
fn text_contains_no_banned_term() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut report = Vec::new();
    for path in texts(root) {
        let file = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        // Files that are not UTF-8 are no text.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        report.extend(findings(&text, &file).into_iter().map(|(line, term)| format!("{file}:{line}: {term}")));
    }
    assert!(report.is_empty(), "{} banned terms:\n{}", report.len(), report.join("\n"));
}

#[test]
fn search_finds_whole_words_only() {
    let terms = |text: &str| findings(text, "src/lib.rs").into_iter().map(|(_, term)| term).collect::<Vec<_>>();
    assert_eq!(terms("Opens a Door, with_door(BodyDoors)"), ["door", "doors"]);
    assert_eq!(terms("the header, this, roadmap, outdoor, industrial"), Vec::<&str>::new());
    assert_eq!(terms("/// It answers at\n/// once."), ["at once"]);
    assert_eq!(terms("connection refused, ErrorKind::ConnectionRefused"), Vec::<&str>::new());
    assert_eq!(findings("| `door` | `location` |", "CHANGELOG.md"), []);
}
