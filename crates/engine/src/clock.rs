//! Wall clock and monotonic clock: the only module that reads the time.
//!
//! Wall time is used to check tokens and is passed to the core as an argument. Monotonic time is used for refreshes
//! and deadlines, so that a clock that is set back neither delays nor hastens them. It is tokio's clock, which tests
//! can pause, plus the time that the machine was suspended (`CLOCK_BOOTTIME`), since keys age during suspension.
//! [`SteadyClock`] converts monotonic time to wall time, to order events within one process. Clippy forbids the
//! standard library's clocks elsewhere, and tokio's waits until an instant, which ignore suspension.
//!
//! The clock of a machine that shows a time before this program was built is not set yet: no token is checked by it.

#![allow(clippy::disallowed_methods, reason = "the module that wraps the disallowed methods")]

use std::future::Future;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
pub use tokio::time::Instant;

use crate::validation::UnixTime;

/// Longest sleep of a timer between two readings of the clock: timers do not advance during suspension.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// How long a suspension may go unnoticed after it has ended, in microseconds of the machine's awake time: each reading
/// of the monotonic clock would otherwise be three.
const MAX_READING_AGE: u64 = 1_000;

/// How far before the build a clock may be and still be plausible: the build machine's clock may have been ahead, or
/// local time may be read as UTC.
const BUILD_SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// When this program was built, or `SOURCE_DATE_EPOCH` of a reproducible build.
pub fn built_at() -> UnixTime {
    static BUILT_AT: LazyLock<UnixTime> =
        LazyLock::new(|| UnixTime::from_secs(env!("PORTCULLIS_BUILT_AT").parse().unwrap_or_default()));
    *BUILT_AT
}

/// Whether the wall time `now` is plausible for a program built at `built`: it is at most a day before.
pub fn is_plausible(now: UnixTime, built: UnixTime) -> bool {
    now.as_secs_f64() + BUILD_SLACK.as_secs_f64() >= built.as_secs_f64()
}

/// A source of time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clocks.
    #[default]
    System,
    /// A wall time that never advances; for explaining a past decision.
    Fixed(UnixTime),
    /// A wall time that is set by hand, and simulated suspension; for simulations.
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

    /// Whether the wall time is plausible: see [`is_plausible`].
    pub fn is_plausible(&self) -> bool {
        self.is_plausible_reading(self.now())
    }

    /// Whether a reading of this clock is plausible: [`is_plausible`] for the machine's clock. A fixed time always
    /// is.
    pub fn is_plausible_reading(&self, time: UnixTime) -> bool {
        match self {
            Clock::System => is_plausible(time, built_at()),
            Clock::Fixed(_) => true,
            Clock::Simulated(clock) => is_plausible(time, clock.built),
        }
    }

    /// Monotonic time, including time in suspension.
    pub fn monotonic(&self) -> Instant {
        match self {
            Clock::System | Clock::Fixed(_) => monotonic(),
            Clock::Simulated(clock) => Instant::now() + clock.suspended(),
        }
    }

    /// The time since boot, by which processes of one machine can compare their clocks.
    pub fn boot_time(&self) -> BootTime {
        /// Identifies this boot of the kernel.
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

    /// The time since a monotonic instant; zero if it is in the future.
    pub fn elapsed_since(&self, instant: Instant) -> Duration {
        self.monotonic().saturating_duration_since(instant)
    }

    /// Waits until this monotonic instant. If it passes during suspension, this returns within seconds of the
    /// resumption.
    pub async fn sleep_until(&self, instant: Instant) {
        loop {
            let remaining = instant.saturating_duration_since(self.monotonic());
            if remaining.is_zero() {
                return;
            }
            tokio::time::sleep(remaining.min(MAX_SLEEP)).await;
        }
    }

    /// Runs a future until this monotonic instant; `None` if it has not completed by then.
    pub async fn until<T>(&self, instant: Instant, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep_until(instant) => None,
        }
    }
}

/// The machine's wall time since the Unix epoch; zero for a clock before 1970.
pub fn since_epoch() -> Duration {
    since_epoch_at(SystemTime::now())
}

fn since_epoch_at(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The machine's wall time as an HTTP date (RFC 9110 §5.6.7); `None` for a year beyond four digits.
pub fn http_date() -> Option<http::HeaderValue> {
    date_of(Clock::System.now())
}

fn date_of(now: UnixTime) -> Option<http::HeaderValue> {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let now = time::OffsetDateTime::from_unix_timestamp(now.as_secs_f64() as i64).ok()?;
    let text = (0..=9999).contains(&now.year()).then(|| now.format(FORMAT).ok()).flatten()?;
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

/// The time since boot, including suspension; it never steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTime {
    /// The boot id; `None` if the machine has none, so that times cannot be compared.
    pub boot: Option<String>,
    /// Microseconds since boot.
    pub micros: i64,
}

/// A wall clock that is set by hand, independent of monotonic time, which is tokio's.
#[derive(Debug)]
pub struct SimulatedClock {
    /// Wall time at `started`, in milliseconds since the Unix epoch; changed by steps.
    wall_ms: AtomicI64,
    started: Instant,
    suspended_ms: AtomicU64,
    built: UnixTime,
}

impl SimulatedClock {
    /// A clock that starts at this wall time and advances.
    pub fn starting_at(now: UnixTime) -> Self {
        let wall_ms = AtomicI64::new((now.as_secs_f64() * 1000.0) as i64);
        let built = UnixTime::from_secs(i64::MIN / 2);
        Self { wall_ms, started: Instant::now(), suspended_ms: AtomicU64::new(0), built }
    }

    /// The same clock, for a program built at this time.
    #[must_use]
    pub fn built_at(mut self, built: UnixTime) -> Self {
        self.built = built;
        self
    }

    /// Steps the wall clock by this many milliseconds.
    pub fn step_ms(&self, by: i64) {
        self.wall_ms.fetch_add(by, Ordering::SeqCst);
    }

    /// Suspends the machine for this long: timers do not advance, both clocks do.
    pub fn sleep(&self, time: Duration) {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2);
        self.suspended_ms.fetch_add(time, Ordering::SeqCst);
    }

    fn boot_time(&self) -> BootTime {
        let since = Instant::now().saturating_duration_since(self.started) + self.suspended();
        let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        BootTime { boot: Some("simulated".to_owned()), micros }
    }

    fn suspended(&self) -> Duration {
        Duration::from_millis(self.suspended_ms.load(Ordering::SeqCst))
    }

    fn now(&self) -> UnixTime {
        let elapsed = Instant::now().saturating_duration_since(self.started) + self.suspended();
        UnixTime::from_secs_f64(self.wall_ms.load(Ordering::SeqCst) as f64 / 1000.0 + elapsed.as_secs_f64())
    }
}

/// A wall time that never steps: a reading of the wall clock plus the monotonic time since then. Two readings are in
/// order even if the wall clock was set in between.
#[derive(Clone, Debug)]
pub struct SteadyClock {
    clock: Clock,
    wall: UnixTime,
    at: Instant,
}

impl SteadyClock {
    /// Starts at the current time of this clock.
    pub fn start(clock: &Clock) -> Self {
        Self { clock: clock.clone(), wall: clock.now(), at: clock.monotonic() }
    }

    /// Monotonic time.
    pub fn monotonic(&self) -> Instant {
        self.clock.monotonic()
    }

    /// The wall time at its start, in microseconds since the Unix epoch.
    pub fn start_micros(&self) -> i64 {
        (self.wall.as_secs_f64() * 1e6) as i64
    }

    /// The time since boot.
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

/// Monotonic time, including time in suspension.
pub fn monotonic() -> Instant {
    let awake = Instant::now();
    awake + suspended(awake)
}

/// Monotonic time without time in suspension, for timeouts of connections: one reading of a clock instead of three.
pub fn awake() -> Instant {
    Instant::now()
}

/// How long the machine has been suspended since the first call. `awake` is now; the clocks are read again if the last
/// reading is at least [`MAX_READING_AGE`] before.
fn suspended(awake: Instant) -> Duration {
    /// When the program read its first time.
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    /// When the clocks are to be read again, in microseconds after `FIRST`.
    static NEXT_READING: AtomicU64 = AtomicU64::new(0);
    /// Microseconds between the two clocks at the first reading.
    static INITIAL: LazyLock<u64> = LazyLock::new(suspended_micros);
    /// The latest difference that exceeds the noise of two consecutive readings.
    static SUSPENDED: AtomicU64 = AtomicU64::new(0);
    /// Suspensions are longer than this.
    const NOISE_MICROS: u64 = 500_000;

    let micros = u64::try_from(awake.saturating_duration_since(*FIRST).as_micros()).unwrap_or(u64::MAX);
    let next_reading = NEXT_READING.load(Ordering::Relaxed);
    // A paused clock of another test may be ahead of this one.
    let is_recent = micros < next_reading && next_reading - micros <= MAX_READING_AGE;
    if is_recent {
        return Duration::from_micros(SUSPENDED.load(Ordering::Relaxed));
    }
    NEXT_READING.store(micros.saturating_add(MAX_READING_AGE), Ordering::Relaxed);
    let difference = suspended_micros().saturating_sub(*INITIAL);
    if difference > SUSPENDED.load(Ordering::Relaxed).saturating_add(NOISE_MICROS) {
        SUSPENDED.fetch_max(difference, Ordering::Relaxed);
    }
    Duration::from_micros(SUSPENDED.load(Ordering::Relaxed))
}

/// Difference between the clock that includes suspension and the one that does not.
fn suspended_micros() -> u64 {
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

/// A wall time in RFC 3339, UTC, in seconds.
pub fn rfc3339(time: UnixTime) -> String {
    time::OffsetDateTime::from_unix_timestamp(time.as_secs_f64() as i64)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}

/// Parses RFC 3339, or seconds since the Unix epoch.
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

/// The time since a monotonic instant; zero if it is in the future.
pub fn elapsed_since(instant: Instant) -> Duration {
    monotonic().saturating_duration_since(instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_plausible_from_a_day_before_the_build() {
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
        assert!(Clock::Fixed(UnixTime::from_secs(0)).is_plausible(), "a fixed time is always plausible");
    }

    #[test]
    fn a_clock_before_1970_reads_as_1970() {
        let epoch = SystemTime::UNIX_EPOCH;
        for (by, seconds) in
            [(i64::MIN, 0), (-86_400, 0), (-1, 0), (0, 0), (1, 1), (i64::MAX, i64::MAX as u64)]
        {
            let offset = Duration::from_secs(by.unsigned_abs());
            let now = if by < 0 { epoch.checked_sub(offset) } else { epoch.checked_add(offset) };
            assert_eq!(since_epoch_at(now.expect("the system has it")), Duration::from_secs(seconds), "{by}");
        }
    }

    #[test]
    fn an_http_date_exists_for_years_of_four_digits() {
        for (seconds, date) in [
            (784_111_777, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            (0, Some("Thu, 01 Jan 1970 00:00:00 GMT")),
            (-86_400, Some("Wed, 31 Dec 1969 00:00:00 GMT")),
            (253_402_300_799, Some("Fri, 31 Dec 9999 23:59:59 GMT")),
            (253_402_300_800, None),
            (i64::MAX, None),
            (i64::MIN, None),
        ] {
            let formatted = date_of(UnixTime::from_secs(seconds));
            assert_eq!(formatted.as_ref().map(|date| date.to_str().expect("text")), date, "{seconds}");
        }
    }
}
