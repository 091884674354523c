//! The table of features exists once, in `src/features.md`: README repeats it, and Cargo.toml declares the same features.

use std::collections::BTreeSet;

const TABLE: &str = include_str!("../../src/features.md");
const README: &str = include_str!("../../README.md");
const MANIFEST: &str = include_str!("../../Cargo.toml");

/// The names between backticks in the first column.
fn documented() -> BTreeSet<&'static str> {
    let rows = TABLE.lines().skip(2).map(|row| row.split('|').nth(1).unwrap());
    rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

fn declared() -> BTreeSet<&'static str> {
    let section = MANIFEST.split("\n[features]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names = section.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    names.map(|(name, _)| name).filter(|name| *name != "default").collect()
}

#[test]
fn readme_has_the_table_of_features() {
    assert!(README.contains(TABLE), "README.md has another table of features than src/features.md");
}

#[test]
fn table_has_the_features_of_the_manifest() {
    assert_eq!(documented(), declared());
}

/// Documentation can show pictures as data only.
#[test]
fn the_picture_of_the_guide_is_that_of_the_readme() {
    use base64::prelude::{BASE64_STANDARD, Engine as _};

    let picture = include_bytes!("../../examples/crosstrade/account.png");
    assert!(BASE64_STANDARD.encode(picture) == include_str!("../../src/guide/account.b64"), "encode account.png again");
}
