//! Divides the limit on open files between connections and everything else.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The descriptors reserved for key fetches, files and the admin door: an eighth of the limit, clamped to this range.
const RESERVE: std::ops::RangeInclusive<u64> = 24..=512;

/// Raises the process's limit on open files (`RLIMIT_NOFILE`) to the hard limit. If that fails, the limit stays.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some() && current != maximum {
        let _unchanged = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// How many descriptors are left for connections after those that are open now and the reserve.
pub(crate) fn for_connections() -> Connections {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX));
    let open = std::fs::read_dir("/proc/self/fd").map_or(16, |entries| entries.count() as u64);
    divide(limit, open)
}

/// Descriptors available for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// For all doors together.
    pub(crate) doors: usize,
    /// For the admin door, taken from the reserve.
    pub(crate) admin: usize,
}

fn divide(limit: u64, open: u64) -> Connections {
    let reserve = (limit / 8).clamp(*RESERVE.start(), *RESERVE.end());
    let doors = limit.saturating_sub(open).saturating_sub(reserve).max(1);
    let to_usize = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    Connections { doors: to_usize(doors), admin: to_usize(reserve / 4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_reserved_for_fetches_and_the_admin_door_at_any_limit() {
        for (limit, open, doors, admin) in [
            (80, 16, 40, 6),
            (1024, 20, 876, 32),
            (20_000, 20, 19_468, 128),
            (u64::from(u32::MAX), 20, 4_294_966_763, 128),
            // Too few for anything: one connection is still allowed.
            (20, 16, 1, 6),
            (0, 16, 1, 6),
        ] {
            assert_eq!(divide(limit, open), Connections { doors, admin }, "{limit} with {open} open");
        }
    }
}
