//! Which parts of a blob are fetched.

use std::ops::Range;

use crate::partial::{Found, PartialError, toc::Content};

/// What a request costs, in bytes that could be fetched instead: less than that is not left out.
const WORTH_A_REQUEST: u64 = 32 << 10;
/// Requests for the parts of one layer.
const MAX_REQUESTS: usize = 128;
/// What must be saved, in bytes, and as a part of the blob.
const WORTH_THE_TROUBLE: u64 = 1 << 20;
const PARTS: u64 = 10;

/// What is fetched of a blob, and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In order, and apart from each other.
    pub(crate) requests: Vec<Range<u64>>,
    /// Bytes in them.
    pub(crate) fetched_bytes: u64,
    /// Parts that are not fetched.
    left_out: Vec<Range<u64>>,
}

impl Plan {
    /// For a layer whose headers are known: nothing is needed but the contents that are not here.
    pub(crate) fn of_contents(contents: &[Content], found: &Found, archive: &Range<u64>) -> Self {
        let mut unneeded = Vec::new();
        let mut before = archive.start;
        for content in contents.iter().filter(|content| !found.has(content)) {
            unneeded.push(before..content.packed.start);
            before = content.packed.end;
        }
        unneeded.push(before..archive.end);
        Self::without(unneeded, archive)
    }

    /// For a layer whose headers are in the blob: all is needed but the contents that are here.
    pub(crate) fn of_the_rest(contents: &[Content], found: &Found, archive: &Range<u64>) -> Self {
        let here = contents.iter().filter(|content| found.has(content));
        Self::without(here.map(|content| content.packed.clone()).collect(), archive)
    }

    /// Leaves the largest of `unneeded` out.
    fn without(mut unneeded: Vec<Range<u64>>, archive: &Range<u64>) -> Self {
        let length = |range: &Range<u64>| range.end - range.start;
        unneeded.retain(|range| length(range) >= WORTH_A_REQUEST);
        unneeded.sort_by_key(|range| std::cmp::Reverse(length(range)));
        // Each one apart from the ends adds a request.
        unneeded.truncate(MAX_REQUESTS - 1);
        unneeded.sort_by_key(|range| range.start);
        let mut requests = Vec::new();
        let mut before = archive.start;
        for range in &unneeded {
            requests.push(before..range.start);
            before = range.end;
        }
        requests.push(before..archive.end);
        requests.retain(|range| !range.is_empty());
        let fetched_bytes = requests.iter().map(length).sum();
        Self { requests, fetched_bytes, left_out: unneeded }
    }

    /// Whether the bytes at `packed` are not fetched.
    pub(crate) fn leaves_out(&self, packed: &Range<u64>) -> bool {
        self.left_out.binary_search_by_key(&packed.start, |range| range.start).is_ok()
    }
}

/// Whether so many fetched bytes are much less than the whole blob.
pub(crate) fn check_worth(size: u64, fetched: u64) -> Result<(), PartialError> {
    let saved = size.saturating_sub(fetched);
    if saved < WORTH_THE_TROUBLE.max(size / PARTS) {
        return Err(PartialError::NotWorthwhile { saved, size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHIVE: Range<u64> = 0..100_000_000;

    /// Contents of one length, with one length between them.
    fn contents(length: u64, between: u64) -> Vec<Content> {
        let places =
            (0..).map(|number| between + number * (length + between)).take_while(|at| at + length < ARCHIVE.end);
        let content = |at: u64| Content { digest: [0; 32], size: length, packed: at..at + length, covered: length };
        places.map(content).collect()
    }

    #[test]
    fn a_layer_of_which_nothing_is_needed_is_not_asked_for() {
        assert_eq!(Plan::of_contents(&[], &Found::default(), &ARCHIVE).requests, []);
        assert_eq!(Plan::of_the_rest(&[], &Found::default(), &ARCHIVE).requests, [ARCHIVE]);
    }

    #[test]
    fn what_is_needed_is_fetched_with_the_little_that_is_between() {
        for (between, requests) in [(100, 1), (WORTH_A_REQUEST - 1, 1), (2_000_000, 48)] {
            let needed = contents(50_000, between);
            let plan = Plan::of_contents(&needed, &Found::default(), &ARCHIVE);
            assert_eq!(plan.requests.len(), requests, "{between}");
            for content in &needed {
                let within =
                    |request: &&Range<u64>| request.start <= content.packed.start && content.packed.end <= request.end;
                assert_eq!(plan.requests.iter().filter(within).count(), 1, "{between}: {content:?}");
            }
            assert!(plan.requests.windows(2).all(|two| two[0].end < two[1].start), "{plan:?}");
            assert_eq!(plan.fetched_bytes, plan.requests.iter().map(|r| r.end - r.start).sum::<u64>());
        }
    }

    #[test]
    fn requests_have_a_bound_and_the_largest_parts_are_left_out() {
        let mut needed = contents(1000, 100_000);
        // Half of the gaps are double.
        for (number, content) in needed.iter_mut().enumerate() {
            let shift = if number % 2 == 0 { 50_000 } else { 0 };
            content.packed = content.packed.start + shift..content.packed.end + shift;
        }
        let plan = Plan::of_contents(&needed, &Found::default(), &ARCHIVE);
        // What is before the first is left out as well.
        assert_eq!(plan.requests.len(), MAX_REQUESTS - 1);
        assert!(plan.left_out.iter().all(|range| range.end - range.start >= 150_000), "{plan:?}");
    }

    #[test]
    fn little_is_not_worth_the_trouble() {
        for (size, fetched, worth) in [
            (8 << 20, 8 << 20, false),
            (9 << 20, 8 << 20, true),
            (9 << 20, (8 << 20) + 1, false),
            (7 << 20, 8 << 20, false),
            (80 << 20, 71 << 20, true),
            (80 << 20, 73 << 20, false),
        ] {
            assert_eq!(check_worth(size, fetched).is_ok(), worth, "{size} {fetched}");
        }
    }
}
