//! What iterators write: read once, told apart by probe.

use std::io;

use crate::{Error, ErrorKind, Result, task::RecordHead};

/// What the iterators of a walk wrote, aligned for records of 8-byte fields. Keeps its
/// memory from walk to walk.
///
/// Records are told apart as they come in, while they are in the CPU's caches: who reads
/// those of one probe never touches those of the others.
#[derive(Debug, Default)]
pub struct RecordBuffer {
    words: Vec<u64>,
    length: usize,
    /// Where the records of each stream begin, in bytes.
    streams: Vec<(u16, Vec<usize>)>,
}

impl RecordBuffer {
    /// The kernel hands out at most this much at a time.
    const PIECE: usize = 32 << 10;

    /// Reads all that there is, in place of what was in the buffer.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRecord`] if it does not consist of records; where it cannot be
    /// read.
    pub fn fill(&mut self, file: &mut impl io::Read) -> Result<()> {
        self.length = 0;
        self.streams.iter_mut().for_each(|(_, places)| places.clear());
        let mut told_apart = 0;
        loop {
            if self.words.len() * 8 < self.length + Self::PIECE {
                let words = (self.words.len() * 2).max(2 * Self::PIECE / 8);
                self.words.resize(words, 0);
            }
            let free = &mut bytemuck::cast_slice_mut(&mut self.words)[self.length..];
            match file.read(free) {
                Ok(0) if told_apart < self.length => return Err(invalid("cut short")),
                Ok(0) => return Ok(()),
                Ok(length) => {
                    self.length += length;
                    told_apart = self.tell_apart(told_apart)?;
                }
                // after a long stretch without output, for us to let others run
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let text = "what an iterator wrote cannot be read";
                    return Err(Error::new(ErrorKind::System, text).with_source(error));
                }
            }
        }
    }

    /// Notes whose the records are from one on, and returns where a record begins that is
    /// not there as a whole.
    fn tell_apart(&mut self, mut place: usize) -> Result<usize> {
        let bytes = &bytemuck::cast_slice(&self.words)[..self.length];
        while let Some(head) = head(bytes, place) {
            let size = head.size as usize;
            if size < size_of::<RecordHead>() {
                return Err(invalid("that is smaller than its head"));
            }
            if size > bytes.len() - place {
                break;
            }
            match self.streams.iter_mut().find(|(stream, _)| *stream == head.stream) {
                Some((_, places)) => places.push(place),
                None => self.streams.push((head.stream, vec![place])),
            }
            place += size;
        }
        Ok(place)
    }

    /// Those that the iterator of one object wrote.
    pub fn of(&self, stream: u16) -> Records<'_> {
        let of = self.streams.iter().find(|(other, _)| *other == stream);
        let places = of.map_or(&[][..], |(_, places)| places);
        let bytes = &bytemuck::cast_slice(&self.words)[..self.length];
        Records { bytes, places: places.iter() }
    }
}

#[cfg(test)]
pub(crate) fn filled(bytes: &[u8]) -> Result<RecordBuffer> {
    let mut buffer = RecordBuffer::default();
    buffer.fill(&mut &*bytes).map(|()| buffer)
}

fn head(bytes: &[u8], place: usize) -> Option<RecordHead> {
    bytes[place..].first_chunk::<{ size_of::<RecordHead>() }>().map(|head| bytemuck::cast(*head))
}

/// The records of one probe, each with its kind, in the order that they were written in.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    places: std::slice::Iter<'a, usize>,
}

impl<'a> Iterator for Records<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let &place = self.places.next()?;
        let head = head(self.bytes, place)?;
        Some((head.kind, &self.bytes[place..place + head.size as usize]))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}

/// A record of [`Records`] as what it is.
///
/// # Errors
/// [`ErrorKind::InvalidRecord`] if it is of another size.
pub fn cast<T: bytemuck::AnyBitPattern>(record: &[u8]) -> Result<&T> {
    bytemuck::try_from_bytes(record).map_err(|_| invalid("of unexpected size"))
}

/// The error for a record that the probe does not understand.
pub fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidRecord, format!("the kernel side wrote a record {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u16, stream: u16, body: &[u8]) -> Vec<u8> {
        let size = (size_of::<RecordHead>() + body.len()) as u32;
        [bytemuck::bytes_of(&RecordHead { kind, stream, size }), body].concat()
    }

    /// Hands out at most so many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl io::Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = self.1.min(buffer.len());
            self.0.read(&mut buffer[..most])
        }
    }

    #[test]
    fn each_probe_gets_its_own_however_the_pieces_come() {
        let bytes = [record(1, 7, b"aaaa"), record(2, 8, b""), record(3, 7, b"bb")].concat();
        let mut buffer = RecordBuffer::default();
        for most in [1, 7, 8, 9, 12, 13, 100, 3, 100] {
            buffer.fill(&mut Pieces(&bytes, most)).unwrap();
            let of = |stream| -> Vec<_> {
                let records = buffer.of(stream);
                let count = records.len();
                let records: Vec<_> = records.map(|(kind, r)| (kind, &r[8..])).collect();
                assert_eq!(records.len(), count);
                records
            };
            assert_eq!(of(7), [(1, &b"aaaa"[..]), (3, b"bb")]);
            assert_eq!(of(8), [(2, &b""[..])]);
            assert_eq!(of(9), []);
        }
        buffer.fill(&mut &record(4, 8, b"cc")[..]).unwrap();
        assert_eq!((buffer.of(7).len(), buffer.of(8).len()), (0, 1));
    }

    #[test]
    fn what_exceeds_a_piece_is_read_whole() {
        let one = record(1, 7, &[5; 4088]);
        let bytes = one.repeat(100);
        let mut buffer = RecordBuffer::default();
        buffer.fill(&mut &bytes[..]).unwrap();
        assert!(buffer.of(7).all(|record| record == (1, &one[..])));
        assert_eq!(buffer.of(7).len(), 100);
    }

    #[test]
    fn garbage_is_an_error() {
        let whole = record(1, 7, b"aaaa");
        let mut buffer = RecordBuffer::default();
        for length in 1..whole.len() {
            let error = buffer.fill(&mut &whole[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRecord, "{length}");
        }
        let endless = RecordHead { kind: 1, stream: 7, size: 0 };
        assert!(buffer.fill(&mut bytemuck::bytes_of(&endless)).is_err());
        buffer.fill(&mut &whole[..]).unwrap();
        assert_eq!(buffer.of(7).len(), 1);
    }
}
