//! An OCI image with one static program in it, as a tar file that `ctr images import` takes.

use std::fs::File;
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Writes the image `name` to `target`: `/podtool`, without arguments, is what it runs.
pub fn write(target: &Path, name: &str, program: &Path) -> io::Result<()> {
    let layer = layer(program)?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/podtool"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor("manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();

    let mut tar = tar::Builder::new(File::create(target)?);
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut tar, "index.json", index.as_bytes(), 0o644)?;
    for blob in [&layer, &config, &manifest] {
        append(&mut tar, &format!("blobs/sha256/{}", hex(blob)), blob, 0o644)?;
    }
    tar.finish()
}

fn layer(program: &Path) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "podtool", &std::fs::read(program)?, 0o755)?;
    tar.into_inner()
}

fn append<W: io::Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes)
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    let media_type = format!("application/vnd.oci.image.{kind}");
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(blob))
}

fn hex(blob: &[u8]) -> String {
    Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect()
}
