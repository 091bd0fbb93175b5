//! What the measurements share: the load, and the processor time that a server took for it.

pub mod load;
pub mod process;
pub mod request;
