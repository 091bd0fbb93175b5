//! A world and its events, as data that a seed generates.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// A world and its events.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub shape: Shape,
    pub events: Vec<Event>,
}

/// The network between the service and its issuer.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Whether a discovery document names the key URL.
    pub discovery: bool,
    /// Whether the key URL redirects to another one.
    pub redirects: bool,
    /// The number of caches in front of the issuer; each request goes through a random one.
    pub edges: u8,
    /// Whether they forward a request with `no-cache` to the issuer.
    pub edges_honour_no_cache: bool,
    /// How long they store a response.
    pub edge_ttl_ms: u64,
    /// Whether responses have a `Date`.
    pub dates: bool,
    pub validators: Validators,
    /// The offsets of the replicas' clocks from the true time.
    pub replica_offsets_secs: Vec<i64>,
    /// How long every replica except the first publishes the old set.
    pub replica_lag_ms: u64,
    pub interval_ms: u64,
    pub bad_signature_spacing_ms: u64,
    pub wait_ms: u64,
    /// The number of processes that share a folder and the issuer.
    pub processes: u8,
    /// The initial offset of our wall clock from the true time.
    pub own_offset_secs: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validators {
    None,
    /// They change with the content.
    Honest,
    /// They never change.
    Constant,
}

/// One event.
#[derive(Clone, Debug)]
pub enum Event {
    Pause(u64),
    /// The issuer signs with a new key and still publishes the old ones.
    Rotate,
    /// The issuer signs with a new key and withdraws the old ones.
    RotateAndWithdraw,
    /// The signing key gets other material under the same `kid`.
    Rekey,
    /// A key is published this many milliseconds before it signs.
    Announce(u64),
    /// The oldest key that does not sign is withdrawn.
    Withdraw,
    /// A withdrawn key is published again and signs.
    Republish,
    /// Concurrent valid tokens to one process, each with this timeout.
    Valid {
        count: u8,
        process: u8,
        timeout_ms: u64,
    },
    /// A token of a withdrawn key.
    Withdrawn {
        process: u8,
    },
    UnknownKid {
        count: u8,
        process: u8,
    },
    Forged {
        count: u8,
        process: u8,
    },
    Expired {
        count: u8,
        process: u8,
    },
    /// A client with an unknown `kid` cancels its request.
    Cancel {
        process: u8,
    },
    /// Sets the mode of the issuer.
    Issuer(IssuerMode),
    /// Sets the latency of a response in milliseconds.
    Latency(u64),
    /// The document names another key URL; the old one still serves its set.
    Move,
    Restart {
        process: u8,
    },
    /// From now on writes fail.
    DiskFull,
    DiskFreed,
    /// Our wall clock steps by this many seconds.
    StepClock(i64),
    /// Our machine is suspended for this many milliseconds.
    Suspend(u64),
}

/// How the issuer answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssuerMode {
    Healthy,
    /// Never answers.
    Hangs,
    Fails(u16),
    /// Fails requests with `no-cache`.
    FailsNoCache,
    /// Answers with a body that is not a key set.
    Garbage,
    EmptySet,
    /// Fails every second request.
    Flaps,
}

impl Shape {
    /// Whether a replica's clock is behind by more than the tolerance: a withdrawal in its responses is ignored until its
    /// date has caught up.
    pub fn has_clock_behind(&self) -> bool {
        self.dates && self.replica_offsets_secs.iter().any(|offset| *offset < -5)
    }
}

impl Plan {
    /// The plan that this seed generates.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rng = &mut rng;
        let edges = if rng.random_bool(0.5) { rng.random_range(1..=3) } else { 0 };
        let shape = Shape {
            discovery: rng.random_bool(0.4),
            redirects: rng.random_bool(0.2),
            edges,
            edges_honour_no_cache: rng.random_bool(0.8),
            edge_ttl_ms: rng.random_range(1_000..60_000),
            dates: rng.random_bool(0.8),
            validators: pick(rng, &[Validators::None, Validators::Honest, Validators::Constant]),
            replica_offsets_secs: offsets(rng),
            replica_lag_ms: if rng.random_bool(0.15) { rng.random_range(100..8_000) } else { 0 },
            interval_ms: pick(rng, &[5_000, 20_000, 60_000]),
            bad_signature_spacing_ms: pick(rng, &[1_000, 10_000]),
            wait_ms: pick(rng, &[2_000, 2_000, 4_200]),
            processes: pick(rng, &[1, 1, 1, 2]),
            own_offset_secs: pick(rng, &[0, 0, 0, -3_600, 3_600, 86_400, -86_400]),
        };
        let count = rng.random_range(4..28);
        let without_faults = rng.random_bool(0.3);
        let events = (0..count).map(|_| event(rng, without_faults)).collect();
        Self { seed, shape, events }
    }
}

fn offsets(rng: &mut SmallRng) -> Vec<i64> {
    match rng.random_range(0..10) {
        0 => vec![0, rng.random_range(-90..90)],
        1 | 2 => vec![rng.random_range(-2..=2), rng.random_range(-2..=2)],
        3 => vec![pick(rng, &[-3_600, 3_600, 86_400])],
        _ => vec![0],
    }
}

fn event(rng: &mut SmallRng, without_faults: bool) -> Event {
    let process = rng.random_range(0..2);
    match rng.random_range(0..if without_faults { 60 } else { 100 }) {
        0..12 => Event::Pause(pick(rng, &[10, 300, 900, 1_100, 3_000, 12_000])),
        12..18 => Event::Rotate,
        18..22 => Event::RotateAndWithdraw,
        22..25 => Event::Rekey,
        25..27 => Event::Announce(pick(rng, &[100, 2_000, 30_000])),
        27..30 => Event::Withdraw,
        30..31 => Event::Republish,
        31..46 => Event::Valid {
            count: pick(rng, &[1, 1, 2, 5]),
            process,
            timeout_ms: pick(rng, &[180, 5_000, 5_000, 5_000]),
        },
        46..50 => Event::Withdrawn { process },
        50..54 => Event::UnknownKid { count: pick(rng, &[1, 3]), process },
        54..58 => Event::Forged { count: pick(rng, &[1, 3]), process },
        58..60 => Event::Expired { count: 2, process },
        60..64 => Event::Issuer(IssuerMode::Healthy),
        64..76 => Event::Issuer(pick(
            rng,
            &[
                IssuerMode::Hangs,
                IssuerMode::Fails(500),
                IssuerMode::Fails(404),
                IssuerMode::Fails(429),
                IssuerMode::FailsNoCache,
                IssuerMode::Garbage,
                IssuerMode::EmptySet,
                IssuerMode::Flaps,
            ],
        )),
        76..82 => Event::Latency(pick(rng, &[0, 5, 40, 100, 400, 1_500, 2_400])),
        82..85 => Event::Move,
        85..89 => Event::Restart { process },
        89..91 => Event::DiskFull,
        91..93 => Event::DiskFreed,
        93..96 => Event::StepClock(pick(rng, &[-86_400, -3_600, -2, 2, 3_600, 86_400])),
        96..98 => Event::Suspend(pick(rng, &[30_000, 7_200_000])),
        _ => Event::Cancel { process },
    }
}

fn pick<T: Copy>(rng: &mut SmallRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}
