//! The inbox page: the files of `src/web/`, embedded in the program. Every file is the same for everybody
//! and holds nothing of anybody: what the page shows, it reads through the API with the person's token.
//!
//! Files have their version, a hash of all of them, in their address, so browsers may keep them for ever.
//! The page itself is asked for each time. Both are compressed once, at start.

use std::collections::HashMap;
use std::io::Write as _;

use actix_web::http::Method;
use actix_web::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    EntityTag, Header as _, HeaderValue, IfNoneMatch, LOCATION, VARY, X_FRAME_OPTIONS,
};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::RustEmbed;
use sha2::{Digest as _, Sha256};

use super::error::ApiError;
use crate::config::Config;

/// The page's address, without a prefix.
pub const ADDRESS: &str = "/aura/hitl/inbox/";
/// The address of the page's files.
pub const FILES_ADDRESS: &str = "/aura/hitl/inbox/{version}/{file:.+}";
const INDEX: &str = "index.html";
/// The page may be kept, but not used without asking.
const ASK_FIRST: &str = "no-cache";
/// A file's address names its content.
const FOR_EVER: &str = "public, max-age=31536000, immutable";

#[derive(RustEmbed)]
#[folder = "src/web/"]
struct Files;

/// The page, ready to be sent.
#[derive(Debug)]
pub struct Page {
    index: File,
    /// By name.
    files: HashMap<String, File>,
    /// In the files' addresses.
    version: String,
    /// The page's `Content-Security-Policy`.
    policy: HeaderValue,
    /// Whether any origin may frame the page.
    is_framed: bool,
}

#[derive(Debug)]
struct File {
    content_type: &'static str,
    tag: String,
    plain: Bytes,
    compressed: Bytes,
}

impl Page {
    /// The page with these settings.
    ///
    /// # Errors
    /// When a file of it is missing or cannot be compressed.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let mut names = Files::iter().collect::<Vec<_>>();
        names.sort();
        let mut hash = Sha256::new();
        let mut files = HashMap::new();
        for name in &names {
            let content = Files::get(name).with_context(|| format!("{name} is not embedded"))?;
            hash.update(name.as_bytes());
            hash.update(content.metadata.sha256_hash());
            if name != INDEX {
                files.insert(name.to_string(), File::new(name, content.data.into_owned())?);
            }
        }
        let version = hex(&hash.finalize());
        let index = Files::get(INDEX).context("the page is not embedded")?;
        let index = std::str::from_utf8(&index.data).context("the page is not UTF-8")?;
        let index = index
            .replace("{{assets}}", &version)
            .replace("{{token_key}}", &attribute(&config.inbox_token_key));
        let ancestors = &config.inbox_frame_ancestors;
        let is_framed = !ancestors.is_empty();
        let ancestors = if is_framed { ancestors.join(" ") } else { "'none'".to_owned() };
        Ok(Self {
            index: File::new(INDEX, index.into_bytes())?,
            files,
            version,
            policy: HeaderValue::try_from(format!(
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                 connect-src 'self'; base-uri 'none'; form-action 'none'; \
                 require-trusted-types-for 'script'; trusted-types 'none'; \
                 frame-ancestors {ancestors}"
            ))?,
            is_framed,
        })
    }
}

impl File {
    fn new(name: &str, content: Vec<u8>) -> anyhow::Result<Self> {
        let content_type = match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("html") => "text/html; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => anyhow::bail!("{name} has no known content type"),
        };
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&content)?;
        let tag = hex(&Sha256::digest(&content));
        let compressed = encoder.finish()?.into();
        Ok(Self { content_type, tag, plain: content.into(), compressed })
    }

    /// The answer to a call: the file, or that the caller has it already.
    fn answer(&self, request: &HttpRequest, caching: &'static str) -> HttpResponse {
        let accepts = request.headers().get_all(ACCEPT_ENCODING);
        let is_compressed = accepts.filter_map(|value| value.to_str().ok()).any(takes_gzip);
        // Each form of the content has a tag of its own.
        let tag = if is_compressed { format!("{}-gz", self.tag) } else { self.tag.clone() };
        let tag = EntityTag::new_strong(tag);
        let is_known = IfNoneMatch::parse(request).is_ok_and(|known| match known {
            IfNoneMatch::Any => false,
            IfNoneMatch::Items(tags) => tags.iter().any(|known| known.weak_eq(&tag)),
        });
        let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .insert_header((ETAG, tag.to_string()))
            .insert_header((CACHE_CONTROL, caching))
            .insert_header((VARY, ACCEPT_ENCODING.as_str()));
        if is_known {
            return response.finish();
        }
        response.insert_header((CONTENT_TYPE, self.content_type));
        if is_compressed {
            response.insert_header((CONTENT_ENCODING, "gzip"));
            return response.body(self.compressed.clone());
        }
        response.body(self.plain.clone())
    }
}

/// The page.
pub async fn index(request: HttpRequest, page: web::Data<Page>) -> HttpResponse {
    let mut response = page.index.answer(&request, ASK_FIRST);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, page.policy.clone());
    // For browsers that do not know frame-ancestors; it cannot name origins.
    if !page.is_framed {
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    response
}

/// A file of the page.
///
/// # Errors
/// `E1004` for another name, and for another release's version.
pub async fn file(
    request: HttpRequest,
    page: web::Data<Page>,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    let (version, name) = path.into_inner();
    let file = page.files.get(&name).filter(|_file| version == page.version);
    let file = file.ok_or_else(ApiError::no_such_address)?;
    Ok(file.answer(&request, FOR_EVER))
}

/// The page's address without the last slash: its files' addresses are relative.
pub async fn with_slash(request: HttpRequest) -> HttpResponse {
    let query = request.query_string();
    let address = if query.is_empty() { "inbox/".to_owned() } else { format!("inbox/?{query}") };
    HttpResponse::PermanentRedirect().insert_header((LOCATION, address)).finish()
}

/// The methods of all of them.
pub const METHODS: [Method; 2] = [Method::GET, Method::HEAD];

fn takes_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let is_refused = parts.any(|part| {
            part.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0))
        });
        (name.eq_ignore_ascii_case("gzip") || name == "*") && !is_refused
    })
}

/// The first 64 bits, in hex.
fn hex(hash: &[u8]) -> String {
    use std::fmt::Write as _;
    hash.iter().take(8).fold(String::new(), |mut text, byte| {
        let _written = write!(text, "{byte:02x}");
        text
    })
}

/// A text within a quoted attribute.
fn attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_only_to_who_takes_it() {
        for accepted in ["gzip", "deflate, gzip;q=0.5, br", "*", "GZIP ; q=1"] {
            assert!(takes_gzip(accepted), "{accepted}");
        }
        for accepted in ["", "br", "gzip;q=0", "deflate, gzip; q=0.0"] {
            assert!(!takes_gzip(accepted), "{accepted}");
        }
    }

    #[test]
    fn a_setting_never_ends_its_attribute() {
        assert_eq!(attribute(r#"a"><script>&"#), "a&quot;>&lt;script>&amp;");
    }
}
