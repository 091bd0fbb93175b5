//! G14: gzip is decoded, and bounded after that; nothing else is asked for or decoded.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use portcullis::commands::issuer::SigningKey;

use super::answer::{Answer, Gate, Step, set_of};
use super::house::{House, PROMPT, Table, key, token};

fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes.as_ref()).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// A 200 that says that its body is encoded like this.
fn encoded(encoding: &str, body: impl Into<Vec<u8>>) -> Answer {
    Answer::status(200).header("content-encoding", encoding).body(body)
}

#[tokio::test]
async fn gzip_is_what_is_asked_for_and_what_is_decoded() {
    let house = House::start(PROMPT).await;
    assert_eq!(house.server.request(1).await.header("accept-encoding"), Some("gzip"));
    let mut table = Table::default();
    table.accepts("gzip", |new| encoded("gzip", gzip(set_of(&[new])))).await;
    table.accepts("gzip, a byte at a time", |new| encoded("gzip", gzip(set_of(&[new]))).chunked(1, "")).await;
    table.accepts("identity", |new| encoded("identity", set_of(&[new]))).await;
    table.judge();
}

#[tokio::test]
async fn a_bomb_is_given_up_at_the_limit_of_what_it_becomes() {
    let mut table = Table::default();
    // 64 MiB in 64 KiB; and one that has no end.
    let bomb = gzip(vec![b' '; 64 << 20]);
    assert!(bomb.len() < 1 << 17);
    let says = "longer than 1048576 bytes";
    table.refuses(PROMPT, "64 MiB", says, |_| encoded("gzip", bomb.clone())).await;
    // The head of a stream, and then stored blocks, none of which is the last (RFC 1951 §3.2.4).
    let head = gzip("")[..10].to_vec();
    let block = [&[0, 0, 0x80, 0xff, 0x7f][..], &[b' '; 0x8000]].concat();
    let endless = |_: &SigningKey| encoded("gzip", head).without_length().then(Step::Forever(block));
    table.refuses(PROMPT, "block after block", says, endless).await;
    let member = gzip(vec![b' '; 1 << 16]);
    let endless = |_: &SigningKey| encoded("gzip", "").without_length().then(Step::Forever(member));
    table.refuses(PROMPT, "member after member", "", endless).await;
    let inside = |new: &SigningKey| {
        let set = set_of(&[new]);
        encoded("gzip", gzip(format!("{}{set}", " ".repeat((1 << 20) + 1 - set.len()))))
    };
    table.refuses(PROMPT, "a set that is one byte too long", says, inside).await;
    table.judge();
}

#[tokio::test]
async fn a_bomb_takes_no_more_time_from_others_than_its_limit() {
    let house = House::start(PROMPT).await;
    let (new, gate) = (key("new"), Gate::new());
    let bomb = gzip(vec![b' '; 64 << 20]);
    house.server.always(encoded("gzip", bomb).behind(&gate));
    let (bombed, ()) = tokio::join!(house.faults(&new, "keys_unavailable"), async {
        house.server.request(2).await;
        gate.open();
        for _ in 0..50 {
            house.is(&house.key, "ok").await;
        }
    });
    assert_eq!(bombed, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_whole_gzip_or_of_another_encoding_is_an_error() {
    let mut table = Table::default();
    let mut refuses = async |what: &str, answer: &dyn Fn(&SigningKey) -> Answer| {
        table.refuses(PROMPT, what, "", answer).await;
    };
    let packed = |new: &SigningKey| gzip(set_of(&[new]));
    let cut = |new: &SigningKey, bytes: usize| {
        let mut packed = packed(new);
        packed.truncate(packed.len() - bytes);
        encoded("gzip", packed)
    };
    refuses("the last byte is missing", &|new| cut(new, 1)).await;
    refuses("checksum and length are missing", &|new| cut(new, 8)).await;
    refuses("half of it", &|new| cut(new, packed(new).len() / 2)).await;
    refuses("the head alone", &|new| cut(new, packed(new).len() - 10)).await;
    refuses("nothing", &|_| encoded("gzip", "")).await;
    refuses("a wrong checksum", &|new| {
        let mut packed = packed(new);
        let at = packed.len() - 8;
        packed[at] ^= 1;
        encoded("gzip", packed)
    })
    .await;
    refuses("a wrong length", &|new| {
        let mut packed = packed(new);
        let at = packed.len() - 1;
        packed[at] ^= 1;
        encoded("gzip", packed)
    })
    .await;
    refuses("zlib", &|new| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(set_of(&[new]).as_bytes()).expect("memory takes everything");
        encoded("gzip", encoder.finish().expect("memory takes everything"))
    })
    .await;
    refuses("plain text that is called gzip", &|new| encoded("gzip", set_of(&[new]))).await;
    refuses("gzip that is not called so", &|new| Answer::status(200).body(packed(new))).await;
    refuses("gzip that is called deflate", &|new| encoded("deflate", packed(new))).await;
    refuses("twice", &|new| encoded("gzip, gzip", gzip(packed(new)))).await;
    refuses("twice, called so once", &|new| encoded("gzip", gzip(packed(new)))).await;
    refuses("twice, in two lines", &|new| {
        encoded("gzip", gzip(packed(new))).header("content-encoding", "gzip")
    })
    .await;
    refuses("gzip within br", &|new| encoded("gzip, br", packed(new))).await;
    // A stream of brotli that is one stored block, and a frame of zstd that is one raw block.
    refuses("br", &|new| encoded("br", stored_brotli(set_of(&[new]).as_bytes()))).await;
    refuses("zstd", &|new| encoded("zstd", raw_zstd(set_of(&[new]).as_bytes()))).await;
    table.judge();
}

#[tokio::test]
async fn what_stands_behind_the_end_of_a_gzip_stream_brings_no_key() {
    let packed: fn(String) -> Vec<u8> = |set| gzip(set);
    for behind in [packed, String::into_bytes] {
        let house = House::start(PROMPT).await;
        let (new, smuggled) = (key("new"), key("smuggled"));
        house.server.always(encoded("gzip", [gzip(set_of(&[&new])), behind(set_of(&[&smuggled]))].concat()));
        let answer = house.service.bearer(&token(&smuggled)).await;
        assert!(!answer.is_allowed(), "{}", answer.reason());
        house.server.always(Answer::keys(&[&new]));
        house.comes_to_know(&new).await;
    }
}

/// RFC 7932 §9.2: a window of 16 bits, one metablock without compression, and an empty one that is the last.
fn stored_brotli(bytes: &[u8]) -> Vec<u8> {
    // WBITS 0; ISLAST 0; MNIBBLES 4, as 00; MLEN-1 in 16 bits; ISUNCOMPRESSED 1; up to a whole byte.
    let length = u32::try_from(bytes.len() - 1).expect("short");
    let head = (length << 4) | (1 << 20);
    let head = head.to_le_bytes();
    [&head[..3], bytes, &[3]].concat()
}

/// RFC 8878 §3.1.1: the magic number, a frame of one segment with its size in a byte, a raw block.
fn raw_zstd(bytes: &[u8]) -> Vec<u8> {
    let size = u8::try_from(bytes.len()).expect("short");
    let block = u32::from(size) << 3 | 1;
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, size][..], &block.to_le_bytes()[..3], bytes].concat()
}
