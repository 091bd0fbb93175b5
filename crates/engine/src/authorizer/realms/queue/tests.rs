//! The queue on a simulated clock.

use proptest::prelude::*;

use super::*;
use crate::clock;

const SECOND: Duration = Duration::from_secs(1);

fn queue(now: Instant) -> RealmQueue<()> {
    let mut queue = RealmQueue::new(SECOND, 8, 10_000, now);
    queue.classify(|_| false);
    queue
}

fn named(text: &str) -> RealmName {
    RealmName::new(text).expect("a name")
}

fn join(queue: &mut RealmQueue<()>, name: &str, class: Class) -> Result<Ticket, QueueFull> {
    queue.join(&named(name), class, || ()).map(|(ticket, ())| ticket)
}

/// Opens every name that may be opened at this time, and ends its first fetch at once.
fn open_all(queue: &mut RealmQueue<()>, now: Instant) -> Vec<String> {
    let mut opened = Vec::new();
    while let Next::Open(name, class) = queue.next(now) {
        queue.opened(name.as_str());
        if class == Class::New {
            queue.first_fetch_ended();
        }
        opened.push(name.as_str().to_owned());
    }
    opened
}

#[test]
fn new_names_are_opened_in_a_burst_and_then_one_with_each_spacing() {
    let start = clock::monotonic();
    let mut queue = queue(start);
    for i in 0..40 {
        join(&mut queue, &format!("n{i}"), Class::New).expect("there is room");
    }
    assert_eq!(open_all(&mut queue, start).len(), BURST);
    assert_eq!(queue.next(start), Next::At(start + SECOND));
    assert_eq!(open_all(&mut queue, start + SECOND / 2), [""; 0]);
    assert_eq!(open_all(&mut queue, start + SECOND), ["n16"]);
    assert_eq!(open_all(&mut queue, start + SECOND * 5 / 2), ["n17"]);
    assert_eq!(open_all(&mut queue, start + SECOND * 3), ["n18"], "the elapsed part of a spacing is kept");
    assert_eq!(open_all(&mut queue, start + SECOND * 100).len(), BURST, "the burst is the limit");
}

#[test]
fn first_fetches_in_progress_are_limited() {
    let start = clock::monotonic();
    let mut queue = queue(start);
    for i in 0..40 {
        join(&mut queue, &format!("n{i}"), Class::New).expect("there is room");
    }
    for _ in 0..MAX_FIRST_FETCHES {
        let Next::Open(name, Class::New) = queue.next(start) else { panic!("a slot is free") };
        queue.opened(name.as_str());
    }
    let later = start + SECOND * 60;
    assert_eq!(queue.next(later), Next::Later);
    queue.first_fetch_ended();
    assert_eq!(queue.next(later), Next::Open(named("n16"), Class::New));
    assert_eq!(queue.next(later), Next::Later);
}

#[test]
fn the_name_with_the_longest_unbroken_wait_is_next() {
    let start = clock::monotonic();
    let mut queue = queue(start);
    queue.new.bucket.available = 0;
    let first = join(&mut queue, "first", Class::New).expect("there is room");
    let steady = join(&mut queue, "steady", Class::New).expect("there is room");
    join(&mut queue, "late", Class::New).expect("there is room");
    // The only caller of `first` gives up and returns; `steady` always has a caller.
    queue.leave("first", first);
    join(&mut queue, "first", Class::New).expect("there is room");
    join(&mut queue, "steady", Class::New).expect("there is room");
    queue.leave("steady", steady);
    assert_eq!(open_all(&mut queue, start + SECOND * 3), ["steady", "late", "first"]);
    assert_eq!(queue.next(start + SECOND * 3), Next::Empty);
}

#[test]
fn a_caller_that_leaves_after_its_name_was_opened_does_not_affect_a_later_one() {
    let start = clock::monotonic();
    let mut queue = queue(start);
    let before = join(&mut queue, "a", Class::New).expect("there is room");
    assert_eq!(open_all(&mut queue, start), ["a"]);
    join(&mut queue, "a", Class::New).expect("there is room");
    queue.leave("a", before);
    assert_eq!(open_all(&mut queue, start), ["a"]);
    assert_eq!((queue.new.names, queue.new.extra_callers), (0, 0));
}

#[test]
fn a_name_that_is_being_opened_is_opened_once() {
    let start = clock::monotonic();
    let mut queue = queue(start);
    let ticket = join(&mut queue, "a", Class::New).expect("there is room");
    assert_eq!(queue.next(start), Next::Open(named("a"), Class::New));
    queue.leave("a", ticket);
    join(&mut queue, "a", Class::New).expect("there is room");
    join(&mut queue, "a", Class::New).expect("there is room");
    assert_eq!(queue.next(start), Next::Empty);
    assert!(queue.opened("a").is_some());
    assert_eq!((queue.new.names, queue.new.extra_callers), (0, 0));
}

#[test]
fn names_and_callers_are_limited_and_many_callers_of_one_name_keep_no_other_out() {
    let start = clock::monotonic();
    let mut queue: RealmQueue<()> = RealmQueue::new(SECOND, 8, 100, start);
    let herd: Vec<_> = (0..200).filter_map(|_| join(&mut queue, "herd", Class::New).ok()).collect();
    assert_eq!(herd.len(), 51);
    for i in 0..49 {
        assert!(join(&mut queue, &format!("n{i}"), Class::New).is_ok(), "{i}");
    }
    assert_eq!(join(&mut queue, "one-more", Class::New), Err(QueueFull));
    assert!(join(&mut queue, "known", Class::Known).is_ok(), "new names do not fill the lane of known ones");
    for ticket in herd {
        queue.leave("herd", ticket);
    }
    assert!(join(&mut queue, "one-more", Class::New).is_ok());
    assert_eq!(queue.new.extra_callers, 0);
}

#[test]
fn known_names_have_a_lane_and_a_burst_of_their_own() {
    let start = clock::monotonic();
    let mut queue = queue(start);
    queue.new.bucket.available = 0;
    join(&mut queue, "new", Class::New).expect("there is room");
    for i in 0..10 {
        join(&mut queue, &format!("k{i}"), Class::Known).expect("there is room");
    }
    assert_eq!(open_all(&mut queue, start), ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"]);
    assert_eq!(open_all(&mut queue, start + SECOND), ["k8", "new"]);
}

#[test]
fn no_name_is_new_before_the_stored_names_are_read() {
    let start = clock::monotonic();
    let mut queue: RealmQueue<()> = RealmQueue::new(SECOND, 8, 100, start);
    for name in ["new", "old", "old"] {
        join(&mut queue, name, Class::New).expect("there is room");
    }
    assert_eq!(queue.next(start), Next::Later);
    queue.new.bucket.available = 0;
    queue.classify(|name| name.as_str() == "old");
    assert_eq!(queue.next(start), Next::Open(named("old"), Class::Known));
    assert_eq!(queue.next(start), Next::At(start + SECOND));
    assert_eq!(
        (queue.new.names, queue.new.extra_callers, queue.known.names, queue.known.extra_callers),
        (1, 0, 1, 1)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8, bool),
    Leave(prop::sample::Index),
    Advance(u16),
    Opened,
    FetchEnded,
    Classify(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8, any::<bool>()).prop_map(|(name, known)| Step::Join(name, known)),
        4 => any::<prop::sample::Index>().prop_map(Step::Leave),
        3 => (0..3_000u16).prop_map(Step::Advance),
        2 => Just(Step::Opened),
        1 => Just(Step::FetchEnded),
        1 => (0..12u8).prop_map(Step::Classify),
    ]
}

proptest! {
    #[test]
    fn the_counts_are_those_of_the_entries(steps in prop::collection::vec(step(), 1..200)) {
        let mut now = clock::monotonic();
        let mut queue: RealmQueue<()> = RealmQueue::new(SECOND, 4, 16, now);
        let (mut waiting, mut opening, mut fetching) = (Vec::new(), Vec::new(), 0);
        for step in steps {
            match step {
                Step::Join(name, known) => {
                    let (name, class) = (format!("n{name}"), if known { Class::Known } else { Class::New });
                    waiting.extend(join(&mut queue, &name, class).ok().map(|ticket| (name, ticket)));
                }
                Step::Leave(who) if !waiting.is_empty() => {
                    let (name, ticket) = waiting.swap_remove(who.index(waiting.len()));
                    queue.leave(&name, ticket);
                }
                Step::Advance(millis) => {
                    now += Duration::from_millis(millis.into());
                    if let Next::Open(name, class) = queue.next(now) {
                        fetching += usize::from(class == Class::New);
                        opening.push(name);
                    }
                }
                Step::Opened => {
                    if let Some(name) = opening.pop() {
                        let ticket = queue.entries.get(&name).map(|entry| entry.ticket);
                        prop_assert!(queue.opened(name.as_str()).is_some(), "it is queued until it is opened");
                        waiting.retain(|(_, held)| Some(*held) != ticket);
                    }
                }
                Step::FetchEnded if fetching > 0 => {
                    fetching -= 1;
                    queue.first_fetch_ended();
                }
                Step::Classify(known) => queue.classify(|name| name.as_str() == format!("n{known}")),
                Step::Leave(_) | Step::FetchEnded => {}
            }
            prop_assert!(fetching <= MAX_FIRST_FETCHES);
            prop_assert_eq!(waiting.len(), queue.entries.values().map(|entry| entry.callers).sum::<usize>());
            for (class, lane) in [(Class::Known, &queue.known), (Class::New, &queue.new)] {
                let entries = || queue.entries.values().filter(|entry| entry.class == class);
                let extra_callers: usize = entries().map(|entry| entry.callers.saturating_sub(1)).sum();
                prop_assert_eq!((lane.names, lane.extra_callers), (entries().count(), extra_callers));
                prop_assert_eq!(lane.order.len(), entries().filter(|entry| !entry.opening).count());
                prop_assert!(lane.names <= lane.max_names && lane.extra_callers <= lane.max_extra_callers);
            }
        }
    }
}
