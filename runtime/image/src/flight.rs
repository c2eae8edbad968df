//! The same thing asked for twice at once is done once.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::{sync::watch, task::AbortHandle};

/// Work in progress, by what it is about.
#[derive(Debug)]
pub(crate) struct Flights<K, P, T> {
    running: Mutex<HashMap<K, Weak<Flight<P, T>>>>,
}

/// One piece of work that several callers wait for; it ends with the last of them.
#[derive(Debug)]
pub(crate) struct Flight<P, T> {
    task: AbortHandle,
    progress: watch::Receiver<P>,
    outcome: watch::Receiver<Option<T>>,
}

impl<P, T> Drop for Flight<P, T> {
    fn drop(&mut self) {
        // Nobody waits any more; after its end this does nothing.
        self.task.abort();
    }
}

impl<K, P, T> Default for Flights<K, P, T> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<K, P, T> Flights<K, P, T>
where
    K: Eq + Hash + Clone,
    P: Default + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work on `key`, or begins it with the future that `begin` makes.
    pub(crate) fn join<F>(&self, key: &K, begin: impl FnOnce(watch::Sender<P>) -> F) -> Arc<Flight<P, T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(key).and_then(Weak::upgrade)
            && flight.outcome.borrow().is_none()
            && !flight.task.is_finished()
        {
            return flight;
        }
        running.retain(|_, flight| flight.strong_count() > 0);
        let (progress_sink, progress) = watch::channel(P::default());
        let (outcome_sink, outcome) = watch::channel(None);
        let work = begin(progress_sink);
        let task = tokio::spawn(async move {
            outcome_sink.send_replace(Some(work.await));
        });
        let flight = Arc::new(Flight { task: task.abort_handle(), progress, outcome });
        running.insert(key.clone(), Arc::downgrade(&flight));
        flight
    }
}

impl<P: Clone + PartialEq, T: Clone> Flight<P, T> {
    /// Waits for the outcome, passing progress on to `sink`; `None` when the work was broken off.
    ///
    /// Cancel-safe: it only watches.
    pub(crate) async fn wait(&self, sink: Option<&watch::Sender<P>>) -> Option<T> {
        let mut outcome = self.outcome.clone();
        let mut progress = self.progress.clone();
        let pass_on = |progress: &mut watch::Receiver<P>| {
            let state = progress.borrow_and_update().clone();
            if let Some(sink) = sink {
                sink.send_if_modified(|shown| {
                    let changed = *shown != state;
                    *shown = state;
                    changed
                });
            }
        };
        pass_on(&mut progress);
        loop {
            tokio::select! {
                // cancel-safe: both only observe a watch channel.
                changed = progress.changed(), if sink.is_some() => match changed {
                    Ok(()) => pass_on(&mut progress),
                    Err(_) => break,
                },
                result = outcome.wait_for(Option::is_some) => {
                    let result = result.ok()?.clone();
                    pass_on(&mut progress);
                    return result;
                }
            }
        }
        let result = outcome.wait_for(Option::is_some).await.ok()?.clone();
        pass_on(&mut progress);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn work_is_shared_and_ends_with_its_last_waiter() {
        let flights: Flights<u8, u32, u64> = Flights::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        let start = || {
            let (begun, ended) = (begun.clone(), ended.clone());
            flights.join(&1, move |_| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                ended.fetch_add(1, Ordering::SeqCst);
                7
            })
        };
        let (first, second) = (start(), start());
        assert_eq!(tokio::join!(first.wait(None), second.wait(None)), (Some(7), Some(7)));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        let dropped = start();
        drop((first, second));
        drop(dropped);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(ended.load(Ordering::SeqCst), 1);
    }
}
