//! The words of mails and chats, in English and Korean. `message`, `reason`, `actionType` and every
//! other text of agents and people comes from elsewhere and is shown by `domain::visible`.

use chrono::{DateTime, Utc};

use super::notice::Notice;
use super::people::Language;
use crate::domain::notice::Event;

impl Language {
    /// The language's tag in HTML.
    #[must_use]
    pub fn tag(self) -> &'static str {
        self.pick("en", "ko")
    }

    /// One of two sentences that say the same.
    #[must_use]
    pub fn pick<T>(self, english: T, korean: T) -> T {
        match self {
            Self::English => english,
            Self::Korean => korean,
        }
    }

    /// What has happened, in two or three words.
    #[must_use]
    pub fn event(self, notice: &Notice) -> &'static str {
        match notice.event {
            Event::Pending => self.pick("Approval needed", "승인 요청"),
            Event::Reminder => self.pick("Still waiting for approval", "승인 대기 중"),
            Event::Escalated => self.pick("Approval needed, escalated", "상위 승인 요청"),
            Event::Decided => self.status(&notice.status),
            Event::Expired => self.status("expired"),
            Event::Cancelled => self.status("cancelled"),
            Event::Commented => self.pick("New comment", "새 의견"),
        }
    }

    /// The state of a request.
    #[must_use]
    pub fn status(self, status: &str) -> &'static str {
        match status {
            "approved" => self.pick("Approved", "승인됨"),
            "rejected" => self.pick("Rejected", "거절됨"),
            "answered" => self.pick("Answered", "답변됨"),
            "expired" => self.pick("Expired", "만료됨"),
            "cancelled" => self.pick("Withdrawn", "철회됨"),
            "pending" => self.pick("Pending", "대기 중"),
            _ => self.pick("Closed", "종료됨"),
        }
    }

    /// The risk that a rule or an agent names.
    #[must_use]
    pub fn risk(self, risk: &str) -> &'static str {
        match risk {
            "low" => self.pick("low", "낮음"),
            "high" => self.pick("high", "높음"),
            "critical" => self.pick("critical", "심각"),
            _ => self.pick("medium", "보통"),
        }
    }

    /// Who decided, if it was no person.
    #[must_use]
    pub fn via(self, via: &str) -> Option<&'static str> {
        match via {
            "policy" => Some(self.pick("by a rule", "규칙에 따라")),
            "grant" => Some(self.pick("by an approval given before", "이전 승인에 따라")),
            _ => None,
        }
    }

    /// A moment, to the minute.
    #[must_use]
    pub fn moment(self, at: DateTime<Utc>) -> String {
        at.format("%Y-%m-%d %H:%M UTC").to_string()
    }
}
