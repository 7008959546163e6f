//! Now and then etcd is asked whether it is full: else nobody knew before the next write, which may be days away.
//! The question goes to one member, which answers from memory; a list of alarms would go through the whole cluster.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, context};
use super::failure::{FULL, Step};
use super::pool::{Pool, jitter};
use crate::store::{Reason, WatchInput};

/// Asks until nobody listens.
pub async fn watch(pool: Arc<Pool>, events: mpsc::Sender<WatchInput>) {
    let period = pool.conf.timing.alarms;
    // Nodes that start at the same time ask at different ones.
    sleep(period.mul_f64(jitter())).await;
    loop {
        let answer = match pool.standing() {
            Some(connection) => ask(&pool, connection).await,
            None => None,
        };
        if let Some(full) = answer
            && events.send(WatchInput::Full(full)).await.is_err()
        {
            return;
        }
        sleep(period.mul_f64(0.9 + jitter() / 5.0)).await;
    }
}

/// Why it is full, if it is; `None` when it does not tell: whoever follows the store notices what that means.
async fn ask(pool: &Pool, mut connection: Connection) -> Option<Option<Reason>> {
    let endpoint = pool.conf.endpoints.get(connection.index)?;
    let here = context(&pool.conf, endpoint, Step::Call("ask for alarms"));
    match timeout(pool.conf.timing.call, connection.client.status()).await {
        Ok(Ok(status)) => {
            let full = status.errors().iter().any(|error| error.contains("NOSPACE"));
            Some(full.then(|| here.fail(super::failure::Kind::NoSpace, FULL).to_string()))
        }
        Ok(Err(error)) => {
            tracing::debug!(failure = %here.explain(&error), "etcd does not tell its alarms");
            None
        }
        Err(_elapsed) => None,
    }
}
