//! The data plane as the daemon sees it.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_overlay::wanted::Wanted;

use super::notices::Notice;
use crate::conf::Conf;

pub struct Plane(tokio::sync::mpsc::UnboundedSender<PlaneReport>, tokio::sync::mpsc::UnboundedReceiver<PlaneReport>);
#[derive(Clone, Debug)]
pub struct PlaneReport;
impl PlaneReport {
    pub fn in_sync(&self) -> bool { true }
    pub fn is_in_place(&self) -> bool { true }
    pub fn pod_mtu(&self) -> Option<u32> { None }
    pub fn notices(&self) -> Vec<Notice> { Vec::new() }
    pub fn to_value(&self) -> Value { json!({}) }
}
impl Plane {
    pub fn start(_: &Conf) -> Result<Self, String> { let (a,b)=tokio::sync::mpsc::unbounded_channel(); Ok(Self(a,b)) }
    pub fn want(&self, _: Arc<Wanted>) { let _ = self.0.send(PlaneReport); }
    pub async fn next_report(&mut self) -> Option<PlaneReport> { self.1.recv().await }
}
pub fn remove() -> Result<(), String> { Ok(()) }
