//! Reading a file of which a part cannot be read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// A disk loses blocks of so many bytes, or multiples of it.
const BLOCK_BYTES: usize = 4096;
/// What stands for a block that is lost: no record begins with it, and it is no end that was never written.
const LOST: u8 = 0xff;
/// How often, and after which pause, a block is tried before it counts as lost.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);
/// `EIO`: the device could not read.
const DEVICE_ERROR: i32 = 5;

/// Bytes of a file. What the device cannot read is filled with [`LOST`], so that the checksums find it as they find other damage,
/// and what stands around it is read.
///
/// # Errors
/// Whatever else the system says.
pub fn range(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
    around_lost_blocks(&mut bytes, range.start, &|part, at| file.read_exact_at(part, at))?;
    Ok(bytes)
}

fn around_lost_blocks(
    bytes: &mut [u8],
    start: u64,
    read: &dyn Fn(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let lost = |error: &io::Error| error.raw_os_error() == Some(DEVICE_ERROR);
    match read(bytes, start) {
        Err(error) if lost(&error) => {}
        read => return read,
    }
    let mut at = start;
    for block in bytes.chunks_mut(BLOCK_BYTES) {
        let mut tries = 0;
        while let Err(error) = read(block, at) {
            tries += 1;
            match (lost(&error), tries) {
                (false, _) => return Err(error),
                (true, TRIES) => {
                    block.fill(LOST);
                    break;
                }
                (true, _) => std::thread::sleep(PAUSE),
            }
        }
        at += block.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_a_lost_block_is_read() {
        let lost_at = 2 * BLOCK_BYTES as u64 + 17;
        let device = |part: &mut [u8], at: u64| {
            if (at..at + part.len() as u64).contains(&lost_at) {
                return Err(io::Error::from_raw_os_error(DEVICE_ERROR));
            }
            part.fill(7);
            Ok(())
        };
        let mut bytes = vec![0; 4 * BLOCK_BYTES + 100];
        around_lost_blocks(&mut bytes, 0, &device).unwrap();
        let expected =
            [vec![7; 2 * BLOCK_BYTES], vec![LOST; BLOCK_BYTES], vec![7; BLOCK_BYTES + 100]].concat();
        assert!(bytes == expected);
        let failing = |_: &mut [u8], _: u64| Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(around_lost_blocks(&mut bytes, 0, &failing).is_err(), "any other error is one");
    }
}
