//! The blocks that take the frames from the thread `capture` to the thread `writer`.
//!
//! All blocks are made at the start, and go round: filled to the writer, empty back. The writer may wait for a disk; the
//! capture never waits for the writer. While no block is empty, what is captured is lost, and counted: the next block
//! that gets through says how much is missing before it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use super::level::Level;

/// Frames that are missing before a frame, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gap {
    /// Overruns: the card had frames that were not read in time.
    pub(super) overruns: u64,
    /// The number of missing frames; after an overrun, an estimate by the clock.
    pub(super) frames: u64,
}

impl Gap {
    pub(super) const NONE: Gap = Gap { overruns: 0, frames: 0 };

    pub(super) fn add(&mut self, other: Gap) {
        self.overruns += other.overruns;
        self.frames += other.frames;
    }
}

/// Some frames. The buffer keeps its size, and its first `len` bytes are used.
pub(super) struct Block {
    pub(super) bytes: Box<[u8]>,
    pub(super) len: usize,
    /// The time of the first frame.
    pub(super) start: SystemTime,
    /// What is missing before the first frame.
    pub(super) gap: Gap,
    pub(super) level: Level,
}

impl Block {
    pub(super) fn data(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn empty(size: usize) -> Block {
        // Not zero: the kernel would give the memory at the first use only, when there may be none.
        Block { bytes: vec![1; size].into(), len: 0, start: SystemTime::UNIX_EPOCH, gap: Gap::NONE, level: Level::default() }
    }
}

/// Makes `count` blocks of `size` bytes, one of them in the hand of the capture.
pub(super) fn ring(size: usize, count: usize) -> (Filler, Drain) {
    let (fill, filled) = sync_channel(count);
    let (give, given) = sync_channel(count);
    for _ in 1..count {
        let _ = give.send(Block::empty(size));
    }
    (Filler { block: Block::empty(size), gap: Gap::NONE, fill, given }, Drain { filled, give })
}

/// The end of the capture.
pub(super) struct Filler {
    block: Block,
    gap: Gap,
    fill: SyncSender<Block>,
    given: Receiver<Block>,
}

impl Filler {
    /// The block to fill.
    pub(super) fn block(&mut self) -> &mut Block {
        &mut self.block
    }

    /// Notes what is missing before the next block.
    pub(super) fn miss(&mut self, gap: Gap) {
        self.gap.add(gap);
    }

    /// Hands the block over. Returns what is lost because no block is empty; never waits.
    pub(super) fn pass(&mut self, frames: u64) -> Gap {
        let Ok(next) = self.given.try_recv() else {
            let lost = Gap { overruns: 0, frames };
            self.miss(lost);
            return lost;
        };
        let mut block = std::mem::replace(&mut self.block, next);
        block.gap = std::mem::take(&mut self.gap);
        // Fails only if the writer has ended, which ends the program.
        let _ = self.fill.try_send(block);
        Gap::NONE
    }
}

/// The end of the writer.
pub(super) struct Drain {
    filled: Receiver<Block>,
    give: SyncSender<Block>,
}

impl Drain {
    /// # Errors
    /// There is none within this time, or there will be none any more.
    pub(super) fn next(&self, wait: Duration) -> Result<Block, RecvTimeoutError> {
        self.filled.recv_timeout(wait)
    }

    /// Gives a block back.
    pub(super) fn give(&self, block: Block) {
        let _ = self.give.try_send(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(filler: &mut Filler, value: u8) -> Gap {
        let block = filler.block();
        block.bytes[0] = value;
        block.len = 1;
        filler.pass(1)
    }

    #[test]
    fn blocks_arrive_in_order_and_go_round() {
        let (mut filler, drain) = ring(4, 3);
        for value in 0..100 {
            assert_eq!(pass(&mut filler, value), Gap::NONE);
            let block = drain.next(Duration::ZERO).unwrap();
            assert_eq!((block.data(), block.gap, block.bytes.len()), ([value].as_slice(), Gap::NONE, 4));
            drain.give(block);
        }
        assert!(drain.next(Duration::ZERO).is_err());
    }

    #[test]
    fn what_does_not_fit_is_counted_before_the_next_block() {
        let (mut filler, drain) = ring(4, 3);
        let lost: Vec<u64> = (0..5).map(|value| pass(&mut filler, value).frames).collect();
        assert_eq!(lost, [0, 0, 1, 1, 1]);
        filler.miss(Gap { overruns: 1, frames: 10 });
        for value in 0..2 {
            let block = drain.next(Duration::ZERO).unwrap();
            assert_eq!((block.data(), block.gap), ([value].as_slice(), Gap::NONE));
            drain.give(block);
        }
        pass(&mut filler, 9);
        let block = drain.next(Duration::ZERO).unwrap();
        assert_eq!((block.data(), block.gap), ([9].as_slice(), Gap { overruns: 1, frames: 13 }));
    }

    #[test]
    fn blocks_that_are_filled_survive_the_end_of_the_capture() {
        let (mut filler, drain) = ring(4, 3);
        pass(&mut filler, 1);
        drop(filler);
        assert_eq!(drain.next(Duration::ZERO).unwrap().data(), [1]);
        assert!(matches!(drain.next(Duration::from_secs(9)), Err(RecvTimeoutError::Disconnected)));
    }
}
