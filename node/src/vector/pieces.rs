//! A byte stream in checksummed pieces, so that damaged bytes never reach FAISS, which believes every length it reads.
//!
//! A piece is `length u32, crc32c u32, bytes`, little-endian, of at most `INDEX_PIECE_BYTES`; an empty one ends the stream.
//! Each checksum continues the one before, so a piece that is lost, repeated or out of place is noticed too.

use std::io;

use cluster_config::limits::INDEX_PIECE_BYTES;

const HEAD_BYTES: usize = 8;

/// Cuts what is written into pieces; each goes to the sink in one call.
pub(super) struct PieceWriter<'a> {
    sink: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    /// Head and bytes of the piece being filled.
    piece: Vec<u8>,
    crc: u32,
}

impl<'a> PieceWriter<'a> {
    pub(super) fn new(sink: &'a mut dyn FnMut(&[u8]) -> io::Result<()>) -> Self {
        Self { sink, piece: vec![0; HEAD_BYTES], crc: 0 }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = HEAD_BYTES + INDEX_PIECE_BYTES - self.piece.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == HEAD_BYTES + INDEX_PIECE_BYTES {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Sends what is left and the end mark.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.piece.len() > HEAD_BYTES {
            self.send()?;
        }
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        let bytes = &self.piece[HEAD_BYTES..];
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        let length = bytes.len() as u32;
        self.piece[..4].copy_from_slice(&length.to_le_bytes());
        self.piece[4..HEAD_BYTES].copy_from_slice(&self.crc.to_le_bytes());
        (self.sink)(&self.piece)?;
        self.piece.truncate(HEAD_BYTES);
        Ok(())
    }
}

/// Gives the bytes of checked pieces. A stream that is cut or damaged is an error of kind `InvalidData`.
pub(super) struct PieceReader<'a> {
    source: &'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    piece: Vec<u8>,
    read: usize,
    crc: u32,
    ended: bool,
}

impl<'a> PieceReader<'a> {
    pub(super) fn new(source: &'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>) -> Self {
        Self { source, piece: Vec::new(), read: 0, crc: 0, ended: false }
    }

    /// Fills some of the buffer; 0 at the end of the stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() && !self.ended {
            self.next_piece()?;
        }
        let count = buffer.len().min(self.piece.len() - self.read);
        buffer[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }

    /// Fills the whole buffer.
    pub(super) fn read_exact(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read(buffer)? {
                0 => return Err(damaged("it is too short")),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    /// Checks that everything was read and that the end mark is there.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.read(&mut [0])? != 0 {
            return Err(damaged("bytes are left over"));
        }
        Ok(())
    }

    fn next_piece(&mut self) -> io::Result<()> {
        let mut head = [0; HEAD_BYTES];
        fill(self.source, &mut head)?;
        let [length, crc] =
            [&head[..4], &head[4..]].map(|half| u32::from_le_bytes(half.try_into().expect("four bytes")));
        if length as usize > INDEX_PIECE_BYTES {
            return Err(damaged("a piece claims to be longer than pieces are"));
        }
        self.piece.resize(length as usize, 0);
        self.read = 0;
        fill(self.source, &mut self.piece)?;
        self.crc = crc32c::crc32c_append(self.crc, &self.piece);
        if self.crc != crc {
            return Err(damaged("a checksum does not match"));
        }
        self.ended = length == 0;
        Ok(())
    }
}

fn fill(source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match source(buffer)? {
            0 => return Err(damaged("it is cut off")),
            count => buffer = &mut buffer[count..],
        }
    }
    Ok(())
}

fn damaged(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    /// A source over bytes in memory that gives at most `step` bytes a call.
    pub(in crate::vector) fn source_of(bytes: &[u8], step: usize) -> impl FnMut(&mut [u8]) -> io::Result<usize> + '_ {
        let mut rest = bytes;
        move |buffer| {
            let count = buffer.len().min(step);
            rest.read(&mut buffer[..count])
        }
    }

    fn cut_into_pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let mut sink = |piece: &[u8]| {
            pieces.push(piece.to_vec());
            Ok(())
        };
        let mut writer = PieceWriter::new(&mut sink);
        for part in bytes.chunks(70_000) {
            writer.write(part).unwrap();
        }
        writer.finish().unwrap();
        pieces
    }

    fn read_back(stream: &[u8], step: usize, expected: usize) -> io::Result<Vec<u8>> {
        let mut source = source_of(stream, step);
        let mut reader = PieceReader::new(&mut source);
        let mut bytes = vec![0; expected];
        reader.read_exact(&mut bytes)?;
        reader.finish()?;
        Ok(bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_was_written_is_read(
            length in prop_oneof![0usize..300, Just(INDEX_PIECE_BYTES), 0usize..(3 * INDEX_PIECE_BYTES)],
            step in 1usize..100_000,
            damage in any::<prop::sample::Index>(),
        ) {
            let bytes: Vec<u8> = (0..length).map(|i| ((i * 31) >> 3) as u8).collect();
            let mut stream = cut_into_pieces(&bytes).concat();
            prop_assert_eq!(&read_back(&stream, step.max(1000), length).unwrap(), &bytes);

            let at = damage.index(stream.len());
            prop_assert!(read_back(&stream[..at], 100_000, length).is_err(), "cut at {}", at);
            stream[at] ^= 0x10;
            prop_assert!(read_back(&stream, 100_000, length).is_err(), "flipped at {}", at);
        }
    }

    #[test]
    fn pieces_out_of_place_are_noticed() {
        let bytes: Vec<u8> = (0..2 * INDEX_PIECE_BYTES).map(|i| (i / 1000) as u8).collect();
        let pieces = cut_into_pieces(&bytes);
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|piece| piece.len() <= HEAD_BYTES + INDEX_PIECE_BYTES));
        let swapped = [pieces[1].clone(), pieces[0].clone(), pieces[2].clone()].concat();
        assert!(read_back(&swapped, 1 << 20, bytes.len()).is_err());
        let missing = [pieces[0].clone(), pieces[2].clone()].concat();
        assert!(read_back(&missing, 1 << 20, INDEX_PIECE_BYTES).is_err());
    }

    #[test]
    fn a_failing_sink_or_source_is_passed_on() {
        let mut full = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
        let mut writer = PieceWriter::new(&mut full);
        writer.write(b"x").unwrap();
        assert_eq!(writer.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
        let mut broken = |_: &mut [u8]| Err(io::ErrorKind::TimedOut.into());
        let mut reader = PieceReader::new(&mut broken);
        assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
