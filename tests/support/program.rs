//! The program itself, as an operator runs it, with no environment but what the test gives it: run to
//! its end, or started as the service, whose log is read line by line. It ends with the test.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::eventually::eventually;
use crate::servers::{is_root, kill};

/// The binary that cargo builds with the tests, and names to them as they run.
fn binary() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_aura-hitl").expect("run the tests with cargo").into()
}

/// The program itself, as an operator runs it, with no environment but what the test gives it.
pub struct Program {
    command: Command,
    folder: PathBuf,
}

/// The program as it runs.
pub struct Running {
    child: Child,
    pub base: String,
    out: PathBuf,
    err: PathBuf,
}

impl Program {
    /// In a folder that holds its data; `PATH` is all it inherits.
    pub fn new(folder: &TempDir, arguments: &[&str]) -> Self {
        Self::of(&binary(), folder, arguments)
    }

    /// The same of another build.
    pub fn of(binary: &Path, folder: &TempDir, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(arguments);
        Self::run(folder, command)
    }

    /// The same as a user who may do nothing special.
    pub fn as_nobody(folder: &TempDir, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        if is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
            command.arg(binary());
        }
        command.args(arguments);
        Self::run(folder, command)
    }

    /// The service with so many open files; `kind` is the limit as `ulimit` names it.
    pub fn with_open_files(folder: &TempDir, kind: &str, files: u32) -> Self {
        let mut command = Command::new("sh");
        let limit = format!("ulimit {kind} {files} && exec \"$0\"");
        command.args(["-c", &limit]).arg(binary());
        Self::run(folder, command)
    }

    fn run(folder: &TempDir, mut command: Command) -> Self {
        let data = folder.path().join("data");
        command.current_dir(folder.path()).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("PORT", "0").env("AURA_HITL_DATA_DIR", data);
        Self { command, folder: folder.path().to_path_buf() }
    }

    pub fn with(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs it to its end.
    pub fn output(mut self) -> Output {
        let running = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = running.id();
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        // One that does not end fails the test instead of hanging it.
        let guard = std::thread::spawn(move || {
            let ended = waiting.recv_timeout(Duration::from_secs(50));
            if ended == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kill("-KILL", pid);
            }
        });
        let output = running.wait_with_output().unwrap();
        drop(done);
        guard.join().unwrap();
        output
    }

    /// Starts the service, and does not wait for anything.
    pub fn start(mut self) -> Running {
        let run = uuid::Uuid::new_v4().simple();
        let [out, err] = ["out", "err"].map(|name| self.folder.join(format!("{run}.{name}")));
        self.command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = self.command.spawn().unwrap();
        Running { child, base: String::new(), out, err }
    }

    /// The same, logging into a file that is there already.
    pub fn start_into(mut self, out: &Path) -> Running {
        let err = self.folder.join("stderr");
        self.command.stdout(File::options().write(true).open(out).unwrap());
        self.command.stderr(File::create(&err).unwrap());
        let child = self.command.spawn().unwrap();
        Running { child, base: String::new(), out: out.to_path_buf(), err }
    }

    /// Starts the service and waits until it listens.
    pub async fn serve(self) -> Running {
        let mut running = self.start();
        running.base = eventually(async || {
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", running.stderr());
            let lines = running.log();
            let listening = lines.iter().find(|line| line["message"] == "listening")?;
            Some(format!("http://{}", listening["address"].as_str().unwrap()))
        })
        .await;
        running
    }
}

impl Running {
    /// Every line of the log so far; each must be a JSON object.
    pub fn log(&mut self) -> Vec<Value> {
        let text = self.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(|line| {
            let line: HashMap<String, Value> =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            serde_json::to_value(line).unwrap()
        });
        lines.collect()
    }

    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn terminate(&self) {
        kill("-TERM", self.child.id());
    }

    /// Waits for its end, at most as long as the service promises.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually(async || self.child.try_wait().unwrap()).await
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.ended().await
    }

    /// Ends it as a power cut does.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
