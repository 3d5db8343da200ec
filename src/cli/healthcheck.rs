//! `aura-hitl healthcheck`: whether the service on this machine is ready; for containers.

use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::config::Config;

/// Calls `/health/ready`; an error unless it answers 200.
pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let (host, port) = Config::load_address(file)?;
    let host = match host.as_str() {
        "0.0.0.0" | "::" | "[::]" => "127.0.0.1",
        host => host,
    };
    let host = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() };
    let address = format!("http://{host}:{port}/health/ready");
    let client = reqwest::Client::builder().timeout(Duration::from_secs(3)).build()?;
    let response =
        client.get(&address).send().await.with_context(|| format!("no answer from {address}"))?;
    ensure!(response.status().is_success(), "{address} answers {}", response.status());
    Ok(())
}
