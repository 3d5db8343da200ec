//! Tests under a policy file: that of the module that uses the macro, in its `RULES`.

/// Defines one test per mode. The body gets the service and the mode, and a clock that stands still if it
/// names one.
macro_rules! under_rules {
    (@clock) => { aura_hitl::domain::clock::Clock::System };
    (@clock $clock:ident) => { aura_hitl::domain::clock::Clock::manual() };
    ($(async fn $name:ident($app:ident: TestApp, $mode:ident: Mode $(, $clock:ident: Clock)?) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn check($mode: Mode) {
                let time = under_rules!(@clock $($clock)?);
                $(let $clock = time.clone();)?
                let ($app, _redis) = crate::votes::app_with($mode, RULES, time).await;
                $body
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn embedded() {
                check(Mode::Embedded).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn production() {
                check(Mode::Production).await;
            }
        }
    )*};
}
