use std::io;

use serde_json::json;

use super::*;

fn conf(value: Value) -> NetConf {
    let mut base = json!({"cniVersion": "1.1.0", "name": "net", "type": "weft"});
    base.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    NetConf::parse(base.to_string().as_bytes()).unwrap()
}

fn kept(container_id: &str, ifname: Option<&str>) -> ValidAttachment {
    ValidAttachment { container_id: container_id.into(), ifname: ifname.map(str::to_owned) }
}

#[test]
fn what_is_not_one_json_object_is_a_decode_failure() {
    let deep = "[".repeat(100_000);
    let deep_objects = r#"{"a":"#.repeat(100_000);
    let broken: [&[u8]; 12] = [
        b"",
        b" \n",
        b"{",
        b"[]",
        b"null",
        b"12",
        b"{} x",
        b"{}{}",
        b"\xef\xbb\xbf{}",
        b"{\"name\":\"\xff\"}",
        deep.as_bytes(),
        deep_objects.as_bytes(),
    ];
    for raw in broken {
        let text = String::from_utf8_lossy(&raw[..raw.len().min(20)]);
        assert_eq!(NetConf::parse(raw).unwrap_err().code, 6, "{text}");
    }
}

#[test]
fn the_last_of_two_equal_keys_wins() {
    let conf = NetConf::parse(br#"{"name":"a","name":"b","cniVersion":"9","cniVersion":"1.0.0"}"#).unwrap();
    assert_eq!((conf.name.as_str(), conf.version), ("b", Version::V1_0_0));
}

#[test]
fn name_and_version_decide_the_code() {
    for (text, code, msg) in [
        (r#"{}"#, 7, "missing network name"),
        (r#"{"name":null}"#, 7, "missing network name"),
        (r#"{"name":"../x"}"#, 7, "invalid characters found in network name"),
        (r#"{"name":1}"#, 6, "name: expected a string, found the number 1"),
        (r#"{"name":"a","cniVersion":12}"#, 6, "cniVersion: expected a string, found the number 12"),
        (r#"{"name":"a","cniVersion":"1.0"}"#, 1, "incompatible CNI versions"),
        (r#"{"name":"a","type":[]}"#, 6, "type: expected a string, found an array"),
    ] {
        let error = NetConf::parse(text.as_bytes()).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (code, msg), "{text}");
    }
}

#[test]
fn a_missing_version_is_0_1_0_and_keys_have_no_case() {
    let conf = NetConf::parse(br#"{"Name":"a","TYPE":"weft","CNIVersion":null}"#).unwrap();
    assert_eq!((conf.version, conf.kind.as_str()), (Version::V0_1_0, "weft"));
}

#[test]
fn stdin_is_read_up_to_its_limit() {
    assert_eq!(read(&mut &b"{}"[..]), Ok(b"{}".to_vec()));
    let endless = read(&mut io::repeat(b' ')).unwrap_err();
    assert_eq!((endless.code, endless.msg.as_str()), (6, "network configuration is larger than 16 MiB"));
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    assert_eq!(read(&mut Broken).unwrap_err().code, 5);
}

#[test]
fn absent_sections_are_empty_and_wrong_ones_are_named() {
    let empty = conf(json!({"runtimeConfig": null, "args": {"cni": null}}));
    assert_eq!(empty.runtime_config(), Ok(Object::default()));
    assert_eq!(empty.args_cni(), Ok(Object::default()));
    assert_eq!(empty.ipam(), Ok(None));
    let full = conf(json!({"RuntimeConfig": {"mac": "x"}, "args": {"CNI": {"ips": ["y"]}}, "ipam": 1}));
    assert_eq!(full.runtime_config().unwrap().string("mac"), Ok(Some("x".into())));
    assert_eq!(full.args_cni().unwrap().strings("ips"), Ok(Some(vec!["y".into()])));
    assert_eq!(full.ipam().unwrap_err().msg, "ipam: expected an object, found the number 1");
}

#[test]
fn dns_counts_when_a_key_of_it_is_set() {
    assert_eq!(conf(json!({})).dns(), Ok(None));
    assert_eq!(conf(json!({"dns": {}})).dns(), Ok(None));
    assert_eq!(conf(json!({"dns": {"search": []}})).dns(), Ok(Some(Dns::default())));
    assert_eq!(conf(json!({"dns": {"domain": "x"}})).dns().unwrap().unwrap().domain, "x");
}

#[test]
fn a_broken_previous_result_hurts_only_who_asks_for_it() {
    let broken = conf(json!({"prevResult": {"ips": 3}}));
    assert_eq!(
        broken.prev_result().unwrap_err().msg,
        "prevResult: ips: expected an array, found the number 3"
    );
    assert_eq!(conf(json!({"prevResult": null})).prev_result(), Ok(None));
    assert_eq!(conf(json!({"prevResult": {}})).prev_result(), Ok(Some(AddResult::default())));
}

#[test]
fn null_is_an_empty_list_of_valid_attachments() {
    for list in [json!(null), json!([])] {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments", "CNI.dev/Attachments"] {
            assert_eq!(conf(json!({ key: list })).valid_attachments(), Ok(vec![]), "{key} {list}");
        }
    }
}

#[test]
fn gc_without_any_list_is_refused() {
    assert_eq!(conf(json!({})).valid_attachments().unwrap_err().code, 7);
}

#[test]
fn two_different_lists_are_united() {
    let lists = conf(json!({
        "cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}, {"ContainerID": "a", "IfName": "eth1"}],
        "cni.dev/attachments": [{"containerID": "b", "ifname": "eth0"}, {"containerID": "c"}],
    }));
    let expected = vec![kept("a", Some("eth1")), kept("b", Some("eth0")), kept("c", None)];
    assert_eq!(lists.valid_attachments(), Ok(expected));
    let null_and_list =
        json!({"cni.dev/valid-attachments": null, "cni.dev/attachments": [{"containerID": "c"}]});
    assert_eq!(conf(null_and_list).valid_attachments(), Ok(vec![kept("c", None)]));
}

#[test]
fn a_list_of_the_wrong_type_is_refused_as_a_whole() {
    for (list, code) in [
        (json!({}), 6),
        (json!("x"), 6),
        (json!([1]), 6),
        (json!([null]), 6),
        (json!([{"containerID": 1}]), 6),
        (json!([{"containerID": "a", "ifname": []}]), 6),
        (json!([{"ifname": "eth0"}]), 7),
    ] {
        let gc =
            conf(json!({"cni.dev/valid-attachments": [{"containerID": "ok"}], "cni.dev/attachments": list}));
        assert_eq!(gc.valid_attachments().unwrap_err().code, code, "{list}");
    }
}

#[test]
fn an_entry_covers_its_interface_or_all_of_the_container() {
    assert!(kept("a", Some("eth0")).covers("a", "eth0"));
    assert!(!kept("a", Some("eth0")).covers("a", "eth1"));
    assert!(kept("a", None).covers("a", "eth1"));
    assert!(!kept("a", None).covers("b", "eth1"));
}
