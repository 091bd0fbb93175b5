//! The one place where time is read.
//!
//! Wall time judges tokens and is handed to the core as an argument. Monotonic time paces refreshes and
//! deadlines, so that a clock that is set back neither stops nor hurries them. It is tokio's, so that tests can
//! pause it, and it counts the time that a suspended machine slept (`CLOCK_BOOTTIME`), since keys age meanwhile.
//! [`SteadyClock`] puts wall time on the monotonic line, for comparing what happened when within one process.
//! Clippy forbids the standard library's clocks elsewhere, and tokio's waits until an instant, which know nothing of a
//! machine's sleep.
//!
//! A machine whose clock stands before this program was built has not been told the time: what it says judges no token.

#![allow(clippy::disallowed_methods, reason = "this is the room that the lint sends everybody to")]

use std::future::Future;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
pub use tokio::time::Instant;

use crate::validation::UnixTime;

/// A wait is looked at this often: a timer of the system does not run while the machine sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// How far a clock may stand before the build and still count: the machine of the build may have been ahead, or a clock of
/// the local time may be read as one of UTC.
const BUILD_SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// When this program was built, or what reproducible builds say instead of it (`SOURCE_DATE_EPOCH`).
pub fn built_at() -> UnixTime {
    UnixTime::from_secs(env!("PORTCULLIS_BUILT_AT").parse().unwrap_or_default())
}

/// Whether a wall clock of this time can be right in a program that was built then; a day before that still counts.
pub fn is_plausible(now: UnixTime, built: UnixTime) -> bool {
    now.as_secs_f64() + BUILD_SLACK.as_secs_f64() >= built.as_secs_f64()
}

/// Where time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clocks.
    #[default]
    System,
    /// Wall time that stands still; for explaining a decision of the past.
    Fixed(UnixTime),
    /// Wall time that is moved by hand, and a machine that can sleep; for simulations.
    Simulated(Arc<SimulatedClock>),
}

impl Clock {
    /// The wall time. A machine's clock before 1970 reads as 1970.
    pub fn now(&self) -> UnixTime {
        match self {
            Clock::System => UnixTime::from_epoch(since_epoch()),
            Clock::Fixed(time) => *time,
            Clock::Simulated(clock) => clock.now(),
        }
    }

    /// Whether the wall time can be right: see [`is_plausible`].
    pub fn is_plausible(&self) -> bool {
        self.may_have_shown(self.now())
    }

    /// Whether a reading of this clock can have been right: [`is_plausible`] of the machine's clock. A time that is set for
    /// an explanation is as it is meant.
    pub fn may_have_shown(&self, time: UnixTime) -> bool {
        match self {
            Clock::System => is_plausible(time, built_at()),
            Clock::Fixed(_) => true,
            Clock::Simulated(clock) => is_plausible(time, clock.built),
        }
    }

    /// Monotonic time, the time that the machine slept included.
    pub fn monotonic(&self) -> Instant {
        match self {
            Clock::System | Clock::Fixed(_) => monotonic(),
            Clock::Simulated(clock) => Instant::now() + clock.slept(),
        }
    }

    /// The time since the machine was started, by which processes of one machine can compare their clocks.
    pub fn boot_time(&self) -> BootTime {
        /// Names this run of the machine's kernel.
        static BOOT: LazyLock<Option<String>> = LazyLock::new(|| {
            let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            Some(id.trim().to_owned()).filter(|id| !id.is_empty())
        });
        match self {
            Clock::System | Clock::Fixed(_) => {
                let micros = i64::try_from(boot_micros()).unwrap_or(i64::MAX);
                BootTime { boot: BOOT.clone(), micros }
            }
            Clock::Simulated(clock) => clock.boot_time(),
        }
    }

    /// How long ago a monotonic instant was; zero for one that is yet to come.
    pub fn elapsed_since(&self, instant: Instant) -> Duration {
        self.monotonic().saturating_duration_since(instant)
    }

    /// Waits until this monotonic instant. Where the machine slept over it, it returns within seconds of the
    /// awakening.
    pub async fn sleep_until(&self, instant: Instant) {
        loop {
            let left = instant.saturating_duration_since(self.monotonic());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }

    /// Runs a future until this monotonic instant at the latest; `None` where it was not done by then.
    pub async fn until<T>(&self, instant: Instant, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = self.sleep_until(instant) => None,
        }
    }
}

/// How long ago 1970 began by the machine's wall time; zero by a clock that stands before that.
pub fn since_epoch() -> Duration {
    since_epoch_at(SystemTime::now())
}

fn since_epoch_at(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The machine's wall time as HTTP has it (RFC 9110 §5.6.7); `None` for a year that it has no digits for.
pub fn http_date() -> Option<http::HeaderValue> {
    date_of(Clock::System.now())
}

fn date_of(now: UnixTime) -> Option<http::HeaderValue> {
    const FORM: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let now = time::OffsetDateTime::from_unix_timestamp(now.as_secs_f64() as i64).ok()?;
    let text = (0..=9999).contains(&now.year()).then(|| now.format(FORM).ok()).flatten()?;
    http::HeaderValue::try_from(text).ok()
}

/// [`Clock::sleep_until`] of the machine's clock.
pub async fn sleep_until(instant: Instant) {
    Clock::System.sleep_until(instant).await;
}

/// [`Clock::until`] of the machine's clock.
pub async fn until<T>(instant: Instant, future: impl Future<Output = T>) -> Option<T> {
    Clock::System.until(instant, future).await
}

/// The time since the machine was started, its sleep included; it never steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTime {
    /// Which start that was; `None` where the machine does not say, so that nothing can be compared.
    pub boot: Option<String>,
    /// Microseconds since then.
    pub micros: i64,
}

/// A clock on the wall that is moved by hand, apart from monotonic time, which is tokio's.
#[derive(Debug)]
pub struct SimulatedClock {
    /// Wall time at `started`, in milliseconds since the Unix epoch; changed by steps.
    wall_ms: AtomicI64,
    started: Instant,
    slept_ms: AtomicU64,
    built: UnixTime,
}

impl SimulatedClock {
    /// A clock that shows this wall time now and goes on from there.
    pub fn starting_at(now: UnixTime) -> Self {
        let wall_ms = AtomicI64::new((now.as_secs_f64() * 1000.0) as i64);
        let built = UnixTime::from_secs(i64::MIN / 2);
        Self { wall_ms, started: Instant::now(), slept_ms: AtomicU64::new(0), built }
    }

    /// The same, of a machine whose program was built at this time.
    #[must_use]
    pub fn built_at(mut self, built: UnixTime) -> Self {
        self.built = built;
        self
    }

    /// Sets the clock on the wall ahead by this many milliseconds, or back where it is negative.
    pub fn step_ms(&self, by: i64) {
        self.wall_ms.fetch_add(by, Ordering::SeqCst);
    }

    /// Lets the machine sleep for this long: timers stand still, both clocks go on.
    pub fn sleep(&self, time: Duration) {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2);
        self.slept_ms.fetch_add(time, Ordering::SeqCst);
    }

    fn boot_time(&self) -> BootTime {
        let since = Instant::now().saturating_duration_since(self.started) + self.slept();
        let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        BootTime { boot: Some("simulated".to_owned()), micros }
    }

    fn slept(&self) -> Duration {
        Duration::from_millis(self.slept_ms.load(Ordering::SeqCst))
    }

    fn now(&self) -> UnixTime {
        let went_on = Instant::now().saturating_duration_since(self.started) + self.slept();
        UnixTime::from_secs_f64(self.wall_ms.load(Ordering::SeqCst) as f64 / 1000.0 + went_on.as_secs_f64())
    }
}

/// Wall time that never steps: what the wall showed once, and the monotonic time since then. Two of its readings
/// tell which was first, whatever became of the clock on the wall meanwhile.
#[derive(Clone, Debug)]
pub struct SteadyClock {
    clock: Clock,
    wall: UnixTime,
    at: Instant,
}

impl SteadyClock {
    /// Begins with what this clock shows now.
    pub fn beginning_now(clock: &Clock) -> Self {
        Self { clock: clock.clone(), wall: clock.now(), at: clock.monotonic() }
    }

    /// Monotonic time.
    pub fn monotonic(&self) -> Instant {
        self.clock.monotonic()
    }

    /// What it began with, in microseconds since the Unix epoch.
    pub fn beginning_micros(&self) -> i64 {
        (self.wall.as_secs_f64() * 1e6) as i64
    }

    /// The time since the machine was started.
    pub fn boot_time(&self) -> BootTime {
        self.clock.boot_time()
    }

    /// Microseconds since the Unix epoch.
    pub fn now_micros(&self) -> i64 {
        let micros = self.wall.as_secs_f64() * 1e6 + self.clock.elapsed_since(self.at).as_secs_f64() * 1e6;
        // Casts of floats saturate.
        micros as i64
    }
}

/// Monotonic time, the time that the machine slept included.
pub fn monotonic() -> Instant {
    Instant::now() + slept()
}

/// How long the machine has been suspended since this process first asked.
fn slept() -> Duration {
    /// Microseconds between the two clocks at the first reading.
    static AT_FIRST: LazyLock<u64> = LazyLock::new(asleep_micros);
    /// The same at the last reading that differed by more than two readings one after the other do.
    static NOTED: AtomicU64 = AtomicU64::new(0);
    /// Machines sleep for longer than that.
    const NOISE_MICROS: u64 = 500_000;

    let asleep = asleep_micros().saturating_sub(*AT_FIRST);
    if asleep > NOTED.load(Ordering::Relaxed).saturating_add(NOISE_MICROS) {
        NOTED.fetch_max(asleep, Ordering::Relaxed);
    }
    Duration::from_micros(NOTED.load(Ordering::Relaxed))
}

/// How far the clock that counts sleep is ahead of the one that does not.
fn asleep_micros() -> u64 {
    let awake = micros_of(ClockId::Monotonic);
    boot_micros().saturating_sub(awake)
}

fn boot_micros() -> u64 {
    micros_of(ClockId::Boottime)
}

fn micros_of(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let micros = u64::try_from(time.tv_nsec).unwrap_or_default() / 1_000;
    u64::try_from(time.tv_sec).unwrap_or_default().saturating_mul(1_000_000).saturating_add(micros)
}

/// A wall time as RFC 3339 in UTC, to the second.
pub fn rfc3339(time: UnixTime) -> String {
    time::OffsetDateTime::from_unix_timestamp(time.as_secs_f64() as i64)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}

/// Reads a time: RFC 3339, or seconds since the Unix epoch.
///
/// # Errors
/// It is neither.
pub fn parse_time(text: &str) -> Result<UnixTime, &'static str> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(UnixTime::from_secs(seconds));
    }
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map(|time| UnixTime::from_secs(time.unix_timestamp()))
        .map_err(|_| "expected RFC 3339, such as 2026-01-31T12:00:00Z, or Unix seconds")
}

/// How long ago a monotonic instant was; zero for one that is yet to come.
pub fn elapsed_since(instant: Instant) -> Duration {
    monotonic().saturating_duration_since(instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_can_be_right_from_a_day_before_the_build_on() {
        let built = UnixTime::from_secs(1_800_000_000);
        for (now, plausible) in [
            (i64::MIN / 2, false),
            (0, false),
            (1_800_000_000 - 24 * 60 * 60 - 1, false),
            (1_800_000_000 - 24 * 60 * 60, true),
            (1_800_000_000, true),
            (253_402_300_800, true),
        ] {
            assert_eq!(is_plausible(UnixTime::from_secs(now), built), plausible, "{now}");
        }
        assert!(is_plausible(Clock::System.now(), built_at()), "this machine's clock after this build");
        assert!(Clock::Fixed(UnixTime::from_secs(0)).is_plausible(), "it is as it is meant");
    }

    #[test]
    fn a_clock_before_1970_reads_as_1970() {
        let epoch = SystemTime::UNIX_EPOCH;
        for (by, seconds) in
            [(i64::MIN, 0), (-86_400, 0), (-1, 0), (0, 0), (1, 1), (i64::MAX, i64::MAX as u64)]
        {
            let away = Duration::from_secs(by.unsigned_abs());
            let now = if by < 0 { epoch.checked_sub(away) } else { epoch.checked_add(away) };
            assert_eq!(since_epoch_at(now.expect("the system has it")), Duration::from_secs(seconds), "{by}");
        }
    }

    #[test]
    fn the_date_of_http_is_that_of_any_clock_or_none() {
        for (seconds, date) in [
            (784_111_777, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            (0, Some("Thu, 01 Jan 1970 00:00:00 GMT")),
            (-86_400, Some("Wed, 31 Dec 1969 00:00:00 GMT")),
            (253_402_300_799, Some("Fri, 31 Dec 9999 23:59:59 GMT")),
            (253_402_300_800, None),
            (i64::MAX, None),
            (i64::MIN, None),
        ] {
            let made = date_of(UnixTime::from_secs(seconds));
            assert_eq!(made.as_ref().map(|date| date.to_str().expect("text")), date, "{seconds}");
        }
    }
}
