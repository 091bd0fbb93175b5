//! What it costs to take the worst tokens apart, before any key is looked at: CPU, and heap at its highest and
//! while the token is held. Run by hand: `cargo run --release --example token_cost`.

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

/// The system's allocator, which counts what is in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        HIGHEST.fetch_max(in_use, Ordering::Relaxed);
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
    HIGHEST.store(before, Ordering::Relaxed);
    let parsed = validation::parse(token, limits);
    let highest = HIGHEST.load(Ordering::Relaxed) - before;
    let held = IN_USE.load(Ordering::Relaxed) - before;
    let outcome = if parsed.is_ok() { "read" } else { "refused" };
    drop(parsed);
    #[allow(clippy::disallowed_methods, reason = "what is measured is time")]
    let start = Instant::now();
    for _ in 0..ROUNDS {
        drop(black_box(validation::parse(black_box(token), limits)));
    }
    let each = start.elapsed() / ROUNDS;
    println!(
        "{name:16} {:6} bytes: {outcome:8} {:7.1} us, heap at most {:4} KiB, held {:4} KiB",
        token.len(),
        each.as_secs_f64() * 1e6,
        highest / 1024,
        held / 1024
    );
}
