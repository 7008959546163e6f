use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::result::IpConfig;

/// Answers with what it was given, and notes what was called.
#[derive(Default)]
struct Fake {
    add: Option<Result<AddResult, Error>>,
    other: Option<Error>,
    calls: Vec<String>,
    finished: Vec<String>,
}

impl Fake {
    fn note(&mut self, call: &str) -> Result<(), Error> {
        self.calls.push(call.to_owned());
        self.other.clone().map_or(Ok(()), Err)
    }
}

impl Plugin for Fake {
    fn about(&self) -> String {
        "CNI plugin fake".into()
    }
    fn add(&mut self, call: &Call<'_>) -> Result<AddResult, Error> {
        self.calls.push(format!("add {} {}", call.attachment.container_id, call.conf.name));
        self.add.clone().unwrap_or_else(|| Ok(one_address()))
    }
    fn undo_add(&mut self, _: &Call<'_>) {
        self.calls.push("undo".into());
    }
    fn check(&mut self, _: &Call<'_>) -> Result<(), Error> {
        self.note("check")
    }
    fn del(&mut self, _: &Call<'_>) -> Result<(), Error> {
        self.note("del")
    }
    fn gc(&mut self, _: &NetConf, _: &Environment, keep: &[ValidAttachment]) -> Result<(), Error> {
        self.note(&format!("gc {}", keep.len()))
    }
    fn status(&mut self, _: &NetConf, _: &Environment) -> Result<(), Error> {
        self.note("status")
    }
    fn finished(&mut self, what: &Finished<'_>) {
        let outcome = what.outcome.map_err(|error| error.code);
        self.finished.push(format!("{:?} {:?} {:?} {outcome:?}", what.command, what.network, what.container));
    }
}

fn one_address() -> AddResult {
    let address = "10.0.0.5/24".parse().unwrap();
    AddResult { ips: vec![IpConfig { address, gateway: None, interface: None }], ..AddResult::default() }
}

/// A process' surroundings: variables, stdin, and what came out.
struct Process {
    plugin: Fake,
    vars: BTreeMap<&'static str, &'static str>,
    stdin: String,
}

struct Output {
    exit: u8,
    stdout: String,
    stderr: String,
    plugin: Fake,
}

impl Process {
    fn new(command: &'static str, stdin: &str) -> Self {
        let vars = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
        ];
        Self { plugin: Fake::default(), vars: vars.into(), stdin: stdin.into() }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.vars.insert(name, value);
        self
    }

    fn run(self) -> Output {
        let mut stdout = Vec::new();
        let mut output = self.run_into(&mut stdout);
        output.stdout = String::from_utf8(stdout).unwrap();
        output
    }

    fn run_into(mut self, stdout: &mut dyn Write) -> Output {
        let env = |name: &str| self.vars.get(name).map(OsString::from);
        let mut stderr = Vec::new();
        let exit = run(&mut self.plugin, &env, &mut self.stdin.as_bytes(), stdout, &mut stderr);
        Output {
            exit,
            stdout: String::new(),
            stderr: String::from_utf8(stderr).unwrap(),
            plugin: self.plugin,
        }
    }
}

impl Output {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// The error's code and message, after checking that it is one complete error object.
    fn error(&self) -> (u64, String) {
        let json = self.json();
        assert_eq!(self.exit, 1);
        assert!(json["cniVersion"].is_string(), "{json}");
        (json["code"].as_u64().unwrap(), json["msg"].as_str().unwrap().to_owned())
    }

    fn is_empty_success(&self) -> bool {
        self.exit == 0 && self.stdout.is_empty()
    }
}

const CONF: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"weft","cni.dev/valid-attachments":[]}"#;

struct Forbidden;

impl Read for Forbidden {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("stdin was read");
    }
}

#[test]
fn version_answers_without_reading_stdin_or_needing_any_other_variable() {
    let env = |name: &str| (name == "CNI_COMMAND").then(|| OsString::from("VERSION"));
    let (mut plugin, mut stdout, mut stderr) = (Fake::default(), Vec::new(), Vec::new());
    assert_eq!(run(&mut plugin, &env, &mut Forbidden, &mut stdout, &mut stderr), 0);
    let expected = json!({"cniVersion": "1.1.0",
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    assert_eq!(serde_json::from_slice::<Value>(&stdout).unwrap(), expected);
    assert!(stderr.is_empty() && plugin.calls.is_empty() && plugin.finished.is_empty());
}

#[test]
fn a_person_without_a_command_is_told_what_this_is() {
    for process in [Process::new("", ""), {
        let mut none = Process::new("", "");
        none.vars.clear();
        none
    }] {
        let output = process.run();
        assert!(output.is_empty_success());
        let versions = "0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
        assert_eq!(output.stderr, format!("CNI plugin fake\nCNI protocol versions supported: {versions}\n"));
    }
}

#[test]
fn an_unknown_command_is_refused() {
    let output = Process::new("FOO", CONF).run();
    assert_eq!(output.error(), (4, "unknown CNI_COMMAND: FOO".into()));
    assert_eq!(output.plugin.finished, ["None None None Err(4)"]);
}

#[test]
fn missing_and_wrong_variables_are_reported_before_stdin_matters() {
    let output = Process::new("ADD", "garbage").with("CNI_NETNS", "").with("CNI_IFNAME", "").run();
    assert_eq!(output.error(), (4, "required env variables [CNI_NETNS,CNI_IFNAME] missing".into()));
    assert_eq!(Process::new("DEL", "garbage").with("CNI_CONTAINERID", "../x").run().error().0, 4);
    assert!(output.plugin.calls.is_empty());
}

#[test]
fn gc_and_status_do_not_judge_variables_they_do_not_need() {
    for command in ["GC", "STATUS"] {
        let output =
            Process::new(command, CONF).with("CNI_IFNAME", "a/b").with("CNI_CONTAINERID", "..").run();
        assert!(output.is_empty_success(), "{command}");
    }
}

#[test]
fn verbs_other_than_add_print_nothing_on_success() {
    for (command, call) in [("DEL", "del"), ("CHECK", "check"), ("GC", "gc 0"), ("STATUS", "status")] {
        let output = Process::new(command, CONF).run();
        assert!(output.is_empty_success(), "{command}");
        assert_eq!(output.plugin.calls, [call]);
    }
}

#[test]
fn errors_of_the_plugin_pass_unchanged() {
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let mut process = Process::new(command, CONF);
        process.plugin.other = Some(Error::new(50, "no grant").with_details("ask weftd"));
        let output = process.run();
        let expected = json!({"cniVersion": "1.1.0", "code": 50, "msg": "no grant", "details": "ask weftd"});
        assert_eq!((output.exit, output.json()), (1, expected), "{command}");
    }
}

#[test]
fn an_add_prints_its_result_in_the_configurations_version() {
    for version in Version::ALL {
        let conf = format!(r#"{{"cniVersion":"{version}","name":"net"}}"#);
        let output = Process::new("ADD", &conf).run();
        assert_eq!(output.exit, 0);
        assert_eq!(Ok(output.json()), one_address().to_value(version));
        assert_eq!(output.plugin.calls, ["add c1 net"]);
        assert_eq!(output.plugin.finished, ["Some(Add) Some(\"net\") Some(\"c1\") Ok(())"]);
    }
}

#[test]
fn errors_are_printed_in_the_configurations_version_if_it_is_one() {
    for (version, printed) in
        [("\"0.4.0\"", "0.4.0"), ("\"9.9.9\"", "1.1.0"), ("12", "1.1.0"), ("null", "0.1.0")]
    {
        let output = Process::new("ADD", &format!(r#"{{"cniVersion":{version},"name":"../x"}}"#)).run();
        assert_eq!(output.error().0, 7);
        assert_eq!(output.json()["cniVersion"], printed);
    }
}

#[test]
fn versions_are_judged_by_verb() {
    for (command, version, code, msg) in [
        ("ADD", "\"9.9.9\"", 1, "incompatible CNI versions"),
        ("DEL", "\"abc\"", 1, "incompatible CNI versions"),
        ("ADD", "\"1.0\"", 1, "incompatible CNI versions"),
        ("ADD", "12", 6, "cniVersion: expected a string, found the number 12"),
        ("CHECK", "\"0.3.1\"", 1, "config version does not allow CHECK"),
        ("CHECK", "null", 1, "config version does not allow CHECK"),
        ("CHECK", "\"abc\"", 6, "cniVersion \"abc\" cannot be parsed as a version"),
        ("CHECK", "\"9.9.9\"", 1, "incompatible CNI versions"),
        ("GC", "\"1.0.0\"", 1, "config version does not allow GC"),
        ("STATUS", "\"1.0.0\"", 1, "config version does not allow STATUS"),
        ("STATUS", "\"abc\"", 6, "cniVersion \"abc\" cannot be parsed as a version"),
    ] {
        let output = Process::new(command, &format!(r#"{{"cniVersion":{version},"name":"net"}}"#)).run();
        assert_eq!(output.error(), (code, msg.to_owned()), "{command} {version}");
        assert!(output.plugin.calls.is_empty());
    }
}

#[test]
fn bad_configurations_reach_no_plugin() {
    for (stdin, code) in [("", 6), ("{", 6), ("[]", 6), ("null", 6), ("{}", 7), (r#"{"name":"../x"}"#, 7)] {
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let output = Process::new(command, stdin).run();
            assert_eq!(output.error().0, code, "{command} {stdin}");
            assert!(output.plugin.calls.is_empty());
            assert_eq!(output.plugin.finished.len(), 1);
        }
    }
}

#[test]
fn gc_without_a_list_reaches_no_plugin() {
    let output = Process::new("GC", r#"{"cniVersion":"1.1.0","name":"net"}"#).run();
    assert_eq!(output.error().0, 7);
    assert!(output.plugin.calls.is_empty());
}

/// A stdout that takes some bytes, at most `chunk` at once, and then breaks.
struct Pipe {
    room: usize,
    chunk: usize,
    written: Vec<u8>,
    writes: usize,
}

impl Pipe {
    fn new(room: usize, chunk: usize) -> Self {
        Self { room, chunk, written: Vec::new(), writes: 0 }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        let length = bytes.len().min(self.chunk).min(self.room - self.written.len());
        self.written.extend_from_slice(&bytes[..length]);
        if length == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(length) }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_answer_is_one_write_and_short_writes_are_completed() {
    let mut pipe = Pipe::new(10_000, 10_000);
    assert_eq!(Process::new("ADD", CONF).run_into(&mut pipe).exit, 0);
    assert_eq!(pipe.writes, 1);
    let mut short = Pipe::new(10_000, 7);
    assert_eq!(Process::new("ADD", CONF).run_into(&mut short).exit, 0);
    assert_eq!(short.written, pipe.written);
}

#[test]
fn an_add_whose_result_cannot_be_written_is_undone() {
    for room in [0, 10] {
        let mut pipe = Pipe::new(room, 10_000);
        let output = Process::new("ADD", CONF).run_into(&mut pipe);
        assert_eq!(output.exit, 1);
        assert_eq!(output.plugin.calls, ["add c1 net", "undo"]);
        assert_eq!(output.plugin.finished, ["Some(Add) Some(\"net\") Some(\"c1\") Err(5)"]);
        assert!(output.stderr.starts_with("write the result to stdout: "), "{}", output.stderr);
    }
}

#[test]
fn an_add_whose_result_the_version_cannot_express_is_undone() {
    let mut process = Process::new("ADD", r#"{"cniVersion":"0.2.0","name":"net"}"#);
    process.plugin.add = Some(Ok(AddResult::default()));
    let output = process.run();
    assert_eq!(output.error(), (6, "cannot convert: no valid IP addresses".into()));
    assert_eq!(output.plugin.calls, ["add c1 net", "undo"]);
}

#[test]
fn a_failed_add_is_not_undone_from_outside() {
    let mut process = Process::new("ADD", CONF);
    process.plugin.add = Some(Err(Error::new(11, "full")));
    let output = process.run();
    assert_eq!(output.error(), (11, "full".into()));
    assert_eq!(output.plugin.calls, ["add c1 net"]);
}

#[test]
fn an_error_that_cannot_be_printed_still_is_an_exit_code() {
    let output = Process::new("ADD", "{").run_into(&mut Pipe::new(0, 1));
    assert_eq!(output.exit, 1);
    assert!(output.stderr.starts_with("network configuration is not JSON"), "{}", output.stderr);
}

#[test]
fn a_panic_has_an_error_object() {
    let json: Value = serde_json::from_str(&panic_json("index \"out\"")).unwrap();
    assert_eq!(json, json!({"cniVersion": "1.1.0", "code": 199, "msg": "internal error: index \"out\""}));
}
