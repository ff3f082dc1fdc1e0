//! Files that a kill or a power failure has left in `.buffer/raw`: their heads are corrected, and they are moved to the
//! whole ones.
//!
//! The length of the file says how many frames it has. What cannot be read as a WAV file stays where it is, and is
//! reported; only a file without a single frame is removed. Unfinished files of the Python Recorder are treated alike.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use log::{info, warn};
use silvasonic_controller::fs::open_regular;
use silvasonic_controller::text::shown;

use super::metadata;
use super::name::{self, Run};
use super::place::Place;
use super::wav;

/// Repairs all of them. What happens to one does not concern the others.
pub(super) fn repair(place: &Place) {
    let mut files: Vec<PathBuf> = match fs::read_dir(&place.buffer) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "wav")).collect(),
        Err(error) => return warn!("cannot list {}: {error}", place.buffer.display()),
    };
    files.sort();
    for path in files {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match repair_one(place, &path) {
            Ok(Some((frames, target))) => info!("finished {} of an earlier start: {frames} frames in {}", shown(&file), target.display()),
            Ok(None) => info!("removed {} of an earlier start: it contains no frames", shown(&file)),
            Err(error) => warn!("{} of an earlier start stays as it is: {error}", shown(&file)),
        }
    }
}

/// The number of frames and the new path, or `None` if there is no frame.
fn repair_one(place: &Place, path: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let file = open_regular(path, OpenOptions::new().read(true).write(true))?;
    let found = file.metadata()?;
    if found.len() == 0 {
        return fs::remove_file(path).map(|()| None);
    }
    let first = read_first(&file)?;
    let Some(head) = wav::parse(&first) else {
        return Err(io::Error::other(format!("expected the head of a WAV file in its {} bytes", found.len())));
    };
    let frame = head.format.frame_bytes() as u64;
    let frames = (found.len().saturating_sub(head.data_at as u64) / frame).min(wav::MOST / frame);
    if frames == 0 {
        return fs::remove_file(path).map(|()| None);
    }
    let data = frames * frame;
    if u64::from(head.data) != data {
        match &head.text {
            Some(text) if head.data_at == wav::HEAD => {
                file.write_all_at(&wav::head(head.format, data, &metadata::repaired(text, head.format, frames)), 0)?;
            }
            _ => {
                let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
                file.write_all_at(&number(head.data_at as u64 - 8 + data + data % 2), 4)?;
                file.write_all_at(&number(data), head.data_at as u64 - 4)?;
            }
        }
        // A part of a frame, or chunks without a meaning.
        file.set_len(head.data_at as u64 + data)?;
    }
    file.sync_data()?;
    let duration = head.format.duration(frames);
    let start = head.text.as_deref().and_then(metadata::timestamp);
    let start = start.or_else(|| found.modified().ok()?.checked_sub(duration)).unwrap_or(SystemTime::UNIX_EPOCH);
    let known = path.file_name().and_then(|name| name::parse(name.to_str()?));
    let (run, number) = known.unwrap_or_else(|| (Run::random(), 0));
    place.publish(path, start, duration, &run, number).map(|target| Some((frames, target)))
}

/// The first bytes, in which a head has to be.
fn read_first(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; wav::HEAD];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::format::{Format, Sample};
    use super::super::scratch::Scratch;
    use super::*;
    use std::os::unix::fs::symlink;

    const FORMAT: Format = Format { sample: Sample::S24, rate: 1000, channels: 1 };
    const TEXT: &str = "GUANO|Version: 1.0\nTimestamp: 2026-03-26T01:35:00.5Z\nLength: 10.000000\n";

    fn ours(data: &[u8]) -> Vec<u8> {
        [wav::head(FORMAT, 30_000, TEXT).as_slice(), data].concat()
    }

    #[test]
    fn the_length_of_a_file_says_what_it_contains() {
        for (data, frames) in [(3, 1), (8, 2), (2999, 999), (30_000, 10_000)] {
            let scratch = Scratch::new();
            let place = scratch.place();
            let data = vec![7; data];
            fs::write(place.buffer.join("2026-03-26T01-35-00Z_10s_1a2b3c4d_00000003.wav"), ours(&data)).unwrap();
            repair(&place);
            assert_eq!(fs::read_dir(&place.buffer).unwrap().count(), 0);
            let seconds = if frames == 10_000 { 10 } else { 1 };
            let found = fs::read(place.data.join(format!("2026-03-26T01-35-00Z_{seconds}s_1a2b3c4d_00000003.wav"))).unwrap();
            let head = wav::parse(&found).unwrap();
            assert_eq!((head.data as usize, head.data_at), (frames * 3, wav::HEAD));
            assert_eq!(found[wav::HEAD..], data[..frames * 3]);
            assert_eq!(head.text.unwrap().contains("Repaired: true"), frames < 10_000);
        }
    }

    #[test]
    fn a_file_without_frames_is_removed_and_others_stay() {
        let scratch = Scratch::new();
        let place = scratch.place();
        let whole = ours(&[1; 30]);
        fs::write(place.buffer.join("empty.wav"), "").unwrap();
        fs::write(place.buffer.join("head.wav"), &whole[..wav::HEAD + 2]).unwrap();
        let stay = ["cut.wav", "noise.wav", "other.txt", "link.wav", "zeros.wav"];
        fs::write(place.buffer.join("cut.wav"), &whole[..100]).unwrap();
        fs::write(place.buffer.join("noise.wav"), "noise").unwrap();
        fs::write(place.buffer.join("zeros.wav"), vec![0; 10_000]).unwrap();
        fs::write(place.buffer.join("other.txt"), &whole).unwrap();
        symlink("/etc/hostname", place.buffer.join("link.wav")).unwrap();
        repair(&place);
        let mut left: Vec<_> =
            fs::read_dir(&place.buffer).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let mut expected = stay.to_vec();
        expected.sort_unstable();
        assert_eq!(left, expected);
        assert_eq!(fs::read_dir(&place.data).unwrap().count(), 0);
        assert_eq!(fs::read(place.buffer.join("zeros.wav")).unwrap(), vec![0; 10_000]);
    }

    #[test]
    fn no_whole_file_is_overwritten() {
        let scratch = Scratch::new();
        let place = scratch.place();
        let name = "2026-03-26T01-35-00Z_1s_1a2b3c4d_00000003.wav";
        fs::write(place.data.join(name), "first").unwrap();
        fs::write(place.buffer.join(name), ours(&[1; 30])).unwrap();
        repair(&place);
        assert_eq!(fs::read(place.data.join(name)).unwrap(), b"first");
        assert!(place.data.join("2026-03-26T01-35-00Z_1s_1a2b3c4d_00000004.wav").exists());
    }

    #[test]
    fn an_unfinished_file_of_another_program_is_finished() {
        let scratch = Scratch::new();
        let place = scratch.place();
        let mut bytes =
            b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x0a\x00\x00\x00\x14\x00\x00\x00\x02\x00\x10\x00".to_vec();
        bytes.extend(b"LIST\x04\x00\x00\x00INFOdata\xff\xff\xff\xff");
        bytes.extend([5; 41]);
        fs::write(place.buffer.join("1a2b3c4d_00000012.wav"), &bytes).unwrap();
        let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::options().write(true).open(place.buffer.join("1a2b3c4d_00000012.wav")).unwrap().set_modified(modified).unwrap();
        repair(&place);
        let found = fs::read(place.data.join("2001-09-09T01-46-38Z_2s_1a2b3c4d_00000012.wav")).unwrap();
        assert_eq!((found.len(), wav::parse(&found).unwrap().data), (bytes.len() - 1, 40));
        assert_eq!(found[4..8], (found.len() as u32 - 8).to_le_bytes());
    }
}
