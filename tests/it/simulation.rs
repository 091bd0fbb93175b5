//! Deterministic simulation: the real authorizer and the real key cache run on a paused clock, with a seeded world between
//! them and the issuer. Each world checks P1 to P8; the limits of the reader and of waiters ensure P9.
//!
//! A seed generates a plan, which is data: the shape of the world and a list of events. A plan that violates a property is
//! minimized and printed with its seed. `SIMULATION_SEED=N` runs one seed again with its log, `SIMULATION_SEEDS=N` sets the
//! number of seeds; `tests/run simulation` runs many.
//!
//! # Assumptions
//! The limits of `docs/security.md`: P1 applies once the issuer has had no fault for the time of one fetch and one spacing,
//! and while caches honour `no-cache`. P8 applies by the times that responses carry.

#![allow(
    clippy::disallowed_methods,
    reason = "a world runs on tokio's paused clock, not on the system clock"
)]

mod keys;
mod oracle;
mod plan;
mod process;
mod realms;
mod runner;
mod world;

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};

use self::plan::Plan;

/// The default number of seeds, which is fast. `tests/run` and `tests/run simulation` run more.
const DEFAULT_SEEDS: u64 = 300;

/// Worlds of many realms take longer: one runs per this many seeds.
const SEEDS_PER_REALM_WORLD: u64 = 50;

/// The violation that a plan causes, if any. A panic violates P6.
fn violation(plan: &Plan) -> Option<String> {
    run_world(runner::run(plan))
}

fn run_world(world: impl Future<Output = Option<String>>) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    match panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(world))) {
        Ok(violation) => violation,
        Err(_) => Some("P6: a panic".to_owned()),
    }
}

/// The plan without the events that the violation does not need.
fn minimize(mut plan: Plan) -> Plan {
    let mut size = plan.events.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < plan.events.len() {
            let mut shorter = plan.clone();
            shorter.events.drain(from..(from + size).min(plan.events.len()));
            if violation(&shorter).is_some() {
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

/// The first seed and the number of seeds.
fn seeds(divisor: u64) -> (u64, u64) {
    match number("SIMULATION_SEED") {
        Some(seed) => {
            // A single seed is run for debugging, with its log.
            let _already_initialized =
                tracing_subscriber::fmt().with_ansi(false).with_target(false).try_init();
            (seed, 1)
        }
        None => {
            let count = number("SIMULATION_SEEDS").unwrap_or(DEFAULT_SEEDS);
            (number("SIMULATION_FIRST_SEED").unwrap_or_default(), count.div_ceil(divisor))
        }
    }
}

/// At most a few seeds with a violation; runs one thread per core.
fn failing_seeds(first: u64, count: u64, violation: impl Fn(u64) -> Option<String> + Sync) -> Vec<u64> {
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        let worker = || {
            let mut failing = Vec::new();
            while failing.len() < 3 {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + count {
                    break;
                }
                failing.extend(violation(seed).map(|_| seed));
            }
            failing
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("the worker does not panic")).collect()
    })
}

#[test]
fn in_every_world_the_properties_hold() {
    let (first, count) = seeds(1);
    let failing = failing_seeds(first, count, |seed| violation(&Plan::of_seed(seed)));
    for seed in &failing {
        let plan = minimize(Plan::of_seed(*seed));
        eprintln!("seed {seed}: {}\n{plan:#?}", violation(&plan).unwrap_or_default());
    }
    assert!(failing.is_empty(), "SIMULATION_SEED={} reproduces the violation", failing[0]);
    let checked = runner::CHECKED_FOR_P1.load(Ordering::Relaxed);
    assert!(
        count == 1 || checked * 20 >= count,
        "only {checked} tokens that had to wait were checked for P1"
    );
    println!(
        "{count} worlds from seed {first}, no violation; {checked} tokens that had to wait were checked for P1"
    );
}

#[test]
fn in_every_world_of_many_realms_the_properties_hold() {
    let (first, count) = seeds(SEEDS_PER_REALM_WORLD);
    let violation = |seed| run_world(realms::run(&realms::Plan::of_seed(seed)));
    let failing = failing_seeds(first, count, violation);
    for seed in &failing {
        eprintln!(
            "seed {seed}: {}\n{:#?}",
            violation(*seed).unwrap_or_default(),
            realms::Plan::of_seed(*seed)
        );
    }
    assert!(failing.is_empty(), "SIMULATION_SEED={} reproduces the violation", failing[0]);
    println!("{count} worlds of many realms from seed {first}, no violation");
}
