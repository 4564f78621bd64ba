//! Quantities as people write them: byte sizes (`256MiB`), durations (`300ms`) and network addresses (`host:port`).
//!
//! The wrappers exist for the as-written side of the configuration only; validated structs hold plain `Duration`s and
//! [`ByteSize`]s, so that no reader meets a unit it has to guess.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. Written as an integer, or as an integer with B, KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB
/// (powers of 1000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Longest first, so that a suffix is never taken for a shorter one's.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A text that is no quantity of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct InvalidQuantity {
    value: String,
    expected: &'static str,
}

impl InvalidQuantity {
    fn new(value: &str, expected: &'static str) -> Self {
        Self { value: value.chars().take(80).collect(), expected }
    }
}

impl ByteSize {
    /// That many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number as a size in memory. Saturates where the address space is smaller.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || InvalidQuantity::new(text, "a size such as 256MiB");
        let trimmed = text.trim();
        let (digits, factor) = SIZE_UNITS
            .iter()
            .find_map(|(unit, factor)| trimmed.strip_suffix(unit).map(|digits| (digits.trim_end(), *factor)))
            .unwrap_or((trimmed, 1));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let count: u64 = digits.parse().map_err(|_| invalid())?;
        count.checked_mul(factor).map(ByteSize).ok_or_else(invalid)
    }
}

impl fmt::Display for ByteSize {
    /// The largest power-of-1024 unit that divides it exactly, so that printing loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in &SIZE_UNITS[..4] {
            if self.0 > 0 && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"256MiB\", or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A duration as written: `300ms`, `3s`, `1h 30m`. A bare number is refused, because its unit would be a guess.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WrittenDuration(pub Duration);

impl FromStr for WrittenDuration {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        humantime::parse_duration(text)
            .map(WrittenDuration)
            .map_err(|_| InvalidQuantity::new(text, "a duration such as 300ms, 3s or 1h"))
    }
}

impl fmt::Display for WrittenDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for WrittenDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WrittenDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Splits `host:port` that others dial: a name, an IPv4 address or a bracketed IPv6 address, and a port above 0.
/// Errors: the address is malformed, or nobody could dial it (a wildcard host, port 0).
pub fn parse_dial_address(text: &str) -> Result<(&str, u16), InvalidQuantity> {
    let invalid = || InvalidQuantity::new(text, "an address to dial such as 10.0.0.7:7001 or node1.example:7001");
    let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let host_is_name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host_is_ipv6 = bracketed.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
    let is_wildcard = text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
    if port == 0 || is_wildcard || !(host_is_name || host_is_ipv6) {
        return Err(invalid());
    }
    Ok((host, port))
}

/// Reads the address a process listens at: an IP address (0.0.0.0 for all) and a port.
pub fn parse_listen_address(text: &str) -> Result<SocketAddr, InvalidQuantity> {
    text.parse()
        .map_err(|_| InvalidQuantity::new(text, "an address to listen at such as 127.0.0.1:7001 or 0.0.0.0:7001"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read() {
        let cases = [
            ("0", 0),
            ("17", 17),
            ("1KiB", 1024),
            ("256MiB", 256 << 20),
            ("2 GiB", 2 << 30),
            ("1MB", 1_000_000),
            ("5B", 5),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "MiB", "-1", "+1", "1.5GiB", "1mib", "16777216TiB", "1 2", "0x10"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("300ms".parse(), Ok(WrittenDuration(Duration::from_millis(300))));
        assert_eq!("1m 30s".parse(), Ok(WrittenDuration(Duration::from_secs(90))));
        for bad in ["", "300", "-1s", "soon"] {
            assert!(bad.parse::<WrittenDuration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_to_dial_are_dialable() {
        for (text, host, port) in
            [("127.0.0.1:7001", "127.0.0.1", 7001), ("node-1.x:80", "node-1.x", 80), ("[::1]:7001", "[::1]", 7001)]
        {
            assert_eq!(parse_dial_address(text), Ok((host, port)));
        }
        for bad in [
            "",
            "host",
            ":7001",
            "host:",
            "host:0",
            "host:65536",
            "0.0.0.0:1",
            "[::]:1",
            "::1:7",
            "http://a:1",
            "a b:1",
        ] {
            assert!(parse_dial_address(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn quantities_read_what_they_print(bytes: u64, milliseconds in 0u64..1_000_000_000_000) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
            let duration = WrittenDuration(Duration::from_millis(milliseconds));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_makes_reading_panic(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<WrittenDuration>();
            let _ = parse_dial_address(&text);
        }
    }
}
