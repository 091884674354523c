//! What the program says and understands.

use axum::http::header;

use super::*;
use crate::app::{BODY_TIMEOUT, MAX_BODY};
use crate::args::{Command, Options, USAGE, parse};
use crate::excerpt::MAX_EXCERPT;
use crate::instructions;
use crate::log::{MAX_LINES, WINDOW};
use crate::replicas::Replicas;
use crate::server::{MAX_FIELDS, MAX_HEAD};

#[test]
fn arguments() {
    let parse = |args: &[&str]| parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
    let serve = |addr: &str, errors| {
        Ok(Command::Serve(Options {
            listen: addr.parse().unwrap(),
            database: None,
            replicas: None,
            metrics: None,
            errors,
            self_service: false,
        }))
    };
    assert_eq!(parse(&[]), serve("127.0.0.1:8080", Errors::ProblemDetails));
    assert_eq!(parse(&["--listen", "[::1]:0"]), serve("[::1]:0", Errors::ProblemDetails));
    assert_eq!(parse(&["--crosstrade-errors", "--listen", "[::1]:0"]), serve("[::1]:0", Errors::CrossTrade));
    assert_eq!(parse(&["--listen", "[::1]:0", "--help"]), Ok(Command::Help));
    let Ok(Command::Serve(options)) = parse(&["--database", "sqlite://tokens.db"]) else { panic!("it serves") };
    assert_eq!(options.database.as_deref(), Some("sqlite://tokens.db"));

    let Ok(Command::Serve(options)) = parse(&["--metrics", "127.0.0.1:9464"]) else { panic!("it serves") };
    assert_eq!(options.metrics, Some("127.0.0.1:9464".parse().unwrap()));

    let Ok(Command::Serve(options)) = parse(&["--redis", "redis://[::1]", "--replicas", "2"]) else {
        panic!("it serves")
    };
    let count = 2.try_into().unwrap();
    assert_eq!(options.replicas, Some(Replicas { redis: "redis://[::1]".to_owned(), count, leases: false }));

    let error = |args: &[&str]| parse(args).unwrap_err();
    assert_eq!(error(&["--database"]), "`--database` needs a URL");
    assert_eq!(error(&["--redis"]), "`--redis` needs a URL");
    assert_eq!(error(&["--leases"]), "`--leases` needs `--redis`");
    assert_eq!(error(&["--replicas", "0"]), "`--replicas` needs a number from 1 on");
    assert_eq!(error(&["--redis", "redis://[::1]"]), "`--redis` and `--replicas` go together");
    assert_eq!(error(&["--listen"]), "`--listen` needs an address and a port, such as 127.0.0.1:8080");
    assert_eq!(error(&["--metrics"]), "`--metrics` needs an address and a port, such as 127.0.0.1:8080");
    assert_eq!(error(&["--metrics", "9464"]), "`--metrics` needs an address and a port, such as 127.0.0.1:8080");
    assert_eq!(error(&["--listen", "8080"]), "`--listen` needs an address and a port, such as 127.0.0.1:8080");
    assert_eq!(error(&["--leases", "--port", "8080"]), "argument 2 is unknown");
}

/// The help states the limits that are in force.
#[test]
fn limits_of_the_help() {
    let seconds = |time: Duration| time.as_secs();
    let limits = Limits::for_descriptors(1_024);
    assert_eq!((limits.connections, limits.connections_per_peer), (1_024 / 4 * 3, 1_024 / 4 * 3 / 4));
    for line in [
        format!(
            "  request                {} s for the head ({} KiB, {MAX_FIELDS} fields), {} s for the body ({} KiB; {} s for alerts), \
             {} s to read the response\n",
            seconds(limits.head),
            MAX_HEAD / 1_024,
            seconds(limits.body),
            MAX_BODY / 1_024,
            seconds(BODY_TIMEOUT),
            seconds(limits.write)
        ),
        format!("{MAX_LINES} lines of each token and kind in {} s, {MAX_EXCERPT} bytes", seconds(WINDOW)),
        format!(
            "{} s for requests and WebSockets to end, {} s for idle connections",
            seconds(limits.grace),
            seconds(limits.drain)
        ),
    ] {
        assert!(USAGE.contains(&line), "{line}");
    }
}

/// Every line that is printed does what it says.
#[tokio::test]
async fn the_instructions_work() {
    let server = Server::start().await;
    let text = instructions::text(server.addr, TRADER, READER, "password");
    let mut statuses = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("curl -i ")) {
        statuses.push(send(curl(line)).await.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 200, 403, 200, 200]);
    assert!(text.contains("accounts?[1-25]'; echo\n"));
    assert!(text.contains("['crosstrade.v1', 'base64url.bearer.authorization.crosstrade.Y3RfdHJhZGVy']"));
}

/// The request of a curl command, as far as the instructions use curl.
fn curl(line: &str) -> Request<String> {
    let mut request = Request::builder().method("GET");
    let mut body = String::new();
    // Odd pieces were quoted, even ones have the options before.
    let pieces: Vec<&str> = line.split('\'').collect();
    for [option, value] in pieces.chunks_exact(2).map(|pair| [pair[0].trim(), pair[1]]) {
        request = match option.rsplit(' ').next() {
            Some("-H") => {
                let (name, value) = value.split_once(": ").unwrap();
                request.header(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value)
            }
            Some("-d") => {
                body = value.to_owned();
                request.method("POST")
            }
            _ if option.contains("-X POST") => request.method("POST").uri(value),
            _ => request.uri(value),
        };
    }
    request.body(body).unwrap()
}
