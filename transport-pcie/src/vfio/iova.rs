//! Which bus addresses are free: an allocator over the ranges that the IOMMU can translate.

use std::collections::BTreeMap;

/// Bus addresses below are left alone: a descriptor that was never filled in must not point at anything.
const LOWEST: u64 = 0x1_0000;

/// The range that x86 machines decode as interrupt messages; no memory can be there even where the kernel does not say so.
const INTERRUPT_WINDOW: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// What to use when the kernel names no ranges: what every IOMMU in use translates.
pub(super) const CUSTOMARY: (u64, u64) = (0, (1 << 39) - 1);

/// The size of a large page of an IOMMU: what is that long is aligned so, if there is room, and takes fewer translations.
const LARGE_PAGE: u64 = 2 << 20;

/// Free and used bus addresses of one container.
#[derive(Debug)]
pub(super) struct IovaSpace {
    /// Free ranges, first address to last address. They do not touch each other.
    free: BTreeMap<u64, u64>,
    /// What everything is a multiple of, a power of two.
    page: u64,
}

impl IovaSpace {
    /// The addresses of these ranges (first and last address each), in multiples of `page` bytes, a power of two.
    pub(super) fn new(ranges: &[(u64, u64)], page: u64) -> Self {
        let mut space = Self { free: BTreeMap::new(), page: page.max(1) };
        let (hole_first, hole_last) = INTERRUPT_WINDOW;
        for &(first, last) in ranges {
            for (first, last) in
                [(first.max(LOWEST), last.min(hole_first - 1)), (first.max(hole_last + 1), last)]
            {
                space.add(first, last);
            }
        }
        space
    }

    /// Adds a range to the free ones, cut down to whole pages, merged with what it touches.
    fn add(&mut self, first: u64, last: u64) {
        let Some(mut first) = first.checked_next_multiple_of(self.page) else { return };
        // Behind the last whole page; 0 is behind the last address there is.
        let end = last.wrapping_add(1);
        let end = end - end % self.page;
        if end == 0 && last != u64::MAX {
            return;
        }
        let mut last = end.wrapping_sub(1);
        if first > last {
            return;
        }
        // Ranges that begin at or before the byte behind it and reach to the byte before it at least.
        let touching: Vec<(u64, u64)> = self
            .free
            .range(..=last.saturating_add(1))
            .rev()
            .take_while(|&(_, &other_last)| other_last >= first.saturating_sub(1))
            .map(|(&a, &b)| (a, b))
            .collect();
        for (other_first, other_last) in touching {
            self.free.remove(&other_first);
            first = first.min(other_first);
            last = last.max(other_last);
        }
        self.free.insert(first, last);
    }

    /// Takes `len` bytes (rounded up to whole pages): the lowest address there is, large pages first where that pays.
    pub(super) fn allocate(&mut self, len: u64) -> Option<u64> {
        let len = len.max(1).checked_next_multiple_of(self.page)?;
        let large = (len >= LARGE_PAGE).then(|| self.find(len, LARGE_PAGE.max(self.page))).flatten();
        let (first, last, at) = large.or_else(|| self.find(len, self.page))?;
        self.free.remove(&first);
        if first < at {
            self.free.insert(first, at - 1);
        }
        let end = at + (len - 1);
        if end < last {
            self.free.insert(end + 1, last);
        }
        Some(at)
    }

    /// Takes out of what is free whatever lies between these addresses, both included.
    pub(super) fn exclude(&mut self, first: u64, last: u64) {
        let overlapping: Vec<(u64, u64)> = self
            .free
            .range(..=last)
            .rev()
            .take_while(|&(_, &free_last)| free_last >= first)
            .map(|(&a, &b)| (a, b))
            .collect();
        for (free_first, free_last) in overlapping {
            self.free.remove(&free_first);
            if let Some(before) = first.checked_sub(1).filter(|&before| before >= free_first) {
                self.add(free_first, before);
            }
            if let Some(after) = last.checked_add(1).filter(|&after| after <= free_last) {
                self.add(after, free_last);
            }
        }
    }

    /// The lowest aligned place for `len` bytes: the free range it lies in, and the address.
    fn find(&self, len: u64, align: u64) -> Option<(u64, u64, u64)> {
        self.free.iter().find_map(|(&first, &last)| {
            let at = first.checked_next_multiple_of(align)?;
            let end = at.checked_add(len - 1)?;
            (end <= last).then_some((first, last, at))
        })
    }

    /// Gives back what [`IovaSpace::allocate`] returned for `len` bytes.
    pub(super) fn release(&mut self, at: u64, len: u64) {
        let Some(len) = len.max(1).checked_next_multiple_of(self.page) else { return };
        self.add(at, at.saturating_add(len - 1));
    }

    /// Free bytes.
    #[cfg(test)]
    fn free_bytes(&self) -> u128 {
        self.free.iter().map(|(&first, &last)| u128::from(last - first) + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn what_is_excluded_is_never_given_away() {
        let mut space = IovaSpace::new(&[(0x10_0000, 0x1f_ffff)], PAGE);
        space.exclude(0x10_4000, 0x10_7fff);
        assert_eq!(space.free_bytes(), 0x10_0000 - 0x4000);
        assert_eq!(space.allocate(0x4000), Some(0x10_0000));
        assert_eq!(space.allocate(PAGE), Some(0x10_8000));
        // Parts of pages, parts that are not free, everything.
        space.exclude(0x10_9800, 0x10_a7ff);
        assert_eq!(space.allocate(PAGE), Some(0x10_b000));
        space.exclude(0, 0x10_ffff);
        assert_eq!(space.allocate(PAGE), Some(0x11_0000));
        space.exclude(0, u64::MAX);
        assert_eq!((space.allocate(1), space.free_bytes()), (None, 0));
    }

    #[test]
    fn lowest_address_first_and_never_zero() {
        let mut space = IovaSpace::new(&[CUSTOMARY], PAGE);
        assert_eq!(space.allocate(1), Some(LOWEST));
        assert_eq!(space.allocate(2 * PAGE), Some(LOWEST + PAGE));
        space.release(LOWEST, 1);
        assert_eq!(space.allocate(PAGE), Some(LOWEST));
    }

    #[test]
    fn long_regions_start_on_large_pages_if_there_is_room() {
        let mut space = IovaSpace::new(&[(0, (8 << 20) - 1)], PAGE);
        assert_eq!(space.allocate(4 << 20), Some(2 << 20));
        // No two large pages in a row are left, but this much fits below.
        assert_eq!(space.allocate((2 << 20) - LOWEST), Some(LOWEST));
        assert_eq!(space.allocate(2 << 20), Some(6 << 20));
        assert_eq!(space.allocate(PAGE), None);
    }

    #[test]
    fn interrupt_window_is_never_given_out() {
        let mut space = IovaSpace::new(&[(0xfed0_0000, 0xff00_0000)], PAGE);
        assert_eq!(space.allocate(1 << 20), Some(0xfed0_0000));
        assert_eq!(space.allocate(1 << 20), Some(0xfef0_0000));
        assert_eq!(space.allocate(PAGE), None);
    }

    #[test]
    fn ranges_of_a_page_and_less_and_up_to_the_last_address() {
        assert_eq!(IovaSpace::new(&[(0x2_0800, 0x2_17ff)], PAGE).free_bytes(), 0);
        let mut top = IovaSpace::new(&[(u64::MAX - PAGE + 1, u64::MAX)], PAGE);
        assert_eq!(top.free_bytes(), u128::from(PAGE));
        let at = top.allocate(PAGE).unwrap();
        assert_eq!((at, top.free_bytes()), (u64::MAX - PAGE + 1, 0));
        top.release(at, PAGE);
        assert_eq!(top.free_bytes(), u128::from(PAGE));
        assert_eq!(top.allocate(u64::MAX), None);
        assert_eq!(IovaSpace::new(&[(9, 3)], PAGE).allocate(1), None);
    }

    proptest! {
        #[test]
        fn allocations_are_apart_aligned_inside_and_come_back_whole(
            ranges in prop::collection::vec((0u64..1 << 33, 0u64..1 << 26), 1..4),
            steps in prop::collection::vec((any::<bool>(), 1u64..5 << 20, any::<prop::sample::Index>()), 1..80),
        ) {
            let ranges: Vec<(u64, u64)> = ranges.into_iter().map(|(first, len)| (first, first + len)).collect();
            let mut space = IovaSpace::new(&ranges, PAGE);
            let all = space.free_bytes();
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (take, len, which) in steps {
                if take || held.is_empty() {
                    let Some(at) = space.allocate(len) else { continue };
                    let end = at + len.next_multiple_of(PAGE) - 1;
                    prop_assert!(at.is_multiple_of(PAGE) && at >= LOWEST);
                    prop_assert!(end < INTERRUPT_WINDOW.0 || at > INTERRUPT_WINDOW.1);
                    // Ranges may overlap or touch, so every page of it is in one of them.
                    for page in (at..=end).step_by(PAGE as usize) {
                        prop_assert!(ranges.iter().any(|&(a, b)| a <= page && page + PAGE - 1 <= b));
                    }
                    for &(other, other_len) in &held {
                        let other_end = other + other_len.next_multiple_of(PAGE) - 1;
                        prop_assert!(end < other || other_end < at, "{at:#x} overlaps {other:#x}");
                    }
                    held.push((at, len));
                } else {
                    let (at, len) = held.swap_remove(which.index(held.len()));
                    space.release(at, len);
                }
                let used: u128 = held.iter().map(|&(_, len)| u128::from(len.next_multiple_of(PAGE))).sum();
                prop_assert_eq!(space.free_bytes() + used, all);
            }
            for (at, len) in held {
                space.release(at, len);
            }
            prop_assert_eq!(space.free_bytes(), all);
        }
    }
}
