//! The line numbers of a CSV file, as editors count them.

use std::collections::VecDeque;
use std::io::{self, Read};

/// A reader that counts lines. `csv` counts the end of the last line and empty lines as parts of the next row.
pub(crate) struct LineCounter<R> {
    inner: R,
    /// The offset of the next byte, and the number of its line.
    offset: u64,
    line: u64,
    last: u8,
    is_empty: bool,
    /// The offsets and numbers of lines that are not empty. `csv` has not asked for them.
    starts: VecDeque<(u64, u64)>,
}

impl<R> LineCounter<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, offset: 0, line: 1, last: 0, is_empty: true, starts: VecDeque::new() }
    }

    /// Returns the number of the first line at or after this offset that is not empty. Offsets must not decrease.
    pub(crate) fn line_after(&mut self, offset: u64) -> u64 {
        while self.starts.front().is_some_and(|(start, _)| *start < offset) {
            self.starts.pop_front();
        }
        self.starts.front().map_or(self.line, |(_, line)| *line)
    }

    fn count(&mut self, byte: u8) {
        match byte {
            // The second byte of `\r\n`.
            b'\n' if self.last == b'\r' => {}
            b'\r' | b'\n' => {
                self.line += 1;
                self.is_empty = true;
            }
            _ if self.is_empty => {
                self.is_empty = false;
                self.starts.push_back((self.offset, self.line));
            }
            _ => {}
        }
        self.last = byte;
        self.offset += 1;
    }
}

impl<R: Read> Read for LineCounter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        for byte in &buffer[..read] {
            self.count(*byte);
        }
        Ok(read)
    }
}
