//! The drill itself: the issuer rotates and fails by the plan, while good tokens and an attack arrive.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::super::output;
use super::plan::{FAULT, RECOVERY, Rotation, Step, Trouble, What};
use super::report::Report;
use super::tally::Tally;
use super::target::{Outcome, Target};
use super::traffic::{Bad, Keys};
use crate::clock::{self, Instant};
use crate::commands::Failure;
use crate::commands::issuer::{Fault, Issuer, SigningKey};

/// Good tokens a second, besides the first one of each rotation.
const GOOD_RATE: u32 = 50;

/// Good requests under way at a time; a slow answer does not hold up the next token.
const GOOD_AT_A_TIME: u32 = 512;

/// Bad requests under way at a time; those that wait for keys are many.
const BAD_AT_A_TIME: u32 = 4_096;

/// How long before its first use a key is published that is announced.
const NOTICE: Duration = Duration::from_millis(400);

/// Keys whose tokens are refused, the latest of them.
const WITHDRAWN_KEYS: usize = 8;

/// How often a target that is not ready yet is asked.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What the drill was told.
pub(super) struct Rules {
    /// The audience of good tokens.
    pub(super) audience: String,
    /// Bad tokens a second.
    pub(super) attack_rate: u32,
}

/// Everything that takes part.
pub(super) struct Field {
    issuer: Issuer,
    target: Target,
    keys: Keys,
    rules: Rules,
    /// The key that signs. Whoever has a good token under way reads; a rotation writes, and so waits for them.
    current: RwLock<SigningKey>,
    /// Keys whose tokens the gateway must refuse by now.
    withdrawn: Mutex<Vec<SigningKey>>,
    tally: Mutex<Tally>,
    time: Mutex<Option<Time>>,
    completed: AtomicBool,
    good_places: Arc<Semaphore>,
    bad_places: Arc<Semaphore>,
}

/// When it happens.
#[derive(Clone, Copy)]
struct Time {
    started: Instant,
    /// The requests for the key set until then.
    fetches_before: u64,
    /// For how long tokens were sent, once that is over.
    sent_for: Option<Duration>,
}

/// Plays these steps.
///
/// # Errors
/// No first token was allowed within `wait`, or the issuer could not be started again.
pub(super) async fn play(field: Arc<Field>, steps: Vec<Step>, wait: Duration) -> Result<(), Failure> {
    field.first_contact(wait).await?;
    let started = field.start();
    let mut streams = JoinSet::new();
    streams.spawn(Arc::clone(&field).send_good());
    streams.spawn(Arc::clone(&field).send_bad());
    streams.spawn(Arc::clone(&field).show_progress(started));
    let mut calm_from = started;
    let mut rotations = 0;
    for Step { at, what } in steps {
        clock::sleep_until(started + at).await;
        match what {
            What::Rotate(rotation) => {
                clock::sleep_until(calm_from).await;
                rotations += 1;
                field.rotate(rotation, rotations).await;
            }
            What::Fail(trouble) => {
                field.fail(trouble).await?;
                calm_from = clock::monotonic() + RECOVERY;
            }
            What::End => break,
        }
    }
    streams.shutdown().await;
    field.nothing_more_is_sent();
    field.until_answered().await;
    field.completed.store(true, Ordering::Relaxed);
    Ok(())
}

impl Field {
    /// An issuer that publishes the first of `keys`, and a gateway.
    pub(super) fn new(issuer: Issuer, target: Target, keys: Keys, rules: Rules) -> Self {
        let current = RwLock::new(keys.first());
        Self {
            issuer,
            target,
            keys,
            rules,
            current,
            withdrawn: Mutex::default(),
            tally: Mutex::default(),
            time: Mutex::default(),
            completed: AtomicBool::new(false),
            good_places: Arc::new(Semaphore::new(GOOD_AT_A_TIME as usize)),
            bad_places: Arc::new(Semaphore::new(BAD_AT_A_TIME as usize)),
        }
    }

    /// What came of it so far; nothing where it has not begun.
    pub(super) fn report(&self, gateway: String) -> Option<Report> {
        let Time { started, fetches_before, sent_for } = (*self.time())?;
        let elapsed = clock::elapsed_since(started);
        Some(Report {
            gateway,
            completed: self.completed.load(Ordering::Relaxed),
            broke_off: None,
            tally: self.tally().clone(),
            elapsed,
            sent_for: sent_for.unwrap_or(elapsed),
            attack_rate: self.rules.attack_rate,
            fetches: self.issuer.key_fetches().saturating_sub(fetches_before),
        })
    }

    /// Asks until a good token is allowed, so that what is drilled has begun to work.
    async fn first_contact(&self, wait: Duration) -> Result<(), Failure> {
        let deadline = clock::monotonic() + wait;
        loop {
            let token = self.keys.good(&*self.current.read().await, &self.rules.audience);
            let outcome = self.target.ask(&token).await;
            let why = match outcome {
                Outcome::Allowed => return Ok(()),
                Outcome::Refused(status) => format!("the last answer has status {status}"),
                Outcome::NoAnswer(error) => error,
                Outcome::NotSent(error) => format!("the drill itself could not send it: {error}"),
            };
            if clock::monotonic() + ASK_AGAIN > deadline {
                return Err(format!("no first token was allowed within {} s: {why}", wait.as_secs()).into());
            }
            sleep(ASK_AGAIN).await;
        }
    }

    fn start(&self) -> Instant {
        let started = clock::monotonic();
        let fetches_before = self.issuer.key_fetches();
        *self.time() = Some(Time { started, fetches_before, sent_for: None });
        started
    }

    fn nothing_more_is_sent(&self) {
        if let Some(time) = &mut *self.time() {
            time.sent_for = Some(clock::elapsed_since(time.started));
        }
    }

    async fn rotate(&self, rotation: Rotation, number: usize) {
        let old = self.current.read().await.clone();
        let new = self.keys.next(rotation, number, &old);
        if rotation == Rotation::Announced {
            self.issuer.publish(&[&new, &old]);
            sleep(NOTICE).await;
        }
        let mut current = self.current.write().await;
        match rotation {
            Rotation::AtUse | Rotation::Algorithm | Rotation::Announced => self.issuer.publish(&[&new, &old]),
            Rotation::SameKid | Rotation::Withdrawn => self.issuer.publish(&[&new]),
        }
        current.clone_from(&new);
        drop(current);

        let token = self.keys.good(&new, &self.rules.audience);
        let began = clock::monotonic();
        let outcome = self.target.ask(&token).await;
        self.tally().first(rotation, &outcome, clock::elapsed_since(began));
        // Allowed it can only be by a fetch that has shown what became of the old key.
        if outcome == Outcome::Allowed && matches!(rotation, Rotation::SameKid | Rotation::Withdrawn) {
            let mut withdrawn = self.withdrawn();
            withdrawn.push(old);
            let surplus = withdrawn.len().saturating_sub(WITHDRAWN_KEYS);
            withdrawn.drain(..surplus);
        }
    }

    async fn fail(&self, trouble: Trouble) -> Result<(), Failure> {
        self.tally().faults += 1;
        let fault = match trouble {
            Trouble::Status => Fault::Status(500),
            Trouble::Hang => Fault::Hang,
            Trouble::Html => Fault::Html,
            Trouble::EmptySet => Fault::EmptySet,
            Trouble::Dropped => Fault::DropConnection,
            Trouble::Down => {
                self.issuer.stop().await;
                sleep(FAULT).await;
                return Ok(self.issuer.restart().await?);
            }
        };
        self.issuer.set_fault(Some(fault));
        sleep(FAULT).await;
        self.issuer.set_fault(None);
        Ok(())
    }

    async fn send_good(self: Arc<Self>) {
        let mut ticks = ticks(GOOD_RATE);
        loop {
            ticks.tick().await;
            let Ok(place) = Arc::clone(&self.good_places).acquire_owned().await else { return };
            tokio::spawn(Arc::clone(&self).send_one_good(place));
        }
    }

    async fn send_one_good(self: Arc<Self>, _place: OwnedSemaphorePermit) {
        let current = self.current.read().await;
        let token = self.keys.good(&current, &self.rules.audience);
        let began = clock::monotonic();
        let outcome = self.target.ask(&token).await;
        drop(current);
        self.tally().good(&outcome, clock::elapsed_since(began));
    }

    async fn send_bad(self: Arc<Self>) {
        if self.rules.attack_rate == 0 {
            return;
        }
        let mut ticks = ticks(self.rules.attack_rate);
        for kind in Bad::ALL.into_iter().cycle() {
            ticks.tick().await;
            let Ok(place) = Arc::clone(&self.bad_places).acquire_owned().await else { return };
            tokio::spawn(Arc::clone(&self).send_one_bad(kind, place));
        }
    }

    async fn send_one_bad(self: Arc<Self>, kind: Bad, _place: OwnedSemaphorePermit) {
        // A copy, so that no rotation waits for an attacker.
        let current = self.current.read().await.clone();
        let withdrawn = {
            let withdrawn = self.withdrawn();
            let any = rand::random::<u32>() as usize % withdrawn.len().max(1);
            withdrawn.get(any).cloned()
        };
        let (kind, token) = self.keys.bad(kind, &current, withdrawn.as_ref(), &self.rules.audience);
        let outcome = self.target.ask(&token).await;
        self.tally().bad(kind, &outcome);
    }

    async fn show_progress(self: Arc<Self>, started: Instant) {
        let mut ticks = ticks(1);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let Some(report) = self.report(String::new()) else { continue };
            let (good, bad) = (&report.tally.good, report.tally.attack());
            let rotations: u32 = report.tally.rotations.values().map(|rotated| rotated.count).sum();
            output::complain(&format!(
                "{:>4} s: good {}, refused {}; bad {}, allowed {}, no answer {}; not sent {}; \
                 rotations {rotations}, faults {}, fetches {}",
                clock::elapsed_since(started).as_secs(),
                good.sent,
                good.refused,
                bad.sent,
                bad.allowed,
                bad.unanswered,
                good.not_sent + bad.not_sent,
                report.tally.faults,
                report.fetches
            ));
        }
    }

    /// Waits for what is under way; each request has its own bound.
    async fn until_answered(&self) {
        let all = async {
            let _good = self.good_places.acquire_many(GOOD_AT_A_TIME).await;
            let _bad = self.bad_places.acquire_many(BAD_AT_A_TIME).await;
        };
        // What does not come back by then was cut off by its own bound long ago.
        let _all_answered = timeout(Duration::from_secs(30), all).await;
    }

    fn time(&self) -> MutexGuard<'_, Option<Time>> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn withdrawn(&self) -> MutexGuard<'_, Vec<SigningKey>> {
        self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many a second. What the machine was too busy for is made up for.
fn ticks(rate: u32) -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}
