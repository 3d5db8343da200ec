//! Signals on their way to agents on Redis: sending, sending again, and noting what was sent.

pub mod receipts;
pub mod relay;
pub mod release;
pub mod republish;
pub mod send;
pub mod unheard;
