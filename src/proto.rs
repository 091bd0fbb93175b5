//! Envoy's types, generated from `proto/` by `build.rs`: for reflection, for the client of `demo` and `drill`, and for the
//! tests, which compare the gRPC door's own reader and writer of these messages with them. The door itself uses none.
//!
//! `build.rs` explains the shape of the generated request: strings are bytes that share the receive buffer, maps are
//! lists of entries, and unused fields are left out. A list keeps what a map would merge: if a key occurs twice in
//! `context_extensions`, the last entry applies.

#![allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated code")]

/// The definitions in upstream's shape, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod r#type {
        pub mod v3 {
            tonic::include_proto!("envoy.r#type.v3");
        }
    }
    pub mod service {
        pub mod auth {
            pub mod v3 {
                tonic::include_proto!("envoy.service.auth.v3");
            }
        }
    }
}

pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}
