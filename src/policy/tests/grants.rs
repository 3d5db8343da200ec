//! Grants in random orders of events, on a real ledger, against a slow model: they are made, ended and used,
//! time passes, and another policy file takes the place of the first, so that granters lose the right and
//! get it back. After each event the model and the ledger with the one door (`permit`) say the same.

#[cfg(test)]
mod against_the_ledger {
    use std::cell::Cell;
    use std::sync::Arc;

    use chrono::TimeDelta;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    use serde_json::json;
    use tempfile::TempDir;
    use tokio::runtime::Runtime;

    use super::super::model::{
        Field, MINUTES, Spec, a_context, a_rule, everybody, file, json, model,
    };
    use super::super::*;
    use crate::domain::approver::{Caller, Memberships, Role, Via};
    use crate::domain::decision::Verdict as Decided;
    use crate::domain::grant::{Scope, Wish};
    use crate::domain::ids::{GrantId, RequestId};
    use crate::domain::record::{Candidate, DecidedVia};
    use crate::domain::request::ApprovalRequest;
    use crate::domain::rules::{Approvers, Policy as Settings, UnscopedRequests};
    use crate::domain::session::SessionPointer;
    use crate::ledger::{Change, Ledger, Recorded, Writing};
    use crate::permit::{self, Asking, Granted, Law};

    /// An approval that is to stand for later requests.
    #[derive(Clone, Copy, Debug)]
    struct Making {
        who: usize,
        session: usize,
        context: usize,
        scope: Scope,
        arguments: Remember,
        minutes: i64,
        /// How old the request is, of [`MINUTES`].
        age: usize,
    }

    /// Something that happens. Numbers choose among what there is.
    #[derive(Clone, Debug)]
    enum Event {
        /// A person approves a request, and later ones.
        Make(Making),
        /// A grant is ended.
        End(usize),
        /// So many minutes pass.
        Pass(i64),
        /// The other policy file is in force.
        Switch,
        /// An agent asks.
        Ask { session: usize, context: usize },
    }

    fn an_event() -> impl Strategy<Value = Event> {
        let scope = prop::sample::select(vec![Scope::Session, Scope::Requester]);
        let arguments = prop::sample::select(vec![Remember::Exact, Remember::Any]);
        let chosen = (0..100_usize, 0..2_usize, 0..2_usize, 1..20_i64, 0..MINUTES.len());
        prop_oneof![
            4 => (chosen, scope, arguments).prop_map(
                |((who, session, context, minutes, age), scope, arguments)| {
                    Event::Make(Making { who, session, context, scope, arguments, minutes, age })
                }
            ),
            1 => (0..8_usize).prop_map(Event::End),
            1 => (1..8_i64).prop_map(Event::Pass),
            1 => Just(Event::Switch),
            4 => (0..2_usize, 0..2_usize)
                .prop_map(|(session, context)| Event::Ask { session, context }),
        ]
    }

    /// Rules of which most let something be remembered.
    fn some_rules() -> impl Strategy<Value = Vec<Spec>> {
        let generous = (a_rule(), prop::bool::weighted(0.7))
            .prop_map(|(rule, is_generous)| if is_generous { rule.that_remembers() } else { rule });
        prop::collection::vec(generous, 1..4)
    }

    /// A grant, as the model keeps it.
    struct Kept {
        id: GrantId,
        who: usize,
        session: usize,
        context: usize,
        scope: Scope,
        arguments: Remember,
        until: i64,
        is_ended: bool,
    }

    fn tenant() -> TenantId {
        TenantId::parse("tenant1").unwrap()
    }

    /// A user of the tenant, without roles and groups.
    fn caller(user: UserId) -> Caller {
        Caller {
            user,
            tenant: tenant(),
            role: Role::User,
            memberships: Arc::default(),
            token_id: None,
            via: Via::default(),
        }
    }

    /// What the rules say of a person who approves a request of this age in minutes, and has it remembered.
    fn may_remember(
        rules: &[Spec],
        context: &[Field],
        who: usize,
        arguments: Remember,
        age: i64,
    ) -> bool {
        let answers = model(rules, &[context]);
        answers.automatic.is_none()
            && answers.quorum == 1
            && answers.remember >= arguments
            && answers.may.contains(&(who, true, Way::Approve, age))
    }

    /// One life of a service: its rules, its ledger, and what the model knows.
    struct World<'a> {
        ledger: &'a Ledger,
        files: [&'a [Spec]; 2],
        contexts: [&'a [Field]; 2],
        /// Of this life alone.
        action: String,
        people: Vec<(usize, Somebody)>,
        in_force: usize,
        minute: i64,
        count: usize,
        grants: Vec<Kept>,
    }

    impl World<'_> {
        fn now(&self) -> DateTime<Utc> {
            at(60 * self.minute)
        }

        fn law(&self) -> Law {
            let text = file(self.files[self.in_force]);
            let settings = Settings {
                approvers: Approvers::Tenant,
                unscoped_requests: UnscopedRequests::Refuse,
                require_if_match: false,
            };
            Law { settings, file: Some(Arc::new(Policy::read(&text).unwrap())) }
        }

        fn candidate(&mut self, session: usize, context: usize, age: i64) -> Candidate {
            self.count += 1;
            let id = RequestId::parse(format!("{}-{}", self.action, self.count)).unwrap();
            let context: serde_json::Value =
                serde_json::from_str(&json(self.contexts[context])).unwrap();
            let document = json!({
                "requestId": id.as_str(), "sessionId": format!("{}-s{session}", self.action),
                "userId": "user", "tenantId": "tenant1", "actionType": self.action,
                "context": context,
            });
            let created_at = self.now() - TimeDelta::minutes(age);
            Candidate {
                request: ApprovalRequest::read(&id, document.to_string()).unwrap(),
                origin: Origin::Http,
                tenant: Some(tenant()),
                user: Some(UserId::parse("user").unwrap()),
                created_at,
                expires_at: created_at + TimeDelta::hours(1),
            }
        }

        /// A person approves, and the grant is made, as the rules say.
        async fn make(&mut self, making: Making) -> Result<(), TestCaseError> {
            let Making { who, session, context, scope, arguments, minutes, age } = making;
            let (at_person, somebody) = self.people[who % self.people.len()].clone();
            let age = MINUTES[age];
            let candidate = self.candidate(session, context, age);
            let is_admin = somebody.roles.iter().any(|role| role == "admin");
            let Somebody { user, roles, groups, .. } = somebody;
            let caller = Caller {
                role: if is_admin { Role::Admin } else { Role::User },
                memberships: Arc::new(Memberships { roles, groups }),
                ..caller(user)
            };
            let wish = Wish { scope, arguments, time: TimeDelta::minutes(minutes) };
            let (law, now) = (self.law(), self.now());
            let asking = Asking {
                candidate: &candidate,
                pointer: &SessionPointer::default(),
                caller: &caller,
                verdict: &Decided::Approve,
                remember: Some(&wish),
                now,
            };
            let rules = self.files[self.in_force];
            let answers = model(rules, &[self.contexts[context]]);
            let is_late = answers.expires_in_minutes.is_some_and(|minutes| age >= minutes);
            let expected =
                !is_late && may_remember(rules, self.contexts[context], at_person, arguments, age);
            let permit = match permit::judge(&law, asking) {
                Ok(Granted::Alone(permit)) => Some(*permit),
                Ok(Granted::Together(_)) | Err(_) => None,
            };
            prop_assert_eq!(permit.is_some(), expected, "{:?} {}", answers, file(rules));
            let Some(permit) = permit else { return Ok(()) };
            let writing = Writing::new(&candidate, Change::Decide(permit), &caller, now);
            let recorded = self.ledger.record_outcome(&writing).await.unwrap();
            let Recorded::Won(record) = recorded else {
                return Err(TestCaseError::fail(format!("{recorded:?}")));
            };
            let id = record.made_grant().unwrap().clone();
            let until = self.minute + minutes;
            let kept = Kept {
                id,
                who: at_person,
                session,
                context,
                scope,
                arguments,
                until,
                is_ended: false,
            };
            self.grants.push(kept);
            Ok(())
        }

        async fn end(&mut self, which: usize) {
            let number = self.grants.len();
            let now = self.now();
            let Some(kept) = self.grants.get_mut(which % number.max(1)) else { return };
            kept.is_ended = true;
            let caller = caller(everybody()[kept.who].user.clone());
            assert!(self.ledger.end_grant(&caller, &kept.id, now).await.unwrap().is_some());
        }

        /// An agent asks. Returns whether a grant approves it.
        async fn ask(&mut self, session: usize, context: usize) -> Result<bool, TestCaseError> {
            let candidate = self.candidate(session, context, 0);
            let (law, now) = (self.law(), self.now());
            let rules = self.files[self.in_force];
            let approving = self.grants.iter().filter(|kept| {
                let says_the_same = self.contexts[kept.context] == self.contexts[context];
                !kept.is_ended
                    && self.minute < kept.until
                    && (kept.scope == Scope::Requester || kept.session == session)
                    && (kept.arguments == Remember::Any || says_the_same)
                    && may_remember(rules, self.contexts[context], kept.who, kept.arguments, 0)
            });
            let approving = approving.collect::<Vec<_>>();
            let tenant = tenant();
            let grants = self.ledger.covering_grants(&candidate, &tenant, now).await.unwrap();
            let pointer = SessionPointer::default();
            let permit = permit::by_grant(&law, &candidate, &pointer, &grants, now).unwrap();
            prop_assert_eq!(permit.is_some(), !approving.is_empty(), "{}", file(rules));
            prop_assert_eq!(
                permit::still_grants(&law, &candidate, &grants, now),
                !approving.is_empty()
            );
            let Some(permit) = permit else { return Ok(false) };
            let by = permit.decision().by.clone();
            let used = permit.ruling().grant.clone();
            let kept = approving.iter().find(|kept| Some(&kept.id) == used.as_ref());
            prop_assert!(kept.is_some_and(|kept| everybody()[kept.who].user == by), "{:?}", used);
            // It is written only while the grant stands.
            let caller = caller(by);
            let writing = Writing::new(&candidate, Change::Decide(permit), &caller, now);
            let recorded = self.ledger.record_outcome(&writing).await.unwrap();
            let Recorded::Won(record) = recorded else {
                return Err(TestCaseError::fail(format!("{recorded:?}")));
            };
            prop_assert_eq!(record.ruling.via, DecidedVia::Grant);
            prop_assert_eq!(record.used_grant(), used.as_ref());
            Ok(true)
        }
    }

    #[test]
    fn grants_approve_what_the_model_says_in_any_order_of_events() {
        let folder = TempDir::new().unwrap();
        let runtime = Runtime::new().unwrap();
        let ledger = runtime.block_on(async {
            let ledger = Ledger::open_sqlite(&folder.path().join("ledger")).await.unwrap();
            ledger.migrate(None).await.unwrap();
            ledger
        });
        let (lives, approved, refused) = (Cell::new(0_u32), Cell::new(0_u32), Cell::new(0_u32));
        let input = (
            some_rules(),
            some_rules(),
            a_context(),
            a_context(),
            prop::collection::vec(an_event(), 1..25),
        );
        let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
        let outcome = TestRunner::new(config).run(&input, |(one, other, first, second, events)| {
            lives.set(lives.get() + 1);
            let of_tenant = everybody().into_iter().enumerate();
            let mut world = World {
                ledger: &ledger,
                files: [&one, &other],
                contexts: [&first, &second],
                action: format!("a{}", lives.get()),
                people: of_tenant.filter(|(_, who)| who.tenant.as_str() == "tenant1").collect(),
                in_force: 0,
                minute: 0,
                count: 0,
                grants: Vec::new(),
            };
            runtime.block_on(async {
                for event in events {
                    match event {
                        Event::Make(making) => world.make(making).await?,
                        Event::End(which) => world.end(which).await,
                        Event::Pass(minutes) => world.minute += minutes,
                        Event::Switch => world.in_force = 1 - world.in_force,
                        Event::Ask { session, context } => {
                            let has_grants = !world.grants.is_empty();
                            let is_approved = world.ask(session, context).await?;
                            if is_approved {
                                approved.set(approved.get() + 1);
                            } else if has_grants {
                                refused.set(refused.get() + 1);
                            }
                        }
                    }
                }
                Ok(())
            })
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
        // Both happen often enough to mean something.
        assert!(approved.get() > 50 && refused.get() > 50, "{approved:?} {refused:?}");
    }
}
