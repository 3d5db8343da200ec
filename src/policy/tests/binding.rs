//! What rules ask together.

use chrono::TimeDelta;

use super::*;

#[test]
fn the_example_of_the_contract_asks_what_it_says() {
    let policy = Policy::read(CONTRACT).unwrap();
    assert_eq!(policy.version().len(), 12);
    assert_ne!(policy.version(), Policy::read(&format!("{CONTRACT}\n")).unwrap().version());

    let payment = bind(&policy, "send_payment", r#"{"amount": 1000, "to": "x"}"#);
    assert_eq!(payment.rules().collect::<Vec<_>>(), ["large payments"]);
    assert_eq!((payment.rule(), payment.automatic()), (Some("large payments"), None));
    assert_eq!((payment.risk(), payment.quorum()), (Risk::High, 2));
    assert_eq!((payment.remember(), payment.needs_admin()), (Remember::Never, false));
    assert_eq!(payment.expires_in(), Some(TimeDelta::minutes(30)));
    assert_eq!(payment.remind_after(), Some(TimeDelta::minutes(5)));
    assert_eq!(payment.escalates_after(), [TimeDelta::minutes(10)]);
    assert_eq!(payment.show(), ["$message", "to", "amount"]);
    for way in Way::ALL {
        assert_eq!(payment.allows(way), matches!(way, Way::Approve | Way::Reject));
    }
    let heads = Somebody::new("han").with_group("heads");
    for (who, allowed) in [
        (Somebody::new("kim"), true),
        (Somebody::of("tenant2", "park"), true),
        (Somebody::new("park"), false),
        (Somebody::new("song").with_group("finance"), true),
        (Somebody::new("song").with_role("admin"), true),
        (Somebody::new("cho"), true),
        (Somebody::new("song"), false),
        (heads.clone(), false),
        (Somebody::new("user").with_role("admin"), false),
    ] {
        assert_eq!(may(&payment, &who, Way::Approve, 0).is_ok(), allowed, "{who:?}");
        let is_own = who.user.as_str() == "user";
        assert_eq!(may(&payment, &who, Way::Reject, 0).is_ok(), allowed || is_own, "{who:?}");
    }
    assert!(may(&payment, &heads, Way::Approve, 599).is_err());
    assert!(may(&payment, &heads, Way::Approve, 600).is_ok());

    let reading = bind(&policy, "read_mail", "{}");
    let automatic = Automatic { verdict: Verdict::Approve, rule: "reading is fine" };
    assert_eq!(reading.automatic(), Some(automatic));
    // The amount cannot be compared, so the first rule binds too, and nothing is automatic.
    let unclear = bind(&policy, "send_payment", r#"{"amount": "1000"}"#);
    assert_eq!((unclear.rule(), unclear.quorum(), unclear.needs_admin()), (None, 2, true));
    assert_eq!(unclear.rules().collect::<Vec<_>>(), ["large payments"]);
    let nothing = bind(&policy, "send_payment", r#"{"amount": 999.99}"#);
    assert_eq!((nothing.rules().count(), nothing.needs_admin(), nothing.quorum()), (0, true, 1));
}
