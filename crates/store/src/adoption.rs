//! The mark in a directory whose records another node takes in. Between a batch that is safe there and its marks here
//! lies a moment in which only that node knows that it has them: taken in by a third, they would be delivered twice.

use std::path::Path;

use crate::disk::Disk;
use crate::embedded::marks::{mark, unmark, words};
use crate::embedded::meta::ADOPTER;
use crate::error::OpenError;

/// Which node has begun to take in what a directory holds, and has not all of it.
#[must_use]
pub fn adopter<D: Disk>(disk: &D, dir: &Path) -> Option<String> {
    words(disk, dir, ADOPTER)
}

/// Writes that down, synced, where nobody has. The directory's lock is the caller's to hold.
///
/// # Errors
/// [`OpenError`].
pub fn begin_adoption<D: Disk>(disk: &D, dir: &Path, node: &str) -> Result<(), OpenError> {
    mark(disk, dir, ADOPTER, node)
}

/// It has all of it.
///
/// # Errors
/// [`OpenError`].
pub fn end_adoption<D: Disk>(disk: &D, dir: &Path) -> Result<(), OpenError> {
    unmark(disk, dir, ADOPTER)
}
