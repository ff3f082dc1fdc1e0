//! What is served beside the health: the status page, what it shows, and metrics.

use super::station::{Station, eventually};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn pages_are_served_unless_they_are_switched_off() {
    let station = Station::plan().without_postgres().without_redis().without_podman().up();
    let paths = ["/", "/status.json", "/metrics"];
    // A text does not wait for the next tick.
    let controller = station.controller_with(&[("SILVASONIC_RECONCILE_INTERVAL_S", "60")]);
    eventually(SOON, "health", || controller.get("/healthy"));
    for _ in 0..3 {
        assert_eq!(paths.map(|path| controller.get(path).map(|(status, _)| status)), [Some(200); 3]);
    }
    assert_eq!(controller.get("/status.json").unwrap().1["version"], 1);
    let off = station.controller_with(&[("SILVASONIC_STATUS_PAGE", "false"), ("SILVASONIC_OWNER", "another")]);
    eventually(SOON, "health", || off.get("/healthy"));
    assert_eq!(paths.map(|path| off.get(path).map(|(status, _)| status)), [Some(404); 3]);
}
