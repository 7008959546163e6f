use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;

const GOOD: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"}]}"#;

/// A folder with one plugin, a shell script.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plug");
        fs::write(&file, format!("#!/bin/sh\ncd '{}'\n{script}\n", folder.path().display())).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn delegate(&self) -> Delegate {
        Delegate::find("plug", &[PathBuf::from("/nonexistent"), self.folder.path().into()]).unwrap()
    }

    fn run(&self, command: Command) -> Result<Option<Value>, Error> {
        self.delegate().run(command, &environment(), b"{\"name\":\"net\"}", soon(20_000))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }
}

fn environment() -> Environment {
    let lookup = |name: &str| match name {
        "CNI_CONTAINERID" => Some(OsString::from("c1")),
        "CNI_IFNAME" => Some(OsString::from("eth0")),
        _ => None,
    };
    Environment::read(&lookup)
}

fn soon(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

fn is_alive(pid: &str) -> bool {
    // A killed process whose parent has not looked yet is a zombie: dead as well.
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn types_that_lead_out_of_the_folders_are_refused_without_running_anything() {
    let lab = Lab::new("touch ran");
    let parent = lab.folder.path().join("sub");
    fs::create_dir(&parent).unwrap();
    for kind in ["../plug", "", ".", "..", "/bin/sh", "a/b", "plug/"] {
        let error = Delegate::find(kind, std::slice::from_ref(&parent)).unwrap_err();
        assert_eq!(error.code, 7, "{kind:?}");
        assert!(error.msg.starts_with("invalid plugin type"), "{error}");
    }
    assert!(!lab.folder.path().join("ran").exists());
}

#[test]
fn a_missing_plugin_names_the_folders_that_were_searched() {
    let error = Delegate::find("nope", &["/a".into(), "/b c".into()]).unwrap_err();
    assert_eq!(error, Error::config("failed to find plugin \"nope\" in path [/a /b c]"));
    assert_eq!(Delegate::find("nope", &[]).unwrap_err().code, 7);
}

#[test]
fn the_delegate_gets_command_variables_and_the_whole_configuration() {
    let lab = Lab::new(
        "cat >stdin; env | grep ^CNI_ | sort >vars; echo '{\"ips\":[{\"address\":\"10.0.0.5/24\"}]}'",
    );
    let answer = lab.run(Command::Add).unwrap().unwrap();
    assert_eq!(answer, json!({"ips": [{"address": "10.0.0.5/24"}]}));
    assert_eq!(lab.read("stdin"), "{\"name\":\"net\"}");
    assert_eq!(lab.read("vars"), "CNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\n");
}

#[test]
fn the_result_is_read_in_any_shape() {
    let lab = Lab::new("echo '{\"cniVersion\":\"0.2.0\",\"ip4\":{\"ip\":\"10.0.0.5/24\"},\"dns\":{}}'");
    let result = lab.delegate().add(&environment(), b"{}", soon(20_000)).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.5/24");
}

#[test]
fn an_error_object_is_passed_on_with_its_code() {
    let lab = Lab::new(r#"echo '{"code":11,"msg":"pool is full","details":"10.0.0.0/24"}'; exit 1"#);
    for command in [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status] {
        let expected = Error::new(11, "pool is full").with_details("plugin \"plug\": 10.0.0.0/24");
        assert_eq!(lab.run(command), Err(expected), "{command}");
    }
}

#[test]
fn a_plugin_without_the_new_verbs_has_nothing_to_do() {
    let lab = Lab::new(r#"echo "{\"code\":4,\"msg\":\"unknown CNI_COMMAND: $CNI_COMMAND\"}"; exit 1"#);
    assert_eq!(lab.run(Command::Gc), Ok(None));
    assert_eq!(lab.run(Command::Status), Ok(None));
    assert_eq!(lab.run(Command::Check).unwrap_err().code, 4);
}

#[test]
fn success_of_other_verbs_needs_no_answer() {
    let lab = Lab::new("echo chatter");
    for command in [Command::Del, Command::Check, Command::Gc, Command::Status] {
        assert_eq!(lab.run(command), Ok(None), "{command}");
    }
}

#[test]
fn junk_is_shown_up_to_its_first_200_characters() {
    let lab = Lab::new("printf 'panic: %0500d' 7");
    let error = lab.run(Command::Add).unwrap_err();
    assert_eq!(error.code, 6);
    assert!(error.msg.starts_with("plugin \"plug\" printed no CNI result"), "{error}");
    assert_eq!(error.details, format!("stdout began with \"panic: {}…\"", "0".repeat(193)));
}

#[test]
fn a_silent_death_tells_status_or_signal() {
    let error = Lab::new("exit 7").run(Command::Add).unwrap_err();
    assert_eq!(error.code, code::IPAM);
    assert_eq!(error.msg, "plugin \"plug\" failed on ADD: exit status 7 and no error object on stdout");
    assert_eq!(error.details, "stdout was empty");
    let error = Lab::new("kill -9 $$").run(Command::Del).unwrap_err();
    assert!(error.msg.contains("killed by signal 9"), "{error}");
}

#[test]
fn an_address_is_needed_unless_said_otherwise() {
    for script in ["echo '{\"cniVersion\":\"1.0.0\"}'", "echo '{\"ips\":[]}'", "echo null", ":"] {
        let lab = Lab::new(script);
        assert_eq!(
            lab.run(Command::Add).unwrap_err().msg,
            "IPAM plugin returned missing IP config",
            "{script}"
        );
        let lenient = lab.delegate().allow_empty();
        assert_eq!(lenient.add(&environment(), b"{}", soon(20_000)), Ok(AddResult::default()), "{script}");
    }
}

#[test]
fn a_result_of_an_unknown_version_or_shape_is_an_error() {
    let lab = Lab::new("echo '{\"cniVersion\":\"9.9.9\",\"ips\":[]}'");
    assert_eq!(lab.run(Command::Add).unwrap_err().code, 1);
    let error = Lab::new("echo '{\"ips\":7}'").run(Command::Add).unwrap_err();
    assert_eq!(error.msg, "plugin \"plug\": ips: expected an array, found the number 7");
}

#[test]
fn a_hanging_plugin_dies_with_its_children_at_the_deadline() {
    let lab = Lab::new("sleep 100 & echo $! >grandchild; echo $$ >child; wait");
    let started = Instant::now();
    let error = lab.delegate().run(Command::Add, &environment(), b"{}", soon(700)).unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN);
    assert!(error.msg.starts_with("plugin \"plug\" did not finish ADD within 0.7 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
    for file in ["child", "grandchild"] {
        let pid = lab.read(file);
        let gone_by = soon(5000);
        while is_alive(&pid) && Instant::now() < gone_by {
            std::thread::yield_now();
        }
        assert!(!pid.is_empty() && !is_alive(&pid), "{file} {pid}");
    }
}

#[test]
fn a_past_deadline_runs_nothing() {
    let lab = Lab::new("touch ran");
    let error = lab.delegate().run(Command::Add, &environment(), b"{}", Instant::now()).unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN);
    assert!(!lab.folder.path().join("ran").exists());
}

#[test]
fn a_helper_that_keeps_stdout_open_is_not_waited_for() {
    let lab = Lab::new(&format!("sleep 30 & echo $! >helper; echo '{GOOD}'"));
    let started = Instant::now();
    assert!(lab.run(Command::Add).is_ok());
    assert!(started.elapsed() < Duration::from_secs(10));
    let helper = lab.read("helper").trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_failed_add_is_followed_by_one_del() {
    for add in ["exit 1", "echo junk", "sleep 100", "echo '{\"ips\":[]}'"] {
        let lab = Lab::new(&format!("echo $CNI_COMMAND >>calls; [ $CNI_COMMAND = DEL ] || {{ {add}; }}"));
        assert!(lab.delegate().add(&environment(), b"{}", soon(700)).is_err(), "{add}");
        assert_eq!(lab.read("calls"), "ADD\nDEL\n", "{add}");
    }
}

#[test]
fn a_large_configuration_passes_and_one_that_is_not_read_does_not_hurt() {
    let conf = vec![b' '; 1 << 20];
    let lab = Lab::new(&format!("wc -c >size; echo '{GOOD}'"));
    assert!(lab.delegate().run(Command::Add, &environment(), &conf, soon(20_000)).is_ok());
    assert_eq!(lab.read("size").trim(), "1048576");
    let deaf = Lab::new(&format!("exec <&-; echo '{GOOD}'"));
    assert!(deaf.delegate().run(Command::Add, &environment(), &conf, soon(20_000)).is_ok());
}

#[test]
fn endless_output_is_cut_off() {
    let error = Lab::new("exec cat /dev/zero").run(Command::Add).unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (6, "plugin \"plug\" printed more than 16 MiB"));
}

#[test]
fn a_file_that_cannot_be_run_is_an_io_failure_naming_it() {
    let lab = Lab::new("");
    fs::set_permissions(lab.folder.path().join("plug"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = lab.run(Command::Add).unwrap_err();
    assert_eq!(error.code, 5);
    assert!(error.msg.contains("/plug: Permission denied"), "{error}");
}
