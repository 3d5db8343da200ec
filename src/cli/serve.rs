//! `aura-hitl serve`: runs the service.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};

use super::load;
use crate::api::text::{Language, Text};
use crate::config::{Config, LedgerConfig};
use crate::domain::clock::Clock;
use crate::observe::{log, traces};
use crate::server::{Replica, reload};

/// Runs the service until it is asked to stop.
pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    // First of all, so that a SIGHUP during the start does not end the process, and that no SIGTERM is
    // missed.
    let hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = load(file)?;
    let _log = log::start()?;
    for warning in &config.warnings {
        tracing::warn!(warning, "a variable looks like a misspelt setting");
    }
    let replica = tokio::select! {
        started = Replica::start(&config, Clock::System) => started?,
        // While it waits for the database, say.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    greet(&config, file, replica.address);
    let reloading = Box::pin(reload::on_hangup(hangup, file, config, replica.state.clone()));
    let ended = replica
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                never = reloading => match never {},
            }
        })
        .await;
    traces::shut_down().await;
    ended
}

/// Prints the next steps for a person who starts the embedded mode at a terminal.
fn greet(config: &Config, config_file: Option<&Path>, address: SocketAddr) {
    let (LedgerConfig::Sqlite { file }, None) = (&config.ledger, &config.redis) else { return };
    if !std::io::stderr().is_terminal() {
        return;
    }
    let file = absolute(file);
    let file = file.display();
    let token = token_command(&config.data_dir, config_file);
    let lines = Text::new(
        format!(
            "Running; try the API at http://{address}/swagger-ui/\n\
             A token for it: {token}\n\
             Decisions are kept in {file}"
        ),
        format!(
            "실행 중입니다. API 사용해 보기: http://{address}/swagger-ui/\n\
             토큰 발급: {token}\n\
             결정이 저장되는 곳: {file}"
        ),
    );
    eprintln!("{}", lines.in_language(Language::of_terminal()));
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// A command that prints a token for this service, from any folder.
fn token_command(data_dir: &Path, config_file: Option<&Path>) -> String {
    let quoted = |path: &Path| {
        let text = path.display().to_string();
        let is_plain = |letter: char| letter.is_alphanumeric() || "/._-".contains(letter);
        if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    let program = std::env::current_exe().ok();
    let on_path = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|folder| folder.join("aura-hitl"))
            .find(|file| file.is_file())
    });
    let on_path = on_path.and_then(|file| file.canonicalize().ok());
    let program = match program {
        Some(program) if on_path.as_ref() != Some(&program) => quoted(&program),
        _ => "aura-hitl".to_owned(),
    };
    let named = std::env::var_os("AURA_HITL_CONFIG").filter(|name| !name.is_empty());
    let config_file = config_file.map(Path::to_path_buf).or(named.map(PathBuf::from));
    let config = config_file.map(|file| format!(" --config {}", quoted(&absolute(&file))));
    // The data folder has the secret. Its path is absolute, so that the command works in any folder.
    format!(
        "AURA_HITL_DATA_DIR={} {program}{} token --sub user123 --tenant tenant1",
        quoted(&absolute(data_dir)),
        config.unwrap_or_default()
    )
}
