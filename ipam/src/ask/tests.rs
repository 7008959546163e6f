//! The plugin's side against stand-ins for `weftd`: real Unix sockets, each with one way to (mis)behave.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use weft_cni::error::{Error, code};

use super::{Family, MAX_FRAME, NeedBlock, Op, Reply, Request, VERSION, Weftd, read_frame, write_frame};
use crate::clock::Deadline;

fn within(seconds: u64) -> Deadline {
    Deadline::after(Instant::now(), Duration::from_secs(seconds))
}

/// Runs a stand-in for `weftd` for one connection, and asks it.
fn ask(stand_in: impl FnOnce(UnixStream) + Send, deadline: Deadline) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weftd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || stand_in(listener.accept().unwrap().0));
        Weftd::at(&path).need_block("net", &[Family::V4], deadline)
    })
}

fn request(stream: &mut UnixStream) -> Request {
    serde_json::from_slice(&read_frame(stream).unwrap().unwrap()).unwrap()
}

fn say(stream: &mut UnixStream, reply: &Reply) {
    write_frame(stream, &serde_json::to_vec(reply).unwrap()).unwrap();
}

#[test]
fn the_messages_are_those_of_the_protocol() {
    let need = Request::new(Op::NeedBlock { network: "net".into(), families: vec![Family::V4, Family::V6] });
    let text = serde_json::to_string(&need).unwrap();
    assert_eq!(text, r#"{"v":1,"op":"need-block","network":"net","families":["v4","v6"]}"#);
    assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), need);
    assert_eq!(serde_json::to_string(&Request::new(Op::Status)).unwrap(), r#"{"v":1,"op":"status"}"#);
    assert_eq!(serde_json::to_string(&Reply::granted()).unwrap(), r#"{"v":1,"ok":true}"#);
    assert_eq!(serde_json::to_string(&Reply::wait()).unwrap(), r#"{"v":1,"wait":true}"#);
    let no = Reply::refused(&Error::new(11, "why").with_details("what to do"));
    let text = serde_json::to_string(&no).unwrap();
    assert_eq!(text, r#"{"v":1,"ok":false,"code":11,"msg":"why","details":"what to do"}"#);
}

#[test]
fn a_block_is_asked_for_and_granted_after_signs_of_life() {
    let stand_in = |mut stream: UnixStream| {
        let expected = Op::NeedBlock { network: "net".into(), families: vec![Family::V4] };
        assert_eq!(request(&mut stream), Request::new(expected));
        // Longer in sum than the silence that is suffered.
        for _ in 0..5 {
            say(&mut stream, &Reply::wait());
            thread::sleep(Duration::from_millis(500));
        }
        say(&mut stream, &Reply::granted());
    };
    ask(stand_in, within(20)).unwrap();
}

#[test]
fn a_refusal_comes_through_as_it_is() {
    let no = Error::new(code::TRY_AGAIN, "the cluster has no free block").with_details("add a cidr");
    let reply = Reply::refused(&no);
    let refused = ask(
        |mut stream| {
            request(&mut stream);
            say(&mut stream, &reply);
        },
        within(20),
    );
    assert_eq!(refused.unwrap_err(), no);
}

#[test]
fn a_daemon_that_takes_the_request_and_hangs_costs_two_seconds() {
    let started = Instant::now();
    let hang = |mut stream: UnixStream| {
        request(&mut stream);
        // Until the asker gives up and closes.
        assert!(read_frame(&mut stream).is_ok_and(|frame| frame.is_none()));
    };
    let error = ask(hang, within(20)).unwrap_err();
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(error.code, code::TRY_AGAIN);
    assert!(error.details.contains("no sign of life") && error.details.contains("systemctl"), "{error}");
}

/// A process stopped by SIGSTOP accepts nothing: the queue fills up, and connect(2) itself waits.
#[test]
fn a_daemon_that_accepts_nobody_costs_two_seconds_however_many_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weftd.sock");
    let _never_accepts = listen_with_shortest_queue(&path);
    let started = Instant::now();
    thread::scope(|scope| {
        let askers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| Weftd::at(&path).need_block("net", &[], within(20)))).collect();
        for asker in askers {
            let error = asker.join().unwrap().unwrap_err();
            assert_eq!(error.code, code::TRY_AGAIN, "{error}");
        }
    });
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

fn listen_with_shortest_queue(path: &Path) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&fd, Backlog::new(1).unwrap()).unwrap();
    fd
}

#[test]
fn a_daemon_that_dribbles_is_as_good_as_silent() {
    let started = Instant::now();
    let dribble = |mut stream: UnixStream| {
        use std::io::Write;
        request(&mut stream);
        let mut frame = 17u32.to_be_bytes().to_vec();
        frame.extend_from_slice(br#"{"v":1,"ok":true}"#);
        for byte in frame {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(300));
        }
    };
    assert_eq!(ask(dribble, within(20)).unwrap_err().code, code::TRY_AGAIN);
    assert!(started.elapsed() >= Duration::from_millis(1900));
}

#[test]
fn the_operations_own_deadline_ends_the_longest_wait() {
    let wait_for_ever = |mut stream: UnixStream| {
        request(&mut stream);
        while write_frame(&mut stream, br#"{"v":1,"wait":true}"#).is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    };
    let started = Instant::now();
    let error = ask(wait_for_ever, within(1)).unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN);
    assert!(error.details.contains("our own time is up"), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(900));
}

#[test]
fn an_absent_daemon_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weftd.sock");
    let absent = Weftd::at(&path).need_block("net", &[], within(20)).unwrap_err();
    assert!(absent.details.contains("weftd is not running"), "{absent}");
    assert!(absent.details.contains(path.to_str().unwrap()), "{absent}");
    drop(UnixListener::bind(&path).unwrap());
    let dead = Weftd::at(&path).need_block("net", &[], within(20)).unwrap_err();
    assert!(dead.details.contains("nobody listens"), "{dead}");
    assert_eq!((absent.code, dead.code), (code::TRY_AGAIN, code::TRY_AGAIN));
}

#[test]
fn nonsense_is_no_answer_and_no_crash() {
    let other_version = format!(r#"{{"v":{},"ok":true}}"#, VERSION + 1);
    for (answer, expected) in [
        (&b"\xff\x00garbage"[..], "nonsense"),
        (b"", "nonsense"),
        (b"[]", "nonsense"),
        (br#"{"v":1}"#, "neither yes nor no"),
        (other_version.as_bytes(), "version 2"),
    ] {
        let garble = |mut stream: UnixStream| {
            request(&mut stream);
            write_frame(&mut stream, answer).unwrap();
        };
        let error = ask(garble, within(20)).unwrap_err();
        assert_eq!(error.code, code::TRY_AGAIN);
        assert!(error.details.contains(expected), "{error}");
    }
}

#[test]
fn an_oversized_or_broken_frame_is_refused_unread() {
    use std::io::Write;
    for (bytes, expected) in [
        (u32::MAX.to_be_bytes().to_vec(), "announces"),
        ((MAX_FRAME + 1).to_be_bytes().to_vec(), "announces"),
        (vec![0, 0], "cannot be read"),
        (vec![], "closed the connection"),
    ] {
        let broken = |mut stream: UnixStream| {
            request(&mut stream);
            stream.write_all(&bytes).unwrap();
        };
        let error = ask(broken, within(20)).unwrap_err();
        assert!(error.details.contains(expected), "{bytes:?}: {error}");
    }
}

#[test]
fn other_questions_get_their_document() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weftd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let document = thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = listener.accept().unwrap().0;
            assert_eq!(request(&mut stream).op, Op::Status);
            say(&mut stream, &Reply::wait());
            write_frame(&mut stream, br#"{"format":1,"node":"a"}"#).unwrap();
        });
        Weftd::at(&path).ask(Op::Status, within(20)).unwrap()
    });
    assert_eq!(document, br#"{"format":1,"node":"a"}"#);
}

proptest! {
    /// Whatever bytes come, reading ends with a frame or an error, and takes no more than was announced.
    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut rest = bytes.as_slice();
        if let Ok(Some(frame)) = read_frame(&mut rest) {
            let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
            prop_assert_eq!(&frame[..], &bytes[4..4 + length]);
        }
    }
}
