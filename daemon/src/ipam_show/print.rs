//! What was observed, as text. Pure.

use super::{Observed, RangeRow, Row, RowState};

/// How much of a container ID people compare; what crictl and docker show.
const SHORT: usize = 12;
/// Two spaces between columns.
const GAP: &str = "  ";

/// One JSON object and a line end.
pub fn json(observed: &Observed) -> String {
    // Strings, numbers and lists: there is nothing in it that could fail.
    let object = serde_json::to_string_pretty(observed).unwrap_or_default();
    object + "\n"
}

/// Two tables, then what is odd.
pub fn table(observed: &Observed) -> String {
    let mut text = String::new();
    if observed.attachments.is_empty() {
        text += "No pod of this node is attached through Weft.\n";
    } else {
        let header = ["NETWORK", "CONTAINER", "IFNAME", "ADDRESSES", "HOST LINK", "STATE", "ALIVE"];
        text += &columns(header, observed.attachments.iter().map(cells));
    }
    if !observed.ranges.is_empty() {
        text += "\n";
        text += &columns(["NETWORK", "RANGE", "USED", "SIZE"], observed.ranges.iter().map(range_cells));
    }
    if !observed.findings.is_empty() {
        text += "\n";
        for finding in &observed.findings {
            text += &format!("odd: {finding}\n");
        }
    }
    text
}

fn cells(row: &Row) -> [String; 7] {
    let alive = match row.alive {
        Some(true) => "yes",
        Some(false) => "no",
        None => "",
    };
    [
        row.network.clone(),
        row.container_id.chars().take(SHORT).collect(),
        row.ifname.clone(),
        row.addresses.join(","),
        row.host_link.clone().unwrap_or_default(),
        state(row.state).to_owned(),
        alive.to_owned(),
    ]
}

fn state(state: RowState) -> &'static str {
    match state {
        RowState::Done => "done",
        RowState::Intent => "intent",
        RowState::Rebuilt => "rebuilt",
        RowState::Busy => "busy",
        RowState::Unreadable => "unreadable",
        RowState::Unrecorded => "unrecorded",
        RowState::Reserved => "reserved",
    }
}

fn range_cells(row: &RangeRow) -> [String; 4] {
    let range = row.range.clone().unwrap_or_else(|| "(other addresses)".to_owned());
    [row.network.clone(), range, row.used.to_string(), row.size.map(size).unwrap_or_default()]
}

/// A /64 has too many addresses to read their number.
fn size(addresses: u128) -> String {
    if addresses < 10_000_000 { addresses.to_string() } else { format!("{addresses:.1e}") }
}

/// Left-aligned columns; an empty cell is a dash.
pub(super) fn columns<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut lines = vec![header.map(str::to_owned)];
    lines.extend(
        rows.map(|row| row.map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(&cell) })),
    );
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text += padded.join(GAP).trim_end();
        text.push('\n');
    }
    text
}

/// Names come from whoever called the plugin: none of them shall steer a terminal.
fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::FORMAT;
    use super::*;

    fn row() -> Row {
        Row {
            network: "podnet".to_owned(),
            container_id: "0123456789abcdef".to_owned(),
            ifname: "eth0".to_owned(),
            addresses: vec!["10.244.0.2/24".to_owned(), "fd00:244::2/64".to_owned()],
            host_link: Some("veth0123456789a".to_owned()),
            state: RowState::Done,
            alive: Some(true),
        }
    }

    fn observed() -> Observed {
        let dead = Row {
            ifname: "net1".to_owned(),
            addresses: Vec::new(),
            host_link: None,
            state: RowState::Intent,
            alive: Some(false),
            ..row()
        };
        let range = |range: &str, used, size| RangeRow {
            network: "podnet".to_owned(),
            range: Some(range.to_owned()),
            used,
            size: Some(size),
        };
        Observed {
            format: FORMAT,
            state_folder: Some("/run/weft/x".into()),
            attachments: vec![row(), dead],
            ranges: vec![
                range("10.244.0.1-10.244.0.254", 1, 254),
                range("fd00:244::1-fd00:244::ffff:ffff:ffff:ffff", 1, u128::from(u64::MAX)),
                RangeRow { network: "podnet".to_owned(), range: None, used: 2, size: None },
            ],
            findings: vec!["something".to_owned()],
        }
    }

    #[test]
    fn a_table_has_aligned_columns_and_the_findings_below() {
        assert_eq!(
            table(&observed()),
            "\
NETWORK  CONTAINER     IFNAME  ADDRESSES                     HOST LINK        STATE   ALIVE
podnet   0123456789ab  eth0    10.244.0.2/24,fd00:244::2/64  veth0123456789a  done    yes
podnet   0123456789ab  net1    -                             -                intent  no

NETWORK  RANGE                                      USED  SIZE
podnet   10.244.0.1-10.244.0.254                    1     254
podnet   fd00:244::1-fd00:244::ffff:ffff:ffff:ffff  1     1.8e19
podnet   (other addresses)                          2     -

odd: something
"
        );
    }

    #[test]
    fn an_empty_node_says_so() {
        let empty = Observed {
            format: FORMAT,
            state_folder: None,
            attachments: vec![],
            ranges: vec![],
            findings: vec![],
        };
        assert_eq!(table(&empty), "No pod of this node is attached through Weft.\n");
    }

    #[test]
    fn json_has_whole_container_ids_and_lower_case_states() {
        let json: serde_json::Value = serde_json::from_str(&json(&observed())).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["stateFolder"], "/run/weft/x");
        assert_eq!(
            json["attachments"][1],
            serde_json::json!({
                "network": "podnet", "containerID": "0123456789abcdef", "ifname": "net1", "addresses": [],
                "hostLink": null, "state": "intent", "alive": false
            })
        );
        assert_eq!(json["ranges"][0]["size"], 254);
        assert_eq!(json["findings"][0], "something");
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let mut observed = observed();
        for row in &mut observed.attachments {
            row.network = "\u{1b}[2Jx\ny".to_owned();
        }
        let text = table(&observed);
        assert!(text.contains("?[2Jx?y") && !text.contains('\u{1b}'), "{text}");
    }
}
