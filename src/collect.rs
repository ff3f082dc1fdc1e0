//! Maps and sets that are built by inserting. [p]
//!
//! `collect` sorts a list before it builds a map or a set of it, which takes 5 kB of program for each type of item. What
//! is kept here has a handful of entries.

/// Collects into a map or a set; of equal keys the last one stays.
pub fn by_insertion<T, C: Default + Extend<T>>(items: impl IntoIterator<Item = T>) -> C {
    let mut all = C::default();
    all.extend(items);
    all
}
