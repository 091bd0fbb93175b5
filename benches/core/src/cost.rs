//! The processor time of a call, on the thread that makes it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Rounds of which the cheapest counts: what interrupts a thread only makes it slower.
const ROUNDS: usize = 25;

/// How long one round takes at least.
const ROUND: Duration = Duration::from_millis(4);

/// The processor time that this thread has taken.
pub fn of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default()) + Duration::from_nanos(nanoseconds)
}

/// Nanoseconds of this thread for one operation, the least of several rounds, with this many operations in each call.
///
/// # Errors
/// The first error of a call.
pub fn nanoseconds<E>(operations: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut calls = 1;
    let mut least = f64::MAX;
    let mut rounds = 0;
    while rounds < ROUNDS {
        let before = of_thread();
        for _ in 0..calls {
            call()?;
        }
        let took = of_thread().saturating_sub(before);
        if took < ROUND && rounds == 0 {
            calls *= 2;
            continue;
        }
        least = least.min(took.as_secs_f64() * 1e9 / (calls * operations) as f64);
        rounds += 1;
    }
    Ok(least)
}

/// Nanoseconds of each of two calls, measured in turns.
pub fn interleaved(turns: usize, mut first: impl FnMut(), mut second: impl FnMut()) -> (f64, f64) {
    let infallible = |call: &mut dyn FnMut()| {
        let result: Result<f64, std::convert::Infallible> = nanoseconds(1, || {
            call();
            Ok(())
        });
        result.unwrap_or_else(|never| match never {})
    };
    (0..turns).fold((f64::MAX, f64::MAX), |(a, b), _| {
        (a.min(infallible(&mut first)), b.min(infallible(&mut second)))
    })
}
