//! What the measurements in this process share: the gRPC door with a client that costs next to nothing, configurations
//! and tokens, and the processor time of a call.

pub mod cost;
pub mod door;
pub mod engine;
pub mod fixture;
pub mod frames;
pub mod growth;
pub mod instructions;
pub mod steps;

/// Why a measurement failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
