//! Tests of expressions: what they mean, what they refuse, and where they stop.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::read::{MAX_BYTES, MAX_DEPTH, MAX_MACRO_DEPTH, MAX_NODES};
use super::*;
use crate::domain::ids::{SessionId, TaskId, TenantId, UserId};
use crate::domain::request::Origin;
use crate::policy::words::Subject;

/// What became of an expression, and how many steps it took.
fn run(text: &str, context: &str) -> (Result<bool, Failure>, usize) {
    let expression = Expression::read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let user = UserId::parse("kim").unwrap();
    let tenant = TenantId::parse("tenant1").unwrap();
    let session = SessionId::parse("session_kim_1").unwrap();
    let task = TaskId::parse("task_1").unwrap();
    let subject = Subject {
        action_type: "send_payment",
        message: Some("지급 100"),
        context,
        user: Some(&user),
        tenant: Some(&tenant),
        session: &session,
        task: Some(&task),
        origin: Origin::Redis,
    };
    let mut steps = MAX_STEPS_OF_ALL;
    let result = expression.is_true(&Variables::new(&subject), &mut steps);
    (result, MAX_STEPS_OF_ALL - steps)
}

fn evaluate(text: &str, context: &str) -> Result<bool, Failure> {
    run(text, context).0
}

/// The mistake in an expression, in English.
fn mistake(text: &str) -> String {
    match Expression::read(text) {
        Ok(_) => panic!("{text} is read"),
        Err(sentence) => {
            assert!(!sentence.en.contains('\n') && !sentence.ko.contains('\n'), "{sentence:?}");
            assert_ne!(sentence.en, sentence.ko);
            sentence.en
        }
    }
}

/// The context of most tests.
const CONTEXT: &str = r#"{
    "amount": 1000.50, "five": 5, "fives": [5, 5.0, 50e-1], "big": 9007199254740993, "to": "a@b.c",
    "tags": ["x", "y"], "none": null, "is": true, "not": false, "empty": [], "deep": {"a": {"b": [1, {"c": "d"}]}},
    "mixed": [1, "x"], "odd name": 1, "huge": 1e400, "digits": "12.50", "whole": "12", "nan": NaN,
    "bad": "\udcff", "hangul": "가나다", "orders": [{"sum": 10}, {"sum": 20}], "partial": [{"sum": 10}, {}]
}"#;

#[test]
fn true_expressions_are_true_and_their_opposites_false() {
    for text in [
        "true",
        "!false",
        "!!true",
        "context.is",
        "context.not == false",
        "actionType == 'send_payment'",
        "message == '지급 100' && userId == 'kim' && tenantId == \"tenant1\"",
        "sessionId == 'session_kim_1' && taskId == 'task_1' && origin == 'redis'",
        // Numbers by value.
        "context.five == 5.0 && context.five == 5u && context.five == 0x5 && 5 == 5.0",
        "context.fives.all(n, n == context.five)",
        "context.big == 9007199254740993 && context.big == 9007199254740993.0",
        "context.big != 9007199254740992 && context.big > 9007199254740992.0",
        "message == '가나다' || context.big == 9007199254740993.0",
        "message == '가나다' || context.big != 9007199254740992.0",
        "context.huge > 1000.0 && context.huge == 1e300 * 1e100",
        "context.amount >= 1000.0 && context.amount > 1000 && context.amount < 1001",
        "context.amount <= 1000.5 && !(context.amount < 1000.5) && !(context.amount > 1000.5)",
        "0.1 + 0.2 == 0.3",
        "-context.five == -5 && 2 - 3 == -1 && 2 * 3 + 1 == 7 && -0.0 == 0",
        "-.5 < 0 && .5 + .5 == 1",
        "double(context.digits) == 12.5 && int(context.whole) == 12 && int(12.9) == 12",
        "int(-12.9) == -12 && string(5.0) == '5' && string(true) == 'true' && string('a') == 'a'",
        "double(3) == 3 && string(context.amount) == '1000.5' && string(false) == 'false'",
        // Texts.
        "'a' < 'b' && 'a' <= 'a' && 'b' > 'a' && 'b' >= 'b' && !('a' < 'a') && !('a' > 'a')",
        "context.to.startsWith('a@') && context.to.endsWith('.c') && context.to.contains('@b')",
        "!context.to.startsWith('b') && !context.to.endsWith('b') && !context.to.contains('x')",
        "context.to.matches('^[a-z]@[a-z][.]c$') && !context.to.matches('^x') && matches('ab', 'b')",
        "size(context.hangul) == 3 && context.hangul.size() == 3 && size('') == 0",
        "'a' + 'b' == 'ab' && 'x' in context.tags && !('z' in context.tags)",
        // Lists and maps.
        "size(context.tags) == 2 && context.tags[1] == 'y' && context.tags[1.0] == 'y'",
        "[1, 2] + [3] == [1, 2, 3] && size([]) == 0 && [] == [] && [1] != [2] && [1] != [1, 2]",
        "context.deep.a.b[1].c == 'd' && context['odd name'] == 1 && 'amount' in context",
        "{'a': 1, 'b': [2]} == {'b': [2.0], 'a': 1} && {'a': 1} != {'b': 1} && size({'a': 1}) == 1",
        "{'a': 1} != {'a': 2} && {'a': 1} != {'a': 1, 'b': 2} && {'a': {'b': 'c'}}.a.b == 'c'",
        "!('nothing' in context) && {'a': 1}['a'] == 1 && size(context) == 21",
        "[1, 'a'] != [2, 1] && [1, 'a'] != ['a', 2, 3]",
        // Presence.
        "has(context.amount) && !has(context.nothing) && has(context.none) && has(context.deep.a)",
        "!has(context.deep.b) && !(has(context.nothing) && context.nothing > 1)",
        "context.none == null && null == context.none && context.five != null && null == null",
        "!(context.none != null) && message != null",
        // Macros.
        "context.tags.exists(t, t == 'y') && !context.tags.exists(t, t == 'z')",
        "context.tags.all(t, size(t) == 1) && !context.tags.all(t, t == 'x')",
        "context.tags.exists_one(t, t == 'x') && !context.fives.exists_one(n, n == 5)",
        "context.tags.existsOne(t, t == 'x') && !context.tags.exists_one(t, t == 'z')",
        "context.empty.all(t, t == 1) && !context.empty.exists(t, t == 1)",
        "context.orders.map(o, o.sum) == [10, 20] && context.orders.filter(o, o.sum > 15) == [{'sum': 20}]",
        "context.orders.map(o, o.sum > 15, o.sum * 2) == [40]",
        "context.orders.exists(o, context.fives.exists(n, n * 2 == o.sum))",
        "context.deep.exists(name, name == 'a') && {'b': 1, 'a': 2}.map(k, k) == ['a', 'b']",
        "[1, 2].map(a, [3].map(b, a + b)) == [[4], [5]]",
        "context.fives.map(n, n)[0] == 5 && [[1]].all(a, a.all(b, b == 1))",
        // A side that fails does not count where the other decides.
        "context.nothing == 1 || true",
        "true || context.nothing == 1",
        "!(context.nothing == 1 && false) && !(false && context.nothing == 1)",
        "context.partial.exists(o, o.sum == 10) && !context.partial.all(o, o.sum == 11)",
        "['x', 1].exists(v, v == 1) && 1 in context.mixed && 'x' in context.mixed",
        "true ? true : context.nothing",
        "false ? context.nothing : true",
        "context.nan == 'NaN'",
    ] {
        assert_eq!(evaluate(text, CONTEXT), Ok(true), "{text}");
        assert_eq!(evaluate(&format!("!({text})"), CONTEXT), Ok(false), "{text}");
    }
}

#[test]
fn what_is_missing_or_of_another_type_fails() {
    use Failure::{Missing, TooLong, Unreadable, WrongType};
    let missing = |name: &str| Missing(name.to_owned());
    for (text, failure) in [
        ("context.nothing == 1", missing("nothing")),
        ("context.deep.x.y == 1", missing("x")),
        ("has(context.nothing.x)", missing("nothing")),
        ("has(context.five.x)", WrongType("has")),
        ("context.five.x == 1", WrongType("a field")),
        ("context.tags[2] == 'x'", missing("2")),
        ("context.tags[-1] == 'x'", missing("-1")),
        ("context.tags[0.5] == 'x'", missing("0.5")),
        ("context['no'] == 1", missing("no")),
        ("context.tags['x'] == 1", WrongType("[]")),
        ("context[0] == 1", WrongType("[]")),
        ("context.five[0] == 1", WrongType("[]")),
        ("context.amount >= '1000'", WrongType("a comparison")),
        ("'1000' >= context.amount", WrongType("a comparison")),
        ("context.is > false", WrongType("a comparison")),
        ("context.none > 1", WrongType("a comparison")),
        ("1 < context.none", WrongType("a comparison")),
        ("context.nan > 1", WrongType("a comparison")),
        // Unlike in CEL, values of two types are not merely different.
        ("context.five == '5'", WrongType("==")),
        ("context.five != '5'", WrongType("==")),
        ("context.none == 'x'", WrongType("==")),
        ("context.tags == 'x'", WrongType("==")),
        ("context.is == 1", WrongType("==")),
        ("[1, 'a'] == [1, 1]", WrongType("==")),
        ("{'a': 'a'} == {'a': 1}", WrongType("==")),
        ("context.to in [1, 2]", WrongType("==")),
        ("'z' in context.mixed", WrongType("==")),
        ("1 in context", WrongType("in")),
        ("1 in 'abc'", WrongType("in")),
        ("context.five", WrongType("a condition")),
        ("context.is && context.five", WrongType("a condition")),
        ("!context.five", WrongType("a condition")),
        ("context.five ? true : false", WrongType("a condition")),
        ("context.five.startsWith('5')", WrongType("startsWith")),
        ("context.to.startsWith(1)", WrongType("startsWith")),
        ("context.five.endsWith('5')", WrongType("endsWith")),
        ("context.five.contains('5')", WrongType("contains")),
        ("context.tags.contains('x')", WrongType("contains")),
        ("context.five.matches('5')", WrongType("matches")),
        ("size(context.five) == 1", WrongType("size")),
        ("int(context.digits) == 12", WrongType("int")),
        ("int('1e2') == 100", WrongType("int")),
        ("int(context.is) == 1", WrongType("int")),
        ("double(context.to) == 1", WrongType("double")),
        ("double(context.none) == 1", WrongType("double")),
        ("string(context.none) == ''", WrongType("string")),
        ("string(context.tags) == ''", WrongType("string")),
        ("-context.to == 1", WrongType("-")),
        ("context.to + 1 == 'x'", WrongType("+")),
        ("1 + context.to == 1", WrongType("+")),
        ("context.to - 'a' == 1", WrongType("-")),
        ("context.is * 2 == 2", WrongType("*")),
        ("[1] * [2] == [1]", WrongType("*")),
        ("{'a': 1} + {'b': 1} == {}", WrongType("+")),
        ("context.five.all(x, true)", WrongType("a macro")),
        ("context.five.map(x, x) == []", WrongType("a macro")),
        ("context.partial.all(o, o.sum == 10)", missing("sum")),
        ("context.partial.exists(o, o.sum == 11)", missing("sum")),
        ("context.partial.exists_one(o, o.sum == 10)", missing("sum")),
        ("context.partial.map(o, o.sum) == [10]", missing("sum")),
        ("context.partial.filter(o, o.sum == 10) == []", missing("sum")),
        ("context.nothing == 1 || false", missing("nothing")),
        ("context.nothing == 1 && true", missing("nothing")),
        ("false || context.nothing == 1", missing("nothing")),
        ("context.nothing == 1 || context.no == 1", missing("nothing")),
        ("context.nothing == 1 && context.no == 1", missing("nothing")),
        ("{'a': 1, 'a': 2} == {}", WrongType("a map")),
        ("{1: 1} == {}", WrongType("a name in a map")),
        ("context.bad == 'x'", Unreadable),
        ("'x' == context.bad", Unreadable),
        ("context.bad == null", Unreadable),
        ("context.bad.startsWith('x')", Unreadable),
        ("context.bad > 'x'", Unreadable),
        ("context.bad in ['x']", Unreadable),
        ("has(context.bad.x)", Unreadable),
        ("context.huge + 1 == 1", TooLong),
        ("context.huge * context.huge == context.huge - 1", TooLong),
    ] {
        assert_eq!(evaluate(text, CONTEXT), Err(failure), "{text}");
    }
}

#[test]
fn a_context_that_is_absent_is_empty_and_one_that_is_broken_fails() {
    for absent in ["null", "{}", " null "] {
        assert_eq!(evaluate("!has(context.amount)", absent), Ok(true), "{absent}");
        let missing = Failure::Missing("amount".to_owned());
        assert_eq!(evaluate("context.amount > 1", absent), Err(missing), "{absent}");
    }
    for broken in ["", "{", "{\"amount\":1,\"amount\":2}", &"[".repeat(200_000)] {
        assert_eq!(evaluate("has(context.amount)", broken), Err(Failure::Unreadable));
        assert_eq!(evaluate("actionType == 'send_payment'", broken), Ok(true));
    }
    assert_eq!(evaluate("has(context.amount)", "[1]"), Err(Failure::WrongType("has")));
}

#[test]
fn absent_variables_are_null() {
    let session = SessionId::parse("s").unwrap();
    let subject = Subject {
        action_type: "a",
        message: None,
        context: "{}",
        user: None,
        tenant: None,
        session: &session,
        task: None,
        origin: Origin::Http,
    };
    let all = "message == null && userId == null && tenantId == null && taskId == null && origin == 'http'";
    let judged = |text: &str| {
        let expression = Expression::read(text).unwrap();
        expression.is_true(&Variables::new(&subject), &mut { MAX_STEPS_OF_ALL })
    };
    assert_eq!(judged(all), Ok(true));
    for text in
        ["message.contains('a')", "userId == 'kim'", "tenantId != 'tenant1'", "userId in ['a']"]
    {
        assert!(matches!(judged(text), Err(Failure::WrongType(_))), "{text}");
    }
}

#[test]
fn what_the_service_does_not_know_is_refused_when_it_is_read() {
    for (text, reason) in [
        ("", "the expression is empty"),
        (" \n", "the expression is empty"),
        ("amount > 1", "there is no variable \"amount\""),
        (".context.a == 1", "there is no variable"),
        ("now() > 1", "there is no function \"now\""),
        ("context.a.lowerAscii() == 'a'", "there is no function \"lowerAscii\""),
        ("startsWith(actionType, 'a')", "there is no function \"startsWith\""),
        ("context.a.int() == 1", "there is no function \"int\""),
        ("size() == 1", "there is no function \"size\""),
        ("size(context, context) == 1", "there is no function \"size\""),
        ("context.a.startsWith('a', 'b')", "there is no function \"startsWith\""),
        ("context.a / 2 == 1", "division is not supported"),
        ("context.a % 2 == 1", "division is not supported"),
        ("duration('1h') == 1", "there is no function \"duration\""),
        ("b'a' == context.a", "there is no type \"bytes\""),
        ("Message{a: 1} == context.a", "there is no type \"Message\""),
        ("context.a.matches(context.b)", "the pattern of matches must be written out"),
        ("context.a.matches('(')", "the pattern of matches cannot be used: unclosed group"),
        ("context.a.matches('(?=a)')", "the pattern of matches cannot be used"),
        ("has(context)", "the expression is not CEL: invalid argument to has() macro"),
        ("context.a.all(b.c, true)", "the expression is not CEL"),
        ("context.a.all(context, true)", "the name \"context\" of a macro's variable is taken"),
        ("context.a.all(x, x.all(x, true))", "the name \"x\" of a macro's variable is taken"),
        ("context.a.all(x, true) && x", "there is no variable \"x\""),
        ("context.a ==", "the expression is not CEL"),
        ("context.a == 1 context.b", "the expression is not CEL"),
        ("context.a = 1", "the expression is not CEL"),
        ("'a", "the expression is not CEL"),
        ("context.?a == 1", "the expression is not CEL"),
        ("9223372036854775808 > context.a", "the expression is not CEL: invalid int literal"),
        ("1e999 > context.a", "the expression is not CEL: invalid double literal"),
        ("'text'", "the expression is never true or false"),
        ("1 + 1", "the expression is never true or false"),
        ("-context.a", "the expression is never true or false"),
        ("[true]", "the expression is never true or false"),
        ("{'a': true}", "the expression is never true or false"),
        ("null", "the expression is never true or false"),
        ("actionType", "the expression is never true or false"),
        ("string(true)", "the expression is never true or false"),
        ("context.a.map(x, true)", "the expression is never true or false"),
        ("context.a.filter(x, true)", "the expression is never true or false"),
        ("context.is ? 1 : true", "the expression is never true or false"),
        ("context.is ? true : 'a'", "the expression is never true or false"),
    ] {
        let found = mistake(text);
        assert!(found.starts_with(reason), "{text}: {found}");
    }
    assert!(mistake("context.a == 1 &&\n  1.5.5").contains("(line 2, column "));
}

/// Texts that would cost a parser or an evaluator without limits its stack, its memory or its time.
#[test]
fn hostile_texts_are_refused_by_their_size_and_depth() {
    let deep = format!("the expression is nested deeper than {MAX_DEPTH} levels");
    let parts = format!("the expression has more than {MAX_NODES} parts");
    let macros = format!("more than {MAX_MACRO_DEPTH} macros are inside each other");
    let nested = |count: usize| {
        let mut open = String::new();
        for at in 0..count {
            write!(open, "context.a.all(x{at}, ").unwrap();
        }
        format!("{open}true{}", ")".repeat(count))
    };
    for (text, reason) in [
        ("x".repeat(MAX_BYTES + 1), format!("the expression is longer than {MAX_BYTES} bytes")),
        ("(".repeat(MAX_BYTES), deep.clone()),
        ("[".repeat(MAX_DEPTH + 1), deep.clone()),
        ("{".repeat(MAX_DEPTH + 1), deep.clone()),
        (format!("{}true{}", "(".repeat(33), ")".repeat(33)), deep.clone()),
        (format!("context{} == 1", ".a".repeat(900)), deep.clone()),
        (format!("context{} == 1", "[0]".repeat(600)), deep.clone()),
        (format!("context{} == 1", ".a".repeat(MAX_DEPTH)), deep.clone()),
        (format!("1{} == 1", "+1".repeat(900)), deep.clone()),
        (format!("true{}", "?true:true".repeat(150)), deep.clone()),
        (format!("context.a{}", ".map(x,x)".repeat(100)), deep.clone()),
        (format!("true{}", "||true".repeat(300)), parts.clone()),
        (format!("1 in [1{}]", ",1".repeat(600)), parts.clone()),
        (nested(MAX_MACRO_DEPTH + 1), macros.clone()),
        (nested(20), macros),
        (
            "context.a.matches('((a{1000}){1000}){1000}')".to_owned(),
            "the pattern of matches".to_owned(),
        ),
        (format!("context.a.matches('{}a{}')", "(".repeat(500), ")".repeat(500)), deep),
        (format!("{}true )", "!".repeat(1990)), "the expression is not CEL".to_owned()),
        ("\u{0}".repeat(50), "the expression is not CEL".to_owned()),
        ("'".repeat(MAX_BYTES), "the expression is not CEL".to_owned()),
        ("a.".repeat(1000), "the expression is not CEL".to_owned()),
        (") ".repeat(1000), "the expression is not CEL".to_owned()),
    ] {
        let found = mistake(&text);
        assert!(found.starts_with(&reason), "{}: {found}", &text[..40.min(text.len())]);
    }
    // As far as allowed.
    for text in [
        nested(MAX_MACRO_DEPTH),
        format!("{}true{}", "(".repeat(MAX_DEPTH), ")".repeat(MAX_DEPTH)),
        format!("context{} == 1", ".a".repeat(MAX_DEPTH - 2)),
        format!("true{}", " || true".repeat(248)),
        format!("1 in [1{}]", ",1".repeat(MAX_NODES - 4)),
        format!("{}true", "!".repeat(1990)),
    ] {
        assert!(Expression::read(&text).is_ok(), "{text}");
    }
}

#[test]
fn an_evaluation_ends_after_its_steps() {
    let list = |count: usize| format!("{{\"a\":[0{}]}}", ",0".repeat(count - 1));
    let all = list(1000);
    // A billion elements.
    for text in [
        "context.a.all(x, context.a.all(y, context.a.all(z, x + y + z == 0)))",
        "context.a.exists(x, context.a.exists(y, context.a.exists(z, z == 1)))",
        "context.a.exists_one(x, context.a.exists_one(y, context.a.exists_one(z, z == 1)))",
        "size(context.a.map(x, context.a.map(y, context.a.map(z, z)))) == 0",
        "size(context.a.filter(x, context.a.filter(y, context.a.all(z, z == 0)) == [])) == 0",
        "context.a.all(x, context.a == context.a)",
        "context.a.all(x, !(1 in context.a))",
        "context.a.all(x, size(context.a + context.a + context.a) == 3000)",
        // Neither side saves what takes too long.
        "context.a.all(x, context.a.all(y, context.a.all(z, z == 0))) || true",
        "false && true || context.a.all(x, context.a.all(y, context.a.all(z, z == 0)))",
    ] {
        let (result, steps) = run(text, &all);
        assert_eq!(result, Err(Failure::TooLong), "{text}");
        assert_eq!(steps, evaluate::MAX_STEPS, "{text}");
    }
    // What people write about long lists still has a result.
    let (result, steps) = run("context.a.all(x, x == 0 && x < 1)", &list(9_000));
    assert_eq!(result, Ok(true));
    assert!(steps > 9_000 * 6 && steps < evaluate::MAX_STEPS, "{steps}");
}

#[test]
fn long_texts_and_numbers_cost_steps_by_their_length() {
    let long = |count: usize| {
        format!(r#"{{"a":["{0}","{0}"],"n":1{1}}}"#, "x".repeat(count), "1".repeat(count))
    };
    for text in [
        "context.a[0] == context.a[1]",
        "context.a[0] <= context.a[1]",
        "context.a[0].startsWith(context.a[1])",
        "context.a[0].contains('y') == false",
        "context.a[0].endsWith('x')",
        "context.a[0] + 'x' != ''",
        "size(context.a[0]) > 1",
        "string(context.a[0]) != ''",
        "context.n > 1",
        "-context.n < 1",
        "context.n == context.n",
        "string(context.n) != ''",
        "context.a[0] in context.a",
    ] {
        let (_, short) = run(text, &long(10));
        let (result, steps) = run(text, &long(320_000));
        assert_eq!(result, Ok(true), "{text}");
        // `== ''` alone compares nothing, but reading or copying the text counts.
        assert!(text.starts_with("context.a[0] in") || steps >= short + 10_000, "{text}: {steps}");
    }
    // A text doubled again and again.
    let doubled = "context.a.map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).map(x, x + x).size() > 0";
    let (result, steps) = run(doubled, &long(320_000));
    assert_eq!((result, steps), (Err(Failure::TooLong), evaluate::MAX_STEPS));
    // Regular expressions are tried on short texts only; their time grows with the pattern too.
    let matches = "context.a[0].matches('^(x+x+)+y$')";
    let (result, steps) = run(matches, &long(8192));
    assert!(result == Ok(false) && steps >= 8192, "{result:?} {steps}");
    assert_eq!(evaluate(matches, &long(8193)), Err(Failure::TooLong));
}

#[test]
fn all_expressions_of_a_policy_share_their_steps() {
    let expression = Expression::read("context.a.all(x, context.a.all(y, x == y))").unwrap();
    let cheap = Expression::read("true").unwrap();
    let session = SessionId::parse("s").unwrap();
    let context = format!("{{\"a\":[0{}]}}", ",0".repeat(1000));
    let subject = Subject {
        action_type: "a",
        message: None,
        context: &context,
        user: None,
        tenant: None,
        session: &session,
        task: None,
        origin: Origin::Http,
    };
    let variables = Variables::new(&subject);
    let mut steps = MAX_STEPS_OF_ALL;
    for left in [3, 2, 1, 0, 0] {
        assert_eq!(expression.is_true(&variables, &mut steps), Err(Failure::TooLong));
        assert_eq!(steps, left * evaluate::MAX_STEPS);
    }
    assert_eq!(cheap.is_true(&variables, &mut steps), Err(Failure::TooLong));
    assert_eq!(cheap.is_true(&variables, &mut { 1 }), Ok(true));
}

#[test]
fn the_sentence_of_a_failure_names_what_failed() {
    for (failure, en) in [
        (Failure::Missing("amount".to_owned()), "the field amount is missing"),
        (Failure::WrongType("startsWith"), "a value has the wrong type for startsWith"),
        (Failure::TooLong, "the evaluation takes too long"),
        (Failure::Unreadable, "a value of the request cannot be read"),
    ] {
        let sentence = failure.sentence();
        assert_eq!(sentence.en, en);
        assert!(!sentence.ko.is_empty() && sentence.ko != en);
    }
}

/// Pieces of expressions, put together at random: mostly nonsense, sometimes not.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "context",
        ".a",
        ".b",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "==",
        "!=",
        "&&",
        "||",
        "!",
        "-",
        "+",
        "*",
        "/",
        "%",
        "?",
        ":",
        ",",
        "'a'",
        "\"",
        "1",
        "1.5",
        "0x",
        "u",
        "true",
        "null",
        "in",
        "has(",
        ".all(x,",
        ".map(x,",
        "x",
        "size(",
        ".matches('",
        "\\",
        "`",
        " ",
        "\n",
        "가",
        "@result",
        "b'",
        "r'",
        "e9",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_is_read_or_refused_and_then_evaluated_or_failed(
        text in prop_oneof![3 => pieces(), 1 => "\\PC{0,40}"],
    ) {
        if let Ok(expression) = Expression::read(&text) {
            let session = SessionId::parse("s").unwrap();
            let subject = Subject {
                action_type: "a", message: None, context: r#"{"a":{"b":[1,"a"]},"b":2}"#, user: None,
                tenant: None, session: &session, task: None, origin: Origin::Http,
            };
            let mut steps = 1000;
            let _ = expression.is_true(&Variables::new(&subject), &mut steps);
        }
    }
}
