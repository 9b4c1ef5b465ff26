//! Row 23: a download is killed at many moments, and started again.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::*;
use crate::board::{full, row};

#[test]
fn kills_leave_nothing_wrong_behind() {
    let kills = if full() { 50 } else { 12 };
    let started = Instant::now();
    let world = World::new("hub-killed");
    world.pull();
    let bytes = world.hub.sent();
    let (mut kept, mut saved) = (0, 0);
    for kill in 0..kills {
        std::fs::remove_dir_all(world.folder.0.join("home")).unwrap();
        // From the first byte of a listing to the last one of the last file.
        let moment = bytes * kill / (kills - 1);
        world.hub.allow(Some(moment));
        let mut pull = world.command(&[], &["models", "pull", "org/tiny"]);
        let mut child = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        world.hub.wait_until_spent(Duration::from_secs(10));
        if moment == bytes {
            // Everything is there but for its names.
            std::thread::sleep(Duration::from_millis(kill as u64 % 7));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kept += world.check();
        saved +=
            world.incomplete().iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum::<u64>();

        world.hub.allow(None);
        world.pull();
        world.check_whole();
        assert_eq!(world.check(), NEEDED.len());
        assert_eq!(world.incomplete(), Vec::<PathBuf>::new());
    }
    row(
        "23",
        "kill -9 at 50 moments of a download",
        "restart fine, 0 corrupt files",
        format!(
            "{kills} kills, each restart right, 0 corrupt files; {kept} whole files and {} kB of parts were not fetched \
             again; {:.1} s",
            saved / 1000,
            started.elapsed().as_secs_f64()
        ),
        // What had come was of use.
        kept > 0 && saved > 0,
    );
}
