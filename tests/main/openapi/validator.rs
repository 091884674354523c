//! Documents pass a validator of other authors: `openapi-spec-validator`, in Python.

use std::process::Stdio;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::settings::settings;
use crate::kit::*;

const TEST: &str = "documents_pass_an_independent_validator";

const VALIDATE: &str = "
import json, sys
from openapi_spec_validator import OpenAPIV31SpecValidator
documents = [json.loads(line) for line in sys.stdin]
for document in documents:
    assert document['openapi'].startswith('3.1'), document['openapi']
    errors = [f'{list(error.path)}: {error.message}' for error in OpenAPIV31SpecValidator(document).iter_errors()]
    assert not errors, errors
broken = documents[0] | {'paths': {'/orders': {'get': {'security': 'bearer'}}}}
assert list(OpenAPIV31SpecValidator(broken).iter_errors()), 'the validator finds errors'
print(len(documents))
";

#[tokio::test]
async fn documents_pass_an_independent_validator() {
    let mut runner = TestRunner::deterministic();
    let settings = (0..60).map(|_| settings().new_tree(&mut runner).unwrap().current());
    let documents: Vec<String> = settings.map(|settings| settings.service().1.to_json().unwrap()).collect();
    let Some(output) = python(VALIDATE, documents.join("\n")).await else { return };
    assert_eq!(output.trim(), "60");
}

/// Runs a script with this input. Returns `None`, with a message, if Python or the validator is missing.
async fn python(script: &str, input: String) -> Option<String> {
    let mut command = Command::new("python3");
    command.args(["-c", script]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut process) = command.spawn() else {
        skip("python3", TEST);
        return None;
    };
    let mut stdin = process.stdin.take().unwrap();
    // A script that fails to import its modules does not read the input.
    _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = process.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("No module named 'openapi_spec_validator'") {
        skip("openapi-spec-validator", TEST);
        return None;
    }
    assert!(output.status.success(), "{errors}");
    Some(String::from_utf8(output.stdout).unwrap())
}
