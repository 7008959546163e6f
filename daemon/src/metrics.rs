//! `/metrics`, `/healthz` and `/readyz`, for monitoring: the status document in the text format of Prometheus. HTTP as
//! far as a scraper needs it: one request, one answer, closed.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::socket::Asked;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest head of a request that is read.
const HEAD: usize = 8 * 1024;
/// More scrapers than that are a mistake.
const CONNECTIONS: usize = 32;

/// Listens.
///
/// # Errors
/// A sentence.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(addr).await.map_err(|error| format!("listen on {addr} for [metrics]: {error}"))
}

/// Serves until it is dropped, and with it every connection.
pub async fn serve(listener: TcpListener, asked: mpsc::Sender<Asked>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS => {
                    connections.spawn(timeout(PATIENCE, answer(stream, asked.clone())));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a scraper could not be accepted");
                    tokio::time::sleep(PATIENCE).await;
                }
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let (answer, status) = oneshot::channel();
    // A daemon that ends answers nobody.
    let _ending = asked.send(Asked::Status { answer }).await;
    let status: Value =
        status.await.ok().and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    let (code, body) = respond(&head, &status);
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while head.len() < HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).await?;
        let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
        head.extend_from_slice(read);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Status line and body.
fn respond(head: &str, status: &Value) -> (&'static str, String) {
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match (method, path.split('?').next().unwrap_or_default()) {
        ("GET", "/metrics") => ("200 OK", render(status)),
        // That it answers at all is the answer.
        ("GET", "/healthz") => ("200 OK", "ok\n".to_owned()),
        ("GET", "/readyz") if status["ready"] == true => ("200 OK", "ok\n".to_owned()),
        ("GET", "/readyz") => {
            ("503 Service Unavailable", "pods cannot start yet: see `weftd status`\n".to_owned())
        }
        ("GET", _) => ("404 Not Found", "there are /metrics, /healthz and /readyz\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    }
}

/// One family of metrics after the other.
fn render(status: &Value) -> String {
    let mut text = String::new();
    let plane = &status["data_plane"];
    let is = |value: bool| Some(f64::from(u8::from(value)));
    let version = status["version"].as_str().unwrap_or_default();
    let mut one = |name: &str, help: &str, kind: &str, value: Option<f64>| {
        family(&mut text, name, help, kind, &[(String::new(), value)])
    };
    one("weft_ready", "Whether pods can start.", "gauge", is(status["ready"] == true));
    one("weft_in_sync", "Whether the kernel has all that is wanted.", "gauge", is(status["in_sync"] == true));
    one("weft_peers", "Other nodes; removed ones do not count.", "gauge", status["peers"].as_f64());
    one("weft_tombstones", "Nodes that were removed.", "gauge", status["tombstones"].as_f64());
    let store = &status["store"];
    one(
        "weft_store_reachable",
        "Whether the store answers and takes this node.",
        "gauge",
        is(store["away"].is_null() && store["refuses"].is_null()),
    );
    one(
        "weft_store_refuses",
        "Whether the store is there and refuses this node: password, certificate or permission.",
        "gauge",
        is(store["refuses"].is_string()),
    );
    one(
        "weft_store_revision",
        "The highest revision of the store that was seen.",
        "gauge",
        status["store"]["revision"].as_f64(),
    );
    one(
        "weft_data_plane_objects",
        "Routes, links and entries that the kernel should have.",
        "gauge",
        plane["objects"].as_f64(),
    );
    one(
        "weft_data_plane_healed_total",
        "What was put back after somebody else changed it.",
        "counter",
        plane["healed"].as_f64(),
    );
    let items = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let of = |list: &Value, label: &str, key: &str, states: &[&str]| -> Vec<(String, Option<f64>)> {
        let states = |item: &Value| {
            let subject = escape(item[key].as_str().unwrap_or_default());
            let sample = |state: &&str| {
                (format!("{{{label}=\"{subject}\",state=\"{state}\"}}"), item[*state].as_f64())
            };
            states.iter().map(sample).collect::<Vec<_>>()
        };
        items(list).iter().flat_map(states).collect()
    };
    let blocks = of(&status["blocks"], "block", "cidr", &["used", "free", "resting"]);
    family(&mut text, "weft_block_addresses", "Addresses of this node's blocks.", "gauge", &blocks);
    let cluster = of(&status["cluster_blocks"], "family", "family", &["held", "total"]);
    family(&mut text, "weft_cluster_blocks", "Blocks of the cluster.", "gauge", &cluster);
    let mut findings = std::collections::BTreeMap::<String, f64>::new();
    for finding in items(&status["findings"]) {
        *findings.entry(escape(finding["code"].as_str().unwrap_or_default())).or_default() += 1.0;
    }
    let findings: Vec<_> =
        findings.into_iter().map(|(code, count)| (format!("{{code=\"{code}\"}}"), Some(count))).collect();
    family(&mut text, "weft_findings", "What `weftd status` finds, by code.", "gauge", &findings);
    let build = [(format!("{{version=\"{}\"}}", escape(version)), Some(1.0))];
    family(&mut text, "weft_build_info", "The version of weftd.", "gauge", &build);
    text
}

fn family(text: &mut String, name: &str, help: &str, kind: &str, samples: &[(String, Option<f64>)]) {
    let _infallible = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for (labels, value) in samples {
        if let Some(value) = value {
            let _infallible = writeln!(text, "{name}{labels} {value}");
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({
            "ready": true, "in_sync": false, "peers": 2, "tombstones": 1, "version": "0.1.0",
            "store": {"away": null, "refuses": null, "revision": 7}, "data_plane": {"objects": 12, "healed": 3},
            "blocks": [{"cidr": "10.1.0.0/26", "used": 3, "free": 60, "resting": null}],
            "cluster_blocks": [{"family": "ipv4", "held": 6, "total": 1024}],
            "findings": [{"code": "a\"b"}, {"code": "a\"b"}, {"code": "c"}],
        })
    }

    #[test]
    fn the_status_is_rendered_for_prometheus() {
        let text = render(&status());
        for line in [
            "weft_ready 1",
            "weft_in_sync 0",
            "weft_peers 2",
            "weft_tombstones 1",
            "weft_store_reachable 1",
            "weft_store_refuses 0",
            "weft_data_plane_healed_total 3",
            "weft_block_addresses{block=\"10.1.0.0/26\",state=\"used\"} 3",
            "weft_cluster_blocks{family=\"ipv4\",state=\"total\"} 1024",
            "weft_findings{code=\"a\\\"b\"} 2",
            "weft_build_info{version=\"0.1.0\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("resting"), "what is not known is left out: {text}");
        let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(families.iter().all(|family| family.starts_with("weft_")), "{families:?}");
    }

    #[test]
    fn a_store_that_refuses_is_told_from_one_that_is_away() {
        for (store, reachable, refuses) in [
            (json!({"away": null, "refuses": null}), 1, 0),
            (json!({"away": "down", "refuses": null}), 0, 0),
            (json!({"away": null, "refuses": "the password"}), 0, 1),
        ] {
            let text = render(&json!({ "store": store }));
            for line in [format!("weft_store_reachable {reachable}"), format!("weft_store_refuses {refuses}")]
            {
                assert!(text.lines().any(|found| found == line), "{store}: {line}\n{text}");
            }
        }
    }

    #[test]
    fn paths_and_methods_are_told_apart() {
        let code = |head: &str, status: &Value| respond(head, status).0;
        assert_eq!(code("GET /healthz HTTP/1.1\r\n\r\n", &Value::Null), "200 OK");
        assert_eq!(code("GET /readyz HTTP/1.1", &status()), "200 OK");
        assert_eq!(code("GET /readyz HTTP/1.1", &json!({"ready": false})), "503 Service Unavailable");
        assert_eq!(code("GET /metrics?x=1 HTTP/1.1", &status()), "200 OK");
        assert_eq!(code("GET / HTTP/1.1", &status()), "404 Not Found");
        assert_eq!(code("POST /metrics HTTP/1.1", &status()), "405 Method Not Allowed");
        assert_eq!(code("", &status()), "405 Method Not Allowed");
    }

    #[tokio::test]
    async fn a_scraper_is_answered_and_the_connection_closed() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, mut asked) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, sender));
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let Some(Asked::Status { answer }) = asked.recv().await else { panic!() };
        answer.send(status().to_string()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK") && head.contains(&format!("Content-Length: {}", body.len()))
        );
        assert!(body.contains("weft_peers 2"));
    }
}
