//! When requests are due. A thread of its own waits for each, since the timers of tokio are only as fine as a millisecond.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// So many moments a second for this time, each when it has come. They end early if nothing receives them any more.
pub fn pace(rate: u32, time: Duration) -> UnboundedReceiver<Instant> {
    let (due, moments) = unbounded_channel();
    let (start, interval) = (Instant::now(), Duration::from_secs(1) / rate);
    let total = (time.as_secs_f64() * f64::from(rate)) as u32;
    thread::spawn(move || {
        for number in 0..total {
            let moment = start + interval * number;
            thread::sleep(moment.saturating_duration_since(Instant::now()));
            if due.send(moment).is_err() {
                break;
            }
        }
    });
    moments
}
