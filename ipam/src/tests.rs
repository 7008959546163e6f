//! The allocator's rules, each against the race that it was made for. Threads stand for processes: locks belong to
//! open files, so they exclude each other in the same way. What only real processes show is in `netns-tests`.

mod cluster;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weft_cni::error::{Error, code};
use weft_cni::ip::Subnet;

use crate::alias::Alias;
use crate::clock::Deadline;
use crate::foreign::Foreign;
use crate::source::{Pool, Segment, block_name};
use crate::{
    Attachment, Begun, Host, Kernel, Key, Live, NoKernel, Owner, Record, State, Taking, collect, take, usage,
};

fn soon() -> Deadline {
    Deadline::after(Instant::now(), Duration::from_secs(20))
}

fn open(root: &Path, kernel: &mut dyn Kernel) -> State {
    State::open_at(&root.join("run"), &root.join("lib"), kernel, soon()).unwrap()
}

fn begin<'s>(state: &'s State, container: &str) -> Attachment<'s> {
    match state.begin(&Owner::new("net", container, "eth0"), soon()).unwrap() {
        Begun::Fresh(attachment) | Begun::Existing(attachment) => attachment,
    }
}

fn record() -> Record {
    Record::begun(crate::clock::boot_nanos(), String::new(), "/run/netns/x".into())
}

/// `count` addresses from 10.1.0.1 on, in the folder of the network "net".
fn pool(state: &State, count: u32) -> Pool {
    let folder = crate::source::pool_folder(&crate::Hash::of("net"));
    crate::attachment::make_pool(state, "net", &folder).unwrap();
    let last = IpAddr::V4((u32::from_be_bytes([10, 1, 0, 0]) + count).into());
    let segment = Segment {
        folder,
        slot: format!("net-{count}"),
        subnet: "10.1.0.0/16".parse().unwrap(),
        first: "10.1.0.1".parse().unwrap(),
        last,
        gateway: None,
        host_prefix: false,
    };
    Pool { segments: vec![segment], requested: None }
}

fn try_take(
    attachment: &Attachment<'_>,
    record: &mut Record,
    pool: &Pool,
    cooldown: u64,
) -> Result<IpAddr, Error> {
    take_with(attachment, record, pool, cooldown, &mut NoKernel)
}

fn take_with(
    attachment: &Attachment<'_>,
    record: &mut Record,
    pool: &Pool,
    cooldown: u64,
    kernel: &mut dyn Kernel,
) -> Result<IpAddr, Error> {
    let foreign = Foreign::default();
    let mut taking = Taking { kernel, foreign: &foreign, cooldown, avoid: &[], deadline: soon() };
    take(attachment, record, std::slice::from_ref(pool), &mut taking)?;
    Ok(record.addresses[0].address.addr())
}

fn end(attachment: Attachment<'_>) {
    let record = attachment.record().unwrap();
    attachment.release_all(record.as_ref()).unwrap();
    attachment.end().unwrap();
}

/// Attack A1. With a withdrawal that is not `rmdir` an address of a withdrawn block is given.
#[test]
fn a_block_cannot_be_withdrawn_while_an_address_is_taken_from_it() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let block: Subnet = "10.9.0.0/29".parse().unwrap();
    let stop = AtomicBool::new(false);
    let withdrawn = AtomicUsize::new(0);
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        for taker in 0..2 {
            let (state, stop, taken, block) = (&state, &stop, &taken, &block);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let attachment = begin(state, &format!("c{taker}"));
                    let file = format!("block/{}/10.9.0.{taker}", block_name(block));
                    if attachment.take(&file).unwrap() {
                        taken.fetch_add(1, Ordering::Relaxed);
                        thread::yield_now();
                        assert!(
                            attachment.holds(&file).unwrap(),
                            "the block was withdrawn under a taken address"
                        );
                    }
                    attachment.release_all(None).unwrap();
                    attachment.end().unwrap();
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(20);
        let few = |count: &AtomicUsize| count.load(Ordering::Relaxed) < 100;
        while (few(&withdrawn) || few(&taken)) && Instant::now() < until {
            state.grant(&block, soon()).unwrap();
            if state.withdraw(&block).unwrap() {
                withdrawn.fetch_add(1, Ordering::Relaxed);
                assert!(state.granted().unwrap().is_empty());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(withdrawn.into_inner() >= 100 && taken.into_inner() >= 100, "both sides had their turns");
}

/// Attack A2. Without the lock of the attachment a late release frees a successor's address.
#[test]
fn a_late_or_parallel_release_never_frees_a_successors_address() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let pool = pool(&state, 1);
    for round in 0..150 {
        let first = begin(&state, "first");
        let mut held = record();
        try_take(&first, &mut held, &pool, 0).unwrap();
        drop(first);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    if let Some(attachment) = state.find(&Key::of("net", "first", "eth0"), soon()).unwrap() {
                        end(attachment);
                    }
                });
            }
            scope.spawn(|| {
                let successor = begin(&state, "second");
                let mut record = record();
                let until = Instant::now() + Duration::from_secs(10);
                while try_take(&successor, &mut record, &pool, 0).is_err() {
                    assert!(Instant::now() < until, "the address never came free");
                }
                for _ in 0..20 {
                    thread::yield_now();
                    let file = &record.addresses[0].file;
                    assert!(successor.holds(file).unwrap(), "round {round}: the successor lost its address");
                }
                end(successor);
            });
        });
    }
}

/// A release by an attachment that does not hold the address does nothing, whatever its record says.
#[test]
fn a_record_that_names_anothers_address_frees_nothing() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let pool = pool(&state, 1);
    let (holder, other) = (begin(&state, "holder"), begin(&state, "other"));
    let mut held = record();
    try_take(&holder, &mut held, &pool, 0).unwrap();
    other.release_all(Some(&held)).unwrap();
    assert!(holder.holds(&held.addresses[0].file).unwrap());
}

/// The kernel of the wipe test: live links by attachment, which no wipe touches.
#[derive(Default)]
struct Links(Mutex<BTreeMap<String, (Key, IpAddr)>>);

struct LinkView<'a>(&'a Links);

impl Kernel for LinkView<'_> {
    fn live(&mut self) -> Result<Vec<Live>, Error> {
        let links = self.0.0.lock().unwrap();
        let live = |(name, (key, ip)): (&String, &(Key, IpAddr))| {
            let alias = Alias {
                key: key.clone(),
                addresses: vec![*ip],
                own_addresses: true,
                cluster: false,
                runtime: String::new(),
            };
            let host = Host { name: name.clone(), index: 1, mac: String::new(), alias: alias.to_string() };
            Live { alias, host, bridge: None }
        };
        Ok(links.iter().map(live).collect())
    }

    fn is_alive(&mut self, record: &Record) -> Result<bool, Error> {
        let links = self.0.0.lock().unwrap();
        Ok(record.host.as_ref().is_some_and(|host| links.contains_key(&host.name)))
    }

    fn clean(&mut self, _record: &Record, _held: &[IpAddr]) -> Result<(), Error> {
        Ok(())
    }
}

/// One ADD as the plugin does it, without its claim in the kernel: the records alone must suffice.
fn add(
    root: &Path,
    links: &Links,
    container: &str,
    answered: &Mutex<BTreeMap<String, IpAddr>>,
) -> Option<()> {
    let mut kernel = LinkView(links);
    let state = State::open_at(&root.join("run"), &root.join("lib"), &mut kernel, soon()).ok()?;
    let attachment = match state.begin(&Owner::new("net", container, "eth0"), soon()).ok()? {
        Begun::Fresh(attachment) => attachment,
        Begun::Existing(_) => return None,
    };
    let folder = crate::source::pool_folder(&crate::Hash::of("net"));
    crate::attachment::make_pool(&state, "net", &folder).ok()?;
    let pool = pool_of(&folder);
    let mut record = record();
    let name = attachment.id().host_name();
    record.host = Some(Host { name: name.clone(), index: 1, mac: String::new(), alias: String::new() });
    let taken = take_with(&attachment, &mut record, &pool, 0, &mut kernel);
    let intact = taken.and_then(|ip| {
        // Where the plugin makes the link: long enough for a wipe to come in between.
        thread::sleep(Duration::from_micros(500));
        links.0.lock().unwrap().insert(name.clone(), (attachment.key().clone(), ip));
        thread::yield_now();
        Ok((ip, attachment.write_and_verify(&record)?))
    });
    match intact {
        Ok((ip, true)) => {
            // Answered and still proven at the moment of the answer.
            answered.lock().unwrap().insert(name, ip);
            Some(())
        }
        _ => {
            links.0.lock().unwrap().remove(&name);
            let _rolled_back = attachment.release_all(Some(&record)).and_then(|()| attachment.end());
            None
        }
    }
}

fn pool_of(folder: &str) -> Pool {
    let segment = Segment {
        folder: folder.to_owned(),
        slot: "net-20".to_owned(),
        subnet: "10.1.0.0/16".parse().unwrap(),
        first: "10.1.0.1".parse().unwrap(),
        last: "10.1.0.20".parse().unwrap(),
        gateway: None,
        host_prefix: false,
    };
    Pool { segments: vec![segment], requested: None }
}

/// Attack A3. The folder is wiped again and again while sixteen ADDs run: no address is answered twice.
#[test]
fn wiping_and_rebuilding_against_sixteen_adds_gives_no_address_twice() {
    let root = tempfile::tempdir().unwrap();
    let links = Links::default();
    let answered = Mutex::new(BTreeMap::new());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let adders: Vec<_> = (0..16)
            .map(|worker| {
                let (root, links, answered) = (root.path(), &links, &answered);
                scope.spawn(move || {
                    let fails = |turn| add(root, links, &format!("c{worker}-{turn}"), answered).is_none();
                    (0..).take_while(|turn: &u32| fails(*turn)).for_each(drop);
                })
            })
            .collect();
        scope.spawn(|| {
            // Ever more seldom, so that every ADD succeeds in the end however slow the machine is.
            let mut pause = Duration::from_millis(1);
            while !done.load(Ordering::Relaxed) {
                let _partly_wiped = fs::remove_dir_all(root.path().join("run"));
                thread::sleep(pause);
                pause = pause.mul_f64(1.05);
            }
        });
        adders.into_iter().for_each(|adder| adder.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    let answered = answered.into_inner().unwrap();
    let mut addresses: Vec<_> = answered.values().collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), answered.len(), "an address was answered twice: {answered:?}");
}

/// Attack A3 (c). An ADD whose folder was wiped and rebuilt under it, with its link not there yet, must not answer:
/// its address is free to others.
#[test]
fn an_add_that_was_wiped_meanwhile_is_not_answered() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let attachment = begin(&state, "slow");
    let mut slow = record();
    let ip = try_take(&attachment, &mut slow, &pool(&state, 1), 0).unwrap();
    fs::remove_dir_all(state.path()).unwrap();
    let rebuilt = open(root.path(), &mut NoKernel);
    let other = begin(&rebuilt, "other");
    let mut theirs = record();
    assert_eq!(try_take(&other, &mut theirs, &pool(&rebuilt, 1), 0).unwrap(), ip);
    assert!(!attachment.write_and_verify(&slow).unwrap());
    assert!(other.write_and_verify(&theirs).unwrap());
}

/// Attack A2. Whoever waited for a lock whose file was removed meanwhile holds nothing: the name is a successor's.
#[test]
fn a_lock_on_a_removed_owner_file_is_no_lock() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let first = begin(&state, "same");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let soon = Deadline::after(Instant::now(), Duration::from_millis(400));
            state.find(&Key::of("net", "same", "eth0"), soon).map(|found| found.is_some())
        });
        // Long enough for the other to wait for this lock; if it is late, it finds the successor's at once.
        thread::sleep(Duration::from_millis(100));
        end(first);
        let _successor = begin(&state, "same");
        assert_eq!(waiting.join().unwrap().unwrap_err().code, code::TRY_AGAIN);
    });
}

/// After a wipe the records are what the kernel says, and what it says is not given again.
#[test]
fn a_wiped_folder_is_rebuilt_from_the_links() {
    let root = tempfile::tempdir().unwrap();
    let links = Links::default();
    let answered = Mutex::new(BTreeMap::new());
    for number in 0..19 {
        add(root.path(), &links, &format!("c{number}"), &answered).unwrap();
    }
    fs::remove_dir_all(root.path().join("run")).unwrap();
    let state = open(root.path(), &mut LinkView(&links));
    assert_eq!(state.owners().unwrap().len(), 19);
    assert!(state.wiped().unwrap().is_some(), "delegated addresses are lost, and this is known");
    drop(state);
    add(root.path(), &links, "last", &answered).unwrap();
    let all: std::collections::BTreeSet<_> = answered.lock().unwrap().values().copied().collect();
    assert_eq!(all.len(), 20);
    let name = Key::of("net", "c3", "eth0").id().host_name();
    let state = open(root.path(), &mut LinkView(&links));
    let rebuilt = state.find(&Key::of("net", "c3", "eth0"), soon()).unwrap().unwrap();
    assert_eq!(
        rebuilt.record().unwrap().unwrap().addresses[0].address.addr(),
        answered.lock().unwrap()[&name]
    );
}

/// Attack A4. Nothing is reset: another life is another folder, and only another boot's are certainly dead.
#[test]
fn another_stamp_is_another_folder_and_only_other_boots_are_swept() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let stamp = crate::stamp::Stamp::current().unwrap();
    let other_boot = run.join(format!("{}-1", "0".repeat(32)));
    let other_node = run.join(format!("{}-1", stamp.boot));
    for folder in [&other_boot, &other_node] {
        fs::create_dir_all(folder.join("owner")).unwrap();
    }
    let state = open(root.path(), &mut NoKernel);
    assert_eq!(state.path(), run.join(stamp.folder()));
    assert!(state.owners().unwrap().is_empty());
    assert!(!other_boot.exists());
    assert!(other_node.exists(), "another node on this kernel is alive for all we know");
}

/// A folder that another version wrote is neither read nor overwritten.
#[test]
fn a_state_of_another_format_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let path = open(root.path(), &mut NoKernel).path().to_owned();
    fs::write(path.join("ready"), br#"{"format":2,"built":1,"version":"9"}"#).unwrap();
    let (run, lib) = (root.path().join("run"), root.path().join("lib"));
    let error = State::open_at(&run, &lib, &mut NoKernel, soon()).unwrap_err();
    assert_eq!(error.code, code::IPAM);
    assert!(error.msg.contains("format 2"), "{error}");
}

/// Attack A9. Addresses rotate, rest for the cool-down, and are given sooner only when nothing else is free.
#[test]
fn an_address_rests_unless_nothing_else_is_free_and_then_the_longest_rested_is_given() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let pool = pool(&state, 4);
    let mut given = Vec::new();
    for number in 0..4 {
        let attachment = begin(&state, &format!("c{number}"));
        let mut record = record();
        given.push(try_take(&attachment, &mut record, &pool, 120).unwrap());
        end(attachment);
    }
    given.dedup();
    assert_eq!(given.len(), 4, "none is given again while others never were: {given:?}");
    let attachment = begin(&state, "next");
    let next = try_take(&attachment, &mut record(), &pool, 120).unwrap();
    assert_eq!(next, given[0], "all rest: the one that rested longest");
}

/// Attack A10. Killed between two addresses, what was taken is found by the record or, without one, by search.
#[test]
fn a_half_taken_attachment_is_ended_with_and_without_its_record() {
    for with_record in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let state = open(root.path(), &mut NoKernel);
        let pool = pool(&state, 3);
        let attachment = begin(&state, "half");
        try_take(&attachment, &mut record(), &pool, 0).unwrap();
        if !with_record {
            fs::write(state.path().join("record").join(attachment.id().as_str()), b"garbage").unwrap();
        }
        drop(attachment);
        end(state.find(&Key::of("net", "half", "eth0"), soon()).unwrap().unwrap());
        let used = usage(&state, &pool, &Foreign::default()).unwrap().used;
        assert_eq!(used, 0, "with record: {with_record}");
        assert!(state.owners().unwrap().is_empty());
    }
}

/// Attack A8. A pool that is full of dead attachments is not full.
#[test]
fn garbage_is_collected_when_the_pool_runs_out_and_live_attachments_are_not() {
    let root = tempfile::tempdir().unwrap();
    let links = Links::default();
    let answered = Mutex::new(BTreeMap::new());
    for number in 0..20 {
        add(root.path(), &links, &format!("c{number}"), &answered).unwrap();
    }
    let live = Key::of("net", "c0", "eth0").id().host_name();
    links.0.lock().unwrap().retain(|name, _| *name == live);
    add(root.path(), &links, "new", &answered).expect("a dead attachment's address is given");
    let state = open(root.path(), &mut LinkView(&links));
    collect(&state, &mut LinkView(&links), None, usize::MAX).unwrap();
    assert_eq!(state.owners().unwrap().len(), 2, "the live one and the new one");
}

/// An attachment that somebody works on is no garbage, whatever the kernel says.
#[test]
fn a_locked_attachment_is_not_collected() {
    let root = tempfile::tempdir().unwrap();
    let links = Links::default();
    let state = open(root.path(), &mut LinkView(&links));
    let attachment = begin(&state, "working");
    attachment.write(&record()).unwrap();
    assert!(collect(&state, &mut LinkView(&links), None, usize::MAX).unwrap().is_empty());
    drop(attachment);
    assert_eq!(collect(&state, &mut LinkView(&links), None, usize::MAX).unwrap().len(), 1);
}

/// A32. The wait for a lock ends, and names who holds it.
#[test]
fn a_held_lock_is_reported_with_its_holder() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let _held = begin(&state, "busy");
    let now = Deadline::after(Instant::now(), Duration::from_millis(20));
    let error = state.find(&Key::of("net", "busy", "eth0"), now).unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN);
    assert!(error.details.contains(&format!("process {}", std::process::id())), "{error}");
}

/// A block comes back with the addresses that live attachments have in it already taken.
#[test]
fn a_block_that_is_granted_again_respects_rebuilt_attachments() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let attachment = begin(&state, "old");
    let mut rebuilt = record();
    rebuilt.addresses.push(crate::TakenAddress {
        address: "10.9.0.3/32".parse().unwrap(),
        gateway: None,
        file: String::new(),
        slot: None,
    });
    attachment.write(&rebuilt).unwrap();
    drop(attachment);
    let block: Subnet = "10.9.0.0/29".parse().unwrap();
    state.grant(&block, soon()).unwrap();
    assert!(!begin(&state, "new").take("block/10.9.0.0-29/10.9.0.3").unwrap());
    assert!(!state.withdraw(&block).unwrap());
    end(state.find(&Key::of("net", "old", "eth0"), soon()).unwrap().unwrap());
    assert!(state.withdraw(&block).unwrap());
}

proptest::proptest! {
    /// Unique, inside the pool, never the gateway; releasing frees; exhaustion is told as such.
    #[test]
    fn any_sequence_of_takes_and_releases_keeps_addresses_unique(
        operations in proptest::collection::vec((0u8..12, proptest::prelude::any::<bool>()), 1..60),
    ) {
        let root = tempfile::tempdir().unwrap();
        let state = open(root.path(), &mut NoKernel);
        let mut pool = pool(&state, 8);
        pool.segments[0].gateway = Some("10.1.0.1".parse().unwrap());
        let mut held: BTreeMap<u8, IpAddr> = BTreeMap::new();
        for (who, adds) in operations {
            let name = format!("c{who}");
            match (adds, held.contains_key(&who)) {
                (true, false) => {
                    let attachment = begin(&state, &name);
                    match try_take(&attachment, &mut record(), &pool, 0) {
                        Ok(ip) => {
                            proptest::prop_assert!(pool.segments[0].index_of(ip).is_some());
                            proptest::prop_assert_ne!(Some(ip), pool.segments[0].gateway);
                            proptest::prop_assert!(!held.values().any(|other| *other == ip));
                            held.insert(who, ip);
                        }
                        Err(error) => {
                            proptest::prop_assert_eq!(error.code, code::TRY_AGAIN);
                            proptest::prop_assert_eq!(held.len(), 7);
                            end(attachment);
                        }
                    }
                }
                (false, true) => {
                    end(state.find(&Key::of("net", &name, "eth0"), soon()).unwrap().unwrap());
                    held.remove(&who);
                }
                _ => {}
            }
            let used = usage(&state, &pool, &Foreign::default()).unwrap();
            proptest::prop_assert_eq!((used.used, used.total), (held.len() as u128, 7));
        }
    }
}
