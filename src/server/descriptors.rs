//! How many connections the machine lets this process have, and what is kept for everything else.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is kept for key fetches, files and the operator's door: an eighth of all, within these.
const RESERVE: std::ops::RangeInclusive<u64> = 24..=512;

/// Raises the process's limit on descriptors to what it may raise it to (`RLIMIT_NOFILE`). What cannot be raised stays.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some() && current != maximum {
        let _as_it_was = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// How many descriptors connections may have, beside those that are open now and the reserve.
pub(crate) fn for_connections() -> Connections {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX));
    let open = std::fs::read_dir("/proc/self/fd").map_or(16, |entries| entries.count() as u64);
    divide(limit, open)
}

/// What connections may have of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// The doors together.
    pub(crate) doors: usize,
    /// The operator's door, out of the reserve.
    pub(crate) admin: usize,
}

fn divide(limit: u64, open: u64) -> Connections {
    let reserve = (limit / 8).clamp(*RESERVE.start(), *RESERVE.end());
    let doors = limit.saturating_sub(open).saturating_sub(reserve).max(1);
    let of = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    Connections { doors: of(doors), admin: of(reserve / 4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_limit_something_is_kept_for_fetches_and_for_the_operator() {
        for (limit, open, doors, admin) in [
            (80, 16, 40, 6),
            (1024, 20, 876, 32),
            (20_000, 20, 19_468, 128),
            (u64::from(u32::MAX), 20, 4_294_966_763, 128),
            // Too few for anything: one connection is tried all the same.
            (20, 16, 1, 6),
            (0, 16, 1, 6),
        ] {
            assert_eq!(divide(limit, open), Connections { doors, admin }, "{limit} with {open} open");
        }
    }
}
