//! aura-hitl stands between an AI agent that is about to act and the person who must agree.
//!
//! The way of a decision, top to bottom:
//!
//! 1. [`api`]: the routes name the handler, the identity says who is calling, the body is checked.
//! 2. [`requests::decide`] loads the request from the [`courier`] (Redis), else from the [`ledger`]
//!    (SQL).
//! 3. [`domain::rules::decide`] says whether this person may decide it now: a pure function.
//! 4. [`ledger::Ledger::record_outcome`] lets exactly one decision win, in one statement that
//!    also moves the `agent_task` row and records that a signal is owed.
//! 5. [`delivery`] sends the signal: the key, then the message, unless the session has moved on.
//! 6. The ledger records that it was sent. What fails from 5 on, the relay does again.
//!
//! The other way, an agent waits over HTTP in [`requests::wait`] and [`requests::stream`], and is woken
//! by [`waiting`]. What operators change while all this runs comes in by [`server::reload`]. Long after,
//! [`audit`] shows it to auditors and deletes it.
//!
//! Decided, signalled and acted on are three different facts. SQL knows the first two; only the
//! agent knows the third.

#[macro_use]
mod crash;

pub mod api;
pub mod audit;
pub mod cli;
pub mod config;
pub mod courier;
pub mod delivery;
pub mod domain;
pub mod forgery;
pub mod identity;
pub mod ledger;
pub mod limits;
pub mod observe;
pub mod requests;
pub mod server;
pub mod state;
pub mod tasks;
pub mod waiting;
