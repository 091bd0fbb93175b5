//! The line of names on a clock of its own.

use proptest::prelude::*;

use super::*;
use crate::clock;

const SECOND: Duration = Duration::from_secs(1);

fn line(now: Instant) -> Line<()> {
    let mut line = Line::new(SECOND, 8, 10_000, now);
    line.sort(|_| false);
    line
}

fn named(text: &str) -> RealmName {
    RealmName::new(text).expect("a name")
}

fn join(line: &mut Line<()>, name: &str, class: Class) -> Result<Ticket, Full> {
    line.join(&named(name), class, || ()).map(|(ticket, ())| ticket)
}

/// Opens whatever may be at this time, and ends its first fetch at once.
fn open_all(line: &mut Line<()>, now: Instant) -> Vec<String> {
    let mut opened = Vec::new();
    while let Next::Open(name, class) = line.next(now) {
        line.opened(name.as_str());
        if class == Class::New {
            line.first_fetch_ended();
        }
        opened.push(name.as_str().to_owned());
    }
    opened
}

#[test]
fn new_names_open_in_a_burst_and_then_one_with_each_spacing() {
    let start = clock::monotonic();
    let mut line = line(start);
    for i in 0..40 {
        join(&mut line, &format!("n{i}"), Class::New).expect("there is room");
    }
    assert_eq!(open_all(&mut line, start).len(), BURST);
    assert_eq!(line.next(start), Next::At(start + SECOND));
    assert_eq!(open_all(&mut line, start + SECOND / 2), [""; 0]);
    assert_eq!(open_all(&mut line, start + SECOND), ["n16"]);
    assert_eq!(open_all(&mut line, start + SECOND * 5 / 2), ["n17"]);
    assert_eq!(open_all(&mut line, start + SECOND * 3), ["n18"], "what had passed of a spacing counts");
    assert_eq!(open_all(&mut line, start + SECOND * 100).len(), BURST, "no more than a burst is saved up");
}

#[test]
fn no_more_first_fetches_are_under_way_than_allowed() {
    let start = clock::monotonic();
    let mut line = line(start);
    for i in 0..40 {
        join(&mut line, &format!("n{i}"), Class::New).expect("there is room");
    }
    for _ in 0..AT_ONE_TIME {
        let Next::Open(name, Class::New) = line.next(start) else { panic!("a slot is free") };
        line.opened(name.as_str());
    }
    let later = start + SECOND * 60;
    assert_eq!(line.next(later), Next::Later);
    line.first_fetch_ended();
    assert_eq!(line.next(later), Next::Open(named("n16"), Class::New));
    assert_eq!(line.next(later), Next::Later);
}

#[test]
fn the_name_with_the_longest_unbroken_wait_is_next() {
    let start = clock::monotonic();
    let mut line = line(start);
    line.new.slots.left = 0;
    let first = join(&mut line, "first", Class::New).expect("there is room");
    let steady = join(&mut line, "steady", Class::New).expect("there is room");
    join(&mut line, "late", Class::New).expect("there is room");
    // The first one's only caller gives up and comes back; of the steady one somebody is always there.
    line.leave("first", first);
    join(&mut line, "first", Class::New).expect("there is room");
    join(&mut line, "steady", Class::New).expect("there is room");
    line.leave("steady", steady);
    assert_eq!(open_all(&mut line, start + SECOND * 3), ["steady", "late", "first"]);
    assert_eq!(line.next(start + SECOND * 3), Next::Empty);
}

#[test]
fn a_caller_who_leaves_after_its_name_was_opened_takes_nobody_elses_place() {
    let start = clock::monotonic();
    let mut line = line(start);
    let before = join(&mut line, "a", Class::New).expect("there is room");
    assert_eq!(open_all(&mut line, start), ["a"]);
    join(&mut line, "a", Class::New).expect("there is room");
    line.leave("a", before);
    assert_eq!(open_all(&mut line, start), ["a"]);
    assert_eq!((line.new.names, line.new.others), (0, 0));
}

#[test]
fn a_name_that_is_being_opened_is_opened_once_whoever_comes_and_goes() {
    let start = clock::monotonic();
    let mut line = line(start);
    let ticket = join(&mut line, "a", Class::New).expect("there is room");
    assert_eq!(line.next(start), Next::Open(named("a"), Class::New));
    line.leave("a", ticket);
    join(&mut line, "a", Class::New).expect("there is room");
    join(&mut line, "a", Class::New).expect("there is room");
    assert_eq!(line.next(start), Next::Empty);
    assert!(line.opened("a").is_some());
    assert_eq!((line.new.names, line.new.others), (0, 0));
}

#[test]
fn names_and_callers_are_bounded_and_the_many_of_one_name_keep_no_other_out() {
    let start = clock::monotonic();
    let mut line: Line<()> = Line::new(SECOND, 8, 100, start);
    let herd: Vec<_> = (0..200).filter_map(|_| join(&mut line, "herd", Class::New).ok()).collect();
    assert_eq!(herd.len(), 51);
    for i in 0..49 {
        assert!(join(&mut line, &format!("n{i}"), Class::New).is_ok(), "{i}");
    }
    assert_eq!(join(&mut line, "one-more", Class::New), Err(Full));
    assert!(join(&mut line, "known", Class::Known).is_ok(), "new ones take no known one's place");
    for ticket in herd {
        line.leave("herd", ticket);
    }
    assert!(join(&mut line, "one-more", Class::New).is_ok());
    assert_eq!(line.new.others, 0);
}

#[test]
fn known_names_open_beside_the_new_and_only_as_often_as_there_are_any() {
    let start = clock::monotonic();
    let mut line = line(start);
    line.new.slots.left = 0;
    join(&mut line, "new", Class::New).expect("there is room");
    for i in 0..10 {
        join(&mut line, &format!("k{i}"), Class::Known).expect("there is room");
    }
    assert_eq!(open_all(&mut line, start), ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"]);
    assert_eq!(open_all(&mut line, start + SECOND), ["k8", "new"]);
}

#[test]
fn nobody_is_new_before_the_names_that_had_keys_are_read() {
    let start = clock::monotonic();
    let mut line: Line<()> = Line::new(SECOND, 8, 100, start);
    for name in ["new", "old", "old"] {
        join(&mut line, name, Class::New).expect("there is room");
    }
    assert_eq!(line.next(start), Next::Later);
    line.new.slots.left = 0;
    line.sort(|name| name.as_str() == "old");
    assert_eq!(line.next(start), Next::Open(named("old"), Class::Known));
    assert_eq!(line.next(start), Next::At(start + SECOND));
    assert_eq!((line.new.names, line.new.others, line.known.names, line.known.others), (1, 0, 1, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8, bool),
    Leave(prop::sample::Index),
    Turn(u16),
    Opened,
    FetchEnded,
    Sort(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8, any::<bool>()).prop_map(|(name, known)| Step::Join(name, known)),
        4 => any::<prop::sample::Index>().prop_map(Step::Leave),
        3 => (0..3_000u16).prop_map(Step::Turn),
        2 => Just(Step::Opened),
        1 => Just(Step::FetchEnded),
        1 => (0..12u8).prop_map(Step::Sort),
    ]
}

proptest! {
    #[test]
    fn whoever_comes_and_goes_the_counts_are_those_of_the_places(steps in prop::collection::vec(step(), 1..200)) {
        let mut now = clock::monotonic();
        let mut line: Line<()> = Line::new(SECOND, 4, 16, now);
        let (mut waiting, mut opening, mut fetching) = (Vec::new(), Vec::new(), 0);
        for step in steps {
            match step {
                Step::Join(name, known) => {
                    let (name, class) = (format!("n{name}"), if known { Class::Known } else { Class::New });
                    waiting.extend(join(&mut line, &name, class).ok().map(|ticket| (name, ticket)));
                }
                Step::Leave(who) if !waiting.is_empty() => {
                    let (name, ticket) = waiting.swap_remove(who.index(waiting.len()));
                    line.leave(&name, ticket);
                }
                Step::Turn(millis) => {
                    now += Duration::from_millis(millis.into());
                    if let Next::Open(name, class) = line.next(now) {
                        fetching += usize::from(class == Class::New);
                        opening.push(name);
                    }
                }
                Step::Opened => {
                    if let Some(name) = opening.pop() {
                        let ticket = line.places.get(&name).map(|place| place.ticket);
                        prop_assert!(line.opened(name.as_str()).is_some(), "it has its place until it is opened");
                        waiting.retain(|(_, held)| Some(*held) != ticket);
                    }
                }
                Step::FetchEnded if fetching > 0 => {
                    fetching -= 1;
                    line.first_fetch_ended();
                }
                Step::Sort(known) => line.sort(|name| name.as_str() == format!("n{known}")),
                Step::Leave(_) | Step::FetchEnded => {}
            }
            prop_assert!(fetching <= AT_ONE_TIME);
            prop_assert_eq!(waiting.len(), line.places.values().map(|place| place.callers).sum::<usize>());
            for (class, lane) in [(Class::Known, &line.known), (Class::New, &line.new)] {
                let places = || line.places.values().filter(|place| place.class == class);
                let others: usize = places().map(|place| place.callers.saturating_sub(1)).sum();
                prop_assert_eq!((lane.names, lane.others), (places().count(), others));
                prop_assert_eq!(lane.order.len(), places().filter(|place| !place.opening).count());
                prop_assert!(lane.names <= lane.most_names && lane.others <= lane.most_others);
            }
        }
    }
}
