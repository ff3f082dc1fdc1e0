//! Collects and sorts by insertion.
//!
//! For each type of item, the standard library's stable sort adds 4 kB of code to the program, and `serde_json::Map`
//! sorts before it collects. The collections of this program are small, and often sorted already.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// Collects into a JSON object; the last of equal keys is kept.
pub fn by_insertion(items: impl IntoIterator<Item = (String, Value)>) -> Map<String, Value> {
    let mut all = Map::new();
    all.extend(items);
    all
}

/// Sorts by a key; items with equal keys keep their order.
pub fn sort_by_key<T, K: Ord>(items: &mut Vec<T>, key: impl Fn(&T) -> K) {
    sort_by(items, |one, other| key(one).cmp(&key(other)));
}

/// Sorts items; equal ones keep their order.
pub fn sort<T: Ord>(items: &mut Vec<T>) {
    sort_by(items, T::cmp);
}

fn sort_by<T>(items: &mut Vec<T>, order: impl Fn(&T, &T) -> Ordering) {
    let mut sorted = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        let at = sorted.partition_point(|other| order(other, &item).is_le());
        sorted.insert(at, item);
    }
    *items = sorted;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sorts_like_the_standard_library(mut items: Vec<(u8, u32)>) {
            let mut expected = items.clone();
            expected.sort_by_key(|item| item.0);
            sort_by_key(&mut items, |item| item.0);
            prop_assert_eq!(items, expected);
        }
    }
}
