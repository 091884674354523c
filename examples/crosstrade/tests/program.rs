//! What the program says and understands.

use axum::http::header;

use super::*;
use crate::app::{BODY_TIMEOUT, MAX_BODY};
use crate::args::{Command, Options, TlsOptions, USAGE, parse};
use crate::excerpt::MAX_EXCERPT;
use crate::instructions;
use crate::log::{MAX_LINES, WINDOW};
use crate::protocol::{MAX_FIELDS, MAX_HEAD, MAX_STREAMS};
use crate::replicas::Replicas;
use crate::tls::CertificateFiles;

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
            tls: None,
            proxies: Vec::new(),
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

    let tls = ["--listen", "0.0.0.0:443", "--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    let Ok(Command::Serve(options)) = parse(&[&tls[..], &["--http", "0.0.0.0:80"]].concat()) else {
        panic!("it serves")
    };
    let files = CertificateFiles { cert: "cert.pem".into(), key: "key.pem".into() };
    assert_eq!(options.tls, Some(TlsOptions { files, http: Some("0.0.0.0:80".parse().unwrap()) }));
    let Ok(Command::Serve(options)) = parse(&["--listen", "[::]:80", "--behind-proxy", "10.0.0.0/8, ::1"]) else {
        panic!("it serves")
    };
    assert_eq!(options.proxies, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert!(parse(&["--listen", "[::ffff:127.0.0.1]:80"]).is_ok());

    let error = |args: &[&str]| parse(args).unwrap_err();
    for address in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", "[::ffff:192.0.2.1]:80"] {
        assert!(error(&["--listen", address]).starts_with("`--listen` needs a loopback address"), "{address}");
    }
    assert_eq!(error(&["--tls-cert"]), "`--tls-cert` needs a file");
    assert_eq!(error(&["--tls-key"]), "`--tls-key` needs a file");
    assert_eq!(error(&["--tls-cert", "cert.pem"]), "`--tls-cert` and `--tls-key` go together");
    assert_eq!(error(&["--tls-key", "key.pem", "--http", "[::1]:80"]), "`--tls-cert` and `--tls-key` go together");
    assert_eq!(error(&["--http", "[::1]:80"]), "`--http` needs `--tls-cert` and `--tls-key`");
    let both = ["--tls-cert", "a", "--tls-key", "b", "--http", "[::1]:80", "--behind-proxy", "::1"];
    assert_eq!(error(&both), "`--http` and `--behind-proxy` exclude each other: the proxy redirects to HTTPS");
    for networks in ["", "10.0.0.0/8,", "10.0.0.0/33", "proxy.example"] {
        let expected = "`--behind-proxy` needs networks, such as 10.0.0.0/8,fd00::/8";
        assert_eq!(error(&["--behind-proxy", networks]), expected, "{networks}");
    }
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
        format!("  TLS                    {} s for the handshake", seconds(limits.handshake)),
        format!("  HTTP/2                 {MAX_STREAMS} open streams of a connection\n"),
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
    let text = instructions::text(&server.addr.to_string(), None, TRADER, READER, "password");
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
