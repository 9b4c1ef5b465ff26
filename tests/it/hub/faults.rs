//! Row 22: a hub that fails, a disk that is full, a cache that cannot be written.

use super::*;
use crate::board::row;
use crate::hub::standin::Fault;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const CONFIG: &str = "unet/config.json";

#[test]
fn what_passes_is_waited_out() {
    for (file, fault) in [
        (UNET, Fault::Status(500, 2)),
        (CONFIG, Fault::Status(503, 2)),
        ("api", Fault::Status(500, 2)),
        (UNET, Fault::Short(250_000, 2)),
        (CONFIG, Fault::Short(100, 1)),
        (UNET, Fault::Stall(250_000, 1)),
        (UNET, Fault::NoRange),
    ] {
        let world = World::new("hub-passes");
        world.hub.break_file(file, fault.clone());
        world.pull();
        world.check_whole();
        assert_eq!(world.check(), NEEDED.len(), "{file} {fault:?}");
        assert_eq!(world.incomplete(), Vec::<PathBuf>::new(), "{file} {fault:?}");
        let unet =
            world.hub.asked().into_iter().filter(|asked| asked.at_store && asked.path.contains("unet"));
        let ranges: Vec<_> = unet.map(|asked| asked.range).collect();
        match fault {
            // Each time from where it broke off.
            Fault::Short(250_000, _) => assert_eq!(ranges, [None, Some(250_000), Some(500_000)]),
            Fault::Stall(250_000, _) => assert_eq!(ranges, [None, Some(250_000)]),
            _ => {}
        }
    }
}

#[test]
fn a_start_that_is_wrong_is_thrown_away() {
    let world = World::new("hub-wrong-start");
    let blobs = world.repo().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let unet = tiny().remove(UNET).unwrap();
    let part = blobs.join(format!("{}.incomplete", sha256(&unet)));
    for (left, ranges) in [
        (vec![7; 1000], vec![Some(1000), None]),
        (vec![7; 900_000], vec![None]),
        (unet[..1000].to_vec(), vec![Some(1000)]),
        (unet.clone(), vec![]),
    ] {
        std::fs::write(&part, left).unwrap();
        world.hub.forget_asked();
        world.pull();
        world.check();
        let asked =
            world.hub.asked().into_iter().filter(|asked| asked.at_store && asked.path.contains("unet"));
        assert_eq!(asked.map(|asked| asked.range).collect::<Vec<_>>(), ranges);
        std::fs::remove_file(blobs.join(sha256(&unet))).unwrap();
    }
    // A server that knows no ranges sends everything again.
    std::fs::write(&part, &unet[..1000]).unwrap();
    world.hub.break_file(UNET, Fault::NoRange);
    world.pull();
    world.check();
}

#[test]
fn chunks_that_are_not_to_be_had_lead_back_to_http() {
    let world = World::new("hub-chunks");
    world.hub.claim_chunks();
    let chunks = [("HF_XET_HIGH_PERFORMANCE", "1")];
    let output = world.run(&chunks, &["models", "pull", "org/tiny"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(errors(&output).contains("plain HTTP"), "{}", errors(&output));
    assert!(world.hub.asked().iter().any(|asked| asked.path.contains("xet-read-token")), "it was tried");
    world.check_whole();
    world.check();
    assert_eq!(world.incomplete(), Vec::<PathBuf>::new());
}

/// A way in which a pull fails, and what its one line says.
struct Failing {
    what: &'static str,
    fault: Option<(&'static str, Fault)>,
    /// A shell's words before the program.
    before: Option<&'static str>,
    /// Whether the part that came is to be kept for the next time.
    keeps: bool,
    says: &'static [&'static str],
}

fn ways() -> Vec<Failing> {
    let failing = |what, fault, says| Failing { what, fault, before: None, keeps: false, says };
    let disk = |what, before, says| Failing { what, fault: None, before: Some(before), keeps: false, says };
    vec![
        failing("hub 500", Some(("api", Fault::Status(500, 99))), &["answers 500", "org/tiny"]),
        failing("body 500", Some((UNET, Fault::Status(500, 99))), &["answers 500", UNET, "tried 5 times"]),
        Failing {
            keeps: true,
            ..failing("short body", Some((UNET, Fault::Short(9000, 99))), &[UNET, "tried 5 times"])
        },
        Failing {
            keeps: true,
            ..failing("slow body", Some((UNET, Fault::Stall(9000, 99))), &[UNET, "tried 5 times"])
        },
        failing(
            "wrong bytes",
            Some((UNET, Fault::WrongBytes)),
            &[UNET, "not what the hub says", "thrown away"],
        ),
        disk(
            "disk full",
            "mkdir -p home && mount -t tmpfs -o size=500k none home",
            &["no space is left", "HF_HOME"],
        ),
        disk(
            "read-only cache",
            "mkdir -p home && mount -t tmpfs -o ro none home",
            &["cannot be written", "HF_HOME"],
        ),
        // The same where nothing may be mounted.
        disk("file too large", "trap '' XFSZ; ulimit -f 300", &["no space is left", "HF_HOME"]),
        disk("no folder", "touch home", &["cannot be written", "HF_HOME"]),
    ]
}

#[test]
fn what_stays_is_one_line_and_no_partial_file() {
    let ways = ways();
    let tried: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            ways.iter().enumerate().map(|(i, way)| scope.spawn(move || fail(i, way))).collect();
        running.into_iter().filter_map(|way| way.join().unwrap()).collect()
    });
    let seen: Vec<_> = tried.iter().map(|(what, _)| *what).collect();
    let wrong: Vec<_> = tried.iter().flat_map(|(_, wrong)| wrong).collect();
    for line in &wrong {
        eprintln!("{line}");
    }
    row(
        "22",
        "disk full, read-only cache, hub 500 / slow / short body / wrong bytes",
        "clean error, no partial file kept",
        format!(
            "{} ways, {} not as they should be: {}; none under a final name",
            seen.len(),
            wrong.len(),
            seen.join(", ")
        ),
        wrong.is_empty() && seen.len() >= 7,
    );
}

/// What was tried, and what was not as it should be; `None` where this machine lets nobody mount.
fn fail(i: usize, way: &Failing) -> Option<(&'static str, Vec<String>)> {
    let Failing { what, fault, before, keeps, says } = way;
    let (world, mut wrong) = (World::new(&format!("hub-fails-{i}")), Vec::new());
    if let Some((file, fault)) = fault {
        world.hub.break_file(file, fault.clone());
    }
    let path = [("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")];
    let output = run_after(world.command(&path, &["models", "pull", "org/tiny"]), *before)?;
    let (line, code) = (error_line(&output), output.status.code());
    let left = world.folder.0.join("left");
    if left.exists() {
        let home = world.folder.0.join("home");
        let _one_of_these = (std::fs::remove_dir_all(&home), std::fs::remove_file(&home));
        std::fs::rename(left, home).unwrap();
    }
    if code != Some(1) || says.iter().any(|word| !line.contains(word)) {
        wrong.push(format!("{what}: {code:?} {line}"));
    }
    world.check();
    // Parts of other files are of use to the next try, unless it is the disk that failed.
    let left = world.incomplete();
    let part = world.repo().join("blobs").join(format!("{}.incomplete", sha256(&tiny()[UNET])));
    if world.repo().join("refs/main").exists()
        || left.contains(&part) != *keeps
        || before.is_some() && !left.is_empty()
    {
        wrong.push(format!("{what}: {left:?} is left"));
    }
    if before.is_none() {
        world.hub.mend();
        world.pull();
        world.check_whole();
    }
    Some((what, wrong))
}

/// Runs the program after a shell's words, which may need mounts of their own; `None` where those cannot be had.
fn run_after(mut pull: Command, before: Option<&str>) -> Option<Output> {
    let Some(before) = before else { return Some(pull.output().unwrap()) };
    let program = pull.get_program().to_owned();
    let arguments: Vec<_> = pull.get_args().map(ToOwned::to_owned).collect();
    // What it leaves is looked at when its mounts are gone.
    let script = format!("{before} || exit 77; \"$0\" \"$@\"; code=$?; cp -a home left; exit $code");
    let mut shell = Command::new(if before.contains("mount") { "unshare" } else { "env" });
    if before.contains("mount") {
        shell.args(["--mount", "--map-root-user"]);
    }
    shell.args(["sh", "-c", &script]).arg(program).args(arguments);
    shell.current_dir(pull.get_current_dir().unwrap()).env_clear();
    shell.envs(pull.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().ok()?;
    let refused = output.status.code() == Some(77) || errors(&output).starts_with("unshare: ");
    (!refused).then_some(output)
}
