//! Findings that somebody answers for: a TOML file with a reason and a last day for each.
//!
//! Invariant: a waiver without a reason or a day is an error; after its day the finding is back, and the waiver is told as expired. One
//! that matches nothing is told too, so the file does not outlive what it excuses.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

use super::Finding;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waivers {
    /// Its entries.
    #[serde(default)]
    pub waiver: Vec<Waiver>,
}

/// One excuse.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// `CBS251`
    pub id: String,
    /// Profiles that it is for; absent: every one.
    #[serde(default)]
    pub profiles: Option<Vec<String>>,
    /// Subjects that it is for; absent: every one.
    #[serde(default)]
    pub subjects: Option<Vec<String>>,
    /// Why.
    pub reason: String,
    /// The last day on which it counts, or `never`.
    pub expires: Expiry,
}

/// The last day of a waiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Expiry {
    /// Reviewed and meant to stay.
    Never,
    /// Counts on this day, not on the next.
    On(Day),
}

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day {
    year: u32,
    month: u32,
    of_month: u32,
}

impl Day {
    /// The day of a moment, in UTC; Howard Hinnant's civil-from-days.
    pub fn of_unix_time(seconds: u64) -> Self {
        let days = seconds / 86_400 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let (day, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self { year: year as u32, month: month as u32, of_month: day as u32 }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.of_month)
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "write the day as YYYY-MM-DD".to_owned();
        let parts: Vec<u32> = text.split('-').map(|part| part.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
        match parts[..] {
            [year, month @ 1..=12, day @ 1..=31] if year >= 1970 => Ok(Self { year, month, of_month: day }),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Expiry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "never" { Ok(Self::Never) } else { text.parse().map(Self::On) }
    }
}

/// Why a waiver file can't be used.
#[derive(Debug, Error)]
pub enum WaiverError {
    /// Not TOML, or a field is missing, unknown or wrong.
    #[error("the waiver file can't be parsed")]
    Parse(#[from] toml::de::Error),
    /// A reason is what a waiver is for.
    #[error("waiver[{0}].reason is empty")]
    Reason(usize),
    /// No such finding.
    #[error("waiver[{0}].id: there is no finding `{1}`")]
    Id(usize, String),
}

impl Waivers {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, WaiverError> {
        let waivers: Self = toml::from_str(text)?;
        for (place, waiver) in waivers.waiver.iter().enumerate() {
            if waiver.reason.trim().is_empty() {
                return Err(WaiverError::Reason(place));
            }
            if super::catalogue::check(&waiver.id).is_none() {
                return Err(WaiverError::Id(place, waiver.id.clone()));
            }
        }
        Ok(waivers)
    }

    /// Marks findings that are waived on this day; gives sentences about waivers that did not count.
    pub fn apply(&self, profile: &str, today: Day, findings: &mut [Finding]) -> Vec<String> {
        let mut told = Vec::new();
        for (place, waiver) in self.waiver.iter().enumerate() {
            let mut hit = false;
            let living = match waiver.expires {
                Expiry::Never => true,
                Expiry::On(day) => today <= day,
            };
            for finding in findings.iter_mut().filter(|finding| waiver.covers(profile, finding)) {
                hit = true;
                if living {
                    finding.waived = Some(waiver.reason.clone());
                }
            }
            match waiver.expires {
                Expiry::On(day) if hit && !living => told.push(format!("waiver[{place}] for {} expired on {day}", waiver.id)),
                Expiry::On(_) | Expiry::Never if !hit && waiver.is_for(profile) => {
                    told.push(format!("waiver[{place}] for {} matches nothing", waiver.id));
                }
                Expiry::On(_) | Expiry::Never => {}
            }
        }
        told
    }
}

impl Waiver {
    fn is_for(&self, profile: &str) -> bool {
        self.profiles.as_ref().is_none_or(|names| names.iter().any(|name| name == profile))
    }

    fn covers(&self, profile: &str, finding: &Finding) -> bool {
        let subject = self.subjects.as_ref().is_none_or(|subjects| subjects.contains(&finding.subject));
        self.id == finding.check.id && subject && self.is_for(profile)
    }
}
