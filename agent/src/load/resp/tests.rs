use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

/// A reply, and what must be read of it.
#[derive(Debug, Clone, PartialEq)]
enum Reply {
    Ok,
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Null,
    NullArray,
    Array(Vec<Reply>),
}

impl Reply {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ok => out.extend_from_slice(b"+OK\r\n"),
            Self::Error(text) => out.extend_from_slice(format!("-{text}\r\n").as_bytes()),
            Self::Int(value) => out.extend_from_slice(format!(":{value}\r\n").as_bytes()),
            Self::Bulk(bytes) => {
                out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Null => out.extend_from_slice(b"$-1\r\n"),
            Self::NullArray => out.extend_from_slice(b"*-1\r\n"),
            Self::Array(items) => {
                out.extend_from_slice(format!("*{}\r\n", items.len()).as_bytes());
                items.iter().for_each(|item| item.encode(out));
            }
        }
    }

    fn read(&self) -> Read {
        match self {
            Self::Ok => Read::Ok,
            Self::Error(text) => Read::Error(text.clone()),
            Self::Int(value) => Read::Int(*value),
            Self::Bulk(bytes) => Read::Bulk(bytes.clone()),
            Self::Null | Self::NullArray => Read::Null,
            Self::Array(items) => {
                let nulls = items.iter().filter(|item| **item == Self::Null).count();
                Read::Array { len: items.len(), nulls }
            }
        }
    }

    fn skimmed(&self) -> Skimmed {
        let (shape, elements, nulls) = match self.read() {
            Read::Ok => (Shape::Ok, 0, 0),
            Read::Int(_) => (Shape::Int, 0, 0),
            Read::Bulk(_) => (Shape::Bulk, 0, 0),
            Read::Null => (Shape::Null, 0, 0),
            Read::Array { len, nulls } => (Shape::Array, len, nulls),
            Read::Error(text) => panic!("{text} is not skimmed"),
        };
        Skimmed { shape, elements, nulls, is_null: shape == Shape::Null }
    }
}

/// [`Parsed`], owned.
#[derive(Debug, Clone, PartialEq)]
enum Read {
    Ok,
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Null,
    Array { len: usize, nulls: usize },
}

fn pieces<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    at.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect()
}

/// Reads the way a connection does that keeps what is incomplete; `None` for garbage.
fn parse_held(pieces: &[&[u8]]) -> Option<Vec<Read>> {
    let (mut seen, mut held) = (Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let (read, used) = match parse(&held[at..]) {
                Parsed::Incomplete => break,
                Parsed::Ok(used) => (Read::Ok, used),
                Parsed::Error(text, used) => (Read::Error(String::from_utf8_lossy(text).into()), used),
                Parsed::Value(value, used) => {
                    let read = match value {
                        Value::Int(value) => Read::Int(value),
                        Value::Bulk(bytes) => Read::Bulk(bytes.to_vec()),
                        Value::Null => Read::Null,
                        Value::Array { len, nulls } => Read::Array { len, nulls },
                    };
                    (read, used)
                }
                Parsed::Garbage => return None,
            };
            seen.push(read);
            at += used;
        }
        held.drain(..at);
    }
    Some(seen)
}

/// Reads the way a connection does that keeps nothing; `None` for garbage. Also whether
/// it ended between two replies.
fn skim(pieces: &[&[u8]]) -> Option<(Vec<Skimmed>, bool)> {
    let (mut seen, mut skim) = (Vec::new(), Skim::new());
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let (used, skimmed) = skim.feed(rest).ok()?;
            assert!(skimmed.is_some() || used == rest.len(), "all of it is used while incomplete");
            seen.extend(skimmed);
            rest = &rest[used..];
        }
    }
    Some((seen, skim.is_idle()))
}

fn element() -> impl Strategy<Value = Reply> {
    prop_oneof![
        any::<i64>().prop_map(Reply::Int),
        // Of line ends and of what looks like replies, too.
        prop::collection::vec(prop::sample::select(b"a\r\n$*:-1+OK".to_vec()), 0..40).prop_map(Reply::Bulk),
        prop::collection::vec(any::<u8>(), 0..1200).prop_map(Reply::Bulk),
        Just(Reply::Null),
    ]
}

fn value() -> impl Strategy<Value = Reply> {
    prop_oneof![
        2 => Just(Reply::Ok),
        3 => element(),
        1 => Just(Reply::NullArray),
        2 => prop::collection::vec(element(), 0..12).prop_map(Reply::Array),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![4 => value(), 1 => "[A-Z]{2,9} [a-z0-9 :.]{0,40}".prop_map(Reply::Error)]
}

fn encoded(replies: &[Reply]) -> Vec<u8> {
    let mut stream = Vec::new();
    replies.iter().for_each(|reply| reply.encode(&mut stream));
    stream
}

proptest! {
    #[test]
    fn a_stream_reads_the_same_wherever_it_is_split(
        replies in prop::collection::vec(reply(), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let stream = encoded(&replies);
        let expected: Vec<_> = replies.iter().map(Reply::read).collect();
        prop_assert_eq!(parse_held(&pieces(&stream, &cuts)), Some(expected));
    }

    #[test]
    fn a_stream_skims_the_same_wherever_it_is_split(
        replies in prop::collection::vec(value(), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let stream = encoded(&replies);
        let expected: Vec<_> = replies.iter().map(Reply::skimmed).collect();
        prop_assert_eq!(skim(&pieces(&stream, &cuts)), Some((expected.clone(), true)));
        let bytes: Vec<_> = stream.chunks(1).collect();
        prop_assert_eq!(skim(&bytes), Some((expected, true)));
    }

    #[test]
    fn hostile_bytes_never_panic_and_read_the_same_in_pieces(
        lead in prop::sample::select(vec![
            "", "-", "-MOVED ", "+", "-ASK 1 ", "$", "$3\r\n", ":", "*", "*2\r\n", "*2\r\n$-1\r\n", "*1\r\n$",
        ]),
        bytes in prop_oneof![
            any::<Vec<u8>>(),
            prop::collection::vec(prop::sample::select(b"0123456789-\r\n$*:+".to_vec()), 0..60),
        ],
    ) {
        let stream = [lead.as_bytes(), &bytes].concat();
        let single: Vec<_> = stream.chunks(1).collect();
        prop_assert_eq!(parse_held(&[&stream]), parse_held(&single));
        prop_assert_eq!(skim(&[&stream]), skim(&single));
        classify(&stream);
        classify(stream.get(1..).unwrap_or_default());
    }
}

#[test]
fn what_is_not_ours_is_garbage() {
    for bytes in [
        &b"+OKAY\r\n"[..],
        b"+OK\n",
        b"OK",
        b"-\n",
        b"-X\n",
        b"\r\n",
        b"+QUEUED\r\n",
        b":\r\n",
        b":-\r\n",
        b":1\n",
        b":1\rx",
        b":9223372036854775808\r\n",
        b":-9223372036854775809\r\n",
        b":000000000000000000000",
        b"$1\r\nab\r\n",
        b"$1\r\na\rx",
        b"$-2\r\n",
        b"*1\r\n*0\r\n",
        b"*1\r\n*-1\r\n",
        b"*1\r\n+OK\r\n",
        b"*1\r\n-ERR x\r\n",
        b"_\r\n",
    ] {
        assert_eq!(parse(bytes), Parsed::Garbage, "{bytes:?}");
    }
    let mut endless = vec![b'-'; LINE_BYTES_MAX - 1];
    assert_eq!(parse(&endless), Parsed::Incomplete);
    endless.push(b'x');
    assert_eq!(parse(&endless), Parsed::Garbage);
    assert_eq!(Skim::new().feed(b"-ERR x\r\n"), Err(Garbage));
}

#[test]
fn no_claimed_length_is_believed_beyond_its_bound() {
    let over = OPERATION_BYTES_MAX + 1;
    for kind in ["$", "*", "*1\r\n$"] {
        for len in ["99999999999", "999999999", "-2", "-9223372036854775808", "18446744073709551616"]
            .map(str::to_owned)
            .into_iter()
            .chain([over.to_string()])
        {
            let bytes = format!("{kind}{len}\r\n");
            assert_eq!(parse(bytes.as_bytes()), Parsed::Garbage, "{bytes:?}");
            let mut skim = Skim::new();
            assert_eq!(skim.feed(bytes.as_bytes()), Err(Garbage), "{bytes:?}");
            assert!(skim.is_idle(), "{bytes:?}");
        }
        let most = format!("{kind}{OPERATION_BYTES_MAX}\r\n");
        assert_eq!(parse(most.as_bytes()), Parsed::Incomplete, "{most:?}");
        assert_eq!(Skim::new().feed(most.as_bytes()), Ok((most.len(), None)), "{most:?}");
    }
}

#[test]
fn a_reply_of_many_large_values_is_skimmed_up_to_its_bound() {
    let value = [b"$8388608\r\n", vec![b'x'; OPERATION_BYTES_MAX as usize].as_slice(), b"\r\n"].concat();
    let read = |values: usize| {
        let mut skim = Skim::new();
        let begun = skim.feed(format!("*{values}\r\n").as_bytes()).expect("an array");
        assert_eq!(begun.1, None);
        (0..values).try_fold(None, |_, _| skim.feed(&value).map(|(_, skimmed)| skimmed))
    };
    assert_eq!(read(3), Ok(Some(Skimmed { shape: Shape::Array, elements: 3, nulls: 0, is_null: false })));
    assert_eq!(read(4), Err(Garbage));
}

#[test]
fn each_command_has_its_shapes_of_reply() {
    let shapes = [Shape::Ok, Shape::Int, Shape::Bulk, Shape::Null, Shape::Array];
    let fitting =
        Verb::ALL.map(|verb| shapes.into_iter().filter(|shape| fits(verb, *shape)).collect::<Vec<_>>());
    let expected = [
        vec![Shape::Ok],
        vec![Shape::Bulk, Shape::Null],
        vec![Shape::Int],
        vec![Shape::Array],
        vec![Shape::Int],
        vec![Shape::Ok],
        vec![Shape::Array],
    ];
    assert_eq!(fitting, expected);
    let of = |bytes| match parse(bytes) {
        Parsed::Value(value, _) => Some(value.shape()),
        _ => None,
    };
    let texts = [&b":1\r\n"[..], b"$0\r\n\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n"];
    assert_eq!(texts.map(of), [Shape::Int, Shape::Bulk, Shape::Null, Shape::Null, Shape::Array].map(Some));
}

#[test]
fn errors_are_told_apart() {
    let sender: SocketAddr = "10.0.0.9:7000".parse().expect("an address");
    let target = |line: &'static str| match classify(line.as_bytes()) {
        ErrorReply::Moved(to) | ErrorReply::Ask(to) => {
            to.addr(sender).map(|addr| (to.slot, addr.to_string()))
        }
        _ => None,
    };
    assert_eq!(target("MOVED 3999 127.0.0.1:6381"), Some((3999, "127.0.0.1:6381".into())));
    assert_eq!(target("ASK 0 ::1:6381"), Some((0, "[::1]:6381".into())));
    assert_eq!(target("MOVED 5 :6400"), Some((5, "10.0.0.9:6400".into())));
    assert_eq!(target("MOVED 5 ?:6400"), Some((5, "10.0.0.9:6400".into())));
    assert_eq!(target("MOVED 5 some.name:6400"), None);
    for bad in [
        "MOVED",
        "MOVED 16384 1.1.1.1:1",
        "MOVED x 1.1.1.1:1",
        "MOVED 1 1.1.1.1",
        "ASK 1 1.1.1.1:0",
        "MOVED 1 a:1 b",
    ] {
        assert_eq!(classify(bad.as_bytes()), ErrorReply::Fatal, "{bad}");
    }
    for retry in
        ["TRYAGAIN x", "CLUSTERDOWN The cluster is down", "LOADING", "READONLY x", "MASTERDOWN", "BUSY x"]
    {
        assert_eq!(classify(retry.as_bytes()), ErrorReply::Retry, "{retry}");
    }
    assert_eq!(classify(b"ERR max number of clients reached"), ErrorReply::Rejected);
    for fatal in ["OOM command not allowed", "NOAUTH x", "WRONGTYPE x", "ERR x", ""] {
        assert_eq!(classify(fatal.as_bytes()), ErrorReply::Fatal, "{fatal}");
    }
    assert_eq!((kind(b"OOM x"), kind(b""), kind(b"\xff\xfe x")), ("OOM", "?", "?"));
}
