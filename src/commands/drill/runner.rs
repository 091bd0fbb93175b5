//! Runs the drill: rotates the issuer's keys and makes it fail as planned, while good tokens and an attack are sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::super::output;
use super::counts::Counts;
use super::plan::{Action, FAULT_DURATION, IssuerFault, RECOVERY, Rotation, Step};
use super::report::Report;
use super::target::{Outcome, Target};
use super::traffic::{BadToken, Keys};
use crate::clock::{self, Instant};
use crate::commands::Failure;
use crate::commands::issuer::{Fault, Issuer, SigningKey};

/// Good tokens per second, in addition to the first one of each rotation.
const GOOD_RATE: u32 = 50;

/// The maximum number of good requests in flight; high enough that a slow response does not delay the next token.
const MAX_GOOD_IN_FLIGHT: u32 = 512;

/// The maximum number of bad requests in flight; high, because many of them wait for keys.
const MAX_BAD_IN_FLIGHT: u32 = 4_096;

/// How long before its first use an announced key is published.
const ANNOUNCEMENT: Duration = Duration::from_millis(400);

/// How many of the latest withdrawn keys the attack uses.
const MAX_WITHDRAWN_KEYS: usize = 8;

/// The interval of requests to a target that is not ready yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The settings of a drill.
pub(super) struct Settings {
    /// The audience of good tokens.
    pub(super) audience: String,
    /// Bad tokens per second.
    pub(super) attack_rate: u32,
}

/// A drill with its issuer and target.
pub(super) struct Runner {
    issuer: Issuer,
    target: Target,
    keys: Keys,
    settings: Settings,
    /// The signing key. Requests with good tokens hold a read lock; a rotation takes the write lock and so waits for
    /// them.
    current: RwLock<SigningKey>,
    /// Keys whose tokens the gateway must refuse.
    withdrawn: Mutex<Vec<SigningKey>>,
    counts: Mutex<Counts>,
    timing: Mutex<Option<Timing>>,
    completed: AtomicBool,
    good_permits: Arc<Semaphore>,
    bad_permits: Arc<Semaphore>,
}

/// The timing of a drill.
#[derive(Clone, Copy)]
struct Timing {
    started: Instant,
    /// The number of key-set requests before the start.
    fetches_before: u64,
    /// For how long tokens were sent, once sending has ended.
    sent_for: Option<Duration>,
}

/// Runs these steps.
///
/// # Errors
/// No first token was allowed within `wait`, or the issuer could not be started again.
pub(super) async fn run(runner: Arc<Runner>, steps: Vec<Step>, wait: Duration) -> Result<(), Failure> {
    runner.wait_until_ready(wait).await?;
    let started = runner.start();
    let mut senders = JoinSet::new();
    senders.spawn(Arc::clone(&runner).send_good());
    senders.spawn(Arc::clone(&runner).send_bad());
    senders.spawn(Arc::clone(&runner).show_progress(started));
    let mut recovered_at = started;
    let mut rotations = 0;
    for Step { at, action } in steps {
        clock::sleep_until(started + at).await;
        match action {
            Action::Rotate(rotation) => {
                clock::sleep_until(recovered_at).await;
                rotations += 1;
                runner.rotate(rotation, rotations).await;
            }
            Action::Fail(fault) => {
                runner.fail(fault).await?;
                recovered_at = clock::monotonic() + RECOVERY;
            }
            Action::End => break,
        }
    }
    senders.shutdown().await;
    runner.record_end_of_sending();
    runner.until_answered().await;
    runner.completed.store(true, Ordering::Relaxed);
    Ok(())
}

impl Runner {
    /// A drill with an issuer that publishes the first of `keys`.
    pub(super) fn new(issuer: Issuer, target: Target, keys: Keys, settings: Settings) -> Self {
        let current = RwLock::new(keys.first());
        Self {
            issuer,
            target,
            keys,
            settings,
            current,
            withdrawn: Mutex::default(),
            counts: Mutex::default(),
            timing: Mutex::default(),
            completed: AtomicBool::new(false),
            good_permits: Arc::new(Semaphore::new(MAX_GOOD_IN_FLIGHT as usize)),
            bad_permits: Arc::new(Semaphore::new(MAX_BAD_IN_FLIGHT as usize)),
        }
    }

    /// The results so far; `None` before the start.
    pub(super) fn report(&self, gateway: String) -> Option<Report> {
        let Timing { started, fetches_before, sent_for } = (*self.timing())?;
        let elapsed = clock::elapsed_since(started);
        Some(Report {
            gateway,
            completed: self.completed.load(Ordering::Relaxed),
            aborted: None,
            counts: self.counts().clone(),
            elapsed,
            sent_for: sent_for.unwrap_or(elapsed),
            attack_rate: self.settings.attack_rate,
            fetches: self.issuer.key_fetches().saturating_sub(fetches_before),
        })
    }

    /// Sends good tokens until one is allowed.
    async fn wait_until_ready(&self, wait: Duration) -> Result<(), Failure> {
        let deadline = clock::monotonic() + wait;
        loop {
            let token = self.keys.good(&*self.current.read().await, &self.settings.audience);
            let outcome = self.target.send(&token).await;
            let cause = match outcome {
                Outcome::Allowed => return Ok(()),
                Outcome::Refused(status) => format!("the last response has status {status}"),
                Outcome::NoResponse(error) => error,
                Outcome::NotSent(error) => format!("the drill could not send it: {error}"),
            };
            if clock::monotonic() + RETRY_INTERVAL > deadline {
                return Err(format!("no first token was allowed within {} s: {cause}", wait.as_secs()).into());
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    fn start(&self) -> Instant {
        let started = clock::monotonic();
        let fetches_before = self.issuer.key_fetches();
        *self.timing() = Some(Timing { started, fetches_before, sent_for: None });
        started
    }

    fn record_end_of_sending(&self) {
        if let Some(timing) = &mut *self.timing() {
            timing.sent_for = Some(clock::elapsed_since(timing.started));
        }
    }

    async fn rotate(&self, rotation: Rotation, number: usize) {
        let old = self.current.read().await.clone();
        let new = self.keys.next(rotation, number, &old);
        if rotation == Rotation::Announced {
            self.issuer.publish(&[&new, &old]);
            sleep(ANNOUNCEMENT).await;
        }
        let mut current = self.current.write().await;
        match rotation {
            Rotation::AtUse | Rotation::Algorithm | Rotation::Announced => self.issuer.publish(&[&new, &old]),
            Rotation::SameKid | Rotation::Withdrawn => self.issuer.publish(&[&new]),
        }
        current.clone_from(&new);
        drop(current);

        let token = self.keys.good(&new, &self.settings.audience);
        let sent_at = clock::monotonic();
        let outcome = self.target.send(&token).await;
        self.counts().first(rotation, &outcome, clock::elapsed_since(sent_at));
        // The token can only be allowed after a fetch that has also shown the change of the old key.
        if outcome == Outcome::Allowed && matches!(rotation, Rotation::SameKid | Rotation::Withdrawn) {
            let mut withdrawn = self.withdrawn();
            withdrawn.push(old);
            let surplus = withdrawn.len().saturating_sub(MAX_WITHDRAWN_KEYS);
            withdrawn.drain(..surplus);
        }
    }

    async fn fail(&self, fault: IssuerFault) -> Result<(), Failure> {
        self.counts().faults += 1;
        let fault = match fault {
            IssuerFault::Status => Fault::Status(500),
            IssuerFault::Hang => Fault::Hang,
            IssuerFault::Html => Fault::Html,
            IssuerFault::EmptySet => Fault::EmptySet,
            IssuerFault::Dropped => Fault::DropConnection,
            IssuerFault::Down => {
                self.issuer.stop().await;
                sleep(FAULT_DURATION).await;
                return Ok(self.issuer.restart().await?);
            }
        };
        self.issuer.set_fault(Some(fault));
        sleep(FAULT_DURATION).await;
        self.issuer.set_fault(None);
        Ok(())
    }

    async fn send_good(self: Arc<Self>) {
        let mut ticks = ticks(GOOD_RATE);
        loop {
            ticks.tick().await;
            let Ok(permit) = Arc::clone(&self.good_permits).acquire_owned().await else { return };
            tokio::spawn(Arc::clone(&self).send_one_good(permit));
        }
    }

    async fn send_one_good(self: Arc<Self>, _permit: OwnedSemaphorePermit) {
        let current = self.current.read().await;
        let token = self.keys.good(&current, &self.settings.audience);
        let sent_at = clock::monotonic();
        let outcome = self.target.send(&token).await;
        drop(current);
        self.counts().good(&outcome, clock::elapsed_since(sent_at));
    }

    async fn send_bad(self: Arc<Self>) {
        if self.settings.attack_rate == 0 {
            return;
        }
        let mut ticks = ticks(self.settings.attack_rate);
        for kind in BadToken::ALL.into_iter().cycle() {
            ticks.tick().await;
            let Ok(permit) = Arc::clone(&self.bad_permits).acquire_owned().await else { return };
            tokio::spawn(Arc::clone(&self).send_one_bad(kind, permit));
        }
    }

    async fn send_one_bad(self: Arc<Self>, kind: BadToken, _permit: OwnedSemaphorePermit) {
        // Cloned, so that a rotation does not wait for bad requests.
        let current = self.current.read().await.clone();
        let withdrawn = {
            let withdrawn = self.withdrawn();
            let index = rand::random::<u32>() as usize % withdrawn.len().max(1);
            withdrawn.get(index).cloned()
        };
        let (kind, token) = self.keys.bad(kind, &current, withdrawn.as_ref(), &self.settings.audience);
        let outcome = self.target.send(&token).await;
        self.counts().bad(kind, &outcome);
    }

    async fn show_progress(self: Arc<Self>, started: Instant) {
        let mut ticks = ticks(1);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let Some(report) = self.report(String::new()) else { continue };
            let (good, bad) = (&report.counts.good, report.counts.attack());
            let rotations: u32 = report.counts.rotations.values().map(|rotated| rotated.count).sum();
            output::print_error(&format!(
                "{:>4} s: good {}, refused {}; bad {}, allowed {}, no response {}; not sent {}; \
                 rotations {rotations}, faults {}, fetches {}",
                clock::elapsed_since(started).as_secs(),
                good.sent,
                good.refused,
                bad.sent,
                bad.allowed,
                bad.unanswered,
                good.not_sent + bad.not_sent,
                report.counts.faults,
                report.fetches
            ));
        }
    }

    /// Waits for the requests in flight; each has its own timeout.
    async fn until_answered(&self) {
        let all = async {
            let _good = self.good_permits.acquire_many(MAX_GOOD_IN_FLIGHT).await;
            let _bad = self.bad_permits.acquire_many(MAX_BAD_IN_FLIGHT).await;
        };
        // Far longer than the timeout of a request.
        let _all_answered = timeout(Duration::from_secs(30), all).await;
    }

    fn timing(&self) -> MutexGuard<'_, Option<Timing>> {
        self.timing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn withdrawn(&self) -> MutexGuard<'_, Vec<SigningKey>> {
        self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An interval with this rate per second. Missed ticks are made up for.
fn ticks(rate: u32) -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}
