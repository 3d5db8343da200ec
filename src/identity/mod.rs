//! Who a token stands for, and which tokens count no more.

pub mod revocations;
pub mod tokens;

pub use self::tokens::{
    Actor, Bearer, ClaimValue, JwtConfig, TokenProblem, TokenVerifier, mint, now,
};
