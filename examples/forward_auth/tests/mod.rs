//! Tests with real proxies in front of a service in Python. They say `skipped` without these programs, and fail if
//! `TOLLGATE_REQUIRE_CLIENTS` is set.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod fields;
mod gate;
mod https;
mod outages;
mod processes;
mod rejections;
mod setup;
mod sockets;
mod targets;

use setup::{ALICE, EVE, Setup, request};

/// Runs a test with each proxy, or says that it is skipped.
macro_rules! with_each_proxy {
    ($($name:ident)+) => {
        mod nginx {
            $(#[tokio::test]
            async fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                if crate::tests::processes::are_installed(crate::proxy::Proxy::Nginx, test) {
                    super::$name(crate::proxy::Proxy::Nginx).await;
                }
            })+
        }
        mod caddy {
            $(#[tokio::test]
            async fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                if crate::tests::processes::are_installed(crate::proxy::Proxy::Caddy, test) {
                    super::$name(crate::proxy::Proxy::Caddy).await;
                }
            })+
        }
    };
}
use with_each_proxy;

/// The guide shows the files that are tested.
#[test]
fn guide_has_the_tested_configurations() {
    const GUIDE: &str = include_str!("../../../src/guide/forward_auth.md");
    for (language, file) in [("nginx", include_str!("../nginx.conf")), ("text", include_str!("../Caddyfile"))] {
        assert!(GUIDE.contains(&format!("```{language}\n{file}```")), "the guide has another {language} file");
    }
}
