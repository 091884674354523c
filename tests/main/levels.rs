//! The module tree has levels, and no arrow goes up: a module uses what stands below it or beside it on level 0.
//!
//! Level 1 are the stations, which do not know each other. Whoever adds a file adds it here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A file's level and, on the levels where rooms do not know each other, its room.
fn place(file: &str) -> (u8, &str) {
    match file {
        "answer.rs" | "breaker.rs" | "caller.rs" | "decision.rs" | "grant.rs" | "head.rs" | "invalid_request.rs"
        | "patience.rs" | "policy.rs" | "protocol.rs" | "quota.rs" | "refund.rs" | "rejection.rs" | "scopes.rs"
        | "store_error.rs" | "sync.rs" | "token.rs" => (0, "words"),
        // Told by all stations, and knows none.
        _ if file.starts_with("observe/") => (0, "words"),
        // What a grant remembers, and what a decision and a rejection are written with.
        "limit/accounts.rs"
        | "limit/clock.rs"
        | "limit/decide.rs"
        | "respond/challenge.rs"
        | "respond/detail.rs"
        | "respond/list.rs"
        | "respond/ratelimit.rs"
        | "respond/terms.rs" => (0, "words"),
        "authenticate.rs" => (1, "authenticate"),
        "store/mod.rs" => (1, "store trait"),
        _ if file.starts_with("extract/") => (1, "extract"),
        _ if file.starts_with("limit/") => (1, "limit"),
        _ if file.starts_with("respond/") => (1, "respond"),
        _ if file.starts_with("store/") => (2, "stores"),
        "mint.rs" => (2, "mint"),
        _ if file.starts_with("gate/") => (3, "gate"),
        "axum.rs" | "lib.rs" | "misuse.rs" => (4, "edge"),
        // A crate of its own, which sees what everybody sees.
        _ if file.starts_with("bin/") => (5, "command line"),
        _ => panic!("src/{file} has no place in the tree yet"),
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a file names by `crate::` and `super::` outside of comments and tests, as files.
fn used(file: &str, text: &str, files: &BTreeMap<String, String>) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut used = Vec::new();
    for line in lines {
        for (prefix, base) in [("crate::", ""), ("super::", file.rsplit_once('/').map_or("", |(folder, _)| folder))] {
            for rest in line.split(prefix).skip(1) {
                let path: Vec<&str> = rest
                    .split("::")
                    .map(|part| part.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_'))
                    .collect();
                let join = |parts: &[&str]| {
                    let mut all: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
                    all.extend(parts);
                    all.join("/")
                };
                let word =
                    |part: &str| part.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
                let first = word(path[0]);
                let second = path.get(1).map(|part| word(part)).unwrap_or_default();
                let candidates = [
                    join(&[&first, &format!("{second}.rs")]),
                    format!("{}.rs", join(&[&first])),
                    join(&[&first, "mod.rs"]),
                ];
                used.extend(candidates.into_iter().find(|candidate| files.contains_key(candidate)));
            }
        }
    }
    used
}

#[test]
fn no_arrow_goes_up() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    let files: BTreeMap<String, String> = paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    let mut arrows = 0;
    for (file, text) in &files {
        assert!(!text.contains("crate::{"), "src/{file}: one line a module, so that this test can read it");
        let (level, room) = place(file);
        for target in used(file, text, &files) {
            arrows += 1;
            let (below, other) = place(&target);
            assert!(below <= level, "src/{file} (level {level}) uses src/{target} (level {below})");
            assert!(
                level != 1 || below != 1 || room == other,
                "src/{file} and src/{target} are two stations, which do not know each other"
            );
            let a_module_of_its_own_folder =
                target == format!("{}/mod.rs", file.rsplit_once('/').map_or("", |(folder, _)| folder));
            assert!(
                level != 0 || below == 0 || a_module_of_its_own_folder,
                "src/{file} is a word and uses src/{target}"
            );
        }
    }
    // If the reading of `use` lines breaks, this test must not pass by seeing nothing.
    assert!(arrows > 60, "only {arrows} arrows were found");
}

#[test]
fn only_the_gate_knows_tower() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let knows = text.lines().any(|line| line.contains("tower_service::") || line.contains("tower_layer::"));
        let in_gate = path.components().any(|part| part.as_os_str() == "gate");
        assert!(!knows || in_gate, "{} knows tower", path.display());
    }
}

#[test]
fn only_observe_names_tracing_and_metrics() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let names = code.filter(|line| {
            let told = line.contains("tracing::") || line.contains("metrics::");
            told || line.contains("\"tracing\"") || line.contains("\"metrics\"")
        });
        let observes = path.strip_prefix(&src).unwrap().components().any(|part| part.as_os_str() == "observe");
        assert!(names.count() == 0 || observes, "{} names tracing or metrics", path.display());
    }
}
