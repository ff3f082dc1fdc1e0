//! Builds maps and sets by insertion.
//!
//! For each item type, `collect` adds 5 kB of code to the program, because it sorts the items before it builds a map
//! or a set. The maps and sets of this program are small, so insertion is sufficient.

/// Collects into a map or a set; the last of equal keys is kept.
pub fn by_insertion<T, C: Default + Extend<T>>(items: impl IntoIterator<Item = T>) -> C {
    let mut all = C::default();
    all.extend(items);
    all
}
