//! Counts the fields of an encoded CheckRequest before it is decoded, because a field of two bytes on the wire can take
//! a hundred bytes in memory. Nothing is allocated.

use super::message::ReadError;

/// The maximum number of decoded fields. A header has three.
const MAX_FIELDS: usize = 32_768;

/// The fields of a message that contain decoded messages. All other fields are skipped.
struct Message(&'static [(u64, &'static Message)]);

static FLAT: Message = Message(&[]);
static ADDRESS: Message = Message(&[(1, &FLAT)]);
static PEER: Message = Message(&[(1, &ADDRESS)]);
static HEADER_MAP: Message = Message(&[(1, &FLAT)]);
static HTTP: Message = Message(&[(3, &FLAT), (13, &HEADER_MAP)]);
static REQUEST: Message = Message(&[(2, &HTTP)]);
static ATTRIBUTES: Message = Message(&[(1, &PEER), (4, &REQUEST), (10, &FLAT)]);
static CHECK: Message = Message(&[(1, &ATTRIBUTES)]);

/// Checks that these bytes are the fields of a CheckRequest, and not too many.
///
/// # Errors
/// They are not fields, or too many.
pub(super) fn check(check: &[u8]) -> Result<(), ReadError> {
    let mut remaining = MAX_FIELDS;
    match count_fields(check, &CHECK, &mut remaining) {
        Some(()) => Ok(()),
        None if remaining == 0 => Err(ReadError::TooManyFields),
        None => Err(ReadError::NotACheck),
    }
}

/// Subtracts the fields from `remaining`; `None` if the bytes are not fields or exceed it.
fn count_fields(mut bytes: &[u8], message: &Message, remaining: &mut usize) -> Option<()> {
    /// Wire types (Protocol Buffers, "Encoding"). Groups do not exist in proto3.
    const VARINT: u64 = 0;
    const FIXED_64: u64 = 1;
    const LENGTH: u64 = 2;
    const FIXED_32: u64 = 5;
    while !bytes.is_empty() {
        *remaining = remaining.checked_sub(1)?;
        let key = varint(&mut bytes)?;
        match key & 7 {
            VARINT => {
                varint(&mut bytes)?;
            }
            FIXED_64 => bytes = bytes.get(8..)?,
            FIXED_32 => bytes = bytes.get(4..)?,
            LENGTH => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                if let Some((_, inner)) = message.0.iter().find(|(number, _)| *number == key >> 3) {
                    count_fields(value, inner, remaining)?;
                }
            }
            _ => return None,
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::envoy::service::auth::v3::CheckRequest;
    use proptest::prelude::*;
    use prost::Message as _;

    fn is_decodable(bytes: &[u8]) -> bool {
        check(bytes).is_ok()
    }

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        prost::encoding::encode_varint(value.len() as u64, &mut bytes);
        bytes.extend(value);
        bytes
    }

    fn of_http(http: &[u8]) -> Vec<u8> {
        field(1, &field(4, &field(2, http)))
    }

    #[test]
    fn fields_without_content_are_counted_wherever_they_are_decoded() {
        // Three enclosing fields, and the header map.
        for (number, inner) in [(3, 0x1a), (13, 0x0a)] {
            for (count, decodable) in [(MAX_FIELDS - 4, true), (MAX_FIELDS, false)] {
                let many = [inner, 0].repeat(count);
                let http = if number == 13 { field(13, &many) } else { many };
                assert_eq!(is_decodable(&of_http(&http)), decodable, "{count} in {number}");
            }
        }
        let extensions = field(1, &[0x52, 0].repeat(MAX_FIELDS));
        let addresses = field(1, &field(1, &[0x0a, 0].repeat(MAX_FIELDS)));
        let within_an_entry = of_http(&field(3, &[0x20, 0].repeat(MAX_FIELDS)));
        for message in [extensions, addresses, within_an_entry] {
            assert!(!is_decodable(&message));
        }
        // A body is skipped, whatever its content.
        assert!(is_decodable(&of_http(&field(11, &[0x1a, 0].repeat(MAX_FIELDS)))));
    }

    #[test]
    fn truncated_messages_and_groups_are_rejected() {
        let message = of_http(&field(3, &[field(1, b"name"), field(2, b"value")].concat()));
        assert!(is_decodable(&message) && is_decodable(&[]));
        for cut in 1..message.len() {
            assert!(!is_decodable(&message[..cut]), "{cut}");
        }
        for bytes in [&[0x0b][..], &[0x0b, 0x0c], &[0x0f], &[0x80; 11]] {
            assert!(!is_decodable(bytes), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = is_decodable(&bytes);
        }

        #[test]
        fn what_can_be_decoded_and_has_no_groups_is_decodable(
            headers in proptest::collection::vec((".{0,20}", ".{0,20}"), 0..20), path in ".{0,50}"
        ) {
            let entries = headers.iter().flat_map(|(name, value)| {
                field(3, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat())
            });
            let http: Vec<u8> = entries.chain(field(4, path.as_bytes())).collect();
            let message = of_http(&http);
            prop_assert!(CheckRequest::decode(&*message).is_ok());
            prop_assert!(is_decodable(&message));
        }
    }
}
