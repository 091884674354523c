//! The text at the start of the program, and the state after a restart.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use super::*;
use crate::demo::PASSWORD as PASSWORD_VARIABLE;
use crate::sealing;
use crate::tests::crash;
use crate::tests::tls::{Folder, config, connect};

/// A process of the service.
pub(super) struct Process {
    child: Child,
    pub(super) addr: SocketAddr,
    pub(super) trader: String,
    reader: String,
    password: String,
    text: String,
    /// Kept, so that the program can go on to write.
    _out: BufReader<ChildStdout>,
}

impl Process {
    pub(super) fn start(args: &[&str], envs: &[(&str, &str)]) -> Self {
        let child = Self::spawn(args, envs);
        Self::read(child)
    }

    fn spawn(args: &[&str], envs: &[(&str, &str)]) -> Child {
        let mut program = crash::program(args);
        program.env_remove(PASSWORD_VARIABLE).env_remove(sealing::KEYS).envs(envs.iter().copied());
        program.spawn().unwrap()
    }

    /// Reads the output of the program.
    fn read(mut child: Child) -> Self {
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("ws.onmessage") {
            assert_ne!(out.read_line(&mut text).unwrap(), 0, "the program starts: {text}");
        }
        let find = |pattern: &str| regex::Regex::new(pattern).unwrap().captures(&text).expect(pattern)[1].to_owned();
        let addr = find("listening on https?://([^/]*)/").replace("localhost", "127.0.0.1").parse().unwrap();
        let (trader, reader) = (find("(ct_[0-9A-Za-z]+) may trade"), find("(ct_[0-9A-Za-z]+) may only read"));
        let password = find("the password is (.*)");
        Self { child, addr, trader, reader, password, text, _out: out }
    }

    pub(super) async fn api(&self, token: &str) -> StatusCode {
        let request = Request::get(format!("http://{}/v1/api/accounts", self.addr));
        send(request.header("authorization", format!("Bearer {token}")).body(String::new()).unwrap()).await.status()
    }

    fn visitor(&self) -> Visitor {
        Visitor { addr: self.addr, cookie: Mutex::default() }
    }

    fn kill(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn folder(home: &Home) -> &Path {
    match &home.cleanup {
        Cleanup::Folder(folder) => folder,
        Cleanup::Schema { .. } => panic!("not in PostgreSQL"),
    }
}

#[tokio::test]
async fn processes_that_start_together_have_one_token_per_user() {
    let test = "processes_that_start_together_have_one_token_per_user";
    let key = "first:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    Home::each(test, async |home| {
        let mut envs = vec![(PASSWORD_VARIABLE, PASSWORD)];
        if matches!(home.cleanup, Cleanup::Schema { .. }) {
            envs.push((sealing::KEYS, key));
        }
        let children: Vec<_> = (0..5).map(|_| Process::spawn(&["--database", &home.url], &envs)).collect();
        let processes: Vec<_> = children.into_iter().map(Process::read).collect();
        for process in &processes {
            assert_eq!(process.trader, processes[0].trader);
            assert_eq!(process.reader, processes[0].reader);
            for token in [&process.trader, &process.reader] {
                assert_eq!(process.api(token).await, StatusCode::OK);
            }
        }
        assert_eq!(home.count("tollgate_grants").await, 2);
        assert_eq!(home.count("tollgate_tokens").await, 2);
        // Each admits all users, and shares the sessions.
        let visitor = processes[0].visitor();
        visitor.sign_in("demo", PASSWORD).await;
        for process in &processes {
            let visitor = Visitor { addr: process.addr, cookie: Mutex::new(visitor.cookie()) };
            let response = visitor.post("/account/reveal", &[]).await;
            assert_eq!(tokens_in(assert_page(&response, StatusCode::OK))[0], process.trader);
        }
    })
    .await;
}

#[tokio::test]
async fn restarts_print_the_same_tokens_and_a_lost_key_ends_them() {
    let home = Home::sqlite();
    let args = ["--database", home.url.as_str()];
    let mut first = Process::start(&args, &[]);
    first.kill();
    let mut second = Process::start(&args, &[]);
    assert_eq!((&second.trader, &second.reader), (&first.trader, &first.reader));
    assert_ne!(second.password, first.password, "a new one at each start");
    assert!(second.password.len() == 20 && second.password.chars().all(|char| char.is_ascii_hexdigit()));
    let visitor = second.visitor();
    assert_eq!(visitor.sign_in("demo", &first.password).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(location(&visitor.sign_in("demo", &second.password).await), "/account");
    second.kill();

    std::fs::remove_file(folder(&home).join("tokens.key")).unwrap();
    let third = Process::start(&args, &[]);
    assert_ne!(third.trader, first.trader);
    assert_eq!(third.api(&third.trader).await, StatusCode::OK);
    assert_eq!(third.api(&first.trader).await, StatusCode::UNAUTHORIZED, "no key reveals it");
    assert_eq!(third.api(&third.reader).await, StatusCode::OK);
    assert_eq!(home.count("tollgate_grants").await, 2);
    let visitor = third.visitor();
    visitor.sign_in("demo", &third.password).await;
    assert_eq!(tokens_in(visitor.post("/account/reveal", &[]).await.body())[0], third.trader);
}

#[cfg(unix)]
#[tokio::test]
async fn the_key_file_is_private_and_complete() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::sqlite();
    let key = folder(&home).join("tokens.key");
    // A reader never sees a part of a key, while many create it.
    let (url, seen) = (home.url.clone(), key.clone());
    let begin = Arc::new(std::sync::Barrier::new(8));
    let creators: Vec<_> = (0..8)
        .map(|_| {
            let (url, begin) = (url.clone(), Arc::clone(&begin));
            std::thread::spawn(move || {
                begin.wait();
                sealing::sealer(&url).map(|_| ()).map_err(|error| error.to_string())
            })
        })
        .collect();
    let reader = std::thread::spawn(move || {
        let mut keys = std::collections::BTreeSet::new();
        while keys.is_empty() {
            if let Ok(text) = std::fs::read_to_string(&seen) {
                text.parse::<Sealer>().unwrap();
                keys.insert(text);
            }
        }
        keys
    });
    for creator in creators {
        creator.join().unwrap().unwrap();
    }
    let keys = reader.join().unwrap();
    assert_eq!(keys.first(), Some(&std::fs::read_to_string(&key).unwrap()));
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let files: Vec<_> = std::fs::read_dir(folder(&home)).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["tokens.key"], "no drafts are left");
}

#[tokio::test]
async fn the_password_comes_from_the_environment() {
    let home = Home::sqlite();
    let args = ["--database", home.url.as_str()];
    let mut process = Process::start(&args, &[(PASSWORD_VARIABLE, "from the environment")]);
    assert_eq!(process.password, "from the environment");
    for name in ["demo", "guest", "support"] {
        assert_eq!(location(&process.visitor().sign_in(name, "from the environment").await), "/account");
    }
    process.kill();
    // No user could sign in with these.
    for password in ["", &"a".repeat(257)] {
        let mut program = crash::program(&args);
        program.env(PASSWORD_VARIABLE, password).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let mut text = String::new();
        // It ends by itself.
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(text.contains(PASSWORD_VARIABLE) && !text.contains("aaaa"), "{text}");
        assert!(!text.contains("listening on"), "{text}");
    }
}

/// Without TLS and with it.
#[tokio::test]
async fn the_address_of_the_page_and_the_users_are_printed() {
    let home = Home::sqlite();
    let args = ["--database", home.url.as_str()];
    let mut plain = Process::start(&args, &[]);
    let page = format!("the account page: http://{}/account\n", plain.addr);
    assert!(plain.text.contains(&page), "{}", plain.text);
    let line = format!("  sign in as demo, guest or support; the password is {}\n", plain.password);
    assert!(plain.text.contains(&line), "{}", plain.text);
    assert_eq!(location(&plain.visitor().get("/account").await), "/sign-in?then=%2Faccount");
    plain.kill();

    let files = Folder::new();
    let (cert, key) = (files.files().cert, files.files().key);
    let tls = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let secure = Process::start(&[&args[..], &tls].concat(), &[]);
    let page = format!("the account page: https://127.0.0.1:{}/account\n", secure.addr.port());
    assert!(secure.text.contains(&page), "{}", secure.text);
    assert!(!secure.text.contains("http://"), "{}", secure.text);
    let io = TokioIo::new(connect(secure.addr, config(files.roots(), &[])).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/sign-in").header("host", "localhost");
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let body = form(&[("name", "support"), ("password", &secure.password)]);
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}
