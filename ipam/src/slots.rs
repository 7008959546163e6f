//! When each address of a range was last given back: eight bytes an address at a fixed place in one sparse file,
//! and a cursor. Only hints: the truth is the address file. No lock, no order beyond "roughly oldest first".

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::clock::boot_seconds;
use crate::state::State;

/// Cursor, and room for more.
const HEADER: u64 = 64;
const ENTRY: u64 = 8;
/// At most this many addresses of a range take part in the rotation: far more than a node can have pods, and
/// the sparse file of a /64 stays small.
pub const WINDOW: u64 = 1 << 20;
/// How many hints are read at once by those who need all of them.
pub const MANY: u64 = 512;
/// The hint for an address that is in use.
const IN_USE: u64 = u64::MAX;

/// What is known of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Never given since boot.
    Unused,
    /// Given back at this second since boot.
    Released(u64),
    /// Given.
    InUse,
}

/// The hint file of one range.
#[derive(Debug)]
pub struct Slots {
    file: File,
    /// How many addresses of the range it covers.
    pub length: u64,
}

impl Slots {
    /// Opens or makes the hint file `name` of a range of `length` addresses.
    pub fn open(state: &State, name: &str, length: u128) -> io::Result<Self> {
        let length = u64::try_from(length).unwrap_or(u64::MAX).min(WINDOW);
        Ok(Self { file: open(state, name)?, length })
    }

    /// Where to look first.
    pub fn cursor(&self) -> u64 {
        self.read(0).unwrap_or(0) % self.length.max(1)
    }

    /// Next time look from behind `index`.
    pub fn advance(&self, index: u64) {
        let _hint = self.file.write_at(&((index + 1) % self.length.max(1)).to_le_bytes(), 0);
    }

    /// Hints for up to `most` addresses from `first`.
    pub fn chunk(&self, first: u64, most: u64) -> io::Result<Vec<Hint>> {
        let count = (self.length - first).min(most);
        let mut bytes = vec![0; usize::try_from(count * ENTRY).unwrap_or(0)];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, HEADER + first * ENTRY + filled as u64)? {
                0 => break, // a hole behind the end: never used
                n => filled += n,
            }
        }
        let (entries, _) = bytes.as_chunks::<8>();
        Ok(entries.iter().map(|entry| decode(u64::from_le_bytes(*entry))).collect())
    }

    /// Notes that an address is in use, so that the next search passes it by.
    pub fn note_use(&self, index: u64) {
        if index < self.length {
            let _hint = self.file.write_at(&IN_USE.to_le_bytes(), HEADER + index * ENTRY);
        }
    }

    /// Notes that an address of the range with hint file `name` is being given back now.
    pub fn note_release(state: &State, name: &str, index: u64) {
        if index < WINDOW {
            let _hint = open(state, name)
                .and_then(|file| file.write_at(&(boot_seconds() + 1).to_le_bytes(), HEADER + index * ENTRY));
        }
    }

    fn read(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).ok().map(|()| u64::from_le_bytes(bytes))
    }
}

fn open(state: &State, name: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(state.at("slot").join(name))
}

fn decode(entry: u64) -> Hint {
    match entry {
        0 => Hint::Unused,
        IN_USE => Hint::InUse,
        second => Hint::Released(second - 1),
    }
}
