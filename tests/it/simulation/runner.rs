//! Runs a plan and checks the properties.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::clock::SimulatedClock;
use portcullis::validation::key_set::KeySet;
use portcullis::validation::{StaleCause, UnixTime};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::keys::{self, Key};
use super::oracle::{KeyId, Observations};
use super::plan::{Event, IssuerMode, Plan, Validators};
use super::process::{CheckResult, Process, key_ids};
use super::world::{Disk, START, World};

/// Longer latency leaves no time for P1 within `wait`.
const MAX_LATENCY_FOR_P1: Duration = Duration::from_millis(40);

/// After a fault, P1 applies again once the fetch in progress has ended and one spacing is over.
const RECOVERY: Duration = Duration::from_millis(3_500);

const LONG_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of tokens for which P1 applied until they were answered; must not be 0.
pub static CHECKED_FOR_P1: AtomicU64 = AtomicU64::new(0);

/// A check in progress and its expected result.
struct PendingCheck {
    process: usize,
    kind: TokenKind,
    expectation: Expectation,
    interruptions: u64,
    answer: JoinHandle<CheckResult>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Valid(Key),
    Bad,
    Expired,
}

/// Whether P1 applied to a token when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expectation {
    Allowed,
    Unspecified,
}

struct Simulation<'p> {
    plan: &'p Plan,
    world: World,
    disk: Disk,
    clock: Arc<SimulatedClock>,
    processes: Vec<Process>,
    /// The observations of processes that have ended.
    finished: Vec<Arc<Mutex<Observations>>>,
    checks: Vec<PendingCheck>,
    signing: Key,
    next_name: u8,
    next_material: u8,
    mode: IssuerMode,
    latency: Duration,
    /// Since when the issuer has been healthy and fast.
    healthy_since: Instant,
    /// The number of events that may interrupt a wait.
    interruptions: u64,
    withdrawn: Vec<Key>,
    /// Since when the folder is writable.
    writable_since: Instant,
    violations: Vec<String>,
}

/// The first violation, if any.
pub async fn run(plan: &Plan) -> Option<String> {
    let shape = &plan.shape;
    let first = Key { name: 0, material: 0 };
    let world = World::new(plan.seed, shape.clone(), first);
    let wall = UnixTime::from_secs(START + shape.own_offset_secs);
    let (clock, disk) = (Arc::new(SimulatedClock::starting_at(wall)), Disk::default());
    let start = || Process::start(&world, shape, &disk, &clock, Observations::default());
    let processes: Vec<Process> = (0..shape.processes).map(|_| start()).collect();
    let now = Instant::now();
    let mut simulation = Simulation {
        plan,
        world,
        disk,
        clock,
        processes,
        finished: Vec::new(),
        checks: Vec::new(),
        signing: first,
        next_name: 1,
        next_material: 0,
        mode: IssuerMode::Healthy,
        latency: Duration::from_millis(5),
        healthy_since: now - RECOVERY,
        interruptions: 0,
        withdrawn: Vec::new(),
        writable_since: now,
        violations: Vec::new(),
    };
    for event in &plan.events {
        simulation.apply(event).await;
        if let Some(violation) = simulation.violations.first() {
            return Some(violation.clone());
        }
    }
    simulation.check_convergence().await;
    simulation.violations.first().cloned()
}

impl Simulation<'_> {
    async fn apply(&mut self, event: &Event) {
        let published = self.world.published();
        match *event {
            Event::Pause(ms) => sleep(Duration::from_millis(ms)).await,
            Event::Rotate => {
                let new = self.new_key();
                let kept = published.iter().copied().rev().take(3).collect::<Vec<_>>();
                self.publish(kept.into_iter().rev().chain([new]).collect(), &published);
                self.signing = new;
            }
            Event::RotateAndWithdraw => {
                let new = self.new_key();
                self.publish(vec![new], &published);
                self.signing = new;
            }
            Event::Rekey => {
                let old = self.signing;
                let new = Key { material: self.new_material(), ..old };
                let others = published.iter().copied().filter(|key| *key != old);
                self.publish(others.chain([new]).collect(), &published);
                self.signing = new;
            }
            Event::Announce(ms) => {
                let new = self.new_key();
                self.publish(published.iter().copied().chain([new]).collect(), &published);
                sleep(Duration::from_millis(ms)).await;
                self.signing = new;
            }
            Event::Withdraw => {
                if let Some(oldest) = published.iter().copied().find(|key| *key != self.signing) {
                    self.publish(
                        published.iter().copied().filter(|key| *key != oldest).collect(),
                        &published,
                    );
                }
            }
            Event::Republish => {
                if let Some(key) = self.withdrawn.last().copied()
                    && !published.iter().any(|one| one.name == key.name)
                {
                    self.publish(published.iter().copied().chain([key]).collect(), &published);
                    self.signing = key;
                }
            }
            Event::Valid { count, process, timeout_ms } => {
                for _ in 0..count {
                    let timeout = Duration::from_millis(timeout_ms);
                    self.send(process, TokenKind::Valid(self.signing), keys::valid(self.signing), timeout);
                }
            }
            Event::Withdrawn { process } => {
                if let Some(key) = self.withdrawn.last().copied() {
                    self.send(process, TokenKind::Valid(key), keys::valid(key), LONG_TIMEOUT);
                }
            }
            Event::UnknownKid { count, process } => {
                for number in 0..count {
                    self.send(process, TokenKind::Bad, keys::unknown_kid(number), LONG_TIMEOUT);
                }
            }
            Event::Forged { count, process } => {
                for _ in 0..count {
                    self.send(process, TokenKind::Bad, keys::forged(self.signing), LONG_TIMEOUT);
                }
            }
            Event::Expired { count, process } => {
                for number in 0..count {
                    self.send(process, TokenKind::Expired, keys::expired(number), LONG_TIMEOUT);
                }
            }
            Event::Cancel { process } => {
                let index = usize::from(process) % self.processes.len();
                let check = tokio::spawn(self.processes[index].check(keys::unknown_kid(9), LONG_TIMEOUT));
                tokio::task::yield_now().await;
                check.abort();
            }
            Event::Issuer(mode) => {
                self.world.set_mode(mode);
                self.mode = mode;
                self.interrupt();
            }
            Event::Latency(ms) => {
                self.latency = Duration::from_millis(ms);
                self.world.set_latency(self.latency);
                self.interrupt();
            }
            Event::Move => {
                self.world.move_key_url();
                self.interruptions += 1;
            }
            Event::Restart { process } => self.restart(usize::from(process)).await,
            Event::DiskFull => self.disk.fill(true),
            Event::DiskFreed => {
                self.disk.fill(false);
                self.writable_since = Instant::now();
            }
            Event::StepClock(secs) => self.clock.step_ms(secs * 1_000),
            Event::Suspend(ms) => {
                let time = Duration::from_millis(ms);
                self.clock.sleep(time);
                self.world.suspend(time);
                self.interruptions += 1;
            }
        }
        // Spawned tasks start before the next event.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        self.collect_answers(Collect::Finished).await;
    }

    fn new_key(&mut self) -> Key {
        let name = self.next_name;
        self.next_name += 1;
        Key { name, material: self.new_material() }
    }

    fn new_material(&mut self) -> u8 {
        self.next_material += 1;
        self.next_material
    }

    fn publish(&mut self, keys: Vec<Key>, before: &[Key]) {
        self.withdrawn.retain(|key| !keys.contains(key));
        self.withdrawn.extend(before.iter().filter(|key| !keys.contains(key)));
        self.world.publish(keys);
        // P1 does not apply to a token whose key is withdrawn while it waits.
        self.interruptions += 1;
    }

    fn interrupt(&mut self) {
        self.interruptions += 1;
        self.healthy_since = Instant::now();
    }

    fn is_healthy(&self) -> bool {
        self.mode == IssuerMode::Healthy
            && self.latency <= MAX_LATENCY_FOR_P1
            && self.healthy_since.elapsed() >= RECOVERY
    }

    /// Whether P1 applies to a token of this key.
    fn expectation(&self, process: usize, key: Key, timeout: Duration) -> Expectation {
        let shape = &self.plan.shape;
        let id = key_id(key);
        let observed = self.processes[process].observed.lock().expect("not poisoned");
        let bad_signature = observed.has_other_material(&id);
        let applies = self.is_healthy()
            && timeout >= Duration::from_millis(shape.wait_ms)
            && self.world.published().contains(&key)
            && shape.replica_lag_ms == 0
            && (shape.edges == 0 || shape.edges_honour_no_cache)
            && (!bad_signature || shape.bad_signature_spacing_ms <= 1_000)
            && !self.was_withdrawn(key, &observed)
            && !(shape.has_clock_behind() && observed.seemed_withdrawn(&id));
        if applies { Expectation::Allowed } else { Expectation::Unspecified }
    }

    /// P1 does not apply to a key that was withdrawn and is published again until a response is provably newer.
    fn was_withdrawn(&self, key: Key, observed: &Observations) -> bool {
        observed.was_absent(&key_id(key)) && self.republished(key)
    }

    fn republished(&self, key: Key) -> bool {
        self.plan.events.iter().any(|event| matches!(event, Event::Republish)) && key.name < self.next_name
    }

    fn send(&mut self, process: u8, kind: TokenKind, token: String, timeout: Duration) {
        let process = usize::from(process) % self.processes.len();
        let expectation = match kind {
            TokenKind::Valid(key) => self.expectation(process, key, timeout),
            TokenKind::Bad | TokenKind::Expired => Expectation::Unspecified,
        };
        let answer = tokio::spawn(self.processes[process].check(token, timeout));
        self.checks.push(PendingCheck {
            process,
            kind,
            expectation,
            interruptions: self.interruptions,
            answer,
        });
    }

    async fn restart(&mut self, process: usize) {
        let process = process % self.processes.len();
        // The process has written its snapshot by now.
        sleep(Duration::from_millis(1)).await;
        self.collect_answers(Collect::All).await;
        self.check_snapshot();
        let observed: Vec<Observations> =
            self.processes.iter().map(|one| one.observed.lock().expect("not poisoned").clone()).collect();
        let kept =
            !self.disk.is_full() && observed.iter().all(|one| one.all_withdrawn_since(self.writable_since));
        let known = if kept { Observations::merged(&observed) } else { Observations::default() };
        let started = Process::start(&self.world, &self.plan.shape, &self.disk, &self.clock, known);
        let finished = std::mem::replace(&mut self.processes[process], started);
        self.finished.push(finished.observed);
        self.interruptions += 1;
    }

    /// Checks that the snapshot has no key that its process has observed as withdrawn.
    fn check_snapshot(&mut self) {
        if self.plan.shape.replica_lag_ms > 0 {
            return;
        }
        let Some(bytes) = self.disk.file("p.json") else { return };
        let file: Value = serde_json::from_slice(&bytes).expect("the file is always complete");
        let jwks = serde_json::json!({"keys": file["content"]["keys"]}).to_string();
        let Ok(keys) = KeySet::parse(jwks.as_bytes()) else { return };
        let kept = key_ids(&keys);
        let all: Vec<Observations> =
            self.processes.iter().map(|one| one.observed.lock().expect("not poisoned").clone()).collect();
        // Observations made while the disk was full are not in the file.
        if !self.disk.is_full() && !all.iter().all(|one| one.all_withdrawn_since(self.writable_since)) {
            return;
        }
        let withdrawn = Observations::merged(&all).withdrawn();
        if let Some(key) = kept.iter().find(|key| withdrawn.contains(key)) {
            self.violations.push(format!("P8: the snapshot has {key:?}, which is withdrawn"));
        }
    }

    async fn collect_answers(&mut self, collect: Collect) {
        let (done, waiting): (Vec<PendingCheck>, Vec<PendingCheck>) = std::mem::take(&mut self.checks)
            .into_iter()
            .partition(|checks| collect == Collect::All || checks.answer.is_finished());
        self.checks = waiting;
        for checks in done {
            let PendingCheck { process, kind, expectation, interruptions, answer } = checks;
            match answer.await {
                Ok(result) => self.check_answer(process, kind, expectation, interruptions, result),
                Err(error) => self.violations.push(format!("P6: {error}")),
            }
        }
    }

    fn check_answer(
        &mut self,
        process: usize,
        kind: TokenKind,
        expectation: Expectation,
        interruptions: u64,
        result: CheckResult,
    ) {
        if expectation == Expectation::Allowed
            && interruptions == self.interruptions
            && result.finished > result.started
        {
            CHECKED_FOR_P1.fetch_add(1, Ordering::Relaxed);
        }
        let violation = match kind {
            TokenKind::Bad if result.allowed => Some("P7: a bad token was allowed".to_owned()),
            TokenKind::Expired if result.reason != "expired" || result.finished != result.started => {
                Some(format!("P5: an expired token: {result:?}"))
            }
            // A lagging replica that dates its old set with the current time cannot be detected.
            TokenKind::Valid(_) if result.allowed && self.plan.shape.replica_lag_ms > 0 => None,
            TokenKind::Valid(key) if result.allowed => {
                let observed = self.processes[process].observed.lock().expect("not poisoned");
                let withdrawn = observed.withdrawn_before(&key_id(key), result.started);
                withdrawn.then(|| format!("P8: {key:?} is withdrawn and was allowed: {result:?}"))
            }
            // The `kid` got other material while the token waited: the spacing of bad signatures exceeds its timeout.
            TokenKind::Valid(key) if self.is_late_rekey(process, key) => None,
            TokenKind::Valid(key)
                if expectation == Expectation::Allowed && interruptions == self.interruptions =>
            {
                Some(format!("P1: {key:?} is published and was denied: {result:?}"))
            }
            _ => None,
        };
        self.violations.extend(violation);
    }

    fn is_late_rekey(&self, process: usize, key: Key) -> bool {
        let observed = self.processes[process].observed.lock().expect("not poisoned");
        self.plan.shape.bad_signature_spacing_ms > 1_000 && observed.has_other_material(&key_id(key))
    }

    /// Checks that the current set is the published one after all faults have ended.
    async fn check_convergence(&mut self) {
        self.collect_answers(Collect::All).await;
        self.world.set_mode(IssuerMode::Healthy);
        self.world.set_latency(Duration::from_millis(5));
        self.disk.fill(false);
        let shape = &self.plan.shape;
        // One fetch in ten is unconditional and detects wrong validators.
        let intervals = if shape.validators == Validators::Constant { 12 } else { 2 };
        let longest = shape.interval_ms * intervals + shape.edge_ttl_ms + 2 * shape.replica_lag_ms + 35_000;
        let max_offset =
            shape.replica_offsets_secs.iter().map(|offset| offset.unsigned_abs()).max().unwrap_or_default();
        sleep(Duration::from_millis(longest) + Duration::from_secs(2 * max_offset.min(3_600))).await;
        let spacing = Duration::from_secs(1);
        let bad_signature = Duration::from_millis(shape.bad_signature_spacing_ms);
        let converges = shape.edges == 0 || shape.edges_honour_no_cache;
        let expected: Vec<KeyId> = self.world.published().into_iter().map(key_id).collect();
        for process in &self.processes {
            let observed = process.observed.lock().expect("not poisoned");
            if observed.violates_spacing(StaleCause::UnknownKid, spacing)
                || observed.violates_spacing(StaleCause::BadSignature, bad_signature)
            {
                self.violations.push("P3: forced fetches too close to each other".to_owned());
            }
            let status = process.keys.status();
            let mut current = key_ids(&status.keys);
            let mut expected = expected.clone();
            current.sort();
            expected.sort();
            if converges && current != expected && max_offset < 3_600 {
                let difference =
                    format!("{current:?} current, {expected:?} published: {:?}", status.last_error);
                self.violations.push(format!("no convergence: {difference}"));
            }
            let text = process.metrics.encode().expect("metrics can be written");
            if text.contains("task_restarts_total{") {
                self.violations.push("P6: a task panicked".to_owned());
            }
        }
        for finished in &self.finished {
            let observed = finished.lock().expect("not poisoned");
            if observed.violates_spacing(StaleCause::UnknownKid, spacing) {
                self.violations.push("P3: forced fetches too close to each other".to_owned());
            }
        }
    }
}

/// Which answers are collected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Collect {
    Finished,
    All,
}

fn key_id(key: Key) -> KeyId {
    static KEY_IDS: Mutex<Option<HashMap<Key, KeyId>>> = Mutex::new(None);
    let mut key_ids = KEY_IDS.lock().expect("not poisoned");
    let key_ids = key_ids.get_or_insert_default();
    key_ids
        .entry(key)
        .or_insert_with(|| {
            let keys = KeySet::parse(keys::jwks(&[key]).as_bytes()).expect("a usable key");
            super::process::key_ids(&keys).remove(0)
        })
        .clone()
}
