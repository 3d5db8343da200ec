//! Names of environment variables.

/// The prefix of the settings' variables.
pub const PREFIX: &str = "AURA_HITL_";
/// The variables that the platform sets without our prefix. Those in [`SECRETS`] also exist as `…_FILE`.
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
/// The variables that hold secrets.
pub const SECRETS: [&str; 5] =
    ["DATABASE_URL", "REDIS_URL", "REDIS_PASSWORD", "JWT_SECRET", "JWT_SECRET_PREVIOUS"];
