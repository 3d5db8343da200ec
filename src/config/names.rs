//! Names of variables in the environment.

/// What stands before the names of most settings.
pub const PREFIX: &str = "AURA_HITL_";
/// The platform's own variable names, the secret ones also as `…_FILE`.
pub const PLAIN_NAMES: [&str; 9] = [
    "HOST",
    "PORT",
    "DATABASE_URL",
    "REDIS_URL",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_PASSWORD",
    "JWT_SECRET",
    "JWT_SECRET_PREVIOUS",
];
/// Those that hold secrets.
pub const SECRETS: [&str; 5] =
    ["DATABASE_URL", "REDIS_URL", "REDIS_PASSWORD", "JWT_SECRET", "JWT_SECRET_PREVIOUS"];
