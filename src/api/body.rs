//! Request bodies: read within a time-out and a size limit, parsed once, and checked before a handler
//! gets them. A large body waits for its turn before it is read, and is checked on a blocking thread, so
//! that it does not delay the calls of others. Query strings are parsed here, too, so that an error names
//! the parameter.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::time::{Duration, Instant};

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};
use futures_util::StreamExt as _;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize as _, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Number, Value};
use url::form_urlencoded;
use validator::{Validate, ValidationError, ValidationErrors};

use super::envelope::Call;
use super::error::{ApiError, FieldErrors};
use super::text::Text;
use crate::domain::approver::Caller;
use crate::domain::json::{StrictJson, StrictJsonValue};
pub use crate::limits::MAX_TASK_BYTES;
use crate::limits::{LARGE_BODY_BYTES, LargeBodyTurn};
use crate::state::{AppState, WorkError};

/// Largest body of a decision, in bytes.
pub const MAX_DECISION_BYTES: usize = 16 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The error of [`whole_number`].
const NOT_A_WHOLE_NUMBER: &str = "must be a whole number in range";

/// The turn of a large body, `None` for a small one. The handler keeps it until the call's work has
/// ended.
pub type Turn = Option<LargeBodyTurn>;

/// A JSON body of at most `LIMIT` bytes whose fields have been checked.
#[derive(Debug)]
pub struct Checked<T, const LIMIT: usize>(pub T, pub Turn);

/// Like [`Checked`], for a body of any size with fields that are stored exactly as they were sent.
#[derive(Debug)]
pub struct Verbatim<T, const LIMIT: usize>(pub T, pub Turn);

/// A JSON body of at most `LIMIT` bytes as raw text; `None` without a body.
#[derive(Debug)]
pub struct AnyJson<const LIMIT: usize>(pub Option<Box<RawValue>>, pub Turn);

/// The parameters of a query.
#[derive(Debug)]
pub struct Query<T>(pub T);

type Reading<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>>>>;

impl<T: DeserializeOwned + Validate + Send + 'static, const LIMIT: usize> FromRequest
    for Checked<T, LIMIT>
{
    type Error = ApiError;
    type Future = Reading<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        // Large bodies have fields that are stored exactly as they were sent.
        let read = if LIMIT > MAX_DECISION_BYTES { verbatim } else { plain };
        let reading = read_fields::<T, LIMIT>(request, payload, read);
        Box::pin(async move { reading.await.map(|(value, turn)| Self(value, turn)) })
    }
}

impl<T: DeserializeOwned + Validate + Send + 'static, const LIMIT: usize> FromRequest
    for Verbatim<T, LIMIT>
{
    type Error = ApiError;
    type Future = Reading<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reading = read_fields::<T, LIMIT>(request, payload, verbatim);
        Box::pin(async move { reading.await.map(|(value, turn)| Self(value, turn)) })
    }
}

/// Reads a body whose fields are checked; `read` makes them of its bytes.
fn read_fields<T: Validate + Send + 'static, const LIMIT: usize>(
    request: &HttpRequest,
    payload: &mut Payload,
    read: fn(&[u8]) -> Result<T, ApiError>,
) -> impl Future<Output = Result<(T, Turn), ApiError>> + use<T, LIMIT> {
    let reading = self::read::<LIMIT>(request, payload);
    async move {
        let (body, turn) = reading.await?;
        let check = move || {
            let value = read(&body)?;
            value.validate().map_err(|errors| ApiError::invalid(field_errors(&errors)))?;
            Ok(value)
        };
        in_turn(turn, check).await
    }
}

/// The fields of a body, some of which are kept exactly as they were sent.
fn verbatim<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    parse::<StrictJson>(body)?;
    parse_object(body)
}

/// The fields of a body.
fn plain<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    from_object(parse::<StrictJsonValue>(body)?.0)
}

impl<const LIMIT: usize> FromRequest for AnyJson<LIMIT> {
    type Error = ApiError;
    type Future = Reading<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let is_json = is_json(request);
        let has_type = request.headers().contains_key(CONTENT_TYPE);
        let receiving = receive::<LIMIT>(request, payload);
        Box::pin(async move {
            let (body, turn) = receiving.await?;
            if body.trim_ascii().is_empty() {
                return Ok(Self(None, turn));
            }
            if has_type && !is_json {
                return Err(ApiError::not_json());
            }
            let check = move || {
                parse::<StrictJson>(&body)?;
                parse(&body)
            };
            let (value, turn) = in_turn(turn, check).await?;
            Ok(Self(Some(value), turn))
        })
    }
}

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let pairs = form_urlencoded::parse(request.query_string().as_bytes());
        let read = serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs));
        ready(read.map(Self).map_err(|error| {
            let path = error.path().to_string();
            let name = if path == "." { "query" } else { path.as_str() };
            ApiError::invalid_field(name, why_not_parameter(error.inner()))
        }))
    }
}

fn why_not_parameter(error: &serde_urlencoded::de::Error) -> Text {
    match error.to_string().as_str() {
        // The standard library's messages.
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            Text::new("must be a whole number", "정수여야 합니다")
        }
        "number too large to fit in target type" => Text::new("is too large", "너무 큽니다"),
        cause => Text::new(format!("is not valid ({cause})"), "형식이 올바르지 않습니다"),
    }
}

fn is_json(request: &HttpRequest) -> bool {
    request.mime_type().ok().flatten().is_some_and(|mime| {
        mime.subtype() == "json" || mime.suffix().is_some_and(|suffix| suffix == "json")
    })
}

/// Runs work that takes long with a large body, on a blocking thread if the body is large. The turn
/// lasts until the work has ended, also when the client disconnects.
///
/// # Errors
/// The work's error; [`WorkError::OutcomeUnknown`] if it panicked.
pub async fn in_turn<T: Send + 'static>(
    turn: Turn,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, Turn), ApiError> {
    if turn.is_none() {
        return Ok((work()?, turn));
    }
    let (call, span) = (Call::current(), tracing::Span::current());
    let working = web::block(move || {
        let done = span.in_scope(|| call.during(work));
        done.map(|done| (done, turn))
    });
    working.await.map_err(|_panic| ApiError::from(WorkError::OutcomeUnknown))?
}

fn read<const LIMIT: usize>(
    request: &HttpRequest,
    payload: &mut Payload,
) -> Reading<(web::Bytes, Turn)> {
    if !is_json(request) {
        return Box::pin(ready(Err(ApiError::not_json())));
    }
    receive::<LIMIT>(request, payload)
}

/// Receives a body of any kind.
pub(super) fn receive<const LIMIT: usize>(
    request: &HttpRequest,
    payload: &mut Payload,
) -> Reading<(web::Bytes, Turn)> {
    let length = length_beside_upgrade(request);
    if length.is_some_and(|length| length > LIMIT) {
        return Box::pin(ready(Err(ApiError::too_large(LIMIT))));
    }
    let payload = web::Payload::from_request(request, payload);
    let request = request.clone();
    Box::pin(async move {
        let payload = payload.await.map_err(|error| ApiError::internal(&error.to_string()))?;
        let bytes = web::BytesMut::new();
        let mut body = ReceivedPart { payload, length, bytes, time_left: BODY_TIMEOUT };
        if LIMIT <= LARGE_BODY_BYTES {
            let is_whole = body.read(LIMIT).await?;
            return is_whole.then(|| body.finish(None)).ok_or(ApiError::too_large(LIMIT));
        }
        // A body sent in chunks does not say its length in advance.
        if !is_declared_large(&request) && body.read(LARGE_BODY_BYTES).await? {
            return Ok(body.finish(None));
        }
        let turn = turn_of(&request).await?;
        if !body.read(LIMIT).await? {
            return Err(ApiError::too_large(LIMIT));
        }
        Ok(body.finish(Some(turn.received().await?)))
    })
}

/// A body that has been received in part.
struct ReceivedPart {
    payload: web::Payload,
    /// See [`length_beside_upgrade`].
    length: Option<usize>,
    bytes: web::BytesMut,
    /// How long the rest may take to arrive.
    time_left: Duration,
}

impl ReceivedPart {
    /// Reads until the body is whole or has more than `max` bytes. Returns whether it is whole.
    async fn read(&mut self, max: usize) -> Result<bool, ApiError> {
        let began = Instant::now();
        let Self { payload, length, bytes, time_left } = self;
        let reading = async {
            while length.is_none_or(|length| bytes.len() < length) {
                if bytes.len() > max {
                    return Ok(false);
                }
                match payload.next().await {
                    Some(more) => bytes.extend_from_slice(&more?),
                    None if length.is_some() => return Err(PayloadError::Incomplete(None)),
                    None => return Ok(true),
                }
            }
            bytes.truncate(length.unwrap_or(usize::MAX));
            Ok(true)
        };
        let read = tokio::time::timeout(*time_left, reading).await;
        *time_left = time_left.saturating_sub(began.elapsed());
        match read {
            Ok(Ok(is_whole)) => Ok(is_whole),
            Ok(Err(_broken)) => {
                Err(malformed("body", "did not arrive whole", "본문이 완전하지 않습니다"))
            }
            Err(_elapsed) => {
                Err(malformed("body", "did not arrive in time", "제시간에 도착하지 않았습니다"))
            }
        }
    }

    fn finish(self, turn: Turn) -> (web::Bytes, Turn) {
        (self.bytes.freeze(), turn)
    }
}

/// Whether `Content-Length` says that the body is large.
fn is_declared_large(request: &HttpRequest) -> bool {
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.trim().parse().ok());
    length.is_some_and(|length: usize| length > LARGE_BODY_BYTES)
}

/// Waits for the turn of the caller's large body.
async fn turn_of(request: &HttpRequest) -> Result<LargeBodyTurn, ApiError> {
    // actix polls a handler's arguments in their order, and the caller is the first.
    let caller = request.extensions().get::<Caller>().cloned();
    let (Some(app), Some(caller)) = (request.app_data::<web::Data<AppState>>(), caller) else {
        return Err(ApiError::internal("a body is read before its caller is known"));
    };
    Ok(app.large_bodies.wait(&caller).await?)
}

/// The length of the body of a call with an `Upgrade` header. The service ignores that header (RFC
/// 9110 § 7.8), but actix reads all bytes after `Upgrade: websocket` as the other protocol's, without
/// an end.
fn length_beside_upgrade(request: &HttpRequest) -> Option<usize> {
    let headers = request.headers();
    if !headers.contains_key(UPGRADE) || headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    let Some(length) = headers.get(CONTENT_LENGTH) else { return Some(0) };
    length.to_str().ok()?.trim().parse().ok()
}

fn malformed(field: &str, en: &'static str, ko: &'static str) -> ApiError {
    ApiError::invalid_field(field, Text::new(en, ko))
}

/// Parses one JSON value. Nothing may follow it.
///
/// # Errors
/// [`ApiError::invalid`], naming the field that could not be read.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(malformed(
            "body",
            "is empty; send a JSON object",
            "비어 있습니다. JSON 객체를 보내 주세요",
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = read_from(&mut deserializer)?;
    deserializer.end().map_err(|error| ApiError::invalid_field("body", why_not(&error)))?;
    Ok(value)
}

fn read_from<'de, T: DeserializeOwned>(
    json: impl Deserializer<'de, Error = serde_json::Error>,
) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        // "?" is a field's name that was cut off. A body that ends too early is wrong as a whole.
        let is_whole = !matches!(path.as_str(), "." | "?") && !error.inner().is_eof();
        let field = if is_whole { path.as_str() } else { "body" };
        ApiError::invalid_field(field, why_not(error.inner()))
    })
}

/// The parser's error as a sentence for people who do not know the parser.
fn why_not(error: &serde_json::Error) -> Text {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Eof => Text::new(
            "ends too early: it is not complete JSON",
            "중간에 끝납니다. 완전한 JSON을 보내 주세요",
        ),
        Category::Syntax | Category::Io => Text::new(
            format!("is not valid JSON (line {line}, column {column})"),
            format!("올바른 JSON이 아닙니다 ({line}행 {column}열)"),
        ),
        Category::Data => {
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            // serde's message, such as "invalid type: integer `5`, expected a string".
            match text.rsplit_once(", expected ") {
                Some((_found, expected)) => must_be(expected),
                None => match text.strip_prefix("duplicate field ") {
                    Some(name) => Text::new(
                        format!("has the field {name} twice"),
                        format!("{name} 필드가 두 번 있습니다"),
                    ),
                    None if text == NOT_A_WHOLE_NUMBER => {
                        Text::new(NOT_A_WHOLE_NUMBER, "범위 안의 정수여야 합니다")
                    }
                    None => Text::new(text.to_owned(), "형식이 올바르지 않습니다"),
                },
            }
        }
    }
}

fn must_be(expected: &str) -> Text {
    let (en, ko) = match expected {
        "a string" => ("a string", "문자열이어야 합니다"),
        "a boolean" => ("true or false", "true 또는 false여야 합니다"),
        "a sequence" => ("an array", "배열이어야 합니다"),
        "a map" => ("a JSON object", "JSON 객체여야 합니다"),
        number if number.starts_with(['i', 'u', 'f']) || number.contains("number") => {
            ("a number", "숫자여야 합니다")
        }
        object if object.starts_with("struct ") => ("a JSON object", "JSON 객체여야 합니다"),
        other => return Text::new(format!("must be {other}"), "형식이 올바르지 않습니다"),
    };
    Text::new(format!("must be {en}"), ko)
}

/// Parses one JSON object. A derived `Deserialize` alone would also accept an array of the fields'
/// values.
///
/// # Errors
/// [`ApiError::invalid`], naming the field that could not be read.
pub fn parse_object<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii().first() != Some(&b'{') {
        return Err(not_an_object());
    }
    parse(body)
}

/// [`parse_object`] of a value that is parsed already.
fn from_object<T: DeserializeOwned>(read: Value) -> Result<T, ApiError> {
    if read.is_object() { read_from(read) } else { Err(not_an_object()) }
}

fn not_an_object() -> ApiError {
    malformed("body", "must be a JSON object", "JSON 객체여야 합니다")
}

/// Reads a whole number, written as `40` or as `40.0`: Python's `json.dumps` writes floats so.
///
/// # Errors
/// When the number has a fraction or does not fit into `N`.
pub fn whole_number<'de, D: Deserializer<'de>, N: TryFrom<i64>>(
    deserializer: D,
) -> Result<Option<N>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else { return Ok(None) };
    let whole = number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
        format!("{float:.0}").parse().ok()
    });
    let whole = whole.and_then(|whole| N::try_from(whole).ok());
    whole.map(Some).ok_or_else(|| D::Error::custom(NOT_A_WHOLE_NUMBER))
}

/// The validator's errors, by the names under which the caller sent the fields.
#[must_use]
pub fn field_errors(errors: &ValidationErrors) -> FieldErrors {
    let fields = errors.field_errors();
    fields
        .into_iter()
        .filter_map(|(field, problems)| Some((camel(&field), text_of(problems.first()?))))
        .collect()
}

/// `user_id` as `userId`: the field's name in JSON.
fn camel(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let mut letters = word.chars();
        let initial = letters.next().map(|c| c.to_ascii_uppercase());
        name + &initial.into_iter().chain(letters).collect::<String>()
    })
}

/// A validator's error with a sentence of its own.
#[must_use]
pub fn sentence(en: &'static str, ko: &'static str) -> ValidationError {
    let mut error = ValidationError::new("sentence");
    error.add_param("ko".into(), &ko);
    error.with_message(en.into())
}

fn text_of(problem: &ValidationError) -> Text {
    let number = |name: &str| problem.params.get(name).map(ToString::to_string);
    match (problem.code.as_ref(), number("min"), number("max")) {
        ("required", ..) => Text::new("is required", "필수 항목입니다"),
        ("length", Some(min), Some(max)) => Text::new(
            format!("must have {min} to {max} characters"),
            format!("{min}자 이상 {max}자 이하여야 합니다"),
        ),
        ("length", None, Some(max)) => Text::new(
            format!("must have at most {max} characters"),
            format!("최대 {max}자까지 입력할 수 있습니다"),
        ),
        ("range", Some(min), Some(max)) => Text::new(
            format!("must be from {min} to {max}"),
            format!("{min}에서 {max} 사이여야 합니다"),
        ),
        ("sentence", ..) => {
            let ko = problem.params.get("ko").and_then(Value::as_str).unwrap_or_default();
            Text::new(problem.message.clone().unwrap_or_default(), ko.to_owned())
        }
        ("id", ..) => Text::new("is not a valid id", "올바른 형식의 ID가 아닙니다"),
        ("plan", ..) => Text::new(
            problem.message.clone().unwrap_or_else(|| "is not a list of plan steps".into()),
            match problem.params.get("ko").and_then(Value::as_str) {
                Some(reason) => reason.to_owned(),
                None => "계획 단계의 배열이어야 합니다".to_owned(),
            },
        ),
        _ => Text::new("is not valid", "올바르지 않습니다"),
    }
}

/// Turns the result of an id's parser into the validator's result.
///
/// # Errors
/// The code `id` when the parser refused the id.
pub fn check_id<T, E>(parsed: Result<T, E>) -> Result<(), ValidationError> {
    parsed.map(drop).map_err(|_invalid| ValidationError::new("id"))
}
