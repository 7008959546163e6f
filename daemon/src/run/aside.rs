//! Work that may take long, on a thread that nobody waits for: a daemon that is told to stop does not sit out a probe that is not
//! answered, or another program that hangs. (A runtime that ends waits for its own blocking threads.)

use tokio::sync::oneshot;

/// Does the work. To be used for what may be cut off at any point.
pub async fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (tell, told) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Whoever asked may have ended.
        let _unheard = tell.send(work());
    });
    thread.map_err(|error| format!("start the thread {name}: {error}"))?;
    told.await.unwrap_or_else(|_| Err(format!("the thread {name} failed")))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_runtime_that_ends_does_not_wait_for_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let started = Instant::now();
        assert_eq!(runtime.block_on(aside("quick", || Ok(7))), Ok(7));
        runtime.block_on(async {
            let hangs = || {
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            };
            drop(tokio::spawn(aside("hangs", hangs)));
            tokio::task::yield_now().await;
        });
        drop(runtime);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_thread_that_fails_is_said() {
        let failed = aside::<()>("bad", || panic!("on purpose")).await;
        assert_eq!(failed, Err("the thread bad failed".to_owned()));
    }
}
