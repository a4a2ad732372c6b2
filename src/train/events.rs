//! TensorBoard event files: scalars only, written without TensorFlow.
//!
//! An event file is a row of TFRecords (length, its checksum, protocol-buffer message, its checksum), each an `Event`
//! of `tensorflow/core/util/event.proto`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    out: BufWriter<File>,
}

impl EventWriter {
    /// Starts a new file in a folder. `first_step`: what older files of the folder say from this step on no longer
    /// holds.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{:010}.{:09}.vigdet", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = Self { out: BufWriter::new(file) };
        let mut version = event(0);
        bytes(&mut version, 3, b"brain.Event:2");
        writer.record(&version)?;
        if first_step > 0 {
            // SessionLog { status: START } makes TensorBoard forget the steps that a resumed run does again.
            let mut start = event(first_step);
            bytes(&mut start, 7, &[1 << 3, 1]);
            writer.record(&start)?;
        }
        Ok(writer)
    }

    /// Adds the scalars of a step and hands them to the system.
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, tag.as_bytes());
            entry.push((2 << 3) | 5);
            entry.extend((value as f32).to_le_bytes());
            bytes(&mut summary, 1, &entry);
        }
        let mut message = event(step);
        bytes(&mut message, 5, &summary);
        self.record(&message)
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut write = || -> std::io::Result<()> {
            self.out.write_all(&length)?;
            self.out.write_all(&masked_checksum(&length))?;
            self.out.write_all(message)?;
            self.out.write_all(&masked_checksum(message))?;
            self.out.flush()
        };
        write().context("cannot write TensorBoard events")
    }
}

/// An `Event` with its time and step.
fn event(step: u64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut message = vec![(1 << 3) | 1];
    message.extend(now.to_le_bytes());
    if step > 0 {
        message.push(2 << 3);
        varint(&mut message, step);
    }
    message
}

/// A field of type string, bytes or message.
fn bytes(message: &mut Vec<u8>, field: u8, content: &[u8]) {
    message.push((field << 3) | 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that checksums of checksums are no trouble.
fn masked_checksum(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_as_tensorboard_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 0).unwrap();
        writer.scalars(300, [("loss", 0.5), ("lr", 0.25)]).unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let file = std::fs::read(path).unwrap();
        // The length and checksum of the first record (time and version), as TensorFlow's own files start.
        assert_eq!(file[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        let second = &file[12 + 24 + 4..];
        let length = u64::from_le_bytes(second[..8].try_into().unwrap()) as usize;
        let message = &second[12..12 + length];
        assert_eq!(second.len(), 12 + length + 4);
        assert_eq!(message[9..12], [0x10, 0xac, 0x02], "step 300 as a varint");
        let expected = b"\x2a\x17\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f\x0a\x09\x0a\x02lr\x15\x00\x00\x80\x3e";
        let expected = [&expected[..1], &[expected.len() as u8 - 2], &expected[2..]].concat();
        assert_eq!(message[12..], expected[..]);
    }
}
