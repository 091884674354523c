//! Other clients than rustls: openssl and curl. The tests say `skipped` without them, and fail if `TOLLGATE_REQUIRE_CLIENTS` is
//! set.

use super::*;
use crate::instructions;

/// Returns whether a program is installed. Says that the test is skipped if it is not.
fn has(program: &str, version: &str, test: &str) -> bool {
    let has = is_installed(program, version);
    if !has {
        skip(&format!("no {program}"), test, "TOLLGATE_REQUIRE_CLIENTS");
    }
    has
}

/// Runs a command without blocking the service, which runs on this thread. Returns whether it succeeded, and all output.
async fn run(mut command: Command) -> (bool, String) {
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn openssl_connects_by_tls_1_2_and_1_3_only() {
    if !has("openssl", "version", "openssl_connects_by_tls_1_2_and_1_3_only") {
        return;
    }
    let secure = Secure::start().await;
    for (version, alpn, expected) in [
        ("-tls1_3", "h2,http/1.1", Some("ALPN protocol: h2")),
        ("-tls1_3", "http/1.1", Some("ALPN protocol: http/1.1")),
        ("-tls1_2", "http/1.1,h2", Some("ALPN protocol: h2")),
        ("-tls1_1", "http/1.1", None),
        ("-tls1", "http/1.1", None),
    ] {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &secure.server.addr.to_string(), "-servername", "localhost"]);
        command.args(["-verify_return_error", "-verify_hostname", "localhost", "-CAfile"]);
        command.arg(secure.folder.files().cert).args(["-alpn", alpn, version]);
        // Otherwise openssl itself does not offer the old versions.
        command.args(["-cipher", "ALL:@SECLEVEL=0"]);
        let (succeeded, text) = run(command).await;
        assert_eq!(succeeded, expected.is_some(), "{version}: {text}");
        match expected {
            Some(expected) => {
                assert!(text.contains(expected) && text.contains("Verify return code: 0 (ok)"), "{version}: {text}");
            }
            // The service rejects it, and not openssl itself.
            None => assert!(text.contains("SSL alert number"), "{version}: {text}"),
        }
    }
}

/// The lines that are printed with TLS, in a shell.
#[tokio::test]
async fn the_instructions_work_with_tls() {
    if !has("curl", "--version", "the_instructions_work_with_tls") {
        return;
    }
    let secure = Secure::start().await;
    let quoted = secure.folder.0.join("it's a 'cert'.pem");
    std::fs::copy(secure.folder.files().cert, &quoted).unwrap();
    let authority = instructions::authority(secure.server.addr, Some(&secure.tls));
    let text = instructions::text(&authority, Some(&quoted), TRADER, READER, "password");
    let (mut statuses, mut last) = (Vec::new(), String::new());
    for line in text.lines().filter(|line| line.starts_with("curl ")) {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]);
        let (succeeded, output) = run(shell).await;
        assert!(succeeded, "{line}: {output}");
        match line.starts_with("curl -i") {
            true => statuses.push(output.split(' ').nth(1).unwrap().to_owned()),
            false => last = output,
        }
    }
    assert_eq!(statuses, ["200", "200", "200", "200", "403", "200", "200"]);
    assert!(last.starts_with("200 ") && last.trim_end().ends_with("429"), "{last}");
    assert!(text.contains(&format!("listening on https://{authority}/ ")), "{text}");
    assert!(text.contains(&format!("new WebSocket('wss://{authority}/ws/stream'")), "{text}");
    assert!(!text.contains("http://") && !text.contains("ws://"), "{text}");
}

#[tokio::test]
async fn curl_speaks_http2() {
    if !has("curl", "--version", "curl_speaks_http2") {
        return;
    }
    let secure = Secure::start().await;
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let mut command = Command::new("curl");
        command.args(["-sS", option, "-o", "-", "-w", "%{http_version} %{http_code}", "--cacert"]);
        command.arg(secure.folder.files().cert);
        command.arg("-H").arg(format!("Authorization: Bearer {TRADER}"));
        command.arg(format!("https://localhost:{}/v1/api/accounts", secure.server.addr.port()));
        let (_, text) = run(command).await;
        assert!(text.ends_with(&format!("{version} 200")), "{option}: {text}");
    }
}

/// The printed lines name a host that the certificate is for.
#[tokio::test]
async fn the_instructions_name_a_host_of_the_certificate() {
    let secure = Secure::start().await;
    let authority = |addr: &str| instructions::authority(addr.parse().unwrap(), Some(&secure.tls));
    assert_eq!(authority("127.0.0.1:443"), "127.0.0.1:443");
    assert_eq!(authority("0.0.0.0:443"), "127.0.0.1:443");
    assert_eq!(authority("[::]:443"), "[::1]:443");
    assert_eq!(authority("192.0.2.1:443"), "localhost:443");
    secure.folder.write(&Pair::with(|params| params.subject_alt_names.truncate(0)));
    secure.tls.reload().await;
    assert_eq!(authority("192.0.2.1:443"), "192.0.2.1:443");
    assert_eq!(instructions::authority("0.0.0.0:80".parse().unwrap(), None), "127.0.0.1:80");
}
