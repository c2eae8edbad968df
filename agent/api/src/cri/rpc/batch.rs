//! Long lists in pieces, for the calls that stream them.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::Status;

/// How many items one message has at most: a list of any length fits the bound of a message.
const ITEMS: usize = 500;

/// Messages that make up a list.
pub(super) type Batches<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list in messages, each made by `message`.
pub(super) fn batches<I, T, M>(items: Vec<I>, message: M) -> Batches<T>
where
    I: Send + 'static,
    T: Send + 'static,
    M: Fn(Vec<I>) -> T + Send + 'static,
{
    let mut rest = items.into_iter();
    Box::pin(stream::iter(std::iter::from_fn(move || {
        let batch: Vec<I> = rest.by_ref().take(ITEMS).collect();
        if batch.is_empty() { None } else { Some(Ok(message(batch))) }
    })))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[test]
    fn a_list_comes_whole_and_in_order_and_an_empty_one_without_a_message() {
        for length in [0, 1, ITEMS, 2 * ITEMS + 1] {
            let sent: Vec<Vec<usize>> = collected(batches((0..length).collect(), |batch| batch));
            assert_eq!(sent.len(), length.div_ceil(ITEMS));
            assert_eq!(sent.concat(), (0..length).collect::<Vec<_>>());
        }
    }

    fn collected<T>(batches: Batches<T>) -> Vec<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(batches.map(Result::unwrap).collect())
    }
}
