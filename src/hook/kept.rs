//! The part of a command's output that is kept: its beginning and its end.

use tokio::io::{AsyncRead, AsyncReadExt};

/// So much of the beginning is kept.
const HEAD: usize = 16 * 1_024;
/// So much of the end is kept.
const TAIL: usize = 48 * 1_024;
/// What a pipe holds on Linux unless told otherwise, so that one read can empty it.
const CHUNK: usize = 64 * 1_024;

/// Takes any number of bytes in bounded memory.
#[derive(Default)]
pub struct Kept {
    head: Vec<u8>,
    /// The latest bytes after the head; at most one chunk more than [`TAIL`].
    tail: Vec<u8>,
    left_out: u64,
}

impl Kept {
    /// Reads `pipe` to its end, long past what is kept: a command must not be stopped by a pipe that nobody empties.
    pub async fn drain(&mut self, mut pipe: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
            self.push(&chunk[..length]);
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend_from_slice(first);
        self.tail.extend_from_slice(rest);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.left_out += surplus as u64;
        self.tail.drain(..surplus);
    }

    /// What was kept, with a line in between that says how much is missing, if anything is.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.head;
        if self.left_out > 0 {
            bytes.extend_from_slice(format!("\n[{} bytes left out]\n", self.left_out).as_bytes());
        }
        bytes.extend_from_slice(&self.tail);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn beginning_and_end_are_kept_however_it_arrives() {
        for length in [0, 1, HEAD - 1, HEAD, HEAD + 1, HEAD + TAIL, HEAD + TAIL + 1, 1_000_000] {
            let bytes = numbered(length);
            let left_out = length.saturating_sub(HEAD + TAIL);
            let expected = if left_out == 0 {
                bytes.clone()
            } else {
                let marker = format!("\n[{left_out} bytes left out]\n");
                [&bytes[..HEAD], marker.as_bytes(), &bytes[length - TAIL..]].concat()
            };
            for step in [1_000, HEAD, CHUNK] {
                let mut kept = Kept::default();
                bytes.chunks(step).for_each(|chunk| kept.push(chunk));
                assert!(kept.into_bytes() == expected, "{length} bytes by {step}");
            }
        }
    }

    #[tokio::test]
    async fn memory_does_not_grow_with_the_output() {
        let mut kept = Kept::default();
        kept.drain(tokio::io::repeat(0xff).take(100_000_000)).await;
        assert!(kept.tail.capacity() <= 2 * (TAIL + CHUNK), "{}", kept.tail.capacity());
        assert_eq!(kept.left_out, 100_000_000 - (HEAD + TAIL) as u64);
    }
}
