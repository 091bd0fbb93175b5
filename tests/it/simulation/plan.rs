//! A world and what happens in it, as data that a seed makes.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// A world and what happens in it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub shape: Shape,
    pub events: Vec<Event>,
}

/// What stands between the service and its issuer.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Whether a discovery document names the key URL.
    pub discovery: bool,
    /// Whether the key URL redirects to another one.
    pub redirects: bool,
    /// Caches in front of the issuer; a request goes through any of them.
    pub edges: u8,
    /// Whether they ask the issuer when a request says `no-cache`.
    pub edges_heed_no_cache: bool,
    /// For how long they keep an answer.
    pub edge_ttl_ms: u64,
    /// Whether answers have a `Date`.
    pub dates: bool,
    pub validators: Validators,
    /// How far the clocks of the issuer's replicas are from the true time.
    pub replica_offsets_secs: Vec<i64>,
    /// How long a replica but the first publishes the old set.
    pub replica_lag_ms: u64,
    pub interval_ms: u64,
    pub bad_signature_spacing_ms: u64,
    pub wait_ms: u64,
    /// How many processes share a folder and the issuer.
    pub processes: u8,
    /// How far the clock on our wall is from the true time at the start.
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

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Event {
    Pause(u64),
    /// The issuer begins to sign with a new key and publishes the old ones beside it.
    Rotate,
    /// The same, and the old ones are gone.
    RotateAndWithdraw,
    /// The key that signs gets other material under its name.
    Rekey,
    /// A key is published some time before it signs.
    Announce(u64),
    /// The oldest key but the one that signs is withdrawn.
    Withdraw,
    /// A key that was withdrawn is published again, and signs.
    Republish,
    /// So many good tokens at once, to the process of this number, each with so long to wait.
    Good {
        count: u8,
        process: u8,
        patience_ms: u64,
    },
    /// Tokens of a key that was withdrawn.
    Withdrawn {
        process: u8,
    },
    MadeUp {
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
    /// A caller with a made-up name that gives up.
    GivesUp {
        process: u8,
    },
    /// From now on the issuer does this.
    Issuer(Mood),
    /// From now on an answer takes so long.
    Latency(u64),
    /// The document names another key URL; the old one keeps its set and answers.
    Move,
    Restart {
        process: u8,
    },
    /// From now on nothing can be written.
    DiskFull,
    DiskFree,
    /// The clock on our wall steps.
    WallSteps(i64),
    /// Our machine sleeps.
    Sleeps(u64),
}

/// What the issuer does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Answers nobody.
    Hangs,
    Fails(u16),
    /// Fails what says `no-cache`.
    FailsForced,
    /// Answers with what is no key set.
    Garbage,
    EmptySet,
    /// Every other answer fails.
    Flaps,
}

impl Shape {
    /// Whether a replica's clock is behind by more than what is tolerated: what it says of a key that seems gone does not
    /// count until its date has caught up.
    pub fn has_clock_behind(&self) -> bool {
        self.dates && self.replica_offsets_secs.iter().any(|offset| *offset < -5)
    }
}

impl Plan {
    /// What this seed makes.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rng = &mut rng;
        let edges = if rng.random_bool(0.5) { rng.random_range(1..=3) } else { 0 };
        let shape = Shape {
            discovery: rng.random_bool(0.4),
            redirects: rng.random_bool(0.2),
            edges,
            edges_heed_no_cache: rng.random_bool(0.8),
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
        let calm = rng.random_bool(0.3);
        let events = (0..count).map(|_| event(rng, calm)).collect();
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

fn event(rng: &mut SmallRng, calm: bool) -> Event {
    let process = rng.random_range(0..2);
    match rng.random_range(0..if calm { 60 } else { 100 }) {
        0..12 => Event::Pause(pick(rng, &[10, 300, 900, 1_100, 3_000, 12_000])),
        12..18 => Event::Rotate,
        18..22 => Event::RotateAndWithdraw,
        22..25 => Event::Rekey,
        25..27 => Event::Announce(pick(rng, &[100, 2_000, 30_000])),
        27..30 => Event::Withdraw,
        30..31 => Event::Republish,
        31..46 => Event::Good {
            count: pick(rng, &[1, 1, 2, 5]),
            process,
            patience_ms: pick(rng, &[180, 5_000, 5_000, 5_000]),
        },
        46..50 => Event::Withdrawn { process },
        50..54 => Event::MadeUp { count: pick(rng, &[1, 3]), process },
        54..58 => Event::Forged { count: pick(rng, &[1, 3]), process },
        58..60 => Event::Expired { count: 2, process },
        60..64 => Event::Issuer(Mood::Well),
        64..76 => Event::Issuer(pick(
            rng,
            &[
                Mood::Hangs,
                Mood::Fails(500),
                Mood::Fails(404),
                Mood::Fails(429),
                Mood::FailsForced,
                Mood::Garbage,
                Mood::EmptySet,
                Mood::Flaps,
            ],
        )),
        76..82 => Event::Latency(pick(rng, &[0, 5, 40, 100, 400, 1_500, 2_400])),
        82..85 => Event::Move,
        85..89 => Event::Restart { process },
        89..91 => Event::DiskFull,
        91..93 => Event::DiskFree,
        93..96 => Event::WallSteps(pick(rng, &[-86_400, -3_600, -2, 2, 3_600, 86_400])),
        96..98 => Event::Sleeps(pick(rng, &[30_000, 7_200_000])),
        _ => Event::GivesUp { process },
    }
}

fn pick<T: Copy>(rng: &mut SmallRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}
