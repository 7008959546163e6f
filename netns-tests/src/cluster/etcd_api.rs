//! Looking into etcd and tampering with it, past `weftd`: by the JSON gateway of a member, over a plain connection
//! that only the member's own namespace has.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

/// The port of the plain listener on a member's loopback.
pub const PORT: u16 = 2377;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key.
    pub key: String,
    /// The value as text.
    pub value: String,
    /// The revision that wrote it last.
    pub mod_revision: i64,
}

impl KeyValue {
    /// The value as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.value).unwrap_or_default()
    }
}

/// One request, from within the member's namespace.
///
/// # Errors
/// A sentence when nobody answers, or the answer is an error.
pub fn call(path: &str, body: &Value, token: Option<&str>) -> Result<Value, String> {
    let body = body.to_string();
    let login = token.map_or(String::new(), |token| format!("Authorization: {token}\r\n"));
    // HTTP/1.0: the answer ends with the connection, and is not chunked.
    let request = format!(
        "POST /v3/{path} HTTP/1.0\r\nHost: etcd\r\n{login}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(path, &request)?;
    serde_json::from_str(&answer).map_err(|error| format!("etcd {path}: {error}: {answer}"))
}

/// A page of the member's HTTP server, from within its namespace.
///
/// # Errors
/// As [`call`].
pub fn get(path: &str) -> Result<String, String> {
    exchange(path, &format!("GET {path} HTTP/1.0\r\nHost: etcd\r\n\r\n"))
}

fn exchange(path: &str, request: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("etcd {path}: {error}");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(failed)?;
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(format!("etcd {path}: {body}"))
    }
}

/// The body of a range request over all keys that begin with `prefix`.
pub fn prefix_range(prefix: &str) -> Value {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    json!({"key": encode(prefix.as_bytes()), "range_end": encode(&end)})
}

/// The keys of a range's answer.
pub fn items(answer: &Value) -> Vec<KeyValue> {
    let text = |item: &Value| {
        let bytes = decode(item.as_str().unwrap_or_default());
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let items = answer["kvs"].as_array().into_iter().flatten();
    let item = |item: &Value| KeyValue {
        key: text(&item["key"]),
        value: text(&item["value"]),
        mod_revision: number(&item["mod_revision"]),
    };
    items.map(item).collect()
}

/// The gateway writes 64-bit numbers as strings.
pub fn number(value: &Value) -> i64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64, as the gateway wants keys and values.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = usize::try_from(word >> (18 - 6 * place) & 63).unwrap_or(0);
            text.push(if place <= chunk.len() { char::from(ALPHABET[digit]) } else { '=' });
        }
    }
    text
}

fn decode(text: &str) -> Vec<u8> {
    let digits = text.bytes().filter_map(|byte| ALPHABET.iter().position(|digit| *digit == byte));
    let digits: Vec<u32> = digits.filter_map(|digit| u32::try_from(digit).ok()).collect();
    let mut bytes = Vec::new();
    for chunk in digits.chunks(4) {
        let word = chunk.iter().fold(0, |word, digit| word << 6 | digit) << (6 * (4 - chunk.len()));
        bytes.extend(word.to_be_bytes().iter().skip(1).take(chunk.len().saturating_sub(1)));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_what_the_gateway_takes_and_gives() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(encode(plain.as_bytes()), coded);
            assert_eq!(decode(coded), plain.as_bytes());
        }
    }
}
