//! What was handed to the stream and is not settled yet, in ranges of numbers, and when it must be published again.
//!
//! Where gateways send single events there are as many messages as events, and a ledger may be behind by millions: neighbours that
//! the stream has are joined to what fits into one message, which bounds the memory and packs what is published again.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::heard::Heard;
use super::settled::Settled;
use super::{EVENTS_BYTES_MAX, EVENTS_PER_MESSAGE};

/// How much longer than a hole unsettled events above everything settled may stay so.
const BEHIND_FACTOR: u32 = 15;
/// How often such events are published yet again: the ledger stands still, and the stream keeps every copy.
const STANDING_EVERY: Duration = Duration::from_hours(24);
/// The wait before events of a hole are published yet again doubles so often.
const DOUBLINGS_MAX: u32 = 6;
/// What was acknowledged further apart is not joined: the later would hold the earlier up.
const JOINED_WITHIN: Duration = Duration::from_mins(1);

/// Numbers that are on their way together.
#[derive(Debug)]
struct Sent {
    last: u64,
    bytes: usize,
    accepted_ms: i64,
    sends: u32,
    /// From when to when the stream said that it has them, and the ledger's word is waited for; `None` while they are on their way.
    waits: Option<(Duration, Duration)>,
    /// Whether the ledger has higher numbers.
    hole: bool,
    /// Whether the stream has said, once at least, that it has them: what waits may only have been given up.
    published: bool,
}

/// What is published again: its first numbers, and in all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The first number of each range.
    pub firsts: Vec<u64>,
    /// How many numbers those ranges hold.
    pub events: u64,
    /// How many of these lie below the ledger's highest number.
    pub in_holes: u64,
}

/// Everything that is not settled, by first number.
#[derive(Debug, Default)]
pub struct Unsettled(BTreeMap<u64, Sent>);

impl Unsettled {
    /// Notes events that are handed to the stream now, for the first time.
    pub fn sent(&mut self, range: RangeInclusive<u64>, bytes: usize, accepted_ms: i64) {
        let (first, last) = range.into_inner();
        self.0.insert(
            first,
            Sent { last, bytes, accepted_ms, sends: 1, waits: None, hole: false, published: false },
        );
    }

    /// Nobody tries any more to hand this to the stream, and from now on the ledger's word is waited for; `None` is everything, where
    /// it is not known what has ended.
    pub fn given_up(&mut self, first: Option<u64>, at: Duration) {
        let Some(first) = first else {
            self.0.values_mut().for_each(|sent| _ = sent.waits.get_or_insert((at, at)));
            return;
        };
        if let Some(sent) = self.0.get_mut(&first) {
            sent.waits.get_or_insert((at, at));
        }
    }

    /// The stream has said that it has this, and from now on the ledger's word is waited for.
    pub fn acknowledged(&mut self, first: u64, at: Duration) {
        let Some(sent) = self.0.get_mut(&first) else { return };
        sent.published = true;
        sent.waits.get_or_insert((at, at));
        let before = self.0.range(..first).next_back().map(|(before, _)| *before);
        let first = before.filter(|before| self.join(*before, first)).unwrap_or(first);
        if let Some(next) = self.0.range(first + 1..).next().map(|(next, _)| *next) {
            self.join(first, next);
        }
    }

    /// Makes two neighbours one, where both wait, are alike, and fit into one message.
    fn join(&mut self, first: u64, next: u64) -> bool {
        let (Some(one), Some(other)) = (self.0.get(&first), self.0.get(&next)) else { return false };
        let (Some(one_waits), Some(other_waits)) = (one.waits, other.waits) else { return false };
        let waits = (one_waits.0.min(other_waits.0), one_waits.1.max(other_waits.1));
        let fits = one.last + 1 == next
            && (one.sends, one.hole, one.published) == (other.sends, other.hole, other.published)
            && other.last - first < EVENTS_PER_MESSAGE as u64
            && one.bytes + other.bytes <= EVENTS_BYTES_MAX
            && waits.1.saturating_sub(waits.0) <= JOINED_WITHIN;
        if fits {
            let joined = Sent {
                last: other.last,
                bytes: one.bytes + other.bytes,
                accepted_ms: one.accepted_ms.min(other.accepted_ms),
                waits: Some(waits),
                ..*one
            };
            self.0.remove(&next);
            self.0.insert(first, joined);
        }
        fits
    }

    /// Forgets what the ledger has.
    pub fn settle(&mut self, settled: &Settled) {
        self.0.retain(|first, sent| !settled.covers(*first..=sent.last));
    }

    /// Forgets a range of which nothing can be read any more.
    pub fn forget(&mut self, first: u64) {
        self.0.remove(&first);
    }

    /// What must have been lost on the way, by what was heard; it counts as on its way again.
    pub fn due(&mut self, heard: &Heard, highest: u64, resend_after: Duration) -> Due {
        let mut due = Due::default();
        for (first, sent) in &mut self.0 {
            let Some((_, waits_since)) = sent.waits else { continue };
            if (*first <= highest) != sent.hole {
                // How long it lay above everything says nothing: a ledger that is behind may just be catching up.
                (sent.hole, sent.waits) = (!sent.hole, Some((heard.total(), heard.total())));
                continue;
            }
            let (since, wait) = if sent.hole {
                (waits_since, resend_after * 2_u32.pow((sent.sends - 1).min(DOUBLINGS_MAX)))
            } else {
                let once = resend_after * BEHIND_FACTOR;
                let wait = if sent.sends == 1 { once } else { once.max(STANDING_EVERY) };
                (waits_since.max(heard.rose_at()), wait)
            };
            if heard.total().saturating_sub(since) >= wait {
                let events = sent.last - first + 1;
                due.events += events;
                due.in_holes += if sent.hole { events } else { 0 };
                due.firsts.push(*first);
                (sent.waits, sent.sends) = (None, sent.sends.saturating_add(1));
            }
        }
        due
    }

    /// The last number of the range that begins with a number.
    pub fn last(&self, first: u64) -> Option<u64> {
        self.0.get(&first).map(|sent| sent.last)
    }

    /// The last number of the range that begins with this one or below.
    pub fn last_from_below(&self, number: u64) -> Option<u64> {
        self.0.range(..=number).next_back().map(|(_, sent)| sent.last)
    }

    /// Where the next range begins, from a number on.
    pub fn next_from(&self, number: u64) -> Option<u64> {
        self.0.range(number..).next().map(|(first, _)| *first)
    }

    /// The lowest number of which the stream has never said that it has it.
    pub fn first_unpublished(&self) -> Option<u64> {
        self.0.iter().find(|(_, sent)| !sent.published).map(|(first, _)| *first)
    }

    /// How many numbers there are from one on, in ranges that begin there or above.
    pub fn events_from(&self, number: u64) -> u64 {
        self.0.range(number..).map(|(first, sent)| sent.last - first + 1).sum()
    }

    /// How many numbers the stream has not acknowledged: handed to it for the first time, or again.
    pub fn on_way(&self) -> u64 {
        let on_way = self.0.iter().filter(|(_, sent)| sent.waits.is_none());
        on_way.map(|(first, sent)| sent.last - first + 1).sum()
    }

    /// When the oldest was accepted, in milliseconds since 1970.
    pub fn oldest_ms(&self) -> Option<i64> {
        self.0.first_key_value().map(|(_, sent)| sent.accepted_ms)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::forward::settled::EpochAnswer;

    const RESEND_AFTER: Duration = Duration::from_mins(2);
    const HOUR: u64 = 3_600;

    /// A gateway's ledger over hours, second by second.
    struct Hours {
        unsettled: Unsettled,
        heard: Heard,
        now: Instant,
    }

    impl Hours {
        fn of(messages: RangeInclusive<u64>) -> Self {
            let mut hours =
                Self { unsettled: Unsettled::default(), heard: Heard::default(), now: Instant::now() };
            hours.heard.answer(hours.now, 0);
            for number in messages {
                hours.unsettled.sent(number..=number, 600, 1);
                hours.unsettled.acknowledged(number, hours.heard.at(hours.now));
            }
            hours
        }

        /// How many events are published again in so many seconds, with or without answers of a highest number.
        fn republished(&mut self, seconds: u64, highest: Option<u64>) -> u64 {
            let mut events = 0;
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                if let Some(highest) = highest {
                    self.heard.answer(self.now, highest);
                }
                let due = self.unsettled.due(&self.heard, highest.unwrap_or(0), RESEND_AFTER);
                events += due.events;
                for first in due.firsts {
                    self.unsettled.acknowledged(first, self.heard.at(self.now));
                }
            }
            events
        }
    }

    #[test]
    fn nothing_is_published_again_while_nobody_answers() {
        let mut hours = Hours::of(1..=50);
        assert_eq!(hours.republished(63 * HOUR, None), 0);
        // The first answers say nothing of the time before.
        assert_eq!(hours.republished(HOUR / 4, Some(0)), 0);
    }

    #[test]
    fn above_everything_that_is_settled_it_is_published_once_and_then_daily() {
        let mut hours = Hours::of(1..=50);
        assert_eq!(hours.republished(HOUR / 2 - 5, Some(0)), 0);
        assert_eq!(hours.republished(10, Some(0)), 50);
        assert_eq!(hours.republished(23 * HOUR, Some(0)), 0);
        assert_eq!(hours.republished(2 * HOUR, Some(0)), 50);
        // A ledger that catches up is not hurried.
        let mut behind = Hours::of(1_000_000..=1_000_050);
        let published: u64 = (1..=2 * HOUR).map(|highest| behind.republished(1, Some(highest))).sum();
        assert_eq!(published, 0);
    }

    #[test]
    fn a_hole_is_published_again_after_a_while_as_a_hole() {
        let mut hours = Hours::of(1..=50);
        assert_eq!(hours.republished(HOUR / 4, Some(0)), 0);
        // Another consumer may be recording them at this moment.
        assert_eq!(hours.republished(119, Some(60)), 0);
        assert_eq!(hours.republished(3, Some(60)), 50);
        assert_eq!(hours.republished(235, Some(60)), 0, "with growing waits");
        assert_eq!(hours.republished(10, Some(60)), 50);
    }

    #[test]
    fn messages_of_single_events_take_the_memory_of_full_ones() {
        let (mut unsettled, at) = (Unsettled::default(), Duration::ZERO);
        for number in 1..=100_000_u64 {
            unsettled.sent(number..=number, 570, 1);
            // Acknowledgements overtake each other.
            if number % 2 == 0 {
                unsettled.acknowledged(number, at);
                unsettled.acknowledged(number - 1, at);
            }
        }
        assert!(unsettled.0.len() <= 1_200, "{}", unsettled.0.len());
        assert_eq!(unsettled.events_from(1), 100_000);
        let in_order =
            unsettled.0.iter().try_fold(1, |next, (first, sent)| (*first == next).then_some(sent.last + 1));
        assert_eq!(in_order, Some(100_001), "every number, once");
        for (first, sent) in &unsettled.0 {
            assert!(sent.last - first < EVENTS_PER_MESSAGE as u64 && sent.bytes <= EVENTS_BYTES_MAX);
        }
        let answer =
            r#"{"epoch":"e","settled":99990,"highest":99990,"missing":0,"holes":[],"holes_truncated":false}"#;
        unsettled.settle(&serde_json::from_str::<EpochAnswer>(answer).unwrap().into());
        assert!(unsettled.0.len() <= 2 && unsettled.last_from_below(100_000) == Some(100_000));
    }

    #[test]
    fn only_what_the_stream_has_said_that_it_has_counts_as_published() {
        let (mut unsettled, at) = (Unsettled::default(), Duration::ZERO);
        for number in 1..=4 {
            unsettled.sent(number..=number, 10, 1);
        }
        unsettled.acknowledged(1, at);
        unsettled.acknowledged(3, at);
        assert_eq!(unsettled.first_unpublished(), Some(2));
        // A stop, or a message that could not be packed; and a task of which nobody knows which it was.
        unsettled.given_up(Some(2), at);
        unsettled.given_up(None, at);
        assert_eq!((unsettled.first_unpublished(), unsettled.on_way()), (Some(2), 0));
        unsettled.acknowledged(2, at);
        assert_eq!((unsettled.first_unpublished(), unsettled.last(1)), (Some(4), Some(3)));
        unsettled.acknowledged(4, at);
        assert_eq!(unsettled.first_unpublished(), None);
        // Published again, it has been published all the same.
        let mut heard = Heard::default();
        let start = Instant::now();
        for second in 0..=HOUR {
            heard.answer(start + Duration::from_secs(second), 0);
        }
        assert_eq!(unsettled.due(&heard, 0, RESEND_AFTER).events, 4);
        assert_eq!((unsettled.first_unpublished(), unsettled.on_way()), (None, 4));
    }

    #[test]
    fn what_is_on_its_way_or_was_sent_more_often_is_not_joined() {
        let mut unsettled = Unsettled::default();
        for number in 1..=4 {
            unsettled.sent(number..=number, 10, 1);
        }
        let at = Duration::from_secs;
        unsettled.acknowledged(1, at(0));
        unsettled.acknowledged(3, at(0));
        assert_eq!(unsettled.0.len(), 4, "2 is on its way");
        assert_eq!(unsettled.on_way(), 2);
        unsettled.acknowledged(2, at(1));
        assert_eq!(unsettled.on_way(), 1);
        unsettled.acknowledged(4, at(100));
        assert_eq!(unsettled.on_way(), 0);
        assert_eq!((unsettled.last(1), unsettled.last(4)), (Some(3), Some(4)), "4 came long after");
    }
}
