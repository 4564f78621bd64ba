//! Points in time as metadata and filters write them: RFC 3339 text, a bare date, or milliseconds since 1970.

use chrono::{DateTime, NaiveDate, NaiveTime};

/// Milliseconds since 1970, UTC. Takes RFC 3339 (`2024-05-01T12:00:00.5+02:00`), finer digits cut off, and dates (`2024-05-01`:
/// their first moment, UTC). `None`: it is neither.
pub fn unix_ms(text: &str) -> Option<i64> {
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        return Some(moment.timestamp_millis());
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(date.and_time(NaiveTime::MIN).and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_dates_are_read_and_nothing_else() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1969-12-31T23:59:59.999Z", Some(-1)),
            ("2024-05-01T12:00:00.5+02:00", Some(1_714_557_600_500)),
            ("2024-05-01T10:00:00.500999z", Some(1_714_557_600_500)),
            ("2024-05-01", Some(1_714_521_600_000)),
            ("2024-02-30", None),
            ("2024-05-01T25:00:00Z", None),
            ("2024-05-01T12:00:00", None),
            ("yesterday", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(unix_ms(text), expected, "{text}");
        }
    }
}
