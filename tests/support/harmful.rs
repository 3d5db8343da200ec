//! Malicious input for the API's tests and for `scripts/faults`: identity headers, ids, heads and ends
//! of requests, bodies. It goes over a socket unchanged.

use crate::percent_encoded;

/// A smuggled request. A server that takes it for a request repeats its trace id.
pub const HIDDEN: &str = "GET /health/live HTTP/1.1\r\nHost: x\r\nX-Trace-Id: smuggled\r\n\r\n";
/// The body of a decision by `user123`.
pub const BODY: &str = r#"{"userId":"user123"}"#;

/// Headers of `user123` of `tenant1` that name nobody, or more than one: 400.
pub fn odd_identities() -> Vec<String> {
    let (tenant, user) = ("X-Tenant-ID: tenant1\r\n", "X-User-ID: user123\r\n");
    vec![
        user.to_owned(),
        format!("X-Tenant-ID:\r\n{user}"),
        format!("X-Tenant-ID: \t \r\n{user}"),
        format!("{tenant}{tenant}{user}"),
        format!("{tenant}x-tenant-id: tenant1\r\n{user}"),
        format!("X-Tenant-ID: tenant2\r\n{tenant}{user}"),
        format!("X-Tenant-ID:\r\n{tenant}{user}"),
        format!("{tenant}X-Tenant-ID:\r\n{user}"),
        format!("X-Tenant-ID: tenant1,tenant1\r\n{user}"),
        format!("X-Tenant-ID: tenant1 , tenant2\r\n{user}"),
        format!("X-Tenant-ID: ,tenant1\r\n{user}"),
        format!("X-Tenant-ID : tenant1\r\n{user}"),
        format!("X-Tenant-ID:\r\n tenant1\r\n{user}"),
        format!("X-Tenant-ID: tenant1\0\r\n{user}"),
        format!("X-Tenant-ID: tenant1\r{user}"),
        format!("X_Tenant_ID: tenant1\r\n{user}"),
        format!("X-Tenant-ID\0: tenant1\r\n{user}"),
        format!("{tenant}X-User-ID:\r\n"),
        format!("{tenant}X-User-ID: \t\r\n"),
        format!("{tenant}{user}{user}"),
        format!("{tenant}{user}x-user-id: bob\r\n"),
        format!("{tenant}X-User-ID: user123,user123\r\n"),
        format!("{tenant}X-User-ID: bob, user123\r\n"),
        format!("{tenant}X-User-ID:\r\n user123\r\n"),
        format!("{tenant}X-User-ID : user123\r\n"),
        format!("{tenant}X-User-ID: user123\x7f\r\n"),
    ]
}

/// Ids in a path, encoded, that hold a marker and can be no request's, session's or task's.
pub fn hostile_ids(marker: &str, is_session: bool) -> Vec<String> {
    let mut ids = vec![
        format!("{marker}%0A"),
        format!("{marker}%0D%0ASET%20x%20y"),
        format!("{marker}%00"),
        format!("%00{marker}"),
        format!("{marker}%20x"),
        format!("%20{marker}"),
        format!("{marker}%09"),
        format!("{marker}%7F"),
        format!("{marker}%C2%85"),
        format!("{marker}%E3%80%80"),
        format!("{marker}%FF%FE"),
        format!("{marker}%C0%AF"),
        format!("{marker}{}", "x".repeat(40_000)),
        format!("{marker}{}", "%2F".repeat(10_000)),
        format!("{marker}{}", "x".repeat(257)),
    ];
    if !is_session {
        ids.extend([
            format!("{marker}%2F"),
            format!("..%2F{marker}"),
            format!("{marker}*"),
            format!("*{marker}"),
            format!("{marker}%3F"),
            format!("{marker}%5B%5D"),
            format!("{marker}%7B%7D"),
            format!("{marker}%24"),
            format!("{marker}%25"),
            format!("{marker}%5C"),
            format!("{marker}%22"),
            format!("{marker}{}", percent_encoded("가")),
            format!("{marker}{}", "x".repeat(129 - marker.len())),
        ]);
    }
    ids
}

/// What follows the headers of a call when two programs could disagree where it ends: 400.
pub fn ambiguous_heads() -> Vec<String> {
    let n = BODY.len();
    let chunked = [
        format!("Content-Length: {n}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {n}"),
        "Content-Length: 0\r\nTransfer-Encoding: chunked".to_owned(),
        format!("Content-Length: {n}\r\nTransfer-Encoding: identity"),
    ]
    .into_iter()
    .chain(
        [
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding\t: chunked",
            "Transfer-Encoding:\r\n chunked",
            " Transfer-Encoding: chunked",
            "X: y\r\n Transfer-Encoding: chunked",
            "X: y\rTransfer-Encoding: chunked",
            "Transfer-Encoding\r\n : chunked",
            "Transfer-Encoding\0: chunked",
            "Transfer\u{2010}Encoding: chunked",
            ": chunked",
            "Transfer-Encoding chunked",
        ]
        .map(ToOwned::to_owned),
    )
    .chain(
        [
            "chunked, chunked",
            "chunked, identity",
            "identity, chunked",
            "gzip, chunked",
            "identity",
            "xchunked",
            "chunkedx",
            "chunked;q=1",
            "\"chunked\"",
            "chunked,",
            ",chunked",
            "",
            "\u{b}chunked",
            "chunked\u{b}",
            "\0chunked",
            "ｃｈｕｎｋｅｄ",
            "chu nked",
            "cow",
        ]
        .map(|coding| format!("Transfer-Encoding: {coding}")),
    )
    .map(|framing| format!("{framing}\r\n\r\n{n:x}\r\n{BODY}\r\n0\r\n\r\n{HIDDEN}"));
    let with_length = [
        format!("Content-Length: {n}\r\nContent-Length: {n}"),
        format!("Content-Length: {n}\r\nContent-Length: 0"),
        format!("Content-Length: 0\r\nContent-Length: {n}"),
        format!("Content-Length: {n}\r\ncontent-length: {}", n + 1),
        format!("Content-Length: {n}, {n}"),
        format!("Content-Length: {n},"),
        format!("Content-Length: -{n}"),
        format!("Content-Length: +{n}"),
        format!("Content-Length: 0x{n:x}"),
        format!("Content-Length: {n}.0"),
        format!("Content-Length: {n}e0"),
        format!("Content-Length: 1 {n}"),
        format!("Content-Length: \"{n}\""),
        format!("Content-Length: {n};"),
        "Content-Length:".to_owned(),
        "Content-Length: ".to_owned(),
        "Content-Length: x".to_owned(),
        "Content-Length: ２０".to_owned(),
        "Content-Length: 18446744073709551616".to_owned(),
        "Content-Length: 99999999999999999999999999".to_owned(),
        format!("Content-Length : {n}"),
        format!("Content-Length\t: {n}"),
        format!("Content-Length:\r\n {n}"),
        format!(" Content-Length: {n}"),
        format!("X: y\r\n\tContent-Length: {n}"),
        format!("X: y\rContent-Length: {n}"),
        format!("X: y\0\r\nContent-Length: {n}"),
        format!("Host: y\r\nContent-Length: {n}"),
        // A line feed alone ends a line (RFC 9112 § 2.2), and so hides none of these.
        format!("X: y\nContent-Length: {n}\nContent-Length: 0"),
        format!("X: y\nTransfer-Encoding: chunked\nContent-Length: {n}"),
        format!("X: y\n Content-Length: {n}"),
    ]
    .map(|framing| format!("{framing}\r\n\r\n{BODY}{HIDDEN}"));
    chunked.chain(with_length).collect()
}

/// A call with this head, whose first line is made into none or whose host is left out: 400.
pub fn broken_first_lines(head: &str) -> Vec<String> {
    let with_version = |version: &str| head.replacen("HTTP/1.1", version, 1);
    let without_host = head.replacen("Host: x\r\n", "", 1);
    ["HTTP/1.0", "HTTP/1.2", "HTTP/0.9", "HTTP/2.0", "http/1.1", "HTTP/1.1 x", ""]
        .map(with_version)
        .into_iter()
        .chain([without_host, format!(" {head}"), format!("\0{head}")])
        .map(|head| format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"))
        .collect()
}

/// What follows the headers of a call whose chunks are none.
pub fn broken_chunks() -> Vec<String> {
    let n = format!("{:x}", BODY.len());
    [
        format!("-{n}\r\n{BODY}\r\n0\r\n\r\n"),
        format!("0x{n}\r\n{BODY}\r\n0\r\n\r\n"),
        format!("+{n}\r\n{BODY}\r\n0\r\n\r\n"),
        format!(" {n}\r\n{BODY}\r\n0\r\n\r\n"),
        format!("{n}\n{BODY}\n0\n\n"),
        format!("{n}\r{BODY}\r\n0\r\n\r\n"),
        format!("{n};\n{BODY}\r\n0\r\n\r\n"),
        format!("{n};x\0\r\n{BODY}\r\n0\r\n\r\n"),
        format!("{n} 0\r\n{BODY}\r\n0\r\n\r\n"),
        format!("{n}\r\n{BODY}0\r\n\r\n"),
        format!("{n}\r\n{BODY}\n0\r\n\r\n"),
        format!("{n}\r\n{BODY}xx0\r\n\r\n"),
        format!("fffffffffffffffff\r\n{BODY}\r\n0\r\n\r\n"),
        format!("ffffffffffffffff0{n}\r\n{BODY}\r\n0\r\n\r\n"),
        format!("\r\n{n}\r\n{BODY}\r\n0\r\n\r\n"),
        format!(";{n}\r\n{BODY}\r\n0\r\n\r\n"),
        format!("g\r\n{BODY}\r\n0\r\n\r\n"),
        format!("0;\n\r\n{BODY}\r\n0\r\n\r\n"),
    ]
    .map(|chunks| format!("Transfer-Encoding: chunked\r\n\r\n{chunks}{HIDDEN}"))
    .to_vec()
}

/// In order from end to end: a request inside a body, and another one behind it.
pub fn requests_in_bodies() -> Vec<String> {
    let (n, chunk) = (HIDDEN.len(), format!("{:x}", HIDDEN.len()));
    let next =
        "GET /health/live HTTP/1.1\r\nHost: x\r\nX-Trace-Id: the-next\r\nConnection: close\r\n\r\n";
    [
        format!("Content-Length: {n}\r\n\r\n{HIDDEN}"), format!("Content-Length: {n}\r\nExpect: 100-continue\r\n\r\n{HIDDEN}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{chunk}\r\n{HIDDEN}\r\n0\r\n\r\n"),
        format!("Transfer-Encoding: CHUNKED\r\n\r\n{chunk};a=\"b\"\r\n{HIDDEN}\r\n0\r\nX: y\r\n\r\n"),
        format!("Content-Length: {n}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{HIDDEN}"),
        format!("Content-Length: {n}\r\nConnection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n{HIDDEN}"),
    ]
    .map(|framed| format!("{framed}{next}"))
    .to_vec()
}

/// JSON that is none, or that two programs could read differently: 400, or 413 over the limit.
pub fn broken_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let deep = |open: &str, close: &str| {
        format!("{}{}", open.repeat(10_000), close.repeat(10_000)).into_bytes()
    };
    vec![
        ("cut off", b"{\"userId\":".to_vec()),
        ("cut off in a string", b"{\"userId\":\"us".to_vec()),
        ("not JSON", b"userId=user123".to_vec()),
        ("Python's", b"{'userId': 'user123'}".to_vec()),
        ("deep arrays", deep("[", "]")),
        ("deep objects", deep("{\"a\":", "}")),
        ("deep and open", b"[".repeat(10_000)),
        (
            "a deep unknown field",
            [b"{\"userId\":\"user123\",\"x\":".to_vec(), deep("[", "]"), b"}".to_vec()].concat(),
        ),
        ("1e999", b"{\"userId\":\"user123\",\"x\":1e999}".to_vec()),
        ("NaN", b"{\"userId\":\"user123\",\"x\":NaN}".to_vec()),
        ("a lone surrogate", b"{\"userId\":\"\\ud800\"}".to_vec()),
        ("a lone low surrogate", b"{\"x\":\"\\udc00\"}".to_vec()),
        ("NUL in a value", b"{\"userId\":\"user123\",\"x\":\"a\\u0000b\"}".to_vec()),
        ("NUL deep inside", b"{\"userId\":\"user123\",\"x\":[{\"y\":[\"\\u0000\"]}]}".to_vec()),
        ("NUL in a name", b"{\"userId\":\"user123\",\"a\\u0000b\":1}".to_vec()),
        ("a raw NUL", b"{\"userId\":\"user\x00123\"}".to_vec()),
        ("a raw line break", b"{\"userId\":\"a\nb\"}".to_vec()),
        ("no UTF-8", b"{\"userId\":\"\xff\xfe\"}".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{\"userId\":\"user123\"}".to_vec()),
        ("a field twice", b"{\"userId\":\"user123\",\"userId\":\"user123\"}".to_vec()),
        ("an unknown field twice", b"{\"userId\":\"user123\",\"x\":1,\"x\":1}".to_vec()),
        ("a field twice, spelled differently", b"{\"x\":1,\"\\u0078\":2}".to_vec()),
        (
            "a field twice deep inside",
            b"{\"userId\":\"user123\",\"x\":[{\"y\":{\"z\":1,\"z\":2}}]}".to_vec(),
        ),
        ("-1e999", b"[-1e999]".to_vec()),
        (
            "a number of 16,000 digits and an exponent",
            [b"[1".to_vec(), b"0".repeat(16_000), b"e9]".to_vec()].concat(),
        ),
        ("a number that begins with 0", b"{\"x\":01}".to_vec()),
        ("a hexadecimal number", b"{\"x\":0x10}".to_vec()),
        ("garbage behind", b"{\"userId\":\"user123\"} x".to_vec()),
        ("two values", b"{\"userId\":\"user123\"}{}".to_vec()),
    ]
}
