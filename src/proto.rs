//! Envoy's types, generated from `proto/` by `build.rs`, for the gRPC door and the tests to speak with.
//!
//! They are used here and in the gRPC door alone; nothing is decided here.
//!
//! What the generated request looks like, and why, stands in `build.rs`: strings are bytes that share
//! the buffer they came in, maps are lists of entries, fields that nobody reads are not there. A list
//! keeps what a map would have merged: where a key stands twice in `context_extensions`, the last counts.

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
