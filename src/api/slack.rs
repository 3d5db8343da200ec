//! What people do in Slack: `POST {base}/slack/interactions`, called by Slack alone.
//!
//! A call counts if it has Slack's signature, is at most five minutes old, and was not taken before. It is
//! answered at once, since Slack waits three seconds; the work goes on in a task that runs to its end. The
//! request, with its tenant, is the one of the message that was clicked, as the ledger noted it when it was
//! posted; the person is the one whom the configuration gives this Slack id. From there on a click is a
//! decision like any other, on the content that the message showed. What stands in its way is said to the
//! person alone.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header::HeaderMap;
use actix_web::{FromRequest, HttpRequest, HttpResponse, web};
use serde::Deserialize;
use tracing::{Instrument as _, info, warn};

use super::approvals::more_needed;
use super::body::receive;
use super::error::{ApiError, ErrorCode};
use super::refusals::{self, Attempt};
use super::text::{self, Text};
use crate::domain::approver::{Caller, Memberships, Role, Via};
use crate::domain::decision::{DEFAULT_REASON, Verdict};
use crate::domain::ids::RequestId;
use crate::domain::printable::printable;
use crate::domain::rules::Expected;
use crate::domain::visible::shortened;
use crate::ledger::SlackMessage;
use crate::notices::slack::api::SlackApi;
use crate::notices::slack::blocks::{
    APPROVE, MAX_REASON_CHARS, Opened, REASON, REASON_DIALOG, REJECT, Shown, private, reason_dialog,
};
use crate::notices::slack::signature::{Unproven, verify};
use crate::notices::{Language, NoticeSettings};
use crate::observe::metrics::{self, SlackCall as Counted};
use crate::requests::decide::{self, Outcome};
use crate::state::AppState;

/// The address, without a prefix.
pub const ADDRESS: &str = "/aura/hitl/slack/interactions";
/// Largest body: a message of ours with everything that Slack adds to it. Messages are cut so that they fit.
const MAX_BYTES: usize = 64 * 1024;

/// A call that Slack has sent, now and for the first time.
#[derive(Debug)]
pub struct SlackCall {
    settings: Arc<NoticeSettings>,
    interaction: Interaction,
}

impl FromRequest for SlackCall {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = receive::<MAX_BYTES>(request, payload);
        let request = request.clone();
        Box::pin(async move {
            let app = request.app_data::<web::Data<AppState>>();
            let app = app.ok_or_else(|| ApiError::internal("no state is configured"))?;
            let settings = app.notices.settings();
            let Some(slack) = &settings.slack else { return Err(ApiError::no_such_address()) };
            let refuse = |counted| {
                metrics::slack_called(counted);
                ApiError::not_from_slack()
            };
            let (body, _turn) = body.await?;
            let (headers, now) = (request.headers(), app.clock.now());
            let timestamp = only(headers, "X-Slack-Request-Timestamp");
            let signature = only(headers, "X-Slack-Signature");
            let (Some(timestamp), Some(signature)) = (timestamp, signature) else {
                return Err(refuse(Counted::Forged));
            };
            verify(&slack.signing_secret, &timestamp, &signature, &body, now).map_err(|why| {
                warn!(security = true, ?why, "a call was refused that is not Slack's");
                refuse(match why {
                    Unproven::Forged => Counted::Forged,
                    Unproven::Late => Counted::Late,
                })
            })?;
            // Hex in another case would be the same signature.
            let (ledger, signature) = (app.ledger.clone(), signature.to_ascii_lowercase());
            let taken =
                app.run_to_end(async move { ledger.take_slack_call(&signature, now).await });
            if !taken.await?? {
                warn!(security = true, "a call of Slack was refused that was taken before");
                return Err(refuse(Counted::Replayed));
            }
            let (origin, interaction) = read(&body).ok_or_else(|| {
                metrics::slack_called(Counted::Malformed);
                let text = Text::new(
                    "is not an interaction as Slack sends it",
                    "Slack이 보내는 형식이 아닙니다",
                );
                ApiError::invalid_field("payload", text)
            })?;
            if slack.team.as_ref().is_some_and(|team| !origin.is_of(team)) {
                warn!(
                    security = true,
                    "a call was refused that comes from another workspace of Slack"
                );
                return Err(refuse(Counted::OtherTeam));
            }
            Ok(Self { settings, interaction })
        })
    }
}

/// The value of a header that is there once.
fn only(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(name);
    let value = values.next()?.to_str().ok()?.to_owned();
    values.next().is_none().then_some(value)
}

/// What Slack tells us of: <https://docs.slack.dev/reference/interaction-payloads>.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Interaction {
    BlockActions(Click),
    ViewSubmission(Submission),
    #[serde(other)]
    Other,
}

/// A click on a button.
#[derive(Debug, Deserialize)]
struct Click {
    user: Named,
    trigger_id: Option<String>,
    channel: Option<Named>,
    container: Container,
    actions: Vec<Action>,
}

#[derive(Debug, Deserialize)]
struct Named {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Container {
    channel_id: Option<String>,
    message_ts: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Action {
    action_id: String,
    value: Option<String>,
}

/// A dialog that was filled in.
#[derive(Debug, Deserialize)]
struct Submission {
    user: Named,
    view: View,
}

#[derive(Debug, Deserialize)]
struct View {
    callback_id: String,
    private_metadata: String,
    state: Entered,
}

#[derive(Debug, Deserialize)]
struct Entered {
    values: HashMap<String, HashMap<String, Entry>>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    value: Option<String>,
}

/// Where an interaction comes from.
#[derive(Debug, Deserialize)]
struct Origin {
    team: Option<Named>,
    user: Option<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    team_id: Option<String>,
}

impl Origin {
    /// Whether the call and the person are of this workspace. A shared channel has people of others.
    fn is_of(&self, team: &str) -> bool {
        let of_person = self.user.as_ref().and_then(|user| user.team_id.as_deref());
        self.team.as_ref().is_some_and(|origin| origin.id == team)
            && of_person.is_none_or(|origin| origin == team)
    }
}

/// The form's field `payload`, as JSON.
fn read(body: &[u8]) -> Option<(Origin, Interaction)> {
    #[derive(Deserialize)]
    struct Form {
        payload: String,
    }
    let form = serde_urlencoded::from_bytes::<Form>(body).ok()?;
    Some((serde_json::from_str(&form.payload).ok()?, serde_json::from_str(&form.payload).ok()?))
}

/// What somebody wants.
enum Wish {
    Approve,
    /// Be asked for a reason, then reject.
    AskForReason {
        trigger: String,
    },
    Reject {
        reason: String,
    },
}

/// A wish about a message.
struct Asked {
    message: SlackMessage,
    shown: Shown,
    /// The Slack id of the person.
    slack_user: String,
    wish: Wish,
}

impl Asked {
    /// The wish of an interaction; `Ok(None)` if it has none, like a click on a link.
    fn of(interaction: Interaction) -> Result<Option<Self>, Counted> {
        match interaction {
            Interaction::BlockActions(click) => Self::of_click(click),
            Interaction::ViewSubmission(submission) => Self::of_submission(submission).map(Some),
            Interaction::Other => Ok(None),
        }
    }

    fn of_click(click: Click) -> Result<Option<Self>, Counted> {
        let Click { user, trigger_id, channel, container, actions } = click;
        let ours = |action: &Action| [APPROVE, REJECT].contains(&&*action.action_id);
        let Some(action) = actions.into_iter().find(ours) else { return Ok(None) };
        let shown = action.value.and_then(|value| serde_json::from_str(&value).ok());
        let (Some(shown), Some(channel_id), Some(ts)) =
            (shown, container.channel_id, container.message_ts)
        else {
            return Err(Counted::Malformed);
        };
        if channel.is_some_and(|channel| channel.id != channel_id) {
            return Err(Counted::UnknownMessage);
        }
        let wish = match trigger_id {
            _ if action.action_id == APPROVE => Wish::Approve,
            Some(trigger) => Wish::AskForReason { trigger },
            None => return Err(Counted::Malformed),
        };
        let message = SlackMessage { channel: channel_id, ts };
        Ok(Some(Self { message, shown, slack_user: user.id, wish }))
    }

    fn of_submission(submission: Submission) -> Result<Self, Counted> {
        let Submission { user, view: View { callback_id, private_metadata, mut state } } =
            submission;
        if callback_id != REASON_DIALOG {
            return Err(Counted::Malformed);
        }
        let opened = serde_json::from_str(&private_metadata);
        let Opened { channel, ts, shown } = opened.map_err(|_invalid| Counted::Malformed)?;
        let entry = state.values.get_mut(REASON).and_then(|block| block.remove(REASON));
        let reason = entry.and_then(|entry| entry.value).filter(|reason| !reason.trim().is_empty());
        let reason = reason.map(|reason| shortened(reason, MAX_REASON_CHARS));
        let reason = reason.unwrap_or_else(|| DEFAULT_REASON.to_owned());
        let message = SlackMessage { channel, ts };
        Ok(Self { message, shown, slack_user: user.id, wish: Wish::Reject { reason } })
    }
}

/// Takes what somebody did in Slack. The answer has no content: it only says that the call was taken.
///
/// # Errors
/// `E2001` for a call that is not Slack's; `E4000` for one that cannot be read; `E5000` when too much is
/// under way.
pub async fn interact(call: SlackCall, app: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let permit = app.acquire_call_permit()?;
    let work = app.get_ref().clone();
    let working = async move {
        let _permit = permit;
        let counted = work_on(&work, call).await;
        if let Some(counted) = counted {
            metrics::slack_called(counted);
        }
        if let Err(error) = work.ledger.forget_slack_calls(work.clock.now()).await {
            warn!(%error, "old calls of Slack are not forgotten yet");
        }
    };
    let _running = app.under_way.spawn_on(working.in_current_span(), &app.runtime);
    Ok(HttpResponse::Ok().finish())
}

async fn work_on(app: &AppState, call: SlackCall) -> Option<Counted> {
    let SlackCall { settings, interaction } = call;
    let asked = match Asked::of(interaction) {
        Ok(asked) => asked?,
        Err(counted) => return Some(counted),
    };
    let api = settings.slack.as_ref().and_then(|slack| SlackApi::new(slack).ok())?;
    let SlackMessage { channel, .. } = &asked.message;
    let language = settings.people.language_of_slack(&asked.slack_user);
    let (counted, text) = match decide_as(app, &settings, &api, &asked, language).await {
        Ok(done) => done,
        Err((counted, error)) => (counted, Some(error.message(spoken(language)))),
    };
    if let Some(text) = text {
        let said =
            api.call("chat.postEphemeral", &private(channel, &asked.slack_user, &text)).await;
        if let Err(error) = said {
            warn!(%error, "a person in Slack is not told what became of a click");
        }
    }
    Some(counted)
}

/// Does what somebody wants, and what to say of it to that person.
async fn decide_as(
    app: &AppState,
    settings: &NoticeSettings,
    api: &SlackApi,
    asked: &Asked,
    language: Language,
) -> Result<(Counted, Option<String>), (Counted, ApiError)> {
    let Asked { message, shown, slack_user, wish } = asked;
    let noted = app.ledger.request_of_slack_message(message).await;
    let noted = noted.map_err(|error| (Counted::Refused, error.into()))?;
    // Whatever the button says, the message is about the request that was noted.
    let noted = noted.filter(|(_tenant, request)| request.as_str() == shown.request);
    let Some((tenant, request)) = noted else {
        return Err((Counted::UnknownMessage, ApiError::old_message()));
    };
    let Some(user) = settings.people.user_of_slack(slack_user, &tenant) else {
        warn!(
            security = true,
            slack_user = printable(slack_user),
            tenant = printable(tenant.as_str()),
            "somebody clicked in Slack whom the configuration does not name"
        );
        return Err((Counted::UnknownPerson, ApiError::unknown_in_slack()));
    };
    let caller = Caller {
        user,
        tenant,
        // Nobody has a token at hand in a chat, so only the groups of the policy file count.
        role: Role::User,
        memberships: Arc::new(Memberships::default()),
        token_id: None,
        via: Via { source: Some("SLACK".to_owned()), ..Via::default() },
    };
    app.limits.admit(&caller).await.map_err(|error| (Counted::Refused, error.into()))?;
    let verdict = match wish {
        Wish::Approve => Verdict::Approve,
        Wish::Reject { reason } => Verdict::Reject { reason: reason.clone() },
        Wish::AskForReason { trigger } => {
            let SlackMessage { channel, ts } = message.clone();
            let opened = Opened { channel, ts, shown: shown.clone() };
            let dialog = reason_dialog(trigger, &opened, language);
            let opened = api.call("views.open", &dialog).await;
            return match opened {
                Ok(_opened) => Ok((Counted::Asked, None)),
                Err(error) => {
                    warn!(%error, "a dialog is not opened in Slack");
                    Err((Counted::Refused, ApiError::no_dialog()))
                }
            };
        }
    };
    let outcome = decide(app, &caller, &request, verdict, &shown.etag).await;
    let text = match outcome {
        Ok(Outcome::Decided(decided)) => {
            let text = match decided.decision.verdict {
                Verdict::Reject { .. } => language.pick("Rejected.", "거절했습니다."),
                _ => language.pick("Approved.", "승인했습니다."),
            };
            return Ok((Counted::Decided, Some(text.to_owned())));
        }
        Ok(Outcome::Voted(voted)) => more_needed(&voted).in_language(spoken(language)),
        Err(error) => return Err((Counted::Refused, error)),
    };
    Ok((Counted::Voted, Some(text)))
}

/// The same door as that of `POST …/approve/{requestId}`.
async fn decide(
    app: &AppState,
    caller: &Caller,
    request: &RequestId,
    verdict: Verdict,
    etag: &str,
) -> Result<Outcome, ApiError> {
    let asked_for = verdict.status();
    let expected = Expected::OneOf { strong: vec![etag.to_owned()], weak: Vec::new() };
    // Boxed, because the future is large.
    let decided = Box::pin(decide::decide(app, caller, request, verdict, None, &expected)).await;
    decided.map_err(ApiError::from).inspect_err(|error| {
        info!(asked_for, outcome = %error, "not decided");
        if error.code() == ErrorCode::AlreadyDecided {
            metrics::decision_conflicted();
        }
        let attempt = Attempt {
            request: request.clone(),
            verdict: if asked_for == "approved" { "approved" } else { "rejected" },
            if_match: Some(format!("\"{etag}\"")),
        };
        refusals::record_one(app, caller, attempt, error);
    })
}

/// The language of the API's sentences.
fn spoken(language: Language) -> text::Language {
    language.pick(text::Language::English, text::Language::Korean)
}
