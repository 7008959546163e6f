//! The log: one line for each operation, where and how the configuration says; and no operation depends on
//! it.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

#[path = "common_protocol/confs.rs"]
mod confs;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use confs::{MODES, conf, with};
use netns_tests::{Cni, Inside, Node, Outcome, Pod, StdoutTo, lab, require, weft_bin_dir};
use serde_json::{Value, json};

/// Where the log is unless the configuration says otherwise.
const DEFAULT: &str = "/var/log/weft/weft.log";
/// A file larger than this is put aside.
const LARGEST: usize = 10 * 1024 * 1024;

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

/// The lines of a log; none if there is no file.
fn lines(node: &Node, path: &str) -> Vec<String> {
    let text = fs::read_to_string(node.path(path)).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "a line without end: {text:?}");
    text.lines().map(str::to_owned).collect()
}

/// Every verb once: five that succeed, then an ADD that is refused.
fn every_verb(node: &Node, pod: &Pod, conf: &Value) -> Vec<(&'static str, Outcome)> {
    let weft = weft(node);
    let added = weft.add(pod, conf);
    let check = with(conf, "prevResult", added.result());
    let mut list = conf.clone();
    list["cni.dev/valid-attachments"] = json!([{"containerID": pod.container_id(), "ifname": pod.ifname()}]);
    vec![
        ("ADD", added),
        ("CHECK", weft.check(pod, &check)),
        ("GC", weft.gc(&list)),
        ("STATUS", weft.status(conf)),
        ("DEL", weft.del(pod, conf)),
        ("ADD", weft.add(pod, &with(conf, "mtu", json!(1)))),
    ]
}

/// `key=value` of a text line.
fn field<'a>(line: &'a str, key: &str) -> &'a str {
    let word = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line:?}"))
}

/// UTC with milliseconds, within a minute of now (all of the text's own; no library).
#[track_caller]
fn assert_time(text: &str) {
    let pattern = "dddd-dd-ddTdd:dd:dd.dddZ";
    let fits = |(a, b): (char, char)| if b == 'd' { a.is_ascii_digit() } else { a == b };
    assert!(text.len() == pattern.len() && text.chars().zip(pattern.chars()).all(fits), "{text}");
    let date = |seconds: &str| {
        let output =
            std::process::Command::new("date").args(["-u", "-d", seconds, "+%Y-%m-%dT%H:%M:%S"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
    };
    // Text of this form sorts as time does.
    assert!(date("-1 minute").as_str() < text && text < date("+1 minute").as_str(), "{text} is not now");
}

/// Log: one line for each operation, with its duration, whom it was for and how it ended; none for VERSION
/// and for a person's call.
#[test]
fn each_operation_writes_one_line() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let calls = every_verb(&node, &pod, &conf("1.1.0", mode, "dual"));
        weft(&node).version().result();
        weft(&node).call("").run().ok_empty();
        let lines = lines(&node, DEFAULT);
        assert_eq!(lines.len(), calls.len(), "{lines:#?}");
        for (line, (verb, outcome)) in lines.iter().zip(&calls) {
            let mut words = line.split(' ');
            assert_time(words.next().unwrap());
            assert_eq!(words.next(), Some(*verb), "{line}");
            assert_eq!(field(line, "network"), "net");
            let attached = !["GC", "STATUS"].contains(verb);
            assert_eq!(field(line, "container"), if attached { pod.container_id() } else { "-" });
            assert_eq!(field(line, "if"), if attached { "eth0" } else { "-" });
            let took: u128 = field(line, "took").strip_suffix("us").unwrap().parse().unwrap();
            assert!(took > 0 && took <= outcome.exited.as_micros(), "{line}: {:?}", outcome.exited);
            assert_eq!(line.contains(" ok"), outcome.status.success(), "{line}");
        }
        assert!(lines[0].contains("ip=10.244.0.2/"), "an ADD says its addresses: {}", lines[0]);
        assert!(lines[0].contains("ip=fd00:244::2/"), "{}", lines[0]);
        assert!(lines[5].contains("error code=7 mtu 1 is out of range"), "{}", lines[5]);
    }
}

/// Log: what is refused before its network is known leaves no trace, not even a log file (A3: "no file
/// created anywhere"); the runtime has the error object.
#[test]
fn a_call_that_could_not_be_understood_leaves_not_even_a_log() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let weft = weft(&node);
    let conf = conf("1.1.0", "bridge", "v4");
    weft.call("FOO").run().error();
    weft.call("ADD").run().error();
    weft.call("ADD").pod(&pod).stdin(b"{").run().error();
    weft.call("ADD").pod(&pod).conf(&with(&conf, "name", json!("../x"))).run().error();
    weft.call("ADD").pod(&pod).conf(&with(&conf, "cniVersion", json!("9.9.9"))).run().error();
    weft.call("ADD").pod(&pod).env("CNI_CONTAINERID", "a/b").conf(&conf).run().error();
    weft.call("ADD").pod(&pod).env("CNI_ARGS", "junk").conf(&conf).run().error();
    assert_eq!(fs::read_dir(node.path("/var/log/weft")).unwrap().count(), 0);
}

/// Log, `logLevel`: `info` says everything, `error` only failures, `off` nothing.
#[test]
fn the_level_chooses_the_lines() {
    if !require() {
        return;
    }
    let lab = lab!();
    for (level, expected) in [("info", 6), ("", 6), ("error", 1), ("off", 0)] {
        let node = lab.node(&format!("level-{level}"));
        let pod = node.pod("a");
        every_verb(&node, &pod, &with(&conf("1.1.0", "bridge", "v4"), "logLevel", json!(level)));
        let lines = lines(&node, DEFAULT);
        assert_eq!(lines.len(), expected, "{level}: {lines:#?}");
        assert!(lines.last().is_none_or(|line| line.contains("error code=7")), "{level}: {lines:#?}");
        assert!(expected > 0 || !node.path(DEFAULT).exists(), "off does not even make the file");
    }
}

/// Log, `logFormat: json`: each line is one object with the same facts.
#[test]
fn lines_of_the_json_format_are_objects() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let calls = every_verb(&node, &pod, &with(&conf("1.1.0", "bridge", "v4"), "logFormat", json!("json")));
    let lines = lines(&node, DEFAULT);
    assert_eq!(lines.len(), calls.len(), "{lines:#?}");
    for (line, (verb, outcome)) in lines.iter().zip(&calls) {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_time(object["time"].as_str().unwrap());
        assert_eq!((&object["command"], &object["network"]), (&json!(verb), &json!("net")));
        let attached = !["GC", "STATUS"].contains(verb);
        assert_eq!(object["containerID"], if attached { pod.container_id() } else { "-" });
        assert_eq!(object["ifname"], if attached { "eth0" } else { "-" });
        assert!(u128::from(object["microseconds"].as_u64().unwrap()) <= outcome.exited.as_micros());
        assert_eq!(object["ok"], outcome.status.success());
        assert_eq!(object.get("error").is_some(), !outcome.status.success());
        if let Some(error) = object.get("error") {
            let told = outcome.error();
            assert_eq!(
                (error["code"].as_u64(), error["msg"].as_str()),
                (Some(told.code), Some(told.msg.as_str()))
            );
        }
    }
    assert!(lines[0].contains("ip=10.244.0.2/"), "{}", lines[0]);
}

/// Log, `logFile`: another file, whose folders are made, for root alone; the default is then left alone.
#[test]
fn the_log_goes_to_the_file_that_the_configuration_names() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let path = "/var/log/weft/deep/er/net.log";
    let calls = every_verb(&node, &pod, &with(&conf("1.1.0", "bridge", "v4"), "logFile", json!(path)));
    assert_eq!(lines(&node, path).len(), calls.len(), "refused operations are logged there, too");
    assert!(!node.path(DEFAULT).exists());
    let mode = fs::metadata(node.path(path)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Log, `logFile: stderr`: the line goes to standard error and nowhere else; standard output stays the answer
/// alone.
#[test]
fn the_log_can_go_to_standard_error() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let conf = with(&conf("1.1.0", "bridge", "v4"), "logFile", json!("stderr"));
    for (verb, outcome) in every_verb(&node, &pod, &conf) {
        let text = String::from_utf8(outcome.stderr.clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{verb}: {outcome}");
        assert!(text.contains(&format!(" {verb} network=net ")) && text.ends_with('\n'), "{outcome}");
        if outcome.status.success() && verb != "ADD" {
            outcome.ok_empty();
        }
    }
    assert!(!node.path(DEFAULT).exists());
    let closed = weft(&node).call("ADD").pod(&pod).conf(&conf).close_fds([2]).run();
    closed.result();
    weft(&node).call("DEL").pod(&pod).conf(&conf).close_fds([2]).run().ok_empty();
}

/// Log: the log's settings count although another option is refused: the refusal is what one looks for there.
#[test]
fn a_refused_option_is_logged_where_the_configuration_says() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let path = "/var/log/weft/other.log";
    let mut conf = conf("1.1.0", "bridge", "v4");
    conf["logFile"] = json!(path);
    conf["logFormat"] = json!("json");
    for (option, value) in [("mode", json!("router")), ("vlan", json!(5000)), ("dns", json!(5))] {
        let conf = with(&conf, option, value);
        for verb in ["ADD", "CHECK", "STATUS"] {
            weft(&node).call(verb).pod(&pod).conf(&conf).run().error();
        }
    }
    assert_eq!(lines(&node, path).len(), 9);
    assert!(!node.path(DEFAULT).exists(), "{:?}", lines(&node, DEFAULT));
    conf["logLevel"] = json!("off");
    weft(&node).add(&pod, &with(&conf, "mode", json!("router"))).error();
    assert_eq!(lines(&node, path).len(), 9, "off is off");
}

/// Log: a log that cannot be written never fails or delays an operation.
#[test]
fn an_unwritable_log_harms_no_operation() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let run = |what: &str, path: &str| {
        let conf = with(&conf("1.1.0", "bridge", "dual"), "logFile", json!(path));
        for (verb, answers) in [("ADD", true), ("DEL", false)] {
            let call = weft(&node).call(verb).pod(&pod).conf(&conf).limit(Duration::from_secs(5));
            let outcome = call.run();
            assert!(outcome.status.success(), "{what}: {verb}: {outcome}");
            assert_eq!(outcome.stdout.is_empty(), !answers, "{what}: {verb}: {outcome}");
        }
    };
    fs::create_dir(node.path("/var/log/weft/folder")).unwrap();
    fs::write(node.path("/var/log/weft/file"), "").unwrap();
    std::os::unix::fs::symlink("/var/log/weft/loop", node.path("/var/log/weft/loop")).unwrap();
    run("a folder", "/var/log/weft/folder");
    run("a full device", "/dev/full");
    run("beneath a file", "/var/log/weft/file/x.log");
    run("a link to itself", "/var/log/weft/loop");
    run("a folder that cannot be made", "/proc/nothing/x.log");
    run("too long a name", &format!("/var/log/weft/{}", "x".repeat(300)));
    run("a NUL in it", "/var/log/weft/\u{0}x");
    node.run(["mount", "-o", "remount,ro", "/var/log/weft"]);
    run("read-only, default", DEFAULT);
    run("read-only, new", "/var/log/weft/new/x.log");
    node.run(["mount", "-o", "remount,rw,size=4k,nr_inodes=20", "/var/log/weft"]);
    fs::write(node.path("/var/log/weft/fill"), [0; 4096]).unwrap();
    run("no room", DEFAULT);
    assert!(lines(&node, DEFAULT).is_empty());
}

/// Log: the same for a FIFO that nobody reads, and one whose reader does not read: the operation does not
/// wait for it.
#[test]
fn a_log_that_is_a_fifo_delays_no_operation() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let path = "/var/log/weft/fifo";
    node.run(["mkfifo", path]);
    let conf = with(&conf("1.1.0", "bridge", "dual"), "logFile", json!(path));
    let call = |verb: &str| weft(&node).call(verb).pod(&pod).conf(&conf).limit(Duration::from_secs(5)).run();
    call("ADD").result();
    call("DEL").ok_empty();
    // Both ends open, never read, and full.
    let mut pipe = fs::File::options().read(true).write(true).open(node.path(path)).unwrap();
    nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    while std::io::Write::write(&mut pipe, &[b'x'; 4096]).is_ok() {}
    call("ADD").result();
    call("DEL").ok_empty();
}

/// Log: a log of more than 10 MiB is put aside as `.1`, which replaces the former one; 10 MiB exactly are not
/// too much.
#[test]
fn a_log_of_more_than_ten_mib_is_put_aside() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let (path, aside) = (DEFAULT, "/var/log/weft/weft.log.1");
    let filled = |first: &str, size: usize| {
        let mut text = format!("{first}\n").into_bytes();
        text.resize(size - 1, b'x');
        text.push(b'\n');
        fs::write(node.path(path), text).unwrap();
    };
    let conf = conf("1.1.0", "bridge", "v4");
    let size =
        |path: &str| fs::metadata(node.path(path)).map_or(0, |file| usize::try_from(file.len()).unwrap());

    filled("first", LARGEST);
    weft(&node).status(&conf).ok_empty();
    assert!(size(path) > LARGEST && size(aside) == 0, "10 MiB are not more than 10 MiB");
    weft(&node).status(&conf).ok_empty();
    assert!(lines(&node, aside)[0] == "first" && size(aside) > LARGEST);
    assert_eq!(lines(&node, path).len(), 1, "the operation's own line is in the new file");
    let mode = fs::metadata(node.path(path)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    filled("second", LARGEST + 1);
    weft(&node).status(&conf).ok_empty();
    assert_eq!(lines(&node, aside)[0], "second", "the former one is replaced");
    assert_eq!(lines(&node, path).len(), 1);
    let names: Vec<_> =
        fs::read_dir(node.path("/var/log/weft")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// Log: operations side by side: every line is whole, and none is lost, also while the file is put aside.
#[test]
fn lines_of_operations_side_by_side_are_whole_and_none_is_lost() {
    if !require() {
        return;
    }
    const OPERATIONS: usize = 16;
    let lab = lab!();
    let node = lab.node("n1");
    let conf = conf("1.1.0", "bridge", "v4");
    weft(&node).status(&conf).ok_empty();
    let mut old = b"old\n".to_vec();
    old.resize(LARGEST + 1, b'x');
    old.push(b'\n');
    for round in 0..10 {
        fs::write(node.path(DEFAULT), &old).unwrap();
        let _none = fs::remove_file(node.path("/var/log/weft/weft.log.1"));
        let running: Vec<_> =
            (0..OPERATIONS).map(|_| weft(&node).call("STATUS").conf(&conf).spawn()).collect();
        for one in running {
            one.wait().ok_empty();
        }
        let (new, aside) = (lines(&node, DEFAULT), lines(&node, "/var/log/weft/weft.log.1"));
        assert_eq!(aside.first().map(String::as_str), Some("old"), "round {round}: the old log is lost");
        let whole = |line: &&String| line.contains(" STATUS network=net ") && line.contains(" ok");
        let count = new.iter().chain(&aside).filter(whole).count();
        assert_eq!(count, OPERATIONS, "round {round}: {new:#?}");
        assert_eq!(new.len() + aside.len(), OPERATIONS + 2, "round {round}: a line is broken");
    }
}

/// Log: two operations that find the file too large at the same moment: one puts it aside, and nothing is
/// lost.
#[test]
fn two_operations_that_put_the_log_aside_at_once_lose_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let conf = conf("1.1.0", "bridge", "v4");
    weft(&node).status(&conf).ok_empty();
    let mut old = b"old\n".to_vec();
    old.resize(LARGEST + 1, b'x');
    old.push(b'\n');
    fs::write(node.path(DEFAULT), &old).unwrap();
    // Both have seen the size when they are held up.
    let hold = "inject=?rename,?renameat,?renameat2:delay_enter=300000";
    let strace =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=?rename,?renameat,?renameat2", "-e", hold];
    let running = [(); 2].map(|()| weft(&node).call("STATUS").conf(&conf).wrap(strace).spawn());
    for one in running {
        one.wait().ok_empty();
    }
    let (new, aside) = (lines(&node, DEFAULT), lines(&node, "/var/log/weft/weft.log.1"));
    assert_eq!(aside.first().map(String::as_str), Some("old"), "the old log is lost; new: {new:#?}");
    let count = new.iter().chain(&aside).filter(|line| line.contains(" STATUS network=net ")).count();
    assert_eq!(count, 2, "a line is lost: {new:#?}");
}

/// Log: what others put into an error cannot make a second line, nor end a JSON object early.
#[test]
fn an_error_with_line_breaks_is_one_line() {
    if !require() {
        return;
    }
    let lab = lab!();
    for format in ["text", "json"] {
        let node = lab.node(format);
        let pod = node.pod("a");
        let hostile = "x\n2026-01-01T00:00:00.000Z DEL network=net ok\r\u{1b}[2J\u{85}\u{2028}\"}";
        let conf = with(&conf("1.1.0", "bridge", "v4"), "logFormat", json!(format));
        weft(&node).add(&pod, &with(&conf, "mode", json!(hostile))).error();
        weft(&node).add(&pod, &with(&conf, "/ipam/resolvConf", json!(hostile))).error();
        weft(&node).add(&pod, &with(&conf, "/ipam/type", json!(hostile))).error();
        let call = weft(&node).call("ADD").pod(&pod).conf(&conf);
        call.env("CNI_NETNS", format!("/run/{hostile}")).run().error();
        let text = fs::read_to_string(node.path(DEFAULT)).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}

/// Log: a delegate's error, too, is one line, with its code.
#[test]
fn the_error_of_a_delegate_is_one_line_with_its_code() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let answer = r#"{"cniVersion":"1.0.0","code":142,"msg":"first\nsecond","details":"a\tb"}"#;
    let script = format!("#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit 1\n");
    let program = node.path("/var/lib/cni/evil-ipam");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let conf = with(&conf("1.0.0", "bridge", "v4"), "ipam", json!({"type": "evil-ipam"}));
    let weft = weft(&node).with_path(["/var/lib/cni"]);
    assert_eq!(weft.add(&pod, &conf).error().code, 142);
    let lines = lines(&node, DEFAULT);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("error code=142") && lines[0].contains("first second"), "{}", lines[0]);
}

/// Log: an ADD that was undone because nobody read its answer says so.
#[test]
fn an_undone_add_says_so() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let conf = conf("1.1.0", "bridge", "v4");
    let outcome = weft(&node).call("ADD").pod(&pod).conf(&conf).stdout(StdoutTo::ReaderGone).run();
    assert!(!outcome.status.success());
    let lines = lines(&node, DEFAULT);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].contains("error code=5") && lines[0].contains("nobody read the answer; undone"),
        "{}",
        lines[0]
    );
}
