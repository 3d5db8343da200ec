//! How soon a process decides after it was started, and what it holds while nobody asks.

use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::json;
use support::{Program, free_port};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::load::median;
use crate::report::Report;
use crate::service::one;
use crate::usage::memory;
use crate::world::{Asked, Call, SECRET, World, binary};

/// Starts of each mode, of which the median counts.
const STARTS: usize = 10;
/// How long a process is left alone before its memory is read.
const SETTLED: Duration = Duration::from_secs(10);

pub async fn measure(report: &mut Report) {
    let world = World::start().await;
    let database = world.database("starts").await;
    let mut embedded = Vec::new();
    for _start in 0..STARTS {
        let folder = TempDir::new().unwrap();
        let asked = Asked::fresh(1).remove(0);
        let registration = json!({
            "requestId": asked.request, "sessionId": asked.session, "actionType": "send_email",
        });
        let path = "/api/aura/hitl/requests".to_owned();
        let registering =
            Call { person: asked.person, method: "POST", path, body: registration.to_string() };
        let calls = [registering, asked.approval()];
        embedded.push(until_answered(&world, alone(&folder), &calls).await);
    }
    let mut production = Vec::new();
    for _start in 0..STARTS {
        let asked = Asked::fresh(1);
        world.ask(&asked).await;
        let program = world.program(&database.url);
        production.push(until_answered(&world, program, &[asked[0].approval()]).await);
    }
    let embedded = median(embedded);
    report.at_most("embedded: start to first decision", embedded, 0.5, "s");
    report.fact("production: start to first decision", median(production), "s");

    let folder = TempDir::new().unwrap();
    let embedded = alone(&folder).serve().await;
    let production = world.program(&database.url).serve().await;
    sleep(SETTLED).await;
    for (mode, process) in [("embedded", &embedded), ("production", &production)] {
        let mebibytes = memory(process.pid()) as f64 / 1024.0 / 1024.0;
        report.at_most(format!("{mode}: idle memory"), mebibytes, 25.0, "MiB");
    }
    let size = std::fs::metadata(binary()).unwrap().len();
    report.fact("the binary", size as f64 / 1024.0 / 1024.0, "MiB");
}

/// The embedded mode in an empty folder.
fn alone(folder: &TempDir) -> Program {
    Program::of(&binary(), folder, &["serve"]).with("JWT_SECRET", SECRET)
}

/// Seconds from starting a program until the last of these calls is answered with success.
async fn until_answered(world: &World, program: Program, calls: &[Call]) -> f64 {
    let (port, client) = (free_port(), Client::new());
    let base = format!("http://127.0.0.1:{port}");
    let began = Instant::now();
    let answered = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        for call in calls {
            one(&client, &base, world, call).await;
        }
        began.elapsed().as_secs_f64()
    };
    let serving = program.with("PORT", port.to_string()).serve();
    let (_process, taken) = tokio::join!(serving, answered);
    taken
}
