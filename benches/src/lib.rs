//! What the measurements share: the load, and the processor time that a server took for it.

pub mod envoy;
pub mod files;
pub mod http1;
pub mod load;
pub mod nginx;
pub mod process;
pub mod request;
pub mod table;
pub mod tokens;
pub mod upstream;
