//! The frame of all pages, and parts that several pages have.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::Html;
use maud::{DOCTYPE, Markup, html};
use tower_sessions::cookie::time::{self, OffsetDateTime};

use super::assets;
use super::users::User;

/// Renders a page. `user` is the visitor, if signed in.
pub(crate) fn page(title: &str, user: Option<&User>, content: Markup) -> Html<String> {
    page_with_head(title, user, html! {}, content)
}

/// Renders a page with more elements in its head.
pub(crate) fn page_with_head(title: &str, user: Option<&User>, head: Markup, content: Markup) -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · CrossTrade Paper" }
                link rel="icon" href=(assets::ICON.url) type="image/svg+xml";
                link rel="stylesheet" href=(assets::STYLE.url);
                script src=(assets::SCRIPT.url) defer {}
                (head)
            }
            body {
                a.skip href="#content" { "Skip to content" }
                header.bar {
                    a.brand href="/account" {
                        img src=(assets::ICON.url) alt="" width="28" height="28";
                        "CrossTrade Paper"
                    }
                    @if let Some(user) = user { (menu(user)) }
                }
                main #content { (content) }
                footer { p { "A paper-trading service. Orders here move no money." } }
            }
        }
    };
    Html(page.into_string())
}

fn menu(user: &User) -> Markup {
    html! {
        nav aria-label="Main" {
            a href="/account" { "My account" }
            @if user.is_support { a href="/admin" { "Support" } }
            form method="post" action="/sign-out" {
                button.quiet type="submit" { "Sign out" span.who { " " (user.name) } }
            }
        }
    }
}

/// A message above the content, which screen readers announce.
pub(crate) fn notice(text: Option<&str>) -> Markup {
    html! { @if let Some(text) = text { p.notice role="status" { (text) } } }
}

/// The fields of a form that asks for the password again.
pub(crate) fn password(user: &User) -> Markup {
    html! {
        // Password managers need the name beside the password.
        input type="text" name="name" value=(user.name) autocomplete="username" hidden;
        label for="password" { "Your password" }
        input #password type="password" name="password" autocomplete="current-password" required autofocus;
    }
}

/// Renders how long ago a time was, with the time itself as a title.
pub(crate) fn time_ago(time: SystemTime, now: SystemTime) -> Markup {
    let utc = utc(time);
    let (date, clock) = (utc.date(), utc.time());
    let machine = format!("{date}T{:02}:{:02}:{:02}Z", clock.hour(), clock.minute(), clock.second());
    let person = format!("{date} {:02}:{:02} UTC", clock.hour(), clock.minute());
    html! { time datetime=(machine) title=(person) { (ago(now.duration_since(time).unwrap_or_default())) } }
}

/// Renders a time, for tables.
pub(crate) fn time_at(time: SystemTime) -> Markup {
    let utc = utc(time);
    let clock = utc.time();
    html! { time { (utc.date()) " " (format!("{:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second())) } }
}

/// Returns a time, or the end of the year 9999 for later ones.
fn utc(time: SystemTime) -> OffsetDateTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    OffsetDateTime::UNIX_EPOCH.saturating_add(since.try_into().unwrap_or(time::Duration::MAX))
}

fn ago(time: Duration) -> String {
    let some = |count: u64, unit: &str| format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" });
    match time.as_secs() {
        0..10 => "just now".to_owned(),
        seconds @ 10..60 => some(seconds, "second"),
        seconds @ 60..3_600 => some(seconds / 60, "minute"),
        seconds @ 3_600..86_400 => some(seconds / 3_600, "hour"),
        seconds => some(seconds / 86_400, "day"),
    }
}
