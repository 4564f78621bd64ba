//! Reads server-sent events out of a byte stream, in whatever pieces it arrives.

use cluster_config::limits;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name; `message` where the stream names none.
    pub name: String,
    /// Its data, lines joined.
    pub data: String,
}

/// Splits a stream into events. Feed it bytes; take events.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    name: String,
    data: Vec<String>,
}

impl Parser {
    /// Takes the next bytes and returns the events they complete. Errors: a line longer than any body the API sends.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            events.extend(self.line(line.trim_end_matches(['\n', '\r'])));
        }
        if self.buffer.len() > limits::JSON_BODY_BYTES_MAX {
            return Err(format!("an event line is longer than {} bytes", limits::JSON_BODY_BYTES_MAX));
        }
        Ok(events)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let data = std::mem::take(&mut self.data);
            let name = if name.is_empty() { "message".to_owned() } else { name };
            return (!data.is_empty()).then(|| Event { name, data: data.join("\n") });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" => self.data.push(value.to_owned()),
            // Ids, retry times and comments (keep-alives) mean nothing to a reader that does not reconnect.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": keep-alive\n\nid: 1\nevent: delta\ndata: {\"text\":\"Grüße\"}\n\nevent: done\r\ndata: a\r\ndata: b\r\n\r\nevent: empty\n\ndata:x\n\n";

    #[test]
    fn the_pieces_do_not_matter() {
        let expected = [("delta", "{\"text\":\"Grüße\"}"), ("done", "a\nb"), ("message", "x")];
        for size in [1, 2, 3, 7, STREAM.len()] {
            let mut parser = Parser::default();
            let events: Vec<Event> =
                STREAM.as_bytes().chunks(size).flat_map(|piece| parser.feed(piece).expect("short lines")).collect();
            let found: Vec<_> = events.iter().map(|event| (event.name.as_str(), event.data.as_str())).collect();
            assert_eq!(found, expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        assert!(parser.feed(&vec![b'x'; limits::JSON_BODY_BYTES_MAX + 1]).is_err());
    }
}
