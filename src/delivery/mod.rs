//! Delivers signals to agents on Redis: sends them, sends them again if they are lost or unheard,
//! and records the result of each delivery in the ledger.

pub mod receipts;
pub mod relay;
pub mod release;
pub mod republish;
pub mod send;
pub mod unheard;
