//! What a patch does to which document.

use serde_json::json;

use super::body_patch::*;

fn patch(spec: serde_json::Value) -> BodyPatch {
    let mut problems = Vec::new();
    let patch = BodyPatch::new(&serde_json::from_value(spec).expect("a spec"), &mut problems);
    assert_eq!(problems, []);
    patch
}

fn patched(spec: serde_json::Value, document: &str) -> Result<String, Unpatched> {
    patch(spec).apply(document).map(|text| String::from_utf8(text).expect("UTF-8"))
}

#[test]
fn what_is_not_changed_stays_as_its_text_has_it() {
    let document = "\r\n {\"id\" : 12345678901234567890123.50, \"a\":{\"x\": [1e2, -0,\t\"\\u0069\"], \"y\":1}, \"z\":1E400 } ";
    assert_eq!(
        patched(json!({"set": [{"pointer": "/new", "value": true}], "remove": ["/a/y"]}), document)
            .as_deref(),
        Ok(
            "{\"id\":12345678901234567890123.50,\"a\":{\"x\":[1e2, -0,\t\"\\u0069\"]},\"z\":1E400,\"new\":true}"
        )
    );
}

#[test]
fn each_change_does_what_it_says() {
    let document = r#"{"id":1,"user":{"name":"a","mail":"b","a/b":{"m~n":2}},"items":[{"x":1},{"x":2}]}"#;
    for (spec, expected) in [
        (json!({"pick": ["/id", "/user/name"]}), r#"{"id":1,"user":{"name":"a"}}"#),
        (json!({"pick": ["/items/1/x", "/nosuch", "/id/deeper"]}), r#"{"items":[{"x":2}]}"#),
        (json!({"pick": ["/items", "/items/0"]}), r#"{"items":[{"x":1},{"x":2}]}"#),
        (json!({"pick": ["/nosuch"]}), "{}"),
        (json!({"pick": ["/user/a~1b/m~0n"]}), r#"{"user":{"a/b":{"m~n":2}}}"#),
        (
            json!({"remove": ["/user", "/items/0", "/nosuch/x", "/id/x", "/items/7", "/items/01"]}),
            r#"{"id":1,"items":[{"x":2}]}"#,
        ),
        (
            json!({"pick": ["/id", "/user/name"], "rename": [{"from": "/id", "to": "/number"}]}),
            r#"{"number":1,"user":{"name":"a"}}"#,
        ),
        (
            json!({"pick": ["/user"], "remove": ["/user/a~1b"], "rename": [{"from": "/user/name", "to": "/user/mail"}]}),
            r#"{"user":{"mail":"a"}}"#,
        ),
        (
            json!({"remove": ["/items"], "rename": [{"from": "/user/name", "to": "/by/name"}, {"from": "/no", "to": "/x"}]}),
            r#"{"id":1,"user":{"mail":"b","a/b":{"m~n":2}},"by":{"name":"a"}}"#,
        ),
        (
            json!({"pick": ["/id"], "set": [{"pointer": "/id", "value": "x\"\n"}, {"pointer": "/a/b/c", "value": [1, {}]}, {"pointer": "/a/b/c/-", "value": 2}, {"pointer": "/a/b/c/1/d", "value": {"e": 1}}]}),
            r#"{"id":"x\"\n","a":{"b":{"c":[1,{"d":{"e":1}},2]}}}"#,
        ),
        (
            json!({"pick": ["/items"], "set": [{"pointer": "/items/2", "value": 3}, {"pointer": "/items/0/x", "value": 9}]}),
            r#"{"items":[{"x":9},{"x":2},3]}"#,
        ),
    ] {
        assert_eq!(patched(spec.clone(), document).as_deref(), Ok(expected), "{spec}");
    }
    assert_eq!(patched(json!({"pick": ["/a"]}), " 7 ").as_deref(), Ok("null"));
    assert_eq!(patched(json!({"pick": ["/1"]}), "[1, 2.50, 3]").as_deref(), Ok("[2.50]"));
}

#[test]
fn what_cannot_be_changed_is_not_half_changed() {
    let set = |pointer: &str| json!({"set": [{"pointer": pointer, "value": 1}]});
    for (spec, document, expected) in [
        (set("/a"), "", Unpatched::NotJson),
        (set("/a"), "{}{}", Unpatched::NotJson),
        (set("/a"), "{\"b\":01}", Unpatched::NotJson),
        (set("/a"), "nul", Unpatched::NotJson),
        (json!({"remove": ["/a"]}), "\u{feff}{}", Unpatched::NotJson),
        (json!({"remove": ["/a"]}), r#"{"\ud800":1}"#, Unpatched::NotJson),
        (json!({"remove": ["/a"]}), r#"{"a":1,"b":2,"\u0061":3}"#, Unpatched::SeveralMembers),
        (json!({"remove": ["/a/b"]}), r#"{"a":{},"a":{"b":1}}"#, Unpatched::SeveralMembers),
        (json!({"pick": ["/a"]}), r#"{"a":1,"a":2}"#, Unpatched::SeveralMembers),
        // The first leads to nothing.
        (json!({"pick": ["/a/b"]}), r#"{"a":1,"a":{"b":2}}"#, Unpatched::SeveralMembers),
        (json!({"pick": ["/a/b"]}), r#"{"a":{"b":2},"a":1}"#, Unpatched::SeveralMembers),
        (
            json!({"rename": [{"from": "/b", "to": "/a"}]}),
            r#"{"a":1,"b":2,"a":3}"#,
            Unpatched::SeveralMembers,
        ),
        (set("/a/b"), r#"{"a":null}"#, Unpatched::NoPlace),
        (set("/a/3"), r#"{"a":[1]}"#, Unpatched::NoPlace),
        (set("/a/x"), r#"{"a":[1]}"#, Unpatched::NoPlace),
        (set("/a"), "7", Unpatched::NoPlace),
    ] {
        assert_eq!(patched(spec, document), Err(expected), "{document}");
    }
    // The control: what no pointer leads through is passed on.
    let doubled = r#"{"b":{"a":1,"a":2}}"#;
    assert_eq!(patched(json!({"remove": ["/a"]}), doubled).as_deref(), Ok(doubled));
}

#[test]
fn hostile_documents_cost_a_bounded_time() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    assert_eq!(patched(json!({"remove": ["/b"]}), &deep).as_deref(), Ok(&*deep));
    let wide = format!("{{{}\"b\":1}}", "\"a\":1,".repeat(MAX_MEMBERS));
    assert_eq!(patched(json!({"remove": ["/b"]}), &wide), Err(Unpatched::TooManyMembers));
    let list = format!("[{}0]", "0,".repeat(MAX_MEMBERS));
    assert_eq!(patched(json!({"remove": ["/0"]}), &list), Err(Unpatched::TooManyMembers));
    // Many members on each level that many pointers lead through.
    let members: String = (0..MAX_MEMBERS - 1).map(|number| format!("\"{number:x}\":0,")).collect();
    let nested = (0..6).fold("1".to_owned(), |inner, _| format!("{{{members}\"in\":{inner}}}"));
    let deep = format!("{}/x", "/in".repeat(5));
    let pointers = |count: usize| (0..count).map(|number| format!("{deep}{number}")).collect::<Vec<_>>();
    assert_eq!(patched(json!({"remove": pointers(60)}), &nested), Err(Unpatched::TooMuchWork));
    assert_eq!(patched(json!({"remove": pointers(40)}), &nested).map(|text| text.len()), Ok(nested.len()));
    assert_eq!(patched(json!({"pick": pointers(60)}), &nested), Err(Unpatched::TooMuchWork));
}

#[test]
fn what_is_no_pointer_is_refused_where_it_stands() {
    let long = format!("/{}", vec!["a"; MAX_DEPTH + 1].join("/"));
    for (spec, path) in [
        (json!({}), "bodyPatch"),
        (json!({"pick": [""]}), "bodyPatch.pick[0]"),
        (json!({"remove": ["/a", "b"]}), "bodyPatch.remove[1]"),
        (json!({"remove": ["/a~2"]}), "bodyPatch.remove[0]"),
        (json!({"remove": ["/a~"]}), "bodyPatch.remove[0]"),
        (json!({"remove": [long]}), "bodyPatch.remove[0]"),
        (json!({"rename": [{"from": "/a", "to": "b"}]}), "bodyPatch.rename[0].to"),
        (json!({"rename": [{"from": "/a", "to": "/a/b"}]}), "bodyPatch.rename[0]"),
        (json!({"set": [{"pointer": "", "value": 1}]}), "bodyPatch.set[0].pointer"),
        (json!({"set": [{"pointer": "/a", "value": "x".repeat(5000)}]}), "bodyPatch.set[0].value"),
    ] {
        let mut problems = Vec::new();
        BodyPatch::new(&serde_json::from_value(spec.clone()).expect("a spec"), &mut problems);
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, [path], "{spec}");
    }
}
