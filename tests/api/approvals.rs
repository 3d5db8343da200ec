//! Approve and reject.

use serde_json::json;

use crate::helpers::{ALICE, Asked, eventually};

both_modes! {
    async fn an_approval_is_recorded_signalled_and_leaves_a_task(app: TestApp) {
        let asked = Asked::new();
        app.ask(&asked).await;
        let answer = app.approve(ALICE, &asked.id).await;
        answer.assert(200, "");
        assert_eq!(answer.body["message"], "Request approved successfully");
        assert_eq!(
            *answer.data(),
            json!({ "requestId": asked.id, "sessionId": asked.session, "status": "approved" })
        );
        assert!(app.signal(&asked.session).await.unwrap().contains("\"approval\""));
        assert_eq!(app.task_of(&asked.id).await.task_type, "send_email");
        eventually(async || {
            let record = app.record(&asked.id).await;
            (record.delivery == aura_hitl::domain::decision::Delivery::Sent).then_some(())
        })
        .await;
    }
}
