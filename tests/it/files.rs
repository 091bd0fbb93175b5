//! Files that change while the service runs, in process on a paused clock and on the running binary: what is half
//! written, exchanged, gone for a while, or no file at all.

mod configuration;
mod keys;
mod process;
