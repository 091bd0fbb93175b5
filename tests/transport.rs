//! Hostile issuers, caches, proxies and networks against the whole service.

mod support;

#[path = "transport/answer.rs"]
mod answer;
#[path = "transport/answers.rs"]
mod answers;
#[path = "transport/certificates.rs"]
mod certificates;
#[path = "transport/encodings.rs"]
mod encodings;
#[path = "transport/house.rs"]
mod house;
#[path = "transport/key_server.rs"]
mod key_server;
#[path = "transport/redirects.rs"]
mod redirects;
#[path = "transport/stalls.rs"]
mod stalls;
#[path = "transport/tls.rs"]
mod tls;
#[path = "transport/freshness.rs"]
mod freshness;
#[path = "transport/addresses.rs"]
mod addresses;
#[path = "transport/discovery.rs"]
mod discovery;
#[path = "transport/process.rs"]
mod process;
#[path = "transport/proxy.rs"]
mod proxy;
#[path = "transport/budgets.rs"]
mod budgets;
#[path = "transport/snapshots.rs"]
mod snapshots;
