use super::*;

const FULL: [(&str, &str); 5] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/x"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IP=10.0.0.5"),
    ("CNI_PATH", "/opt/cni/bin"),
];

/// The full environment with some variables changed; an empty one is missing.
fn environment(changes: &[(&str, &str)]) -> Environment {
    let changed = |name: &str| changes.iter().find(|(key, _)| *key == name);
    let lookup = |name: &str| {
        let pair = changed(name).or_else(|| FULL.iter().find(|(key, _)| *key == name));
        pair.map(|(_, value)| OsString::from(value))
    };
    Environment::read(&lookup)
}

fn read(command: Command, changes: &[(&str, &str)]) -> Result<Attachment, Error> {
    Attachment::read(command, &environment(changes))
}

#[test]
fn a_full_environment_is_read_as_it_is() {
    let attachment = read(Command::Add, &[]).unwrap();
    assert_eq!(attachment.container_id.as_str(), "c1");
    assert_eq!(attachment.ifname.as_str(), "eth0");
    assert_eq!(attachment.netns, Some(PathBuf::from("/run/netns/x")));
    assert_eq!(attachment.args.get("IP"), Some("10.0.0.5"));
    assert!(!attachment.netns_override);
}

#[test]
fn every_missing_variable_is_listed_in_order() {
    let none =
        [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_ARGS", ""), ("CNI_PATH", "")];
    for (command, changes, names) in [
        (Command::Add, &none[..], "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
        (Command::Check, &none[..], "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
        (Command::Del, &none[..], "CNI_CONTAINERID,CNI_IFNAME"),
        (Command::Add, &none[..1], "CNI_CONTAINERID"),
        (Command::Add, &none[1..2], "CNI_NETNS"),
        (Command::Add, &none[1..], "CNI_NETNS,CNI_IFNAME"),
        (Command::Del, &none[2..], "CNI_IFNAME"),
    ] {
        let error = read(command, changes).unwrap_err();
        assert_eq!(
            error,
            Error::environment(format!("required env variables [{names}] missing")),
            "{command}"
        );
    }
}

#[test]
fn args_and_path_are_never_missed_and_del_does_without_netns() {
    assert!(read(Command::Add, &[("CNI_ARGS", ""), ("CNI_PATH", "")]).is_ok());
    assert_eq!(read(Command::Del, &[("CNI_NETNS", "")]).unwrap().netns, None);
}

#[test]
fn a_wrong_value_is_reported_before_missing_ones() {
    for bad in [("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "a/b"), ("CNI_IFNAME", "sixteen_bytes_xx")] {
        for command in [Command::Add, Command::Check, Command::Del] {
            let error = read(command, &[bad, ("CNI_NETNS", "")]).unwrap_err();
            assert_eq!(error.code, 4);
            assert!(error.msg.contains(bad.0), "{error}");
            assert!(!error.msg.contains("missing"), "{error}");
        }
    }
}

#[test]
fn broken_args_refuse_an_add_and_never_a_del() {
    let broken = [("CNI_ARGS", "nonsense")];
    assert_eq!(read(Command::Add, &broken).unwrap_err().code, 4);
    assert_eq!(read(Command::Check, &broken).unwrap_err().code, 4);
    assert_eq!(read(Command::Del, &broken).unwrap().args, CniArgs::default());
}

#[test]
fn the_override_is_1_or_true_in_any_case() {
    for (value, expected) in
        [("1", true), ("true", true), ("TrUe", true), ("0", false), ("yes", false), ("", false)]
    {
        let attachment = read(Command::Add, &[("CNI_NETNS_OVERRIDE", value)]).unwrap();
        assert_eq!(attachment.netns_override, expected, "{value}");
    }
}

#[test]
fn the_path_is_split_and_empty_folders_are_dropped() {
    let env = environment(&[("CNI_PATH", ":/a::/b:")]);
    assert_eq!(env.path, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(environment(&[("CNI_PATH", "")]).path, Vec::<PathBuf>::new());
}

#[test]
fn bytes_that_are_not_utf8_are_an_error_or_kept_and_never_a_panic() {
    for name in VARIABLES {
        let lookup = |asked: &str| {
            if asked == name {
                return Some(OsStr::from_bytes(b"a=\xff").to_owned());
            }
            FULL.iter().find(|(key, _)| *key == asked).map(|(_, value)| OsString::from(value))
        };
        let read = Attachment::read(Command::Add, &Environment::read(&lookup));
        let refused = matches!(name, "CNI_CONTAINERID" | "CNI_IFNAME");
        assert_eq!(read.as_ref().err().map(|error| error.code), refused.then_some(4), "{name}");
    }
}

#[test]
fn verbs_are_written_exactly() {
    for command in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
        assert_eq!(Command::parse(command).unwrap().as_str(), command);
    }
    for text in ["", "add", "ADD ", "FOO"] {
        assert_eq!(Command::parse(text), None);
    }
}
