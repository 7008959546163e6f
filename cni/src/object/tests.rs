use serde_json::json;

use super::*;

fn object(value: &Value) -> Object {
    Object::from_value("", value).unwrap()
}

#[test]
fn keys_match_without_case_and_the_exact_one_wins() {
    let sent = object(&json!({"HostPort": 1, "hostport": 2, "hostPort": 3}));
    assert_eq!(sent.u32("hostPort"), Ok(Some(3)));
    assert_eq!(sent.u32("HostPort"), Ok(Some(1)));
    assert_eq!(object(&json!({"BandWidth": 4})).u32("bandwidth"), Ok(Some(4)));
}

#[test]
fn null_is_absent_for_every_accessor() {
    let sent = object(&json!({"a": null}));
    assert!(!sent.contains("a"));
    assert_eq!(sent.get_with_null("A"), Some(&Value::Null));
    assert_eq!(sent.string("a"), Ok(None));
    assert_eq!(sent.bool("a"), Ok(None));
    assert_eq!(sent.u64("a"), Ok(None));
    assert_eq!(sent.i64("a"), Ok(None));
    assert_eq!(sent.object("a"), Ok(None));
    assert_eq!(sent.array("a"), Ok(None));
    assert_eq!(sent.strings("a"), Ok(None));
    assert_eq!(sent.objects("a"), Ok(vec![]));
    assert_eq!(sent.parsed::<u8>("a", 7), Ok(None));
}

#[test]
fn a_wrong_type_names_the_whole_path_and_what_was_found() {
    let sent = object(&json!({"ipam": {"ranges": [{"subnet": 12}], "mtu": "big", "list": ["a", false]}}));
    let ipam = sent.object("ipam").unwrap().unwrap();
    let first = ipam.objects("ranges").unwrap().remove(0);
    for (error, text) in [
        (
            first.string("subnet").unwrap_err(),
            "ipam.ranges[0].subnet: expected a string, found the number 12",
        ),
        (
            ipam.u32("mtu").unwrap_err(),
            "ipam.mtu: expected a number from 0 to 4294967295, found the string \"big\"",
        ),
        (ipam.strings("list").unwrap_err(), "ipam.list[1]: expected a string, found false"),
        (ipam.objects("list").unwrap_err(), "ipam.list[0]: expected an object, found the string \"a\""),
        (sent.array("ipam").unwrap_err(), "ipam: expected an array, found an object"),
        (ipam.object("ranges").unwrap_err(), "ipam.ranges: expected an object, found an array"),
    ] {
        assert_eq!((error.code, error.msg.as_str()), (6, text));
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let sent = object(&json!({"big": 4_294_967_296_u64, "negative": -1, "fraction": 1.5}));
    assert_eq!(sent.u32("big").unwrap_err().code, 6);
    assert_eq!(sent.u64("big"), Ok(Some(4_294_967_296)));
    assert_eq!(sent.u64("negative").unwrap_err().code, 6);
    assert_eq!(sent.i64("negative"), Ok(Some(-1)));
    assert_eq!(sent.i64("fraction").unwrap_err().code, 6);
}

#[test]
fn only_the_lenient_accessor_takes_booleans_in_strings() {
    let sent = object(&json!({"yes": "True", "no": false, "odd": "1"}));
    assert_eq!(sent.bool_or_string("yes"), Ok(Some(true)));
    assert_eq!(sent.bool_or_string("no"), Ok(Some(false)));
    assert_eq!(sent.bool_or_string("odd").unwrap_err().code, 6);
    assert_eq!(sent.bool("yes").unwrap_err().code, 6);
}

#[test]
fn unknown_keys_are_what_remains_without_the_known_ones() {
    let sent = object(&json!({"CNIVersion": "1.0.0", "ips": [], "vendor": 1}));
    assert_eq!(Value::Object(sent.without(&["cniVersion", "ips"])), json!({"vendor": 1}));
}

#[test]
fn long_strings_are_cut_at_a_character() {
    assert_eq!(shorten("äöü", 2), "äö…");
    assert_eq!(shorten("äöü", 3), "äöü");
}
