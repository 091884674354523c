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

/// Phrases that are allowed, with the beginning of the names of the files that may contain them.
const ALLOWED: &[(&str, &str)] = &[
    // The operating system's term.
    ("", "connection refused"),
    ("", "connection_refused"),
    // The error code of HTTP/2.
    ("", "refused_stream"),
    // A key of the conformance vectors.
    ("tests/conformance.rs", "carriers"),
    ("fuzz/", "carriers"),
];

/// Returns whether a whole line may contain anything: in this file, and in the table of names before the first release.
fn is_exempt(file: &str, line: &str) -> bool {
    file == "tests/main/language.rs" || (file == "CHANGELOG.md" && line.starts_with('|'))
}

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

/// Returns whether the text contains the term as a whole word. `with_door` consists of two words.
fn contains(text: &str, term: &str) -> bool {
    text.match_indices(term).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + term.len()..].chars().next();
        ![before, after].into_iter().flatten().any(char::is_alphanumeric)
    })
}

/// Returns the line in lower case, with camel case split into words, and without phrases that are allowed.
fn words(line: &str, file: &str) -> String {
    let mut text = String::with_capacity(line.len() + 8);
    let mut before = ' ';
    for c in line.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            text.push('_');
        }
        text.extend(c.to_lowercase());
        before = c;
    }
    let phrases = ALLOWED.iter().filter(|(place, _)| file.starts_with(place));
    phrases.fold(text, |text, (_, phrase)| text.replace(phrase, ""))
}

/// Returns the banned terms in a text, with their line numbers. A phrase may be broken over two lines.
fn findings(text: &str, file: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    let mut end_of_line = String::new();
    for (at, line) in text.lines().enumerate() {
        let line = if is_exempt(file, line) { String::new() } else { words(line, file) };
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
