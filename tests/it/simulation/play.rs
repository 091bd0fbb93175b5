//! Plays a plan and says what it breaks.

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
use super::oracle::{Seen, Shown};
use super::plan::{Event, Mood, Plan, Validators};
use super::process::{Asked, Process, names};
use super::world::{Disk, START, World};

/// Slower answers leave no time for P1 within `wait`.
const PROMPT: Duration = Duration::from_millis(40);

/// After trouble, P1 holds again once what was under way has ended and a spacing is over.
const RECOVERY: Duration = Duration::from_millis(3_500);

const PATIENT: Duration = Duration::from_secs(10);

/// Tokens to which P1 was owed until they were answered: a simulation in which there are none proves nothing.
pub static HELD_TO_P1: AtomicU64 = AtomicU64::new(0);

/// A token that was sent, and what has to become of it.
struct Sent {
    process: usize,
    what: What,
    promised: Promise,
    disturbed: u64,
    answer: JoinHandle<Asked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Good(Key),
    Bad,
    Expired,
}

/// Whether P1 was owed to a token when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    FirstTry,
    Nothing,
}

struct Run<'p> {
    plan: &'p Plan,
    world: World,
    disk: Disk,
    clock: Arc<SimulatedClock>,
    processes: Vec<Process>,
    /// Of processes that have ended, for what they had sent.
    ended: Vec<Arc<Mutex<Seen>>>,
    sent: Vec<Sent>,
    signing: Key,
    next_name: u8,
    next_material: u8,
    mood: Mood,
    latency: Duration,
    /// Since when the issuer has been well and prompt.
    calm_since: Instant,
    /// Counts what disturbs a wait.
    disturbances: u64,
    withdrawn: Vec<Key>,
    /// Since when the folder could be written.
    writable_since: Instant,
    findings: Vec<String>,
}

/// What the plan breaks, if anything.
pub async fn play(plan: &Plan) -> Option<String> {
    let shape = &plan.shape;
    let first = Key { name: 0, material: 0 };
    let world = World::new(plan.seed, shape.clone(), first);
    let wall = UnixTime::from_secs(START + shape.own_offset_secs);
    let (clock, disk) = (Arc::new(SimulatedClock::starting_at(wall)), Disk::default());
    let start = || Process::start(&world, shape, &disk, &clock, Seen::default());
    let processes: Vec<Process> = (0..shape.processes).map(|_| start()).collect();
    let now = Instant::now();
    let mut run = Run {
        plan,
        world,
        disk,
        clock,
        processes,
        ended: Vec::new(),
        sent: Vec::new(),
        signing: first,
        next_name: 1,
        next_material: 0,
        mood: Mood::Well,
        latency: Duration::from_millis(5),
        calm_since: now - RECOVERY,
        disturbances: 0,
        withdrawn: Vec::new(),
        writable_since: now,
        findings: Vec::new(),
    };
    for event in &plan.events {
        run.happens(event).await;
        if let Some(finding) = run.findings.first() {
            return Some(finding.clone());
        }
    }
    run.comes_to_rest().await;
    run.findings.first().cloned()
}

impl Run<'_> {
    async fn happens(&mut self, event: &Event) {
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
            Event::Good { count, process, patience_ms } => {
                for _ in 0..count {
                    let patience = Duration::from_millis(patience_ms);
                    self.send(process, What::Good(self.signing), keys::good(self.signing), patience);
                }
            }
            Event::Withdrawn { process } => {
                if let Some(key) = self.withdrawn.last().copied() {
                    self.send(process, What::Good(key), keys::good(key), PATIENT);
                }
            }
            Event::MadeUp { count, process } => {
                for number in 0..count {
                    self.send(process, What::Bad, keys::made_up(number), PATIENT);
                }
            }
            Event::Forged { count, process } => {
                for _ in 0..count {
                    self.send(process, What::Bad, keys::forged(self.signing), PATIENT);
                }
            }
            Event::Expired { count, process } => {
                for number in 0..count {
                    self.send(process, What::Expired, keys::expired(number), PATIENT);
                }
            }
            Event::GivesUp { process } => {
                let index = usize::from(process) % self.processes.len();
                let asking = tokio::spawn(self.processes[index].ask(keys::made_up(9), PATIENT));
                tokio::task::yield_now().await;
                asking.abort();
            }
            Event::Issuer(mood) => {
                self.world.becomes(mood);
                self.mood = mood;
                self.disturbed();
            }
            Event::Latency(ms) => {
                self.latency = Duration::from_millis(ms);
                self.world.takes(self.latency);
                self.disturbed();
            }
            Event::Move => {
                self.world.moves();
                self.disturbances += 1;
            }
            Event::Restart { process } => self.restarts(usize::from(process)).await,
            Event::DiskFull => self.disk.fill(true),
            Event::DiskFree => {
                self.disk.fill(false);
                self.writable_since = Instant::now();
            }
            Event::WallSteps(secs) => self.clock.step_ms(secs * 1_000),
            Event::Sleeps(ms) => {
                let time = Duration::from_millis(ms);
                self.clock.sleep(time);
                self.world.sleeps(time);
                self.disturbances += 1;
            }
        }
        // What is spawned has begun before the next event.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        self.look_at_answers(Looked::AtTheDone).await;
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
        // Whose key goes while a token waits is owed nothing.
        self.disturbances += 1;
    }

    fn disturbed(&mut self) {
        self.disturbances += 1;
        self.calm_since = Instant::now();
    }

    fn is_calm(&self) -> bool {
        self.mood == Mood::Well && self.latency <= PROMPT && self.calm_since.elapsed() >= RECOVERY
    }

    /// Whether a token of this key has to be allowed at its first try.
    fn promise(&self, process: usize, key: Key, patience: Duration) -> Promise {
        let shape = &self.plan.shape;
        let shown = shown(key);
        let seen = self.processes[process].seen.lock().expect("no oracle has panicked");
        let by_signature = seen.knows_name_otherwise(&shown);
        let owed = self.is_calm()
            && patience >= Duration::from_millis(shape.wait_ms)
            && self.world.published().contains(&key)
            && shape.replica_lag_ms == 0
            && (shape.edges == 0 || shape.edges_heed_no_cache)
            && (!by_signature || shape.bad_signature_spacing_ms <= 1_000)
            && !self.was_ever_withdrawn(key, &seen)
            && !(shape.has_clock_behind() && seen.ever_seemed_gone(&shown));
        if owed { Promise::FirstTry } else { Promise::Nothing }
    }

    /// A key that was withdrawn and is published again is owed nothing until an answer is provably newer.
    fn was_ever_withdrawn(&self, key: Key, seen: &Seen) -> bool {
        seen.ever_gone(&shown(key)) && self.republished(key)
    }

    fn republished(&self, key: Key) -> bool {
        self.plan.events.iter().any(|event| matches!(event, Event::Republish)) && key.name < self.next_name
    }

    fn send(&mut self, process: u8, what: What, token: String, patience: Duration) {
        let process = usize::from(process) % self.processes.len();
        let promised = match what {
            What::Good(key) => self.promise(process, key, patience),
            What::Bad | What::Expired => Promise::Nothing,
        };
        let answer = tokio::spawn(self.processes[process].ask(token, patience));
        self.sent.push(Sent { process, what, promised, disturbed: self.disturbances, answer });
    }

    async fn restarts(&mut self, process: usize) {
        let process = process % self.processes.len();
        // What it has to say it has written by now.
        sleep(Duration::from_millis(1)).await;
        self.look_at_answers(Looked::AtAll).await;
        self.look_at_file();
        let seen: Vec<Seen> = self
            .processes
            .iter()
            .map(|one| one.seen.lock().expect("no oracle has panicked").clone())
            .collect();
        let kept = !self.disk.is_full() && seen.iter().all(|one| one.learnt_since(self.writable_since));
        let known = if kept { Seen::left_behind(&seen) } else { Seen::default() };
        let started = Process::start(&self.world, &self.plan.shape, &self.disk, &self.clock, known);
        let ended = std::mem::replace(&mut self.processes[process], started);
        self.ended.push(ended.seen);
        self.disturbances += 1;
    }

    /// No key that its process knows to be gone is in the file.
    fn look_at_file(&mut self) {
        if self.plan.shape.replica_lag_ms > 0 {
            return;
        }
        let Some(bytes) = self.disk.file("p.json") else { return };
        let file: Value = serde_json::from_slice(&bytes).expect("whole at any time");
        let jwks = serde_json::json!({"keys": file["content"]["keys"]}).to_string();
        let Ok(keys) = KeySet::parse(jwks.as_bytes()) else { return };
        let kept = names(&keys);
        let all: Vec<Seen> = self
            .processes
            .iter()
            .map(|one| one.seen.lock().expect("no oracle has panicked").clone())
            .collect();
        // What could not be written while the disk was full is not known to who finds it empty.
        if !self.disk.is_full() && !all.iter().all(|one| one.learnt_since(self.writable_since)) {
            return;
        }
        let gone = Seen::left_behind(&all).gone();
        if let Some(key) = kept.iter().find(|key| gone.contains(key)) {
            self.findings.push(format!("P8: the snapshot has {key:?}, which is gone"));
        }
    }

    async fn look_at_answers(&mut self, looked: Looked) {
        let (done, waiting): (Vec<Sent>, Vec<Sent>) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|sent| looked == Looked::AtAll || sent.answer.is_finished());
        self.sent = waiting;
        for sent in done {
            let Sent { process, what, promised, disturbed, answer } = sent;
            match answer.await {
                Ok(asked) => self.judge(process, what, promised, disturbed, asked),
                Err(error) => self.findings.push(format!("P6: {error}")),
            }
        }
    }

    fn judge(&mut self, process: usize, what: What, promised: Promise, disturbed: u64, asked: Asked) {
        if promised == Promise::FirstTry && disturbed == self.disturbances && asked.ended > asked.began {
            HELD_TO_P1.fetch_add(1, Ordering::Relaxed);
        }
        let finding = match what {
            What::Bad if asked.allowed => Some("P7: a bad token was allowed".to_owned()),
            What::Expired if asked.reason != "expired" || asked.ended != asked.began => {
                Some(format!("P5: an expired token: {asked:?}"))
            }
            // A replica that lags and dates its old set with the present cannot be told.
            What::Good(_) if asked.allowed && self.plan.shape.replica_lag_ms > 0 => None,
            What::Good(key) if asked.allowed => {
                let seen = self.processes[process].seen.lock().expect("no oracle has panicked");
                let gone = seen.gone_before(&shown(key), asked.began);
                gone.then(|| format!("P8: {key:?} is gone and was allowed: {asked:?}"))
            }
            // The name came with other material while the token waited: a bad signature, whose turn is out of reach.
            What::Good(key) if self.is_late_rekey(process, key) => None,
            What::Good(key) if promised == Promise::FirstTry && disturbed == self.disturbances => {
                Some(format!("P1: {key:?} is published and was refused: {asked:?}"))
            }
            _ => None,
        };
        self.findings.extend(finding);
    }

    fn is_late_rekey(&self, process: usize, key: Key) -> bool {
        let seen = self.processes[process].seen.lock().expect("no oracle has panicked");
        self.plan.shape.bad_signature_spacing_ms > 1_000 && seen.knows_name_otherwise(&shown(key))
    }

    /// When everything is well again, what is in hand is what is published.
    async fn comes_to_rest(&mut self) {
        self.look_at_answers(Looked::AtAll).await;
        self.world.becomes(Mood::Well);
        self.world.takes(Duration::from_millis(5));
        self.disk.fill(false);
        let shape = &self.plan.shape;
        // Validators that lie are found out by one fetch in ten.
        let intervals = if shape.validators == Validators::Constant { 12 } else { 2 };
        let longest = shape.interval_ms * intervals + shape.edge_ttl_ms + 2 * shape.replica_lag_ms + 35_000;
        let apart =
            shape.replica_offsets_secs.iter().map(|offset| offset.unsigned_abs()).max().unwrap_or_default();
        sleep(Duration::from_millis(longest) + Duration::from_secs(2 * apart.min(3_600))).await;
        let spacing = Duration::from_secs(1);
        let bad_signature = Duration::from_millis(shape.bad_signature_spacing_ms);
        let converges = shape.edges == 0 || shape.edges_heed_no_cache;
        let expected: Vec<Shown> = self.world.published().into_iter().map(shown).collect();
        for process in &self.processes {
            let seen = process.seen.lock().expect("no oracle has panicked");
            if seen.too_close(StaleCause::UnknownKid, spacing)
                || seen.too_close(StaleCause::BadSignature, bad_signature)
            {
                self.findings.push("P3: forced fetches too close to each other".to_owned());
            }
            let status = process.keys.status();
            let mut in_hand = names(&status.keys);
            let mut expected = expected.clone();
            in_hand.sort();
            expected.sort();
            if converges && in_hand != expected && apart < 3_600 {
                let told = format!("{in_hand:?} in hand, {expected:?} published: {:?}", status.last_error);
                self.findings.push(format!("in the end: {told}"));
            }
            let text = process.metrics.encode().expect("metrics can be written");
            if text.contains("task_restarts_total{") {
                self.findings.push("P6: a task panicked".to_owned());
            }
        }
        for ended in &self.ended {
            let seen = ended.lock().expect("no oracle has panicked");
            if seen.too_close(StaleCause::UnknownKid, spacing) {
                self.findings.push("P3: forced fetches too close to each other".to_owned());
            }
        }
    }
}

/// At which answers one looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looked {
    AtTheDone,
    AtAll,
}

fn shown(key: Key) -> Shown {
    static SHOWN: Mutex<Option<HashMap<Key, Shown>>> = Mutex::new(None);
    let mut shown = SHOWN.lock().expect("no world has panicked here");
    let shown = shown.get_or_insert_default();
    shown
        .entry(key)
        .or_insert_with(|| {
            let keys = KeySet::parse(keys::jwks(&[key]).as_bytes()).expect("a usable key");
            names(&keys).remove(0)
        })
        .clone()
}
