//! Bytes of a response, cut at any place, to lines (NDJSON) and to the data of server-sent events.
//!
//! Hand-written: the kept SSE crates reconnect by themselves (which would pay for a POST twice) or have not been kept, and
//! the whole rule is a page. Bounded by `limits::LLM_FRAME_BYTES_MAX`.

use cluster_config::limits;

/// A line or event above the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame above {} bytes", limits::LLM_FRAME_BYTES_MAX)]
pub(super) struct FrameTooLong;

/// Splits at `\n`, `\r\n` and `\r`.
#[derive(Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// The last byte was `\r`: a `\n` now belongs to it.
    after_return: bool,
}

impl Lines {
    /// Hands every line that `bytes` completes to `each`, without its end.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), FrameTooLong>,
    ) -> Result<(), FrameTooLong> {
        for byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    each(&self.partial)?;
                    self.partial.clear();
                }
                _ if self.partial.len() == limits::LLM_FRAME_BYTES_MAX => return Err(FrameTooLong),
                byte => self.partial.push(*byte),
            }
        }
        Ok(())
    }

    /// The last line, where the sender did not end it.
    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.partial)).filter(|line| !line.is_empty())
    }
}

/// The `data` of each event; names, ids and comments are read over.
#[derive(Default)]
pub(super) struct EventData {
    lines: Lines,
    data: Option<Vec<u8>>,
}

impl EventData {
    /// Hands the data of every event that `bytes` completes to `each`.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), FrameTooLong> {
        let data = &mut self.data;
        self.lines.push(bytes, |line| {
            if line.is_empty() {
                if let Some(data) = data.take() {
                    each(&data);
                }
                return Ok(());
            }
            take_data(line, data)
        })
    }

    /// The last event, where the sender closed without an empty line. The standard drops it; servers forget the line.
    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        if let Some(line) = self.lines.finish() {
            take_data(&line, &mut self.data).ok()?;
        }
        self.data.take()
    }
}

fn take_data(line: &[u8], data: &mut Option<Vec<u8>>) -> Result<(), FrameTooLong> {
    // A byte order mark may stand before the first line.
    let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
    let Some(value) = (if line == b"data" { Some(&b""[..]) } else { line.strip_prefix(b"data:") }) else {
        return Ok(());
    };
    let value = value.strip_prefix(b" ").unwrap_or(value);
    match data {
        None => *data = Some(value.to_vec()),
        Some(data) => {
            data.push(b'\n');
            data.extend_from_slice(value);
        }
    }
    if data.as_ref().is_some_and(|data| data.len() > limits::LLM_FRAME_BYTES_MAX) {
        return Err(FrameTooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = EventData::default();
        let mut found = Vec::new();
        for piece in pieces {
            parser.push(piece, |data| found.push(String::from_utf8_lossy(data).into_owned())).expect("short");
        }
        found.extend(parser.finish().map(|data| String::from_utf8_lossy(&data).into_owned()));
        found
    }

    #[test]
    fn events_as_servers_write_them() {
        let cases: [(&str, &[&str]); 7] = [
            ("data: a\n\ndata: b\n\n", &["a", "b"]),
            ("data:a\r\n\r\ndata:  b\r\r", &["a", " b"]),
            (": ping\n\nevent: x\nid: 3\ndata: a\ndata: b\n\n", &["a\nb"]),
            ("data\n\nretry: 5\n\n", &[""]),
            ("\u{feff}data: first\n\n", &["first"]),
            ("data: unended", &["unended"]),
            ("data: unended line\n", &["unended line"]),
        ];
        for (stream, expected) in cases {
            assert_eq!(events(&[stream.as_bytes()]), expected, "{stream:?}");
        }
    }

    #[test]
    fn a_frame_has_a_bound() {
        let mut lines = Lines::default();
        let long = vec![b'x'; limits::LLM_FRAME_BYTES_MAX];
        assert_eq!(lines.push(&long, |_| Ok(())), Ok(()));
        assert_eq!(lines.push(b"x", |_| Ok(())), Err(FrameTooLong));
        let mut parser = EventData::default();
        let line = format!("data: {}\n", "x".repeat(limits::LLM_FRAME_BYTES_MAX / 2));
        assert_eq!(parser.push(line.as_bytes(), |_| {}), Ok(()));
        assert_eq!(parser.push(format!("{line}{line}").as_bytes(), |_| {}), Err(FrameTooLong));
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(
            stream in "(data: ?|data|: x|event: e|[ab{}é\"]|\n|\r\n|\r|\n\n){0,40}",
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let bytes = stream.as_bytes();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events(&pieces), events(&[bytes]));

            let lines = |pieces: &[&[u8]]| {
                let mut parser = Lines::default();
                let mut found = Vec::new();
                for piece in pieces {
                    parser.push(piece, |line| { found.push(line.to_vec()); Ok(()) }).expect("short");
                }
                found.extend(parser.finish());
                found
            };
            prop_assert_eq!(lines(&pieces), lines(&[bytes]));
        }
    }
}
