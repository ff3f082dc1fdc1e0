//! Recorded trees of a real kernel are read as what was plugged in, hostile ones included.

use std::fs;
use std::process::Command;

use serde_json::Value;
use silvasonic_controller::cli::scan::ScanReport;
use silvasonic_controller::decide::device::identify;
use silvasonic_controller::hardware::sysfs::scan;
use silvasonic_controller::sorted_map::SortedMap;

/// What `scan --profile` proposes for a card of a recorded tree.
fn proposed(folder: &std::path::Path, card: u32) -> String {
    let report = ScanReport::read(folder, &[], Some(card)).unwrap();
    let profile = report.profile(&[]).unwrap();
    let values = ["sample_rate: ", "channels: ", "format: "].map(|key| profile.split_once(key).unwrap().1.lines().next().unwrap());
    let known = if profile.contains("are a guess") { "guessed" } else { "known" };
    format!("{} {known}", values.join(" "))
}

#[test]
fn a_profile_is_proposed_from_what_the_card_can_capture() {
    let folder = std::env::temp_dir().join(format!("silvasonic-proposed-{}", std::process::id()));
    for (fixture, expected) in [
        ("21-capture-on-device-1", &[(0, "48000 1 S16LE known")][..]),
        (
            "23-stream-dumps",
            &[
                (1, "48000 2 S16LE known"),
                // Its only format is big-endian, which no profile can contain.
                (2, "48000 1 S16LE guessed"),
                // A continuous range from 4000 to 2147483647.
                (3, "384000 1 S16LE known"),
                (4, "16000 6 S16LE known"),
                (5, "96000 8 S32LE known"),
            ],
        ),
    ] {
        fs::create_dir_all(&folder).unwrap();
        let archive = format!("{}/tests/fixtures/{fixture}.tar.gz", env!("CARGO_MANIFEST_DIR"));
        assert!(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&folder).status().unwrap().success());
        for (card, expected) in expected {
            assert_eq!(proposed(&folder, *card), *expected, "{fixture}, card {card}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn every_recorded_tree_is_read_as_its_truth_says() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let folder = std::env::temp_dir().join(format!("silvasonic-scan-{}", std::process::id()));
    let mut read = 0;
    for entry in fs::read_dir(fixtures).unwrap() {
        let archive = entry.unwrap().path();
        if archive.extension().is_none_or(|ending| ending != "gz") {
            continue;
        }
        fs::create_dir_all(&folder).unwrap();
        assert!(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&folder).status().unwrap().success());
        let truth: Value = serde_json::from_slice(&fs::read(folder.join("truth.json")).unwrap()).unwrap();
        let case = truth["case"].as_str().unwrap();
        let scan = scan(&folder, &[], |_, _| {}).unwrap_or_else(|why| panic!("{case}: {why}"));
        assert_eq!(scan.unclear, [], "{case}");
        let cards: Vec<&Value> =
            truth["cards"].as_array().unwrap().iter().filter(|card| card["usb"] == true && card["has_capture"] == true).collect();
        assert_eq!(scan.microphones.len(), cards.len(), "{case}");
        for (microphone, card) in scan.microphones.iter().zip(&cards) {
            let usb = microphone.usb.as_ref().unwrap();
            assert_eq!(microphone.card, card["index"].as_u64().unwrap() as u32, "{case}");
            assert_eq!(
                (&usb.vendor, &usb.product),
                (&card["vid"].as_str().unwrap().into(), &card["pid"].as_str().unwrap().into()),
                "{case}"
            );
            assert_eq!(usb.bus_path, card["bus_path"].as_str().unwrap(), "{case}");
            assert_eq!(usb.serial.is_some(), card["serial"].is_string(), "{case}");
            assert_eq!(microphone.pcm, card["capture_device"].as_u64().unwrap_or(0) as u32, "{case}");
            let ports = usb.bus_path.split_once('-').unwrap().1;
            assert!(usb.port_path.as_ref().unwrap().ends_with(&format!("/{ports}")), "{case}: {:?}", usb.port_path);
            match card["serial"].as_str() {
                Some(plain) if plain.chars().all(|c| c.is_ascii_alphanumeric()) => assert_eq!(usb.serial.as_deref(), Some(plain), "{case}"),
                _ => {}
            }
        }
        let ids = identify(scan.microphones, &SortedMap::new(), |_| false);
        assert_eq!(ids.len(), cards.len(), "{case}");
        for id in ids.keys() {
            assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || "-._~:= ".contains(c)), "{case}: {id}");
        }
        fs::remove_dir_all(&folder).unwrap();
        read += 1;
    }
    assert_eq!(read, 20);
}
