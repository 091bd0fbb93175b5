//! The world as a simulation: the real authorizer and the real key cache on a paused clock, with a seeded world between
//! them and the issuer. P1 to P8 are checked in each world; P9 is held by the bounds of the reader and of waiting.
//!
//! A seed makes a plan, which is data: the shape of the world and a list of events. A plan that breaks a property is
//! printed with its seed and made as short as it still breaks it. `SIMULATION_SEED=N` plays one seed again, with its log,
//! and `SIMULATION_SEEDS=N` says how many are played; `tests/run simulation` plays many.
//!
//! # What is assumed of the world
//! The limits of `docs/security.md`: P1 is claimed while nothing has been wrong with the issuer for as long as one fetch
//! and one spacing take, and while caches heed `no-cache`. P8 is claimed by what answers say of when they were made.

#![allow(
    clippy::disallowed_methods,
    reason = "the time of a world is tokio's, which is paused, and not this machine's"
)]

mod keys;
mod oracle;
mod plan;
mod play;
mod process;
mod realms;
mod world;

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};

use self::plan::Plan;

/// So many where nobody says how many: these answer soon. `tests/run` plays more, and `tests/run simulation` for long.
const SEEDS: u64 = 300;

/// Worlds of many realms are longer, and one in so many.
const ONE_OF_REALMS_IN: u64 = 50;

/// What a plan breaks, if anything. A panic is P6.
fn finding(plan: &Plan) -> Option<String> {
    in_a_world(play::play(plan))
}

fn in_a_world(world: impl Future<Output = Option<String>>) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    match panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(world))) {
        Ok(finding) => finding,
        Err(_) => Some("P6: a panic".to_owned()),
    }
}

/// The plan without every event that the finding can do without.
fn shrunk(mut plan: Plan) -> Plan {
    let mut size = plan.events.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < plan.events.len() {
            let mut shorter = plan.clone();
            shorter.events.drain(from..(from + size).min(plan.events.len()));
            if finding(&shorter).is_some() {
                plan = shorter;
            } else {
                from += size;
            }
        }
        size /= 2;
    }
    plan
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Which seeds are played, from the first one on.
fn seeds(every: u64) -> (u64, u64) {
    match number("SIMULATION_SEED") {
        Some(seed) => {
            // Whoever plays one seed again wants to see what happens.
            let _started_before = tracing_subscriber::fmt().with_ansi(false).with_target(false).try_init();
            (seed, 1)
        }
        None => {
            let count = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
            (number("SIMULATION_FIRST_SEED").unwrap_or_default(), count.div_ceil(every))
        }
    }
}

/// The seeds that break something, at most a few; on as many threads as there are cores.
fn broken(first: u64, count: u64, finding: impl Fn(u64) -> Option<String> + Sync) -> Vec<u64> {
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        let play = || {
            let mut broken = Vec::new();
            while broken.len() < 3 {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + count {
                    break;
                }
                broken.extend(finding(seed).map(|_| seed));
            }
            broken
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(play)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no world breaks the test itself"))
            .collect()
    })
}

#[test]
fn in_every_world_the_properties_hold() {
    let (first, count) = seeds(1);
    let broken = broken(first, count, |seed| finding(&Plan::of_seed(seed)));
    for seed in &broken {
        let plan = shrunk(Plan::of_seed(*seed));
        eprintln!("seed {seed}: {}\n{plan:#?}", finding(&plan).unwrap_or_default());
    }
    assert!(broken.is_empty(), "SIMULATION_SEED={} plays it again", broken[0]);
    let held = play::HELD_TO_P1.load(Ordering::Relaxed);
    assert!(count == 1 || held * 20 >= count, "only {held} tokens that had to wait were held to P1");
    println!("{count} worlds from seed {first}, no finding; {held} tokens that had to wait were held to P1");
}

#[test]
fn in_every_world_of_many_realms_the_properties_hold() {
    let (first, count) = seeds(ONE_OF_REALMS_IN);
    let finding = |seed| in_a_world(realms::play(&realms::Plan::of_seed(seed)));
    let broken = broken(first, count, finding);
    for seed in &broken {
        eprintln!("seed {seed}: {}\n{:#?}", finding(*seed).unwrap_or_default(), realms::Plan::of_seed(*seed));
    }
    assert!(broken.is_empty(), "SIMULATION_SEED={} plays it again", broken[0]);
    println!("{count} worlds of many realms from seed {first}, no finding");
}
