//! A clock that runs only while the API answers: what the ledger lacks is known only then.

use std::time::Duration;

use tokio::time::Instant;

/// A longer pause between two answers is silence, which no wait counts: longer than the longest pause between two questions and the
/// time an answer may take.
const SILENCE_AFTER: Duration = Duration::from_secs(90);

/// How long answers have come, and since when the ledger's highest number stands still.
#[derive(Debug, Default)]
pub struct Heard {
    total: Duration,
    last: Option<Instant>,
    highest: u64,
    rose_at: Duration,
}

impl Heard {
    /// Notes an answer, whose highest number is given.
    pub fn answer(&mut self, now: Instant, highest: u64) {
        let pause = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        if pause <= SILENCE_AFTER {
            self.total += pause;
        }
        if highest != self.highest {
            (self.highest, self.rose_at) = (highest, self.total);
        }
        self.last = Some(now);
    }

    /// The time of the last answer: what is waited for has been waited for up to then.
    pub const fn total(&self) -> Duration {
        self.total
    }

    /// The time now, at which a wait begins; later than the last answer.
    pub fn at(&self, now: Instant) -> Duration {
        let pause = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.total + pause.min(SILENCE_AFTER)
    }

    /// Since when the highest number stands where it does.
    pub const fn rose_at(&self) -> Duration {
        self.rose_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_from_answer_to_answer_and_not_in_between() {
        let (mut heard, start) = (Heard::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let seconds = Duration::from_secs;
        assert_eq!(heard.at(at(500)), seconds(0), "nobody has answered yet");
        heard.answer(at(1_000), 7);
        for number in 1..=60 {
            heard.answer(at(1_000 + number), 7);
        }
        assert_eq!(
            (heard.total(), heard.at(at(1_065)), heard.rose_at()),
            (seconds(60), seconds(65), seconds(0))
        );
        // A weekend without an answer.
        assert_eq!((heard.total(), heard.at(at(200_000))), (seconds(60), seconds(150)));
        heard.answer(at(200_000), 7);
        assert_eq!(heard.total(), seconds(60), "silence does not count");
        heard.answer(at(200_060), 8);
        assert_eq!((heard.total(), heard.rose_at()), (seconds(120), seconds(120)));
    }
}
