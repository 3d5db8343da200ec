//! The rows of the matrix, in its order. Each is one function that inflicts a fault and reports.

use std::pin::Pin;

use crate::report::{Report, Scale};

mod agents;
mod batches;
mod canaries;
mod channels;
mod crash_points;
mod crashes;
mod document;
mod fairness;
mod forgeries;
mod grants;
mod infrastructure;
mod inputs;
mod intake;
mod load;
mod notices;
mod outages;
mod racing;
mod relays;
mod resets;
mod security;
mod soak;
mod votes;

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// One row of the matrix.
pub struct MatrixRow {
    /// As the matrix numbers it.
    pub number: &'static str,
    /// What is done.
    pub fault: &'static str,
    pub run: for<'a> fn(Scale, &'a mut Report) -> Running<'a>,
}

macro_rules! rows {
    ($($number:literal $fault:literal $run:path;)*) => {
        pub const ROWS: &[MatrixRow] = &[$(MatrixRow {
            number: $number,
            fault: $fault,
            run: |scale, report| Box::pin($run(scale, report)),
        }),*];
    };
}

rows! {
    "1" "racing decisions on two replicas, one of them killed every 2 s" racing::racing_decisions;
    "2" "clients that reset their connection mid-decision, at 1 ms steps" resets::client_resets;
    "3" "a crash at each step from commit to mark" crash_points::crash_at_each_step;
    "4" "Postgres stopped at once (immediate) under load" crashes::postgres_crash;
    "5" "Redis killed and started again, empty, right after the decisions" outages::redis_wiped;
    "6" "another tenant's things, and identities that do not match" security::strangers;
    "7" "hostile tokens on every route" security::hostile_tokens;
    "8" "identity headers missing, blank, twice, joined by commas, over raw sockets" security::odd_identities;
    "9" "hostile ids in every path" inputs::hostile_ids;
    "10" "agents that take any message for their answer, and ask for the next thing" agents::naive_agents;
    "10b" "two registered requests in one session, relayed in any order" agents::two_in_one_session;
    "11" "subscribers that come before, with and after the message" agents::late_subscribers;
    "12" "the same decision and its opposite, a hundred clicks at once" racing::retry_and_opposite;
    "13" "Redis refuses connections" outages::redis_refused;
    "14" "Redis is a black hole: SIGSTOP, or connections on which nothing comes back" outages::redis_black_hole;
    "15" "four replicas killed in turn while many signals are owed" relays::relays_killed;
    "16" "decisions within 100 ms of the end of a request's time" racing::expiry_race;
    "17" "nothing can be sent for 301 s" relays::relay_away_for_long;
    "18" "writes whose outcome nobody learns: CLIENT PAUSE 1500" outages::ambiguous_writes;
    "19" "Redis out of memory" outages::redis_full;
    "20" "Postgres frozen with SIGSTOP" outages::postgres_frozen;
    "21" "500 clients on a pool of 10 connections that all wait" load::pool_exhausted;
    "22" "agents' JSON broken in Redis" inputs::broken_documents;
    "23" "heads and bodies that come slowly or never" load::slow_clients;
    "24" "requests whose end is in doubt, over raw sockets" inputs::framing;
    "25" "bodies too large, too deep, ambiguous or broken" inputs::broken_bodies;
    "26" "the API from its own document: schemathesis" document::as_documented;
    "27" "SIGTERM amid decisions and 100 long-polls" outages::sigterm;
    "28" "secrets everywhere, and lines that would forge the log" canaries::canaries;
    "29" "one user floods two replicas with 200 calls/s, limit 50/s" load::flood;
    "30" "soak: 200 decisions/s while a replica, Postgres, Redis and the network fail in turn" soak::soak;
    "31" "a switchover: the address leads to a standby for 1 s, which is then promoted" infrastructure::switchover;
    "32" "PgBouncer in session and transaction mode, killed under load" infrastructure::bouncer_killed;
    "33" "a disk that is full and then has room again, both ledgers" infrastructure::disk_full;
    "34" "Postgres that takes 300 ms to answer" infrastructure::slow_connect;
    "35" "standard output that nobody reads" infrastructure::stalled_output;
    "36" "rolling restarts behind nginx and HAProxy" infrastructure::rolling_restarts;
    "37" "decided before an agent subscribes that takes any message and reads no key" agents::deaf_agents;
    "44" "forged keys and messages" forgeries::forged;
    "45" "four floods by one account or two: idle sockets, streams, pending requests, documents of 1 MiB" fairness::floods;
    "46" "a primary that is lost behind HAProxy, and its synchronous standby promoted" infrastructure::promoted_behind_haproxy;
    "47" "a batch in which one row is locked, one refused and one written twice" batches::one_row_of_a_batch;
    "48" "a crash before, within and after a batch" batches::crash_in_a_batch;
    "49" "two replicas whose batches overlap" batches::overlapping_batches;
    "50" "Postgres stands still for 1.5 s, as behind a disk that stalls, while 64 click" batches::disk_stall;
    "51" "the replica that watches Redis killed within a burst of 10,000 requests" intake::leader_killed;
    "52" "Redis wiped with 500 requests in it that nobody has decided" intake::wiped;
    "53" "keyspace events switched off and on, and the subscription cut" intake::events_lost;
    "54" "the master of Redis killed within a pass over its keys" intake::failover;
    "55" "a replica killed between the votes of ten people on requests that six have to approve" votes::replica_killed;
    "56" "Postgres restarted amid 200 votes on 20 requests" votes::postgres_restarted;
    "57" "a policy file that is wrong, and one that asks for more approvals, reloaded amid votes" votes::policy_reloaded;
    "58" "replicas killed between sending notices and noting it, 1,000 requests of two tenants, a receiver that lies" notices::replicas_killed;
    "59" "receivers of notices that hang, are slow and are not there, while 1,000 requests are decided" notices::receivers_fail;
    "60" "the mail server away and replicas killed between sending and noting, 1,000 requests of two tenants told by webhook, mail and Slack" channels::mail_away;
    "61" "the same while Slack fails, lies, takes no more calls and hangs" channels::slack_away;
    "62" "a replica killed while it makes a grant, and while it uses one" grants::replica_killed;
    "fuzz" "tokens, paths, bodies, plan steps and agents' JSON, fuzzed for a fixed time" document::fuzz;
}
