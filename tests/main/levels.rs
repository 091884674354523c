//! The folders of `src/` have a strict order: a file imports from its own folder and from folders below it, and never from
//! one above. The steps of the pipeline are beside one another and do not know each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders, lowest first. Those in one line are beside one another.
const ORDER: [&[&str]; 13] = [
    &["finding.rs", "list.rs", "loopback.rs", "request_head.rs", "sync.rs", "tls.rs"],
    &["token/"],
    &["quota/"],
    &["grant/"],
    &["rejection/"],
    &["caller.rs"],
    &["observe/"],
    &["pending/"],
    &["authenticate.rs", "extract/", "limit/", "respond/", "store/mod.rs"],
    &["store/"],
    &["client/", "gate/"],
    &["aide.rs", "axum.rs", "guide/", "lib.rs", "misuse.rs", "openapi/", "tonic.rs"],
    // A crate of its own, which sees the public items only.
    &["bin/"],
];

/// The level of a file, and its folder.
fn place(file: &str) -> (usize, &'static str) {
    let level = |folders: &&[&'static str]| folders.iter().find(|folder| file.starts_with(**folder)).copied();
    let found = ORDER.iter().enumerate().find_map(|(at, folders)| Some((at, level(folders)?)));
    found.unwrap_or_else(|| panic!("src/{file} has no place in the order of folders"))
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
fn no_folder_imports_from_above() {
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
        let (level, folder) = place(file);
        for target in used(file, text, &files) {
            arrows += 1;
            let (below, other) = place(&target);
            assert!(
                below < level || folder == other,
                "src/{file} (level {level}) imports src/{target} (level {below})"
            );
        }
    }
    // If the reading of `use` lines breaks, this test must not pass by seeing nothing.
    assert!(arrows > 60, "only {arrows} arrows were found");
}

#[test]
fn only_the_gate_and_clients_import_tower() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let knows = text.lines().any(|line| line.contains("tower_service::") || line.contains("tower_layer::"));
        // The layers of clients do not use the gate. The command line calls a gate.
        let may = path.components().any(|part| ["bin", "client", "gate"].iter().any(|name| part.as_os_str() == *name));
        assert!(!knows || may, "{} knows tower", path.display());
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
