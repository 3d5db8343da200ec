//! The HTTP client with which channels call their receivers.

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};
use url::Url;

/// A client for calls to this address, each of which may take this long. It follows no redirects.
pub fn client(url: &Url, timeout: Duration) -> ClientBuilder {
    let client = Client::builder()
        .redirect(Policy::none())
        .timeout(timeout)
        .user_agent(concat!("aura-hitl/", env!("CARGO_PKG_VERSION")));
    // The settings take http:// for this machine only; a proxy that the environment names is elsewhere.
    if url.scheme() == "http" { client.no_proxy() } else { client }
}
