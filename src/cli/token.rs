//! `aura-hitl token`: prints a token for development.

use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::config::Config;
use crate::domain::approver::Role;
use crate::domain::ids::{TenantId, UserId};
use crate::identity;

/// What a user may do.
#[derive(Clone, Copy, ValueEnum)]
pub enum RoleName {
    /// May decide own requests.
    User,
    /// May read and change all tasks and requests of the tenant.
    Admin,
}

/// Prints the token.
pub fn run(
    file: Option<&Path>,
    sub: String,
    tenant: String,
    role: RoleName,
    ttl: i64,
) -> anyhow::Result<()> {
    let jwt = Config::load_jwt(file)?;
    let user = UserId::parse(sub).context("--sub")?;
    let tenant = TenantId::parse(tenant).context("--tenant")?;
    let role = match role {
        RoleName::User => Role::User,
        RoleName::Admin => Role::Admin,
    };
    println!("{}", identity::mint(&jwt, &user, &tenant, role, ttl)?);
    Ok(())
}
