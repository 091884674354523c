//! The command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

use ipnet::IpNet;

use crate::errors::Errors;
use crate::replicas::Replicas;
use crate::tls::CertificateFiles;

/// The environment variable with the secret that hides subjects from readers of Redis.
pub(crate) const SECRET: &str = "CROSSTRADE_SECRET";

pub(crate) const USAGE: &str = "usage: crosstrade [--listen ADDRESS:PORT] [--database URL] [--redis URL --replicas N [--leases]] [--metrics ADDRESS:PORT] [--crosstrade-errors] [--self-service] [--tls-cert FILE --tls-key FILE [--http ADDRESS:PORT]] [--behind-proxy NETWORKS]

  --listen ADDRESS:PORT  the address to serve on; default: 127.0.0.1:8080; port 0 selects a free port. Other addresses than those
                         of loopback need TLS or --behind-proxy
  --tls-cert FILE        serve HTTPS: TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2, with this certificate in PEM, followed by those of its
                         issuers. It is loaded again when the files change, and on SIGHUP
  --tls-key FILE         the key of the certificate in PEM, not encrypted. To make a pair for tests:
                         openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
                           -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem
  --http ADDRESS:PORT    with TLS: redirect pages from plaintext to HTTPS, and answer API requests in plaintext with 403
  --behind-proxy NETWORKS
                         the networks of the proxies in front of the service, such as 10.0.0.0/8,fd00::/8. Each proxy must append
                         the client's address to X-Forwarded-For, overwrite X-Forwarded-Proto with http or https, and pass on Host
  --database URL         database of the tokens, sqlite://PATH or postgres://USER@HOST/NAME; sqlite://PATH?mode=rwc creates a
                         missing file; default: a file beside the program
  --redis URL            the Redis of the rate limits, redis://HOST:PORT, for several services that share a database; default: in
                         memory. CROSSTRADE_SECRET, the same for all services, hides users from readers of Redis
  --replicas N           the number of services; during an outage of Redis each admits its share
  --leases               reserve units in Redis ahead, so that most requests need no round trip
  --metrics ADDRESS:PORT serve metrics for Prometheus at /metrics; default: no metrics. Without authentication: use an address that
                         only the scraper can reach
  --crosstrade-errors    use CrossTrade's {\"error\": \"Rate limit exceeded\"} for 429 instead of a problem document
  --self-service         users may replace their token on the account page; default: only support may
  -h, --help             print this text

environment:
  CROSSTRADE_SECRET        hides users from readers of Redis; the same for all replicas
  CROSSTRADE_SEALING_KEYS  the keys of the tokens that can be revealed, ID:KEY separated by commas; default: a file beside a SQLite
                           database; `tollgate sealing-key` makes a key
  CROSSTRADE_PASSWORD      the password of the users demo, guest and support; 1 to 256 bytes; default: a new one at each
                           start, so set it for several replicas

limits:
  connections            three quarters of the open files that the process may have (ulimit -n), a quarter of these for one
                         address; 503 beyond
  TLS                    5 s for the handshake, which counts as an open connection
  HTTP/2                 32 open streams of a connection
  request                10 s for the head (16 KiB, 64 fields), 5 s for the body (64 KiB; 2 s for alerts), 10 s to read the response
  website                30 minutes without a page or 12 hours for a session, 2 passwords at the same time, 16 meters of a user
  log                    64 lines of each token and kind in 10 s, 512 bytes of an alert
  SIGTERM, ctrl-c        10 s for requests and WebSockets to end, 2 s for idle connections";

#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub(crate) enum Command {
    Serve(Options),
    Help,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    /// `None` selects a file beside the program.
    pub(crate) database: Option<String>,
    /// `None` selects limits in memory.
    pub(crate) replicas: Option<Replicas>,
    /// `None` serves no metrics.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) errors: Errors,
    /// Whether users may replace their token themselves.
    pub(crate) self_service: bool,
    /// `None` serves plaintext.
    pub(crate) tls: Option<TlsOptions>,
    /// The networks of the proxies. Empty if clients reach the service directly.
    pub(crate) proxies: Vec<IpNet>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct TlsOptions {
    pub(crate) files: CertificateFiles,
    /// The address of the plaintext listener. `None` has no such listener.
    pub(crate) http: Option<SocketAddr>,
}

pub(crate) fn parse(args: &[String]) -> Result<Command, String> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let mut options = Options {
        listen,
        database: None,
        replicas: None,
        metrics: None,
        errors: Errors::ProblemDetails,
        self_service: false,
        tls: None,
        proxies: Vec::new(),
    };
    let (mut redis, mut count, mut leases) = (None, None, false);
    let (mut cert, mut key, mut http) = (None, None, None);
    // No error repeats an argument: a mistyped URL may contain a password.
    let total = args.len();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--crosstrade-errors" => options.errors = Errors::CrossTrade,
            "--self-service" => options.self_service = true,
            "--database" => options.database = Some(args.next().ok_or("`--database` needs a URL")?.clone()),
            "--redis" => redis = Some(args.next().ok_or("`--redis` needs a URL")?.clone()),
            "--leases" => leases = true,
            "--replicas" => count = Some(number(args.next())?),
            "--listen" => options.listen = address(arg, args.next())?,
            "--metrics" => options.metrics = Some(address(arg, args.next())?),
            "--tls-cert" => cert = Some(args.next().ok_or("`--tls-cert` needs a file")?.into()),
            "--tls-key" => key = Some(args.next().ok_or("`--tls-key` needs a file")?.into()),
            "--http" => http = Some(address(arg, args.next())?),
            "--behind-proxy" => options.proxies = networks(args.next())?,
            _ => return Err(format!("argument {} is unknown", total - args.len())),
        }
    }
    options.replicas = match (redis, count) {
        (None, None) if !leases => None,
        (Some(redis), Some(count)) => Some(Replicas { redis, count, leases }),
        (None, None) => return Err("`--leases` needs `--redis`".to_owned()),
        _ => return Err("`--redis` and `--replicas` go together".to_owned()),
    };
    options.tls = match (cert, key) {
        (None, None) if http.is_none() => None,
        (Some(cert), Some(key)) => Some(TlsOptions { files: CertificateFiles { cert, key }, http }),
        (None, None) => return Err("`--http` needs `--tls-cert` and `--tls-key`".to_owned()),
        _ => return Err("`--tls-cert` and `--tls-key` go together".to_owned()),
    };
    if http.is_some() && !options.proxies.is_empty() {
        return Err("`--http` and `--behind-proxy` exclude each other: the proxy redirects to HTTPS".to_owned());
    }
    let is_loopback = options.listen.ip().to_canonical().is_loopback();
    if options.tls.is_none() && options.proxies.is_empty() && !is_loopback {
        return Err("`--listen` needs a loopback address such as 127.0.0.1, or `--tls-cert` and `--tls-key`, or \
                    `--behind-proxy`: tokens must not be sent in plaintext"
            .to_owned());
    }
    Ok(Command::Serve(options))
}

fn networks(given: Option<&String>) -> Result<Vec<IpNet>, String> {
    let network = |text: &str| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let networks = given.and_then(|given| given.split(',').map(|text| network(text.trim())).collect());
    networks.ok_or_else(|| "`--behind-proxy` needs networks, such as 10.0.0.0/8,fd00::/8".to_owned())
}

fn number(given: Option<&String>) -> Result<NonZeroU32, String> {
    let number = given.and_then(|given| given.parse().ok());
    number.ok_or_else(|| "`--replicas` needs a number from 1 on".to_owned())
}

fn address(arg: &str, given: Option<&String>) -> Result<SocketAddr, String> {
    let address = given.and_then(|given| given.parse().ok());
    address.ok_or_else(|| format!("`{arg}` needs an address and a port, such as 127.0.0.1:8080"))
}
