//! Reads a CheckRequest in the buffer in which it was received: nothing is copied, and fields that no decision reads are
//! skipped.
//!
//! Fields that occur more than once are merged as everywhere in proto3: the last value of a string counts, the entries
//! of a list or map are appended, and so are the fields of a message.

use bytes::Bytes;

use super::message::ReadError;
use super::protobuf::{Field, Fields, NotFields, Value, Writer};

/// The maximum number of fields that are read. A header has three.
const MAX_FIELDS: usize = 32_768;

/// The key in `context_extensions` with which a route names its rule.
const NAMED_RULE: &[u8] = b"portcullis_rule";

/// The namespace and the key in a route's metadata with which it names its rule. The metadata of other filters is not
/// read: they fill it from what the client sends.
const METADATA_NAMESPACE: &[u8] = b"portcullis";
const METADATA_RULE: &[u8] = b"rule";

/// Not the name of a rule: such a request is denied.
const NO_RULE: &[u8] = b"";

/// Field numbers (envoy/service/auth/v3/{external_auth,attribute_context}.proto, envoy/config/core/v3/{address,base}.proto,
/// google/protobuf/struct.proto).
mod number {
    pub(super) const ATTRIBUTES: u32 = 1;
    pub(super) const SOURCE: u32 = 1;
    pub(super) const REQUEST: u32 = 4;
    pub(super) const CONTEXT_EXTENSIONS: u32 = 10;
    pub(super) const ROUTE_METADATA: u32 = 13;
    /// The map of a Metadata, and of a Struct.
    pub(super) const FIELDS: u32 = 1;
    /// The kinds of a `google.protobuf.Value`, of which one is set.
    pub(super) const VALUE_KINDS: std::ops::RangeInclusive<u32> = 1..=6;
    pub(super) const STRING_VALUE: u32 = 3;
    pub(super) const PEER_ADDRESS: u32 = 1;
    pub(super) const PEER_PRINCIPAL: u32 = 4;
    pub(super) const SOCKET_ADDRESS: u32 = 1;
    pub(super) const SOCKET_ADDRESS_ADDRESS: u32 = 2;
    pub(super) const HTTP: u32 = 2;
    pub(super) const METHOD: u32 = 2;
    pub(super) const HEADERS: u32 = 3;
    pub(super) const PATH: u32 = 4;
    pub(super) const HOST: u32 = 5;
    pub(super) const BODY: u32 = 11;
    pub(super) const RAW_BODY: u32 = 12;
    pub(super) const HEADER_MAP: u32 = 13;
    pub(super) const HEADER_MAP_HEADERS: u32 = 1;
    /// Of an entry of a map, and of a HeaderValue.
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const RAW_VALUE: u32 = 3;
}

/// What a decision reads of a CheckRequest. The default has nothing: such a request is denied, because it has no token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CheckRequest<'a> {
    pub(super) method: &'a [u8],
    pub(super) host: &'a [u8],
    /// With the query.
    pub(super) path: &'a [u8],
    /// From `headers`, in order.
    pub(super) headers: Vec<(&'a [u8], &'a [u8])>,
    /// From `header_map`, which Envoy fills instead with `encode_raw_headers`.
    pub(super) raw_headers: Vec<(&'a [u8], &'a [u8])>,
    /// The address of the client on TCP or UDP; may be empty.
    pub(super) source_address: &'a [u8],
    /// The identity in the client's certificate; may be empty.
    pub(super) source_principal: &'a [u8],
    /// The rule that the route names, in its context extensions or in its metadata; of two different ones none. As in a
    /// map, the last of several entries applies.
    pub(super) named_rule: Option<&'a [u8]>,
}

/// Reads a CheckRequest.
///
/// # Errors
/// The bytes are not one, or it has too many fields.
pub(super) fn read(message: &[u8]) -> Result<CheckRequest<'_>, ReadError> {
    let mut reader =
        Reader { remaining: MAX_FIELDS, request: CheckRequest::default(), rule_in_metadata: None };
    match reader.check(message) {
        Ok(()) => Ok(reader.finish()),
        Err(NotFields) if reader.remaining == 0 => Err(ReadError::TooManyFields),
        Err(NotFields) => Err(ReadError::NotACheck),
    }
}

/// The message without its body, in a buffer of its own size, to be held while the request waits for keys. The buffer in
/// which it was received may be many times as large.
///
/// # Errors
/// As [`read`].
pub(super) fn detached(message: &[u8]) -> Result<Bytes, ReadError> {
    let mut writer = Writer::with_capacity(0);
    read(message)?.write(&mut writer);
    Ok(Bytes::copy_from_slice(&writer.finish()))
}

struct Reader<'a> {
    remaining: usize,
    request: CheckRequest<'a>,
    rule_in_metadata: Option<&'a [u8]>,
}

impl<'a> Reader<'a> {
    /// Calls `each` with every field, up to the limit.
    fn each(
        &mut self,
        message: &'a [u8],
        mut each: impl FnMut(&mut Self, u32, Value<'a>) -> Result<(), NotFields>,
    ) -> Result<(), NotFields> {
        for field in Fields::new(message) {
            self.remaining = self.remaining.checked_sub(1).ok_or(NotFields)?;
            let Field { number, value } = field?;
            each(self, number, value)?;
        }
        Ok(())
    }

    fn finish(self) -> CheckRequest<'a> {
        let Self { mut request, rule_in_metadata, .. } = self;
        request.named_rule = match (request.named_rule, rule_in_metadata) {
            (Some(one), Some(other)) if one != other => Some(NO_RULE),
            (one, other) => one.or(other),
        };
        request
    }

    fn check(&mut self, message: &'a [u8]) -> Result<(), NotFields> {
        self.each(message, |reader, number, value| match number {
            number::ATTRIBUTES => reader.attributes(value.bytes()?),
            _ => Ok(()),
        })
    }

    fn attributes(&mut self, message: &'a [u8]) -> Result<(), NotFields> {
        self.each(message, |reader, number, value| match number {
            number::SOURCE => reader.source(value.bytes()?),
            number::REQUEST => reader.each(value.bytes()?, |reader, number, value| match number {
                number::HTTP => reader.http(value.bytes()?),
                _ => Ok(()),
            }),
            number::CONTEXT_EXTENSIONS => {
                let (key, value) = reader.entry(value.bytes()?)?;
                if key == NAMED_RULE {
                    reader.request.named_rule = Some(value);
                }
                Ok(())
            }
            number::ROUTE_METADATA => reader.route_metadata(value.bytes()?),
            _ => Ok(()),
        })
    }

    /// A Metadata: a map of Structs by namespace.
    fn route_metadata(&mut self, message: &'a [u8]) -> Result<(), NotFields> {
        self.each(message, |reader, number, value| {
            if number != number::FIELDS {
                return Ok(());
            }
            let (namespace, values) = reader.entry(value.bytes()?)?;
            if namespace == METADATA_NAMESPACE {
                reader.rule_in_metadata = None;
                reader.each(values, |reader, number, value| match number {
                    number::FIELDS => reader.metadata_value(value.bytes()?),
                    _ => Ok(()),
                })?;
            }
            Ok(())
        })
    }

    /// An entry of a Struct. A rule whose name is no string is none.
    fn metadata_value(&mut self, entry: &'a [u8]) -> Result<(), NotFields> {
        let (key, value) = self.entry(entry)?;
        if key != METADATA_RULE {
            return Ok(());
        }
        self.rule_in_metadata = Some(NO_RULE);
        self.each(value, |reader, number, value| {
            if number == number::STRING_VALUE {
                reader.rule_in_metadata = Some(value.bytes()?);
            } else if number::VALUE_KINDS.contains(&number) {
                reader.rule_in_metadata = Some(NO_RULE);
            }
            Ok(())
        })
    }

    fn source(&mut self, message: &'a [u8]) -> Result<(), NotFields> {
        self.each(message, |reader, number, value| {
            match number {
                number::PEER_ADDRESS => reader.address(value.bytes()?)?,
                number::PEER_PRINCIPAL => reader.request.source_principal = value.bytes()?,
                _ => {}
            }
            Ok(())
        })
    }

    fn address(&mut self, message: &'a [u8]) -> Result<(), NotFields> {
        self.each(message, |reader, number, value| match number {
            number::SOCKET_ADDRESS => reader.each(value.bytes()?, |reader, number, value| {
                if number == number::SOCKET_ADDRESS_ADDRESS {
                    reader.request.source_address = value.bytes()?;
                }
                Ok(())
            }),
            _ => Ok(()),
        })
    }

    fn http(&mut self, message: &'a [u8]) -> Result<(), NotFields> {
        self.each(message, |reader, number, value| {
            match number {
                number::METHOD => reader.request.method = value.bytes()?,
                number::PATH => reader.request.path = value.bytes()?,
                number::HOST => reader.request.host = value.bytes()?,
                number::HEADERS => {
                    let header = reader.entry(value.bytes()?)?;
                    reader.request.headers.push(header);
                }
                number::HEADER_MAP => reader.each(value.bytes()?, |reader, number, value| match number {
                    number::HEADER_MAP_HEADERS => reader.raw_header(value.bytes()?),
                    _ => Ok(()),
                })?,
                number::BODY | number::RAW_BODY => {
                    value.bytes()?;
                }
                _ => {}
            }
            Ok(())
        })
    }

    /// An entry of a map of strings.
    fn entry(&mut self, message: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), NotFields> {
        let mut entry = (&[][..], &[][..]);
        self.each(message, |_, number, value| {
            match number {
                number::KEY => entry.0 = value.bytes()?,
                number::VALUE => entry.1 = value.bytes()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(entry)
    }

    /// A HeaderValue. Its name and its value are strings, and so UTF-8; its raw value may be any bytes.
    fn raw_header(&mut self, message: &'a [u8]) -> Result<(), NotFields> {
        let (mut name, mut text, mut raw) = ("", "", &[][..]);
        self.each(message, |_, number, value| {
            match number {
                number::KEY => name = value.text()?,
                number::VALUE => text = value.text()?,
                number::RAW_VALUE => raw = value.bytes()?,
                _ => {}
            }
            Ok(())
        })?;
        let value = if raw.is_empty() { text.as_bytes() } else { raw };
        self.request.raw_headers.push((name.as_bytes(), value));
        Ok(())
    }
}

impl CheckRequest<'_> {
    /// Writes it without a body.
    fn write(&self, writer: &mut Writer) {
        writer.message(number::ATTRIBUTES, |writer| {
            if let Some(rule) = self.named_rule {
                writer.message(number::CONTEXT_EXTENSIONS, |writer| {
                    writer.bytes(number::VALUE, rule);
                    writer.bytes(number::KEY, NAMED_RULE);
                });
            }
            writer.message(number::REQUEST, |writer| {
                writer.message(number::HTTP, |writer| self.write_http(writer))
            });
            writer.message(number::SOURCE, |writer| {
                writer.bytes(number::PEER_PRINCIPAL, self.source_principal);
                writer.message(number::PEER_ADDRESS, |writer| {
                    writer.message(number::SOCKET_ADDRESS, |writer| {
                        writer.bytes(number::SOCKET_ADDRESS_ADDRESS, self.source_address);
                    });
                });
            });
        });
    }

    fn write_http(&self, writer: &mut Writer) {
        if !self.raw_headers.is_empty() {
            writer.message(number::HEADER_MAP, |writer| {
                for (name, value) in self.raw_headers.iter().rev() {
                    writer.message(number::HEADER_MAP_HEADERS, |writer| {
                        writer.bytes(number::RAW_VALUE, value);
                        writer.bytes(number::KEY, name);
                    });
                }
            });
        }
        writer.bytes(number::HOST, self.host);
        writer.bytes(number::PATH, self.path);
        for (name, value) in self.headers.iter().rev() {
            writer.message(number::HEADERS, |writer| {
                writer.bytes(number::VALUE, value);
                writer.bytes(number::KEY, name);
            });
        }
        writer.bytes(number::METHOD, self.method);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::proto::envoy::config::core::v3::address::Address as AnyAddress;
    use crate::proto::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress};
    use crate::proto::envoy::service::auth::v3::attribute_context::http_request::HeadersEntry;
    use crate::proto::envoy::service::auth::v3::attribute_context::{
        ContextExtensionsEntry, HttpRequest, Peer, Request,
    };
    use crate::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest as Message};

    /// A field of bytes.
    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut writer = Writer::with_capacity(value.len());
        writer.bytes(number.into(), value);
        writer.finish().to_vec()
    }

    fn of_http(http: &[u8]) -> Vec<u8> {
        field(1, &field(4, &field(2, http)))
    }

    /// What prost decodes, as a decision reads it.
    fn as_read(message: &Message) -> Owned {
        let attributes = message.attributes.clone().unwrap_or_default();
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let source = attributes.source.unwrap_or_default();
        let address = source.address.and_then(|address| address.address);
        let extensions = attributes.context_extensions;
        let raw_headers = http.header_map.unwrap_or_default().headers.into_iter().map(|header| {
            let value = if header.raw_value.is_empty() { header.value.into() } else { header.raw_value };
            (header.key.into(), value)
        });
        Owned {
            method: http.method,
            host: http.host,
            path: http.path,
            headers: http.headers.into_iter().map(|entry| (entry.key, entry.value)).collect(),
            raw_headers: raw_headers.collect(),
            source_address: address
                .map(|AnyAddress::SocketAddress(socket)| socket.address)
                .unwrap_or_default(),
            source_principal: source.principal,
            named_rule: extensions
                .into_iter()
                .rfind(|entry| entry.key == NAMED_RULE)
                .map(|entry| entry.value),
        }
    }

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Owned {
        method: Bytes,
        host: Bytes,
        path: Bytes,
        headers: Vec<(Bytes, Bytes)>,
        raw_headers: Vec<(Bytes, Bytes)>,
        source_address: Bytes,
        source_principal: Bytes,
        named_rule: Option<Bytes>,
    }

    impl From<CheckRequest<'_>> for Owned {
        fn from(request: CheckRequest<'_>) -> Self {
            let bytes = Bytes::copy_from_slice;
            let pairs = |pairs: Vec<(&[u8], &[u8])>| {
                pairs.into_iter().map(|(name, value)| (bytes(name), bytes(value))).collect()
            };
            Self {
                method: bytes(request.method),
                host: bytes(request.host),
                path: bytes(request.path),
                headers: pairs(request.headers),
                raw_headers: pairs(request.raw_headers),
                source_address: bytes(request.source_address),
                source_principal: bytes(request.source_principal),
                named_rule: request.named_rule.map(bytes),
            }
        }
    }

    fn read_owned(bytes: &[u8]) -> Result<Owned, ReadError> {
        read(bytes).map(Owned::from)
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let pairs = || proptest::collection::vec((any_bytes(), any_bytes()), 0..5);
        let raw = proptest::collection::vec((".{0,8}", ".{0,8}", any_bytes()), 0..4);
        let key = prop_oneof![Just(Bytes::from_static(NAMED_RULE)), any_bytes()];
        let extensions = proptest::collection::vec((key, any_bytes()), 0..4);
        let texts = (any_bytes(), any_bytes(), any_bytes(), any_bytes(), any_bytes(), any_bytes());
        (pairs(), raw, extensions, texts).prop_map(|(headers, raw, extensions, texts)| {
            let (method, host, path, body, address, principal) = texts;
            let raw = raw.into_iter().map(|(key, value, raw_value)| HeaderValue { key, value, raw_value });
            let header_map = Some(HeaderMap { headers: raw.collect() });
            let headers = headers.into_iter().map(|(key, value)| HeadersEntry { key, value }).collect();
            let http =
                HttpRequest { method, host, path, body, headers, header_map, ..HttpRequest::default() };
            let socket = SocketAddress { address, ..SocketAddress::default() };
            let address = Some(Address { address: Some(AnyAddress::SocketAddress(socket)) });
            let extensions = extensions.into_iter();
            let extensions = extensions.map(|(key, value)| ContextExtensionsEntry { key, value });
            Message {
                attributes: Some(AttributeContext {
                    source: Some(Peer { address, principal }),
                    request: Some(Request { http: Some(http) }),
                    context_extensions: extensions.collect(),
                }),
            }
        })
    }

    #[test]
    fn fields_are_counted_wherever_they_are_read() {
        // Three enclosing fields, and the header map.
        for (number, inner) in [(3, 0x1a), (13, 0x0a)] {
            for (count, expected) in [(MAX_FIELDS - 4, Ok(())), (MAX_FIELDS, Err(ReadError::TooManyFields))] {
                let many = [inner, 0].repeat(count);
                let http = if number == 13 { field(13, &many) } else { many };
                assert_eq!(read(&of_http(&http)).map(drop), expected, "{count} in {number}");
            }
        }
        let extensions = field(1, &field(10, b"").repeat(MAX_FIELDS));
        let addresses = field(1, &field(1, &field(1, b"").repeat(MAX_FIELDS)));
        let within_an_entry = of_http(&field(3, &[0x20, 0].repeat(MAX_FIELDS)));
        for message in [extensions, addresses, within_an_entry] {
            assert_eq!(read(&message), Err(ReadError::TooManyFields));
        }
        // A body is skipped, whatever its content.
        assert!(read(&of_http(&field(11, &[0x1a, 0].repeat(MAX_FIELDS)))).is_ok());
    }

    #[test]
    fn truncated_messages_groups_and_numbers_instead_of_texts_are_not_checks() {
        let message = of_http(&field(3, &[field(1, b"name"), field(2, b"value")].concat()));
        assert!(read(&message).is_ok() && read(&[]).is_ok());
        for cut in 1..message.len() {
            assert_eq!(read(&message[..cut]), Err(ReadError::NotACheck), "{cut}");
        }
        let header_name_not_utf8 = of_http(&field(13, &field(1, &field(1, b"\xff"))));
        for bytes in [&[0x0b][..], &[0x0b, 0x0c], &[0x0f], &[0x80; 11], &[0x08, 0], &header_name_not_utf8] {
            assert_eq!(read(bytes), Err(ReadError::NotACheck), "{bytes:x?}");
            assert!(Message::decode(bytes).is_err(), "prost: {bytes:x?}");
        }
    }

    #[test]
    fn fields_that_occur_twice_are_merged_as_by_prost() {
        let http = |http: &[u8]| field(2, http);
        let parts = [
            field(1, &field(4, &http(&field(4, b"/a")))),
            field(1, &field(4, &[http(&field(3, &field(1, b"x"))), http(&field(4, b"/b"))].concat())),
            field(1, &field(10, &[field(1, NAMED_RULE), field(2, b"one")].concat())),
            field(1, &field(10, &[field(2, b"two"), field(1, b"k"), field(1, NAMED_RULE)].concat())),
            field(1, &field(1, &field(1, &field(1, &field(2, b"10.0.0.1"))))),
            field(1, &field(1, &field(4, b"spiffe://a"))),
        ];
        let message = parts.concat();
        let read = read_owned(&message).expect("a Check");
        assert_eq!(read, as_read(&Message::decode(&*message).expect("a Check")));
        assert_eq!((&*read.path, read.named_rule.as_deref()), (&b"/b"[..], Some(&b"two"[..])));
        assert_eq!((&*read.source_address, read.headers.len()), (&b"10.0.0.1"[..], 1));
    }

    #[test]
    fn a_rule_is_named_by_the_metadata_of_the_route_alone() {
        let value = |kind: u8, value: &[u8]| field(kind, value);
        let entry = |key: &[u8], value: &[u8]| field(1, &[field(1, key), field(2, value)].concat());
        let metadata = |number: u8, namespace: &[u8], key: &[u8], text: &[u8]| {
            field(number, &entry(namespace, &entry(key, &value(3, text))))
        };
        let extension = field(10, &[field(1, NAMED_RULE), field(2, b"admin")].concat());
        let route = |text: &[u8]| metadata(13, b"portcullis", b"rule", text);
        for (attributes, expected) in [
            (route(b"admin"), Some(&b"admin"[..])),
            ([route(b"other"), route(b"admin")].concat(), Some(b"admin")),
            ([route(b"admin"), extension.clone()].concat(), Some(b"admin")),
            ([extension.clone(), route(b"other")].concat(), Some(NO_RULE)),
            ([extension, route(b"")].concat(), Some(NO_RULE)),
            // The last entry of the namespace has no rule.
            ([route(b"admin"), field(13, &entry(b"portcullis", b""))].concat(), None),
            // Filters fill the other metadata from what the client sends.
            (metadata(11, b"portcullis", b"rule", b"admin"), None),
            (metadata(13, b"portcullis.other", b"rule", b"admin"), None),
            (metadata(13, b"portcullis", b"resource", b"admin"), None),
            // A number, a list, and no value.
            (
                field(13, &entry(b"portcullis", &entry(b"rule", &[0x11, 0, 0, 0, 0, 0, 0, 0, 0]))),
                Some(NO_RULE),
            ),
            (field(13, &entry(b"portcullis", &entry(b"rule", &value(6, b"")))), Some(NO_RULE)),
            (field(13, &entry(b"portcullis", &entry(b"rule", b""))), Some(NO_RULE)),
            (
                field(
                    13,
                    &entry(b"portcullis", &entry(b"rule", &[value(3, b"admin"), value(6, b"")].concat())),
                ),
                Some(NO_RULE),
            ),
        ] {
            let message = Bytes::from(field(1, &attributes));
            assert_eq!(read(&message).expect("a Check").named_rule, expected, "{attributes:x?}");
            let detached = detached(&message).expect("a Check");
            assert_eq!(read_owned(&detached), read_owned(&message), "{attributes:x?}");
        }
        let deep = field(1, &field(13, &entry(b"portcullis", &[0x0a, 0].repeat(MAX_FIELDS))));
        assert_eq!(read(&deep), Err(ReadError::TooManyFields));
    }

    #[test]
    fn a_detached_message_has_no_body_and_loses_nothing_else() {
        let body = field(11, &[b'x'; 10_000]);
        let parts = [field(2, b"GET"), field(4, b"/p"), field(5, b"a"), field(3, &field(1, b"n")), body];
        let message = Bytes::from(of_http(&parts.concat()));
        let detached = detached(&message).expect("a Check");
        assert!(detached.len() < 64, "{} of {}", detached.len(), message.len());
        assert_eq!(read_owned(&detached), read_owned(&message));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_message_is_read_as_by_prost(message in any_message()) {
            let bytes = message.encode_to_vec();
            let read = read(&bytes).expect("a Check");
            let mut writer = Writer::with_capacity(0);
            read.write(&mut writer);
            prop_assert_eq!(read_owned(&writer.finish()).expect("a Check"), as_read(&message));
            prop_assert_eq!(Owned::from(read), as_read(&message));
        }

        #[test]
        fn a_damaged_message_is_read_as_by_prost_or_not_at_all(
            message in any_message(), place in any::<proptest::sample::Index>(), byte in any::<u8>()
        ) {
            let mut bytes = message.encode_to_vec();
            let place = place.index(bytes.len());
            bytes[place] = byte;
            match (Message::decode(&*bytes), read_owned(&bytes)) {
                (Ok(message), Ok(read)) => prop_assert_eq!(read, as_read(&message)),
                // prost also checks fields that are not read here, and accepts groups.
                (Err(_), Ok(_)) | (Err(_), Err(_)) => {}
                (Ok(_), Err(error)) => prop_assert!(has_group(&bytes), "{error:?}: {bytes:x?}"),
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = read(&bytes);
        }
    }

    /// Whether some byte can be the start of a group.
    fn has_group(bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| byte & 7 == 3)
    }
}
