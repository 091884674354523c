//! Helpers of the command line's tests: standard input, and a pseudo terminal.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::kit::skip;

/// Runs a command with this text on its standard input.
pub fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that fails early closes its standard input.
    _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Runs a command on a pseudo terminal. Writes `hidden` input as soon as echo is off, and `shown` input immediately. The output is
/// what the terminal shows.
const TERMINAL: &str = r#"
import os, pty, sys, termios, time
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[3], sys.argv[3:])
if sys.argv[1] == 'shown':
    os.write(terminal, sys.argv[2].encode() + b'\n')
elif sys.argv[2]:
    while termios.tcgetattr(terminal)[3] & termios.ECHO:
        time.sleep(0.01)
    os.write(terminal, sys.argv[2].encode() + b'\n')
while True:
    try:
        shown = os.read(terminal, 65536)
    except OSError:
        break
    if not shown:
        break
    os.write(1, shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

/// Returns a command that runs another one on a pseudo terminal, or `None` without Python 3. The input is written without echo.
pub fn on_terminal(test: &str, input: &str, command: &Command) -> Option<Command> {
    with_terminal(test, "hidden", input, command)
}

/// Returns a command that runs another one on a pseudo terminal, where a person types this answer.
pub fn answered(test: &str, answer: &str, command: &Command) -> Option<Command> {
    with_terminal(test, "shown", answer, command)
}

fn with_terminal(test: &str, echo: &str, input: &str, command: &Command) -> Option<Command> {
    if !has("python3", test) {
        return None;
    }
    let mut terminal = Command::new("python3");
    terminal.args(["-c", TERMINAL, echo, input]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        if !command.get_envs().any(|(set, _)| set == name) {
            terminal.env_remove(name);
        }
    }
    terminal.env("TERM", "xterm").stdin(Stdio::null());
    Some(terminal)
}

/// Returns whether a program is installed. Says that the test is skipped if it is not.
pub fn has(program: &str, test: &str) -> bool {
    let has = is_installed(program);
    if !has {
        skip(program, test);
    }
    has
}

/// Returns whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    let runs = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    runs.is_ok_and(|output| output.status.success())
}
