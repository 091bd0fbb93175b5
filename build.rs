//! Compiles `proto/` without `protoc` into two shapes: upstream's for reflection, and a reduced one for the generated
//! code.
//!
//! The reduced shape is the same on the wire. A map of strings is a repeated message of key and value; decoded as that, with
//! `bytes`, it keeps the order of headers and what is not UTF-8, as the service's own reader does, which the tests compare
//! with it. Fields of the request that the service does not read are left out.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// The reduced shape of one message; messages that are not listed are unchanged.
struct ReducedMessage {
    message: &'static str,
    /// Fields kept with upstream's type.
    kept: &'static [&'static str],
    /// Fields kept as bytes, whatever their content.
    as_bytes: &'static [&'static str],
    /// Maps of strings kept as lists of byte pairs.
    entry_lists: &'static [&'static str],
    /// Nested messages and enums that are no longer referenced.
    unused: &'static [&'static str],
}

const REDUCED: [ReducedMessage; 6] = [
    ReducedMessage {
        message: "envoy.service.auth.v3.AttributeContext",
        kept: &["source", "request", "context_extensions"],
        as_bytes: &[],
        entry_lists: &["ContextExtensionsEntry"],
        unused: &["TLSSession"],
    },
    ReducedMessage {
        message: "envoy.service.auth.v3.AttributeContext.Peer",
        kept: &["address"],
        as_bytes: &["principal"],
        entry_lists: &[],
        unused: &["LabelsEntry"],
    },
    ReducedMessage {
        message: "envoy.service.auth.v3.AttributeContext.Request",
        kept: &["http"],
        as_bytes: &[],
        entry_lists: &[],
        unused: &[],
    },
    ReducedMessage {
        message: "envoy.service.auth.v3.AttributeContext.HttpRequest",
        kept: &["headers", "header_map"],
        as_bytes: &["id", "method", "path", "host", "scheme", "protocol", "body", "raw_body"],
        entry_lists: &["HeadersEntry"],
        unused: &[],
    },
    ReducedMessage {
        message: "envoy.config.core.v3.Address",
        kept: &["socket_address"],
        as_bytes: &[],
        entry_lists: &[],
        unused: &[],
    },
    ReducedMessage {
        message: "envoy.config.core.v3.SocketAddress",
        kept: &["port_value"],
        as_bytes: &["address"],
        entry_lists: &[],
        unused: &["Protocol"],
    },
];

/// Top-level messages that are no longer referenced.
const UNUSED: [&str; 1] = ["envoy.config.core.v3.Pipe"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["envoy/service/auth/v3/external_auth.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".envoy.service.auth.v3.AttributeContext")
        .bytes(".envoy.config.core.v3.HeaderValue")
        .bytes(".envoy.config.core.v3.SocketAddress")
        .compile_fds(reduce(descriptors)?)?;
    Ok(())
}

fn reduce(mut descriptors: FileDescriptorSet) -> Result<FileDescriptorSet, String> {
    let mut matched = 0;
    for file in &mut descriptors.file {
        // Comments refer to positions, which are about to change.
        file.source_code_info = None;
        let package = file.package().to_owned();
        file.message_type.retain(|message| {
            let unused = UNUSED.contains(&format!("{package}.{}", message.name()).as_str());
            matched += usize::from(unused);
            !unused
        });
        for message in &mut file.message_type {
            matched += reduce_message(&package, message)?;
        }
    }
    if matched == REDUCED.len() + UNUSED.len() {
        Ok(descriptors)
    } else {
        Err("build.rs names a message that proto/ does not have".to_owned())
    }
}

/// Reduces a message and its nested messages; returns how many entries of [`REDUCED`] matched.
fn reduce_message(scope: &str, message: &mut DescriptorProto) -> Result<usize, String> {
    let name = format!("{scope}.{}", message.name());
    let mut matched = 0;
    if let Some(reduced) = REDUCED.iter().find(|reduced| reduced.message == name) {
        matched += 1;
        message.field.retain(|field| [reduced.kept, reduced.as_bytes].concat().contains(&field.name()));
        if message.field.len() != reduced.kept.len() + reduced.as_bytes.len() {
            return Err(format!("build.rs names a field that {name} does not have"));
        }
        for field in &mut message.field {
            if reduced.as_bytes.contains(&field.name()) {
                field.set_type(Type::Bytes);
            }
        }
        message.enum_type.retain(|nested| !reduced.unused.contains(&nested.name()));
        message.nested_type.retain(|nested| !reduced.unused.contains(&nested.name()));
        for entry in &mut message.nested_type {
            if reduced.entry_lists.contains(&entry.name()) {
                entry.options = None;
                entry.field.iter_mut().for_each(|field| field.set_type(Type::Bytes));
            }
        }
    }
    for nested in &mut message.nested_type {
        matched += reduce_message(&name, nested)?;
    }
    Ok(matched)
}
