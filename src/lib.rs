//! aura-hitl stands between an AI agent that is about to act and the person who must agree.
//!
//! The way of a decision, top to bottom:
//!
//! 1. [`routes`] names the handler, [`auth`] makes sure who is calling, [`limits`] that it is not
//!    too often; [`api`] checks the body.
//! 2. [`approvals`] loads the request from the [`courier`] (Redis), else from the [`ledger`] (SQL).
//! 3. [`domain::decision::decide`] says whether this person may decide it now: a pure function.
//! 4. [`ledger::Ledger::record_outcome`] lets exactly one decision win, in one statement that
//!    also moves the `agent_task` row and notes that a signal is owed.
//! 5. [`delivery`] sends the signal: the key, then the message, unless the session has moved on.
//! 6. The ledger notes that it was sent. Whatever fails from 5 on, [`relay`] does again.
//!
//! The other way, an agent waits over HTTP in [`outcomes`], is woken by the [`hub`], and learns of
//! what [`expiry`] has closed. What operators change while all this runs comes in by [`reload`]. Long
//! after, [`export`] shows it to auditors and [`retention`] deletes it.
//!
//! Decided, signalled and acted on are three different facts. SQL knows the first two; only the
//! agent knows the third.

#[macro_use]
mod crash;

pub mod api;
pub mod app;
pub mod approvals;
pub mod audit;
pub mod auth;
pub mod config;
pub mod connection;
pub mod core;
pub mod courier;
pub mod delivery;
pub mod demo;
pub mod domain;
pub mod expiry;
pub mod export;
pub mod forgeries;
pub mod hub;
pub mod known_decisions;
pub mod ledger;
pub mod limits;
pub mod marks;
pub mod metrics;
pub mod open_tasks;
pub mod outcomes;
pub mod quotas;
pub mod refused_attempts;
pub mod relay;
pub mod reload;
pub mod retention;
pub mod revocations;
pub mod routes;
pub mod telemetry;
pub mod traces;
pub mod unheard;
pub mod watcher;
