//! A histogram as bytes: HdrHistogram's V2 encoding, not compressed (runs of empty
//! buckets are one number in it anyway, and what is not compressed can't be a bomb).
//!
//! Bytes come from other hosts: the header must announce exactly the one shape used
//! here and the exact length before the decoder, which allocates what the header
//! says, sees it.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{
    DeserializeError, Deserializer, Serializer, V2SerializeError, V2Serializer,
};

/// Longest service time told apart, microseconds (1 h); longer ones count as this.
pub const SERVICE_US_MAX: u64 = 3_600_000_000;

/// Significant decimal digits of recorded values.
pub const DIGITS: u8 = 3;

/// An empty histogram of the one shape used everywhere: 1 µs to 1 h, 3 digits.
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, SERVICE_US_MAX, DIGITS).expect("constant bounds that the crate accepts")
}

/// Largest encoded histogram, bytes: every bucket filled with a count of up to 9 bytes.
pub const HISTOGRAM_BYTES_MAX: usize = 256 * 1024;

/// V2's fixed part: cookie, payload length, offset, digits, lowest, highest, ratio.
const HEADER_BYTES: usize = 40;

/// Bytes that are not a histogram of ours, or a histogram that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum HistogramError {
    /// Outside the bound, or not as long as its header says.
    #[error(
        "histogram of {got} bytes: its header asks for {expected}, at most {HISTOGRAM_BYTES_MAX} are allowed"
    )]
    Length {
        /// Bytes at hand.
        got: usize,
        /// Bytes announced.
        expected: usize,
    },
    /// Not 1 µs to 1 h with 3 digits.
    #[error("histogram of another shape: {digits} digits from {lowest} to {highest} µs")]
    Shape {
        /// Significant digits.
        digits: u32,
        /// Lowest value.
        lowest: u64,
        /// Highest value.
        highest: u64,
    },
    /// The counts do not fit.
    #[error("undecodable histogram")]
    Decode(#[source] DeserializeError),
    /// The counts add up to more than a u64 holds.
    #[error("counts of a histogram add up to more than 2^64")]
    Overflow,
    /// The crate could not write it.
    #[error("unencodable histogram")]
    Encode(#[source] V2SerializeError),
}

/// `histogram` as bytes, at most [`HISTOGRAM_BYTES_MAX`].
pub fn encode(histogram: &Histogram<u64>) -> Result<Vec<u8>, HistogramError> {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(histogram, &mut bytes).map_err(HistogramError::Encode)?;
    if bytes.len() > HISTOGRAM_BYTES_MAX {
        return Err(HistogramError::Length { got: bytes.len(), expected: bytes.len() });
    }
    Ok(bytes)
}

/// Bytes of [`encode`] back as a histogram of the shape of [`empty_histogram`].
pub fn decode(bytes: &[u8]) -> Result<Histogram<u64>, HistogramError> {
    let got = bytes.len();
    if !(HEADER_BYTES..=HISTOGRAM_BYTES_MAX).contains(&got) {
        return Err(HistogramError::Length { got, expected: HEADER_BYTES });
    }
    let expected = HEADER_BYTES.saturating_add(be_u32(bytes, 4) as usize);
    if got != expected {
        return Err(HistogramError::Length { got, expected });
    }
    let (digits, lowest, highest) = (be_u32(bytes, 12), be_u64(bytes, 16), be_u64(bytes, 24));
    if (digits, lowest, highest) != (u32::from(DIGITS), 1, SERVICE_US_MAX) {
        return Err(HistogramError::Shape { digits, lowest, highest });
    }
    // Compressed input has another cookie and would be inflated by the decoder.
    if be_u32(bytes, 0) & 0xff != 0x13 {
        return Err(HistogramError::Decode(DeserializeError::InvalidCookie));
    }
    check_counts(&bytes[HEADER_BYTES..])?;
    Deserializer::new().deserialize(&mut &bytes[..]).map_err(HistogramError::Decode)
}

/// Walks the counts (zigzag LEB128 of at most 9 bytes; negative is a run of empty
/// buckets) ahead of the decoder, which saturates its total and negates a run's length
/// without looking: only what adds up may be merged on.
fn check_counts(mut payload: &[u8]) -> Result<(), HistogramError> {
    let mut sum = 0u64;
    while !payload.is_empty() {
        let (mut number, mut used) = (0u64, 0);
        for (index, byte) in payload.iter().take(9).enumerate() {
            used = index + 1;
            let bits = if index == 8 { *byte } else { byte & 0x7f };
            number |= u64::from(bits) << (7 * index);
            if byte & 0x80 == 0 {
                break;
            }
        }
        payload = &payload[used..];
        if number == u64::MAX {
            return Err(HistogramError::Overflow);
        }
        if number & 1 == 0 {
            sum = sum.checked_add(number >> 1).ok_or(HistogramError::Overflow)?;
        }
    }
    Ok(())
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("a slice of 4"))
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("a slice of 8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn comes_back_as_it_was(values in proptest::collection::vec(1u64..=SERVICE_US_MAX, 0..200)) {
            let mut histogram = empty_histogram();
            values.iter().for_each(|v| histogram.record(*v).expect("in bounds"));
            let bytes = encode(&histogram).expect("encodes");
            prop_assert!(decode(&bytes).expect("decodes") == histogram);
        }

        #[test]
        fn hostile_bytes_are_an_error_never_a_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            keep in 0usize..=HEADER_BYTES,
        ) {
            let mut bytes = encode(&empty_histogram()).expect("encodes");
            bytes.truncate(keep);
            bytes.extend_from_slice(&noise);
            if bytes.len() >= HEADER_BYTES {
                let payload = (bytes.len() - HEADER_BYTES) as u32;
                bytes[4..8].copy_from_slice(&payload.to_be_bytes());
            }
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_full_histogram_stays_within_the_bound() {
        let mut histogram = empty_histogram();
        let mut value = 1;
        while value < SERVICE_US_MAX {
            histogram.record_n(value, 1 << 40).expect("in bounds");
            value = histogram.next_non_equivalent(value);
        }
        let bytes = encode(&histogram).expect("encodes");
        assert!(decode(&bytes).expect("decodes") == histogram, "{} bytes", bytes.len());
    }

    #[test]
    fn a_header_that_asks_for_gigabytes_is_refused() {
        let mut bytes = encode(&empty_histogram()).expect("encodes");
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(decode(&bytes), Err(HistogramError::Length { .. })));
        let mut bytes = encode(&empty_histogram()).expect("encodes");
        bytes[24..32].copy_from_slice(&u64::MAX.to_be_bytes());
        assert!(matches!(decode(&bytes), Err(HistogramError::Shape { .. })));
        assert!(decode(&[]).is_err());
    }
}
