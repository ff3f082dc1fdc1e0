//! The sound card: an ALSA PCM that captures with exactly the rate, the channels and the samples of the profile.
//!
//! Nothing is converted but 24 bits in four bytes to three: raw is raw. The kernel's buffer is as long as the driver
//! allows, up to one second, so that a busy machine loses nothing.

use alsa::pcm::{Access, Format as Wire, HwParams, PCM};
use alsa::{Direction, ValueOr};
use rustix::io::Errno;

use super::capture::{End, Input, Read};
use super::format::{Format, Sample, pack};

/// How long a read waits for frames.
const WAIT_MS: u32 = 100;

pub(super) struct Card {
    pcm: PCM,
    /// Frames of a period, and of the kernel's buffer.
    period: usize,
    buffer: i64,
    /// Bytes of a frame as the card delivers it.
    wire_frame: usize,
    /// Position of the lowest of three bytes in four, if they have to be packed.
    skip: Option<usize>,
}

impl Card {
    /// Opens the card and starts it.
    pub(super) fn open(device: &str, format: Format) -> Result<Card, String> {
        let describe = |what: &str| {
            let what = what.to_owned();
            move |error: alsa::Error| format!("{device}: cannot {what}: {error}")
        };
        let pcm = PCM::new(device, Direction::Capture, true).map_err(describe("open it"))?;
        let skip = configure(&pcm, device, format)?;
        let (buffer, period) = pcm.get_params().map_err(describe("read its buffer size"))?;
        {
            let params = pcm.sw_params_current().map_err(describe("read its parameters"))?;
            params.set_avail_min(period as i64).map_err(describe("set its wake-up"))?;
            pcm.sw_params(&params).map_err(describe("set its parameters"))?;
        }
        pcm.start().map_err(describe("start it"))?;
        let wire_frame = if skip.is_some() { 4 * usize::from(format.channels) } else { format.frame_bytes() };
        Ok(Card { pcm, period: period as usize, buffer: buffer as i64, wire_frame, skip })
    }

    /// Bytes that a read needs.
    pub(super) fn block_bytes(&self) -> usize {
        self.period * self.wire_frame
    }

    /// Frames of the kernel's buffer.
    pub(super) fn buffer(&self) -> u64 {
        self.buffer as u64
    }

    /// After an error: starts the card again if that is possible.
    fn recover(&self, error: alsa::Error) -> Result<Read, End> {
        let failed = |error: alsa::Error| match Errno::from_raw_os_error(error.errno()) {
            Errno::NODEV => End::Gone,
            _ => End::Failed(error.to_string()),
        };
        match Errno::from_raw_os_error(error.errno()) {
            Errno::AGAIN | Errno::INTR => Ok(Read::Nothing),
            // An overrun, or the end of a suspension of the machine.
            Errno::PIPE | Errno::STRPIPE => {
                self.pcm.try_recover(error, true).and_then(|()| self.pcm.start()).map_err(failed)?;
                Ok(Read::Overrun)
            }
            _ => Err(failed(error)),
        }
    }
}

impl Input for Card {
    fn read(&mut self, bytes: &mut [u8]) -> Result<Read, End> {
        match self.pcm.wait(Some(WAIT_MS)) {
            Ok(true) => {}
            Ok(false) => return Ok(Read::Nothing),
            Err(error) => return self.recover(error),
        }
        let frames = match self.pcm.io_bytes().readi(bytes) {
            Ok(0) => return Ok(Read::Nothing),
            Ok(frames) => frames,
            Err(error) => return self.recover(error),
        };
        let bytes = &mut bytes[..frames * self.wire_frame];
        let bytes = self.skip.map_or(bytes.len(), |skip| pack(bytes, skip));
        let waiting = self.pcm.delay().unwrap_or_default().clamp(0, self.buffer);
        Ok(Read::Frames { frames: frames as u64, bytes, waiting: waiting as u64 })
    }
}

/// Sets format, channels and rate, exactly; returns what has to be packed.
fn configure(pcm: &PCM, device: &str, format: Format) -> Result<Option<usize>, String> {
    let failed = |what: &str, error: alsa::Error| format!("{device}: cannot capture {what}: {error}");
    let params = HwParams::any(pcm).map_err(|error| failed("", error))?;
    params.set_access(Access::RWInterleaved).map_err(|error| failed("interleaved frames", error))?;
    let (name, wires): (&str, &[(Wire, Option<usize>)]) = match format.sample {
        Sample::S16 => ("S16_LE", &[(Wire::S16LE, None)]),
        Sample::S24 => ("S24_3LE, S24_LE or S32_LE", &[(Wire::S243LE, None), (Wire::S24LE, Some(0)), (Wire::S32LE, Some(1))]),
        Sample::S32 => ("S32_LE", &[(Wire::S32LE, None)]),
    };
    let offered = wires.iter().find(|(wire, _)| params.test_format(*wire).is_ok());
    let &(wire, skip) = offered.ok_or_else(|| format!("{device}: the profile expects {name}, which the card does not offer"))?;
    params.set_format(wire).map_err(|error| failed(name, error))?;
    let (channels, rate) = (u32::from(format.channels), format.rate);
    params.set_channels(channels).map_err(|_| {
        let (least, most) = (params.get_channels_min().unwrap_or_default(), params.get_channels_max().unwrap_or_default());
        format!("{device}: the profile expects {channels} channels, the card offers {least} to {most}")
    })?;
    params.set_rate(rate, ValueOr::Nearest).map_err(|_| {
        let (least, most) = (params.get_rate_min().unwrap_or_default(), params.get_rate_max().unwrap_or_default());
        format!("{device}: the profile expects {rate} Hz, the card offers {least} to {most} Hz")
    })?;
    params.set_buffer_size_near(i64::from(rate)).map_err(|error| failed("with a long buffer", error))?;
    params.set_period_size_near(period(rate), ValueOr::Nearest).map_err(|error| failed("in long periods", error))?;
    pcm.hw_params(&params).map_err(|error| failed("with the profile's parameters", error))?;
    Ok(skip)
}

/// Frames of a tenth of a second or less, a power of two, as USB drivers like it.
fn period(rate: u32) -> i64 {
    1 << (rate / 10).max(64).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_a_tenth_of_a_second_or_less() {
        for (rate, frames) in [(384_000, 32_768), (192_000, 16_384), (48_000, 4096), (44_100, 4096), (8_000, 512), (10, 64)] {
            assert_eq!(period(rate), frames, "{rate} Hz");
        }
    }
}
