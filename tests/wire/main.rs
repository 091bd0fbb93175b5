//! The ext_authz messages as upstream defines them, in full: what goes over the wire is the same bytes.

mod compatibility;
