//! A node that cannot start says why, what to do, and ends with 1; one whose upstream has no address starts anyway.

use std::net::TcpListener;

use crate::house::{Place, local};
use crate::server::{Server, ok};

fn config(listen: &str, upstream: &str) -> String {
    format!(
        "listeners: [{{ address: \"{listen}\", routes: [{{ upstream: up, policy: p }}] }}]\n\
         upstreams: {{ up: {{ url: \"http://{upstream}\" }} }}\npolicies: {{ p: {{ retry: off, timeout: 20s }} }}\n"
    )
}

#[test]
fn a_port_that_is_taken() {
    let other = TcpListener::bind(local(0)).unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let place = Place::new(&config(&taken, "127.0.0.1:1"));
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&[&format!("cannot listen on `{taken}`"), "another process listens there"]);
    assert!(!place.data().exists(), "nothing is left behind that would be in the way of another name");
    let place = Place::new(&config("127.0.0.1:0", "127.0.0.1:1"));
    let said = place.refused(&["run", "--admin", &taken]);
    assert_eq!(said.code, 1);
    said.tells(&[&taken, "for the admin API", "admin.address"]);
    drop(other);
    // What a failed start left behind does not stand in the way of the next.
    assert_eq!(place.node().status()["ready"], true);
}

/// Two nodes of the same user on one port would share its clients silently.
#[test]
fn a_port_of_another_node() {
    let first = Place::new(&config("127.0.0.1:0", "127.0.0.1:1")).node_of();
    let address = first.0.address().to_string();
    let said = Place::new(&config(&address, "127.0.0.1:1")).refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&[&format!("cannot listen on `{address}`"), "another process listens there"]);
}

#[test]
fn a_folder_of_another_running_node() {
    let place = Place::new(&config("127.0.0.1:0", "127.0.0.1:1"));
    let node = place.node();
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&[&format!("is in use by another running node (pid {})", node.process.pid()), "store.path"]);
    assert_eq!(node.status()["ready"], true, "the first one is not disturbed");
}

#[test]
fn a_folder_of_another_node_or_of_something_else() {
    let place = Place::new(&format!("node: one\n{}", config("127.0.0.1:0", "127.0.0.1:1")));
    place.node().stop();
    place.configure(&format!("node: two\n{}", config("127.0.0.1:0", "127.0.0.1:1")));
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["belongs to node `one`, this node is `two`", "give the node its old name"]);
    let place = Place::new(&config("127.0.0.1:0", "127.0.0.1:1"));
    std::fs::create_dir(place.data()).unwrap();
    place.write("data/holiday.jpg", "a picture");
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["holds files but no Seawall store (`holiday.jpg`, for one)"]);
    assert_eq!(std::fs::read_to_string(place.data().join("holiday.jpg")).unwrap(), "a picture");
}

/// CRC-32 as in zlib, for the one line a test has to forge.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[test]
fn a_folder_of_another_version_is_left_alone() {
    let place = Place::new(&config("127.0.0.1:0", "127.0.0.1:1"));
    place.node().stop();
    let meta = place.data().join("META");
    let original = std::fs::read(&meta).unwrap();
    let mut forged = original.clone();
    for slot in forged.chunks_mut(4096) {
        let text: Vec<u8> = slot.iter().copied().take_while(|byte| *byte != 0).collect();
        let text = String::from_utf8(text).unwrap().replace("seawall-store 1\n", "seawall-store 7\n");
        let Some((body, _)) = text.rsplit_once("\ncheck ") else { continue };
        let text = format!("{body}\ncheck {:08x}\n", crc32(body.as_bytes()));
        slot[..text.len()].copy_from_slice(text.as_bytes());
    }
    std::fs::write(&meta, &forged).unwrap();
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["META", "has format version 7, this program knows up to 1", "start the version that wrote it"]);
    let said = place.seawall(&["journal", "--data", "data"]);
    assert_eq!(said.code, 1);
    said.tells(&["has format version 7"]);
    assert_eq!(std::fs::read(&meta).unwrap(), forged, "not one byte is changed");
    std::fs::write(&meta, original).unwrap();
    assert_eq!(place.node().status()["ready"], true);
}

#[test]
fn a_folder_that_is_damaged_is_not_opened_as_if_it_were_whole() {
    let place = Place::new(&config("127.0.0.1:0", "127.0.0.1:1"));
    place.node().stop();
    std::fs::write(place.data().join("META"), "nothing of the kind").unwrap();
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["META", "is not Seawall's description of a data directory"]);
}

/// Bytes that were promised to somebody and do not read as written: a person decides.
#[test]
fn a_damaged_spool_is_opened_only_by_a_person_who_says_so() {
    let (well, server) = Server::moody();
    let text = config("127.0.0.1:0", &server.address.to_string());
    let place = Place::new(&text.replace("retry: off,", "retry: off, fallback: spool,"));
    let node = place.node();
    for n in 1..=3 {
        assert_eq!(node.post("/w", "", &format!("payload number {n}")).status, 202);
    }
    assert_eq!(crate::process::code(node.stop()), 0);
    let segment = place.data().join("spool/0000000001.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(16).position(|window| window == b"payload number 2").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["0000000001.log` is damaged at byte", "`seawall run --quarantine` goes on with what can be saved"]);
    assert_eq!(std::fs::read(&segment).unwrap(), bytes, "refusing changes nothing");
    let looked = place.seawall(&["spool", "ls", "--data", "data"]);
    assert_eq!(looked.out.lines().count(), 3, "{looked:?}");
    looked.tells(&["is damaged: this is what can be saved"]);
    assert_eq!(std::fs::read(&segment).unwrap(), bytes, "and so does looking");
    let node = place.node_with(&["run", "--quarantine"], &[]);
    assert_eq!(node.spooled(), 2);
    assert_eq!(node.journal().last("store_recovered")["fields"]["damaged_files"], "1");
    assert_eq!(std::fs::read(place.data().join("spool/0000000001.log.damaged")).unwrap(), bytes);
    well.store(true, std::sync::atomic::Ordering::Relaxed);
    crate::house::wait_until("what was saved arrives", || node.spooled() == 0);
}

#[test]
fn a_folder_that_cannot_be_made() {
    let place = Place::empty();
    place.write("file", "");
    place.configure(&format!("{}store: {{ path: ./file/data }}\n", config("127.0.0.1:0", "127.0.0.1:1")));
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["file/data"]);
}

/// The name may resolve tomorrow: the node starts, and says what is wrong with each call.
#[test]
fn an_upstream_without_an_address() {
    let place = Place::new(&config("127.0.0.1:0", "no-such-host.invalid:80"));
    let node = place.node();
    let answer = node.get("/");
    answer.is_ours(502, "dns_error");
    assert!(answer.must("proxy-status").contains("the name does not resolve"), "{answer:?}");
    assert_eq!(node.metrics().get("seawall_failures_total{route=\"up\",kind=\"dns\"}"), 1);
    assert_eq!(node.status()["ready"], true);
}

#[test]
fn a_configuration_that_cannot_be_read() {
    let place = Place::empty();
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["seawall.yaml", "`seawall init` writes one"]);
    std::fs::create_dir(place.path().join("folder.yaml")).unwrap();
    let said = place.refused(&["run", "--config", "folder.yaml"]);
    assert_eq!(said.code, 1);
    said.tells(&["folder.yaml"]);
    std::fs::write(place.path().join("binary.yaml"), [0xff, 0xfe, 0x00, 0x80]).unwrap();
    let said = place.refused(&["run", "--config", "binary.yaml"]);
    assert_eq!(said.code, 1);
    said.tells(&["binary.yaml"]);
    place.write("bad.yaml", "listeners: [{ address: nowhere, routes: [{ upstream: u }] }]\nupstreams: {}\n");
    let said = place.refused(&["run", "--config", "bad.yaml"]);
    assert_eq!(said.code, 1);
    said.tells(&["bad.yaml:1:24: ", "`nowhere` has no port"]);
}

#[test]
fn a_token_file_that_is_not_there() {
    let place = Place::new(&format!(
        "{}admin: {{ address: \"127.0.0.1:0\", token_file: ./none }}\n",
        config("127.0.0.1:0", "127.0.0.1:1")
    ));
    let said = place.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&["cannot read the admin token", "none"]);
}

#[test]
fn without_a_file() {
    let server = Server::start(|_| ok("fine"));
    let (place, upstream) = (Place::empty(), format!("http://{}", server.address));
    let arguments =
        ["run", "--listen", "127.0.0.1:0", "--upstream", &upstream, "--admin", "127.0.0.1:0", "--data", "mine"];
    let node = place.node_with(&arguments, &[]);
    assert_eq!(node.get("/any/path?and=query").body, "fine");
    assert_eq!(node.metrics().answers("default", "2xx"), 1);
    assert!(place.path().join("mine/META").is_file());
}

#[test]
fn without_a_file_and_with_values_that_make_no_sense() {
    let place = Place::empty();
    for (listen, upstream, told) in [
        ("8080", "http://127.0.0.1:1", "--listen: `8080` has no port"),
        (":99999", "http://127.0.0.1:1", "is not a port"),
        ("nowhere:1", "http://127.0.0.1:1", "--listen: "),
        ("127.0.0.1:0", "127.0.0.1:1", "--upstream: "),
        ("127.0.0.1:0", "ftp://127.0.0.1:1", "`ftp` is not supported"),
        ("127.0.0.1:0", "http://", "--upstream: "),
        ("127.0.0.1:0", "http://a b", "--upstream: "),
        ("", "", "--listen: "),
    ] {
        let said = place.refused(&["run", "--listen", listen, "--upstream", upstream]);
        assert_eq!(said.code, 2, "{listen} {upstream}: {said:?}");
        said.tells(&[told]);
    }
    let both = place.refused(&["run", "--listen", "x", "--upstream", "y", "--admin", "z"]);
    both.tells(&["--listen: ", "--upstream: ", "--admin: "]);
    for wrong in [&["run", "--listen", ":1"][..], &["run", "--upstream", "http://a"], &["run", "--log", "xml"]] {
        assert_eq!(place.refused(wrong).code, 2, "{wrong:?}");
    }
    assert!(std::fs::read_dir(place.path()).unwrap().next().is_none(), "nothing was made");
}
