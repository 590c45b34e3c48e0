//! Which numbers of the journal's count the ledger has.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// What the watermark of an epoch says; the default is that nothing is settled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    through: u64,
    highest: u64,
    /// Numbers below `highest` that are missing, in order.
    holes: Vec<RangeInclusive<u64>>,
    /// Nothing is known of numbers above this.
    known: u64,
}

/// One epoch of the watermark as the API tells it.
#[derive(Debug, Deserialize)]
pub struct EpochAnswer {
    /// Its name.
    pub epoch: String,
    settled: u64,
    highest: u64,
    holes: Vec<HoleAnswer>,
    holes_truncated: bool,
}

#[derive(Debug, Deserialize)]
struct HoleAnswer {
    first: u64,
    last: u64,
}

impl From<EpochAnswer> for Settled {
    fn from(answer: EpochAnswer) -> Self {
        let EpochAnswer { settled: through, highest, mut holes, holes_truncated, .. } = answer;
        holes.sort_unstable_by_key(|hole| hole.first);
        let known = if holes_truncated { holes.last().map_or(through, |hole| hole.last) } else { highest };
        let holes = holes.into_iter().map(|hole| hole.first..=hole.last).collect();
        Self { through, highest, holes, known }
    }
}

impl Settled {
    /// Every number up to this is settled.
    pub const fn through(&self) -> u64 {
        self.through
    }

    /// The highest number that is settled.
    pub const fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether a number is settled; `false` where that is not known.
    pub fn contains(&self, sequence: u64) -> bool {
        if sequence <= self.through {
            return true;
        }
        sequence <= self.known && self.hole_around(sequence).is_none()
    }

    fn hole_around(&self, sequence: u64) -> Option<&RangeInclusive<u64>> {
        let before = self.holes.partition_point(|hole| *hole.start() <= sequence).checked_sub(1)?;
        self.holes.get(before).filter(|hole| hole.contains(&sequence))
    }

    /// Whether everything that `earlier` says is settled still is: a ledger that was restored to an older state has forgotten some.
    pub fn keeps(&self, earlier: &Self) -> bool {
        let forgotten = |hole: &RangeInclusive<u64>| {
            let within = earlier.hole_around(*hole.start());
            *hole.start() <= earlier.known
                && within.is_none_or(|known| *known.end() < (*hole.end()).min(earlier.known))
        };
        self.through >= earlier.through
            && self.highest >= earlier.highest
            && !self.holes.iter().any(forgotten)
    }

    /// Whether every number of a range is settled.
    pub fn covers(&self, range: RangeInclusive<u64>) -> bool {
        *range.end() <= self.through || range.into_iter().all(|sequence| self.contains(sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(json: &str) -> Settled {
        serde_json::from_str::<EpochAnswer>(json).unwrap().into()
    }

    fn numbers(settled: &Settled) -> Vec<u64> {
        (1..=20).filter(|sequence| settled.contains(*sequence)).collect()
    }

    #[test]
    fn holes_and_what_is_above_them_are_not_settled() {
        let some = settled(
            r#"{"epoch":"e","settled":3,"highest":12,"missing":3,"holes_truncated":false,
                "holes":[{"first":4,"last":5},{"first":9,"last":9}]}"#,
        );
        assert_eq!(numbers(&some), [1, 2, 3, 6, 7, 8, 10, 11, 12]);
        assert!(some.covers(6..=8) && !some.covers(8..=9) && !some.covers(12..=13));
        assert_eq!(numbers(&Settled::default()), Vec::<u64>::new());
    }

    #[test]
    fn a_ledger_that_has_forgotten_numbers_does_not_keep_what_it_had() {
        let some = |through: u64, highest: u64, holes: &[(u64, u64)]| Settled {
            through,
            highest,
            holes: holes.iter().map(|(first, last)| *first..=*last).collect(),
            known: highest,
        };
        let earlier = some(60, 100, &[(61, 62), (70, 75)]);
        for (now, keeps) in [
            (earlier.clone(), true),
            (some(62, 100, &[(70, 75)]), true),
            (some(60, 140, &[(61, 62), (71, 72), (101, 110)]), true),
            (some(59, 100, &[(60, 62), (70, 75)]), false),
            (some(60, 99, &[(61, 62), (70, 75)]), false),
            (some(60, 140, &[(61, 62), (70, 76)]), false),
            (some(60, 140, &[(61, 62), (81, 100)]), false),
            (some(60, 140, &[(61, 63)]), false),
            (Settled::default(), false),
        ] {
            assert_eq!(now.keeps(&earlier), keeps, "{now:?}");
            assert!(now.keeps(&Settled::default()));
        }
    }

    #[test]
    fn what_is_not_told_is_not_settled() {
        let cut = settled(
            r#"{"epoch":"e","settled":0,"highest":19,"missing":9,"holes_truncated":true,"holes":[{"first":1,"last":2},{"first":5,"last":6}]}"#,
        );
        assert_eq!(numbers(&cut), [3, 4]);
    }
}
