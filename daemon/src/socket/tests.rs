use serde_json::{Value, json};

use super::*;

struct Listening {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    asked: mpsc::Receiver<Asked>,
    _tasks: JoinSet<()>,
}

fn listen() -> Listening {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weftd/weftd.sock");
    let server = Server::bind(&path).unwrap();
    let (sender, asked) = mpsc::channel(8);
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(sender));
    Listening { _folder: folder, path, asked, _tasks: tasks }
}

async fn connect(to: &Listening, request: &Value) -> UnixStream {
    let mut stream = UnixStream::connect(&to.path).await.unwrap();
    send(&mut stream, request).await.unwrap();
    stream
}

async fn heard(stream: &mut UnixStream) -> Value {
    serde_json::from_slice(&read_frame(stream).await.unwrap()).unwrap()
}

fn need_block() -> Value {
    json!({"v": 1, "op": "need-block", "network": "weft", "families": ["v4"]})
}

#[tokio::test]
async fn an_asker_hears_wait_until_the_answer_comes() {
    tokio::time::pause();
    let mut listening = listen();
    let mut stream = connect(&listening, &need_block()).await;
    let Some(Asked::NeedBlock { network, families, answer }) = listening.asked.recv().await else { panic!() };
    assert_eq!((network.as_str(), families.as_slice()), ("weft", &[Family::V4][..]));
    for _ in 0..3 {
        assert_eq!(heard(&mut stream).await, json!({"v": 1, "wait": true}));
    }
    answer.send(Ok(())).unwrap();
    assert_eq!(heard(&mut stream).await, json!({"v": 1, "ok": true}));
}

#[tokio::test]
async fn accepting_a_rewritten_store_is_passed_on_and_answered_with_how_it_is() {
    let mut listening = listen();
    let mut stream = connect(&listening, &json!({"v": 1, "op": "accept-history"})).await;
    let Some(Asked::AcceptHistory { answer }) = listening.asked.recv().await else { panic!() };
    answer.send(r#"{"format":1}"#.to_owned()).unwrap();
    assert_eq!(heard(&mut stream).await, json!({"format": 1}));
}

#[tokio::test]
async fn a_refusal_carries_code_sentence_and_way_out() {
    let mut listening = listen();
    let mut stream = connect(&listening, &need_block()).await;
    let Some(Asked::NeedBlock { answer, .. }) = listening.asked.recv().await else { panic!() };
    answer.send(Err(Error::new(code::TRY_AGAIN, "no block is free").with_details("add a cidr"))).unwrap();
    let mut last = heard(&mut stream).await;
    while last["wait"] == true {
        last = heard(&mut stream).await;
    }
    assert_eq!(
        last,
        json!({"v": 1, "ok": false, "code": 11, "msg": "no block is free", "details": "add a cidr"})
    );
}

#[tokio::test]
async fn a_daemon_that_ends_says_so() {
    let mut listening = listen();
    let mut stream = connect(&listening, &need_block()).await;
    drop(listening.asked.recv().await);
    let mut last = heard(&mut stream).await;
    while last["wait"] == true {
        last = heard(&mut stream).await;
    }
    assert_eq!((&last["ok"], &last["code"]), (&json!(false), &json!(11)));
}

#[tokio::test]
async fn an_asker_that_gives_up_is_forgotten() {
    let mut listening = listen();
    let stream = connect(&listening, &need_block()).await;
    let Some(Asked::NeedBlock { mut answer, .. }) = listening.asked.recv().await else { panic!() };
    drop(stream);
    answer.closed().await;
}

#[tokio::test]
async fn a_client_that_sends_half_a_frame_holds_up_nobody_and_is_dropped() {
    let mut listening = listen();
    let mut slow = UnixStream::connect(&listening.path).await.unwrap();
    slow.write_all(&[0, 0, 1]).await.unwrap();
    let mut other = connect(&listening, &json!({"v": 1, "op": "status"})).await;
    let Some(Asked::Status { answer }) = listening.asked.recv().await else { panic!() };
    answer.send("{\"fine\":true}".to_owned()).unwrap();
    assert_eq!(heard(&mut other).await, json!({"fine": true}));
    tokio::time::pause();
    assert_eq!(slow.read(&mut [0; 8]).await.unwrap(), 0, "closed once its time is over");
}

#[tokio::test]
async fn nonsense_is_answered_and_too_much_is_not_read() {
    let listening = listen();
    for (request, part) in [
        (json!({"v": 2, "op": "status"}), "version 1 on its socket, the plugin version 2"),
        (json!({"v": 1, "op": "sing"}), "does not understand"),
        (json!([]), "does not understand"),
    ] {
        let mut stream = connect(&listening, &request).await;
        let reply = heard(&mut stream).await;
        assert_eq!(reply["ok"], false, "{request}");
        assert!(reply["msg"].as_str().unwrap().contains(part), "{reply}");
    }
    let mut greedy = UnixStream::connect(&listening.path).await.unwrap();
    greedy.write_u32(MAX_FRAME + 1).await.unwrap();
    assert_eq!(greedy.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_socket_and_its_folder_are_roots_alone() {
    let listening = listen();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&listening.path), mode(listening.path.parent().unwrap())), (0o600, 0o700));
}

#[tokio::test]
async fn a_socket_that_a_killed_daemon_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weftd.sock");
    drop(Server::bind(&path).unwrap());
    assert_eq!(ask_status(&path).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    Server::bind(&path).unwrap();
    assert_eq!(ask_status(&folder.path().join("other")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}
