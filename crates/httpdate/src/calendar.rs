//! The proleptic Gregorian calendar: conversion between seconds since the Unix epoch and calendar fields.

const DAY: i64 = 24 * 60 * 60;

/// The days in 400 years, after which the calendar repeats, including the days of the week.
const CYCLE: i64 = 400 * 365 + 97;

/// The days from 0000-01-01 to the Unix epoch.
const EPOCH: i64 = days_before_year(1970);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weekday {
    Sun,
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
}

impl Weekday {
    /// Begins with the day of the week of 0000-01-01.
    const SINCE_YEAR_0: [Self; 7] =
        [Self::Sat, Self::Sun, Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri];

    fn of(days: i64) -> Self {
        usize::try_from(days.rem_euclid(7))
            .ok()
            .and_then(|at| Self::SINCE_YEAR_0.get(at))
            .copied()
            .unwrap_or(Self::Sat)
    }

    /// `day-name`.
    pub(crate) fn short(self) -> &'static str {
        self.long().get(..3).unwrap_or_default()
    }

    /// `day-name-l`.
    pub(crate) fn long(self) -> &'static str {
        match self {
            Self::Sun => "Sunday",
            Self::Mon => "Monday",
            Self::Tue => "Tuesday",
            Self::Wed => "Wednesday",
            Self::Thu => "Thursday",
            Self::Fri => "Friday",
            Self::Sat => "Saturday",
        }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::SINCE_YEAR_0.into_iter()
    }
}

/// A month, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Month(usize);

/// The months with their days in a common year.
const MONTHS: [(&str, i64); 12] = [
    ("Jan", 31),
    ("Feb", 28),
    ("Mar", 31),
    ("Apr", 30),
    ("May", 31),
    ("Jun", 30),
    ("Jul", 31),
    ("Aug", 31),
    ("Sep", 30),
    ("Oct", 31),
    ("Nov", 30),
    ("Dec", 31),
];

impl Month {
    pub(crate) fn named(name: &str) -> Option<Self> {
        MONTHS.iter().position(|(known, _)| *known == name).map(Self)
    }

    pub(crate) fn name(self) -> &'static str {
        MONTHS.get(self.0).map_or("Dec", |(name, _)| name)
    }
}

/// The lengths of a year's months in days.
fn lengths(year: i64) -> impl Iterator<Item = i64> {
    MONTHS.into_iter().map(move |(name, days)| if name == "Feb" && is_leap(year) { days + 1 } else { days })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// The days from 0000-01-01 to the first day of a year that is not negative: a leap day counts from the next year
/// on.
const fn days_before_year(year: i64) -> i64 {
    year * 365 + (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400
}

/// A second in UTC as calendar fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Civil {
    pub(crate) weekday: Weekday,
    /// From 0 to 9999.
    pub(crate) year: i64,
    pub(crate) month: Month,
    /// From 1.
    pub(crate) day: i64,
    pub(crate) hour: i64,
    pub(crate) minute: i64,
    pub(crate) second: i64,
}

impl Civil {
    /// The fields of a second since the Unix epoch, from year 0 on.
    pub(crate) fn of(seconds: i64) -> Self {
        let (days, in_day) = (seconds.div_euclid(DAY) + EPOCH, seconds.rem_euclid(DAY));
        // Leap years are not evenly distributed, so this may be the year before or after.
        let estimate = days * 400 / CYCLE;
        let year = match estimate {
            _ if days < days_before_year(estimate) => estimate - 1,
            _ if days < days_before_year(estimate + 1) => estimate,
            _ => estimate + 1,
        };
        let (mut month, mut remaining) = (0, days - days_before_year(year));
        for length in lengths(year) {
            if remaining < length {
                break;
            }
            (month, remaining) = (month + 1, remaining - length);
        }
        Self {
            weekday: Weekday::of(days),
            year,
            month: Month(month),
            day: remaining + 1,
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
        }
    }

    /// Seconds since the Unix epoch; `None` if there is no such date with this day of the week, or no such time of
    /// day. A 60th second is valid.
    pub(crate) fn seconds(self) -> Option<i64> {
        let Self { weekday, year, month, day, hour, minute, second } = self;
        let length = lengths(year).nth(month.0)?;
        let exists = (0..=9999).contains(&year)
            && (1..=length).contains(&day)
            && (0..24).contains(&hour)
            && (0..60).contains(&minute)
            && (0..=60).contains(&second);
        if !exists {
            return None;
        }
        let days = days_before_year(year) + lengths(year).take(month.0).sum::<i64>() + day - 1;
        (Weekday::of(days) == weekday).then(|| (days - EPOCH) * DAY + hour * 3600 + minute * 60 + second)
    }
}
