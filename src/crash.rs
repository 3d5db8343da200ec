//! Crash points: places where the fault matrix makes this process die as in a power cut. They
//! exist only in builds with the feature `crash-points`, and each does nothing until the
//! environment arms it: `FAILPOINTS="decided=return"`.

/// Dies here and now, if this point exists and is armed.
macro_rules! crash_point {
    ($name:literal) => {
        ::fail::fail_point!($name, |_| ::std::process::abort())
    };
}
