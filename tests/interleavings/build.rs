//! Selects the types of `shuttle` in src/sync.rs.

#[allow(clippy::print_stdout)]
fn main() {
    println!("cargo::rustc-check-cfg=cfg(tollgate_shuttle)");
    println!("cargo::rustc-cfg=tollgate_shuttle");
}
