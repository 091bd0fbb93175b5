//! Measures the cost of parsing the worst tokens before any key is used: CPU, peak heap, and heap while the token is
//! held. Run by hand: `cargo run --release --example token_cost`.

#![allow(
    clippy::print_stdout,
    unsafe_code,
    reason = "a measurement that is run by hand and counts allocations"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::validation::json::JsonLimits;
use portcullis::validation::{self, TokenLimits};

/// The system allocator with a count of the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller's layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `block` came from `alloc` with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let unbounded =
        TokenLimits { json: JsonLimits { values: 1_000_000, depth: 64 }, ..TokenLimits::default() };
    let room = 16 * 1024 - 400;
    let tokens = [
        ("[1,1,1,...]", "[", "1,", "1]"),
        ("{\"a\":{},...}", "{", "", "\"z\":{}}"),
        ("[[1],[1],...]", "[", "[1],", "1]"),
        ("[\"a\",\"a\",...]", "[", "\"a\",", "1]"),
        ("[4000 numbers]", "[", "1,", "1]"),
    ];
    for (name, opening, element, closing) in tokens {
        let bytes = if name.contains("4000") { 4000 * 2 } else { room * 3 / 4 };
        let mut claims = format!("{{\"iss\":\"https://sso.example.com\",\"exp\":1800000000,\"x\":{opening}");
        let mut number = 0;
        while claims.len() < bytes {
            if element.is_empty() {
                claims.push_str(&format!("\"{number:x}\":{{}},"));
                number += 1;
            } else {
                claims.push_str(element);
            }
        }
        claims.push_str(closing);
        claims.push('}');
        let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"RS256","kid":"made-up"}"#);
        let token = format!("{header}.{}.AAAA", URL_SAFE_NO_PAD.encode(claims));
        measure(name, &token, &TokenLimits::default());
        measure("  without limits", &token, &unbounded);
    }
}

fn measure(name: &str, token: &str, limits: &TokenLimits) {
    const ROUNDS: u32 = 500;
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let parsed = validation::parse(token, limits);
    let peak = PEAK.load(Ordering::Relaxed) - before;
    let held = IN_USE.load(Ordering::Relaxed) - before;
    let outcome = if parsed.is_ok() { "parsed" } else { "rejected" };
    drop(parsed);
    #[allow(clippy::disallowed_methods, reason = "it measures time")]
    let start = Instant::now();
    for _ in 0..ROUNDS {
        drop(black_box(validation::parse(black_box(token), limits)));
    }
    let each = start.elapsed() / ROUNDS;
    println!(
        "{name:16} {:6} bytes: {outcome:8} {:7.1} us, peak heap {:4} KiB, held {:4} KiB",
        token.len(),
        each.as_secs_f64() * 1e6,
        peak / 1024,
        held / 1024
    );
}
