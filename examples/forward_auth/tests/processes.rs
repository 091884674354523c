//! The other programs: nginx or Caddy, and the service in Python. They end when their value is dropped.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::proxy::Proxy;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/forward_auth");

/// Returns the program of nginx. It is not in the search path of users on Debian.
fn nginx_program() -> &'static str {
    if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" }
}

/// Returns whether the proxy and Python are installed. Says that the test is skipped if they are not.
pub(super) fn are_installed(proxy: Proxy, test: &str) -> bool {
    let programs = match proxy {
        Proxy::Nginx => [(nginx_program(), "-v"), ("python3", "--version")],
        _ => [("caddy", "version"), ("python3", "--version")],
    };
    let runs = |program: &str, version: &str| {
        let output = Command::new(program).arg(version).stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    };
    let missing = programs.into_iter().find(|(program, version)| !runs(program, version));
    if let Some((program, _)) = missing {
        let required = std::env::var_os("TOLLGATE_REQUIRE_CLIENTS").is_some();
        assert!(!required, "{test}: no {program}, and TOLLGATE_REQUIRE_CLIENTS is set");
        // Past the capture of the test harness.
        _ = writeln!(std::io::stderr(), "skipped: no {program}: {test}");
    }
    missing.is_none()
}

/// A process that is killed when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The service in Python.
pub(super) struct Backend {
    _process: Process,
    pub(super) addr: SocketAddr,
}

impl Backend {
    pub(super) fn start() -> Self {
        let mut command = Command::new("python3");
        command.arg(format!("{FILES}/backend.py")).arg("0").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let mut port = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { _process: process, addr: SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap())) }
    }
}

/// A folder that is removed when this is dropped.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("tollgate-forward-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// nginx or Caddy.
pub(super) struct Running {
    _process: Process,
    pub(super) addr: SocketAddr,
    _folder: Folder,
}

impl Running {
    /// Starts a proxy with its tested configuration. With a certificate and its key in PEM, the proxy serves HTTPS.
    ///
    /// `timeout` is that of responses of the gate.
    pub(super) fn start(
        proxy: Proxy,
        gate: SocketAddr,
        backend: SocketAddr,
        tls: Option<(&str, &str)>,
        timeout: &str,
    ) -> Self {
        // Another process may take the port before the proxy does.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            let folder = Folder::new();
            let (file, log) = (folder.0.join("proxy.conf"), folder.0.join("log"));
            if let Some((cert, key)) = tls {
                fs::write(folder.0.join("cert.pem"), cert).unwrap();
                fs::write(folder.0.join("key.pem"), key).unwrap();
            }
            let (config, mut command) = match proxy {
                Proxy::Nginx => nginx(port, tls.is_some(), &folder),
                _ => caddy(port, tls.is_some(), &folder),
            };
            let config = replaced(&config, "_timeout 5s", &format!("_timeout {timeout}"));
            let config = config.replace("127.0.0.1:4000", &gate.to_string());
            fs::write(&file, config.replace("127.0.0.1:5000", &backend.to_string())).unwrap();
            let output = fs::File::create(&log).unwrap();
            command.current_dir(&folder.0).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
            let mut process = Process(command.spawn().unwrap());
            while process.0.try_wait().unwrap().is_none() {
                match TcpStream::connect(addr) {
                    Ok(_) => return Self { _process: process, addr, _folder: folder },
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
                }
                thread::sleep(Duration::from_millis(10));
            }
            eprintln!("{proxy:?} ended: {}", fs::read_to_string(&log).unwrap());
        }
        panic!("{proxy:?} does not start");
    }
}

/// Replaces a text that must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replace(from, to)
}

/// nginx as one process of an unprivileged user.
fn nginx(port: u16, tls: bool, folder: &Folder) -> (String, Command) {
    let listen = match tls {
        true => format!("listen 127.0.0.1:{port} ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem;"),
        false => format!("listen 127.0.0.1:{port};"),
    };
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths: String = kinds.iter().map(|kind| format!("{kind}_temp_path {kind};\n")).collect();
    let config = fs::read_to_string(format!("{FILES}/nginx.conf")).unwrap();
    let config = replaced(&config, "listen 127.0.0.1:8080;", &listen);
    let config = replaced(&config, "http {\n", &format!("http {{\naccess_log off;\n{paths}"));
    let mut command = Command::new(nginx_program());
    command.args(["-e", "stderr", "-g", "daemon off; master_process off; pid nginx.pid; error_log stderr;", "-p"]);
    command.arg(&folder.0).arg("-c").arg(folder.0.join("proxy.conf"));
    (config, command)
}

/// Caddy without its administration and without certificates of its own.
fn caddy(port: u16, tls: bool, folder: &Folder) -> (String, Command) {
    let site = match tls {
        true => format!("https://:{port} {{\n\ttls cert.pem key.pem\n"),
        false => format!("http://:{port} {{\n"),
    };
    let config = fs::read_to_string(format!("{FILES}/Caddyfile")).unwrap();
    let config = replaced(&config, ":8080 {\n", &site);
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config", "proxy.conf"]);
    command.env("XDG_DATA_HOME", &folder.0).env("XDG_CONFIG_HOME", &folder.0).env("HOME", &folder.0);
    (format!("{{\n\tadmin off\n\tauto_https off\n}}\n{config}"), command)
}
