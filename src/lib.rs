//! aura-hitl is an approval service: an AI agent asks before it acts, a person decides, and the agent
//! gets the decision.
//!
//! The path of a decision:
//!
//! 1. [`api`] routes the call to its handler, authenticates the caller and checks the body.
//! 2. [`requests::decide`] loads the request from the [`courier`] (Redis), else from the [`ledger`]
//!    (SQL).
//! 3. [`permit::judge`], a pure function, checks whether this person may decide it now. Every way to
//!    decide asks it, since the ledger takes no decision without its [`permit::Permit`].
//! 4. [`ledger::Ledger::record_outcome`] records exactly one decision, in one statement that also
//!    updates the `agent_task` row and records that a signal is owed.
//! 5. [`delivery`] sends the signal: the key, then the message, unless the session has moved on.
//! 6. The ledger records that the signal was sent. If step 5 or 6 fails, the relay repeats it.
//!
//! Agents that wait over HTTP are in [`requests::wait`] and [`requests::stream`]; [`waiting`] wakes
//! them. [`server::reload`] applies new settings while the service runs. [`audit`] exports decisions
//! for auditors and deletes old ones.
//!
//! A request that is decided need not be signalled yet, and a signalled one need not be acted on yet.
//! The ledger records the first two facts; the agent reports the third.

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
pub mod notices;
pub mod observe;
pub mod permit;
pub mod policy;
pub mod requests;
pub mod search;
pub mod server;
pub mod state;
pub mod tasks;
pub mod waiting;
pub mod workers;
