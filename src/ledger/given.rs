//! The beginning of a statement that writes many rows: their values as a relation. `batches` gathers the
//! rows, and `engine` binds their values.

/// Defines what begins a statement for many rows: the rows of values as the relation `given`.
///
/// On Postgres each parameter is an array with one column. They come by way of `parameters`, so
/// that Postgres makes the same plan for one row as for many, and keeps it: knowing how many rows
/// there are, it would find a plan for one row so cheap that it made it anew each time, in five
/// times the time that it runs. The same part limits the time that the statement waits for locks,
/// for the time of its transaction only: a pooler in transaction mode would pass a setting of the
/// session on to others.
macro_rules! given {
    ($postgres:ident, $sqlite:ident, $lock_timeout:literal;
     1 $first:ident, $($number:literal $name:ident),* $(,)?) => {
        const $postgres: &str = concat!(
            "parameters AS MATERIALIZED (SELECT set_config('lock_timeout', $", $lock_timeout,
            ", true) AS lock_timeout, $1 AS ", stringify!($first),
            $(", $", $number, " AS ", stringify!($name),)*
            "), given AS (SELECT g.* FROM parameters AS p, unnest(p.", stringify!($first),
            $(", p.", stringify!($name),)*
            ") WITH ORDINALITY AS g (", stringify!($first), $(", ", stringify!($name),)*
            ", place))"
        );
        const $sqlite: &str = concat!(
            "given (", stringify!($first), $(", ", stringify!($name),)*
            ", place) AS (VALUES ($1", $(", $", $number,)* ", 1))"
        );
    };
}

pub(super) use given;
