//! The Gregorian calendar, also for the years before it was begun: seconds since the Unix epoch, and what people write.

const DAY: i64 = 24 * 60 * 60;

/// Days in 400 years, after which everything comes again, the days of the week too.
const CYCLE: i64 = 400 * 365 + 97;

/// From 0000-01-01 to the Unix epoch.
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
    /// From the one on which year 0000 began.
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

/// One of a year's twelve, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Month(usize);

/// Each with its days in a common year.
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

/// How many days each month of a year has, in their order.
fn lengths(year: i64) -> impl Iterator<Item = i64> {
    MONTHS.into_iter().map(move |(name, days)| if name == "Feb" && is_leap(year) { days + 1 } else { days })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 0000-01-01 to the first day of a year, which is none before 0: a leap year counts from the next one on.
const fn days_before_year(year: i64) -> i64 {
    year * 365 + (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400
}

/// A second as people write it, in UTC.
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
    /// The one so many seconds after the Unix epoch, from year 0 on.
    pub(crate) fn of(seconds: i64) -> Self {
        let (days, in_day) = (seconds.div_euclid(DAY) + EPOCH, seconds.rem_euclid(DAY));
        // Leap years are spread unevenly over the cycle, so that this may be the year before or after.
        let about = days * 400 / CYCLE;
        let year = match about {
            _ if days < days_before_year(about) => about - 1,
            _ if days < days_before_year(about + 1) => about,
            _ => about + 1,
        };
        let (mut month, mut left) = (0, days - days_before_year(year));
        for length in lengths(year) {
            if left < length {
                break;
            }
            (month, left) = (month + 1, left - length);
        }
        Self {
            weekday: Weekday::of(days),
            year,
            month: Month(month),
            day: left + 1,
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
        }
    }

    /// Seconds since the Unix epoch; `None` where there is no such day of this name, or no such time of the day. There
    /// may be a 60th second.
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
