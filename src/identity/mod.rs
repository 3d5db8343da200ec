//! Checks tokens: whose they are, and whether they are revoked.

pub mod revocations;
pub mod tokens;

pub use self::tokens::{
    Actor, Bearer, ClaimValue, JwtConfig, TokenProblem, TokenVerifier, mint, now,
};
