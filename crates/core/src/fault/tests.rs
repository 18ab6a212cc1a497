//! Links in virtual time: what goes in, which faults come and go, and what comes out when.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::{Ending, Link, Out};
use crate::fault::{Direction, Effect, Fault, FaultId, Share, link_prng};
use crate::time::Mono;
use crate::units::Ratio;

const NAME: &str = "it";

#[derive(Clone, Debug)]
enum Do {
    Send(usize),
    End(Ending),
    Put(Fault),
    Lift(&'static str),
}
use Do::{End, Lift, Put, Send};

fn named(name: &str, effect: Effect) -> Fault {
    Fault { id: name.into(), direction: Direction::Downstream, share: Share::ALL, effect }
}

fn it(effect: Effect) -> Fault {
    named(NAME, effect)
}

fn share(share: f64, effect: Effect) -> Fault {
    Fault { share: Share::clamped(share), ..it(effect) }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn latency(delay: u64) -> Effect {
    Effect::Latency { delay_ms: delay as i64, jitter: Duration::ZERO }
}

const fn rate(bytes_per_second: u64) -> Effect {
    Effect::Bandwidth { bytes_per_second }
}

const fn timeout(after: u64) -> Effect {
    Effect::Timeout { after: if after == 0 { None } else { Some(ms(after)) } }
}

const fn limit(bytes: u64) -> Effect {
    Effect::LimitData { bytes }
}

const fn reset(after: u64) -> Effect {
    Effect::ResetPeer { after: ms(after) }
}

const fn half_close(after: u64) -> Effect {
    Effect::HalfClose { after: ms(after) }
}

const fn slow_close(delay: u64) -> Effect {
    Effect::SlowClose { delay: ms(delay) }
}

const fn slicer(average: usize, delay_us: u64) -> Effect {
    Effect::Slicer { average, variation: 0, delay: Duration::from_micros(delay_us) }
}

fn link(faults: &[Fault]) -> Link {
    Link::new(Mono::ZERO, Direction::Downstream, link_prng(1, "place", 0, Direction::Downstream), faults)
}

/// Plays events at their milliseconds. Tells what came out at which millisecond: bytes as numbers, then the end.
fn run(faults: &[Fault], events: &[(u64, Do)]) -> String {
    let (mut link, mut now, mut events, mut told) = (link(faults), Mono::ZERO, events.iter().peekable(), String::new());
    loop {
        let wake = match link.next(now) {
            Out::Write(bytes) => {
                link.wrote(bytes.len());
                let _ = write!(told, "{}:{} ", now.as_nanos() as f64 / 1e6, bytes.len());
                continue;
            }
            Out::End(ending) => return told + &format!("{}:{ending:?}", now.as_millis()),
            Out::Wait(wake) => wake,
        };
        assert!(wake.is_none_or(|wake| wake > now), "asked to wait for the past: {wake:?} at {now:?}");
        let next = events.peek().map(|(at, _)| Mono::from_millis(*at));
        match (wake, next) {
            (None, None) => return told.trim_end().to_owned(),
            (Some(wake), next) if next.is_none_or(|next| wake < next) => now = wake,
            (_, next) => {
                now = next.unwrap_or(now);
                match events.next().map(|(_, event)| event.clone()) {
                    Some(Send(len)) => {
                        assert!(link.wants_input(), "sent {len} at {now:?} where nothing was wanted");
                        link.push(now, Bytes::from(vec![b'x'; len]));
                    }
                    Some(End(ending)) => link.end(ending),
                    Some(Put(fault)) => link.put(now, fault),
                    Some(Lift(id)) => assert!(link.lift(&id.into())),
                    None => {}
                }
            }
        }
    }
}

#[test]
fn without_faults_bytes_and_ends_pass() {
    assert_eq!(run(&[], &[(1, Send(5)), (2, Send(1)), (3, End(Ending::Half))]), "1:5 2:1 3:Half");
    assert_eq!(run(&[it(Effect::Noop)], &[(1, Send(5)), (3, End(Ending::Close))]), "1:5 3:Close");
    // A fault of the other direction is not ours.
    let other = || Fault { direction: Direction::Upstream, ..it(timeout(0)) };
    assert_eq!(run(&[other()], &[(1, Send(5)), (2, Put(other())), (3, Send(1))]), "1:5 3:1");
}

#[test]
fn latency_delays_each_chunk_side_by_side_and_no_end() {
    let events = [(0, Send(1)), (50, Send(2)), (60, Send(3)), (61, End(Ending::Half))];
    assert_eq!(run(&[it(latency(100))], &events), "100:1 150:2 160:3 160:Half");
    assert_eq!(run(&[it(latency(100))], &[(5, End(Ending::Half))]), "5:Half");
    assert_eq!(run(&[named("a", latency(300)), named("b", latency(400))], &[(1, Send(1))]), "701:1");
    assert_eq!(run(&[it(latency(0))], &[(1, Send(1))]), "1:1");
}

#[test]
fn latency_counts_from_when_a_chunk_was_received_whatever_held_it_since() {
    let after = |before, delay| [named("before", before), named("latency", latency(delay))];
    assert_eq!(run(&after(rate(1_000), 100), &[(0, Send(30)), (40, Send(30))]), "100:30 140:30");
    assert_eq!(run(&after(rate(1_000), 10), &[(0, Send(30))]), "30:30", "what was held longer waits no more");
    assert_eq!(run(&after(slicer(10, 5_000), 100), &[(0, Send(20))]), "100:10 100:10");
    // A rate counts from when the chunk comes to it.
    assert_eq!(run(&[named("a", latency(100)), named("b", rate(1_000))], &[(0, Send(30))]), "130:30");
}

#[test]
fn a_latency_below_zero_takes_from_its_jitter() {
    let early = |delay_ms, jitter| it(Effect::Latency { delay_ms, jitter: ms(jitter) });
    assert_eq!(run(&[early(-50, 0)], &[(7, Send(1))]), "7:1");
    assert_eq!(run(&[early(i64::MIN, u64::MAX)], &[(7, Send(1))]), "7:1");
    let at = |n: u64| {
        let fault = Fault { id: FaultId::from(format!("n{n}").as_str()), ..early(-50, 60) };
        run(&[fault], &[(0, Send(1))]).split(':').next().unwrap().parse::<f64>().unwrap()
    };
    let left: Vec<f64> = (0..200).map(at).collect();
    assert!(left.iter().all(|at| (0.0..10.0).contains(at)), "{left:?}");
    let at_once = left.iter().filter(|&&at| at == 0.0).count();
    assert!((160..200).contains(&at_once), "eleven of twelve: {at_once}");
}

#[test]
fn a_reset_that_was_there_from_the_start_arms_the_whole_connection() {
    assert!(link(&[it(reset(5))]).arms_reset());
    assert!(!link(&[it(latency(5))]).arms_reset() && !link(&[share(0.0, reset(5))]).arms_reset());
    let mut late = link(&[]);
    late.put(Mono::ZERO, it(reset(5)));
    assert!(!late.arms_reset());
}

#[test]
fn a_latency_that_changes_lets_the_oldest_go_and_one_that_is_lifted_all() {
    let events = |then| [(0, Send(1)), (1, Send(2)), (200, then)];
    assert_eq!(run(&[it(latency(1_000))], &events(Put(it(latency(500))))), "200:1 501:2");
    assert_eq!(run(&[it(latency(1_000))], &events(Lift(NAME))), "200:1 200:2");
    let shares = [(0, Send(1)), (1, Send(2)), (200, Put(share(0.0, latency(1_000)))), (300, Send(3))];
    assert_eq!(run(&[it(latency(1_000))], &shares), "200:1 200:2 300:3");
    let idle = [(0, Put(it(latency(9)))), (1, Send(1))];
    assert_eq!(run(&[it(latency(5))], &idle), "10:1");
}

#[test]
fn jitter_is_whole_milliseconds_around_and_keeps_the_order() {
    let jittery = it(Effect::Latency { delay_ms: 50, jitter: ms(40) });
    let mut left = Vec::new();
    for n in 0..200 {
        let told = run(&[Fault { id: FaultId::from(format!("n{n}").as_str()), ..jittery.clone() }], &[(0, Send(1))]);
        left.push(told.split(':').next().unwrap().parse::<f64>().unwrap());
    }
    assert!(left.iter().all(|&at| (10.0..90.0).contains(&at) && at.fract() == 0.0), "{left:?}");
    assert!(left.iter().any(|&at| at < 20.0) && left.iter().any(|&at| at > 80.0), "it uses its room: {left:?}");
    let told = run(std::slice::from_ref(&jittery), &[(0, Send(1)), (0, Send(2)), (0, Send(3)), (0, End(Ending::Half))]);
    let sizes: Vec<&str> = told.split(' ').filter_map(|part| part.split(':').nth(1)).collect();
    assert_eq!(sizes, ["1", "2", "3", "Half"], "{told}");
    assert_eq!(told, run(&[jittery], &[(0, Send(1)), (0, Send(2)), (0, Send(3)), (0, End(Ending::Half))]), "again");
    // Never earlier than it came, however wide the jitter.
    let wide = Effect::Latency { delay_ms: 1, jitter: Duration::from_millis(u64::MAX / 2) };
    assert!(!run(&[it(wide)], &[(7, Send(1))]).starts_with('6'));
}

#[test]
fn bandwidth_lets_pieces_of_a_tenth_of_a_second_pass() {
    let told = run(&[it(rate(100_000))], &[(0, Send(25_000)), (1, End(Ending::Half))]);
    assert_eq!(told, "100:10000 200:10000 250:5000 250:Half");
    // What is shorter than a tenth of a second waits for its own time; idle time earns nothing.
    assert_eq!(run(&[it(rate(1_000))], &[(0, Send(10)), (500, Send(20))]), "10:10 520:20");
    assert_eq!(run(&[it(rate(1))], &[(0, Send(2))]), "1000:1 2000:1");
    assert_eq!(run(&[it(rate(u64::MAX))], &[(1, Send(32 << 10))]), "1.000001:32768");
}

#[test]
fn a_stalled_stream_goes_on_when_the_rate_changes_or_goes() {
    let stalled = [(0, Send(50)), (1, End(Ending::Half))];
    assert_eq!(run(&[it(rate(0))], &stalled), "");
    assert_eq!(run(&[it(rate(0))], &[(0, End(Ending::Half))]), "0:Half");
    let then = |event| [(0, Send(50)), (1, End(Ending::Half)), (9, event)];
    assert_eq!(run(&[it(rate(0))], &then(Put(it(rate(1_000))))), "9:50 9:Half");
    assert_eq!(run(&[it(rate(0))], &then(Lift(NAME))), "9:50 9:Half");
    // Half-way: what waits is written, the next obeys the new rule.
    let events = [(0, Send(300)), (150, Put(it(rate(100)))), (200, Send(10))];
    assert_eq!(run(&[it(rate(1_000))], &events), "100:100 150:200 300:10");
}

#[test]
fn a_peer_that_does_not_read_earns_no_burst() {
    let (mut link, chunk) = (link(&[it(rate(1_000_000))]), Bytes::from(vec![0; 32 << 10]));
    let mut now = Mono::ZERO;
    let fill = |link: &mut Link, now| {
        while link.wants_input() {
            link.push(now, chunk.clone());
            let _ = link.next(now);
        }
    };
    fill(&mut link, now);
    while link.due().is_some() {
        now = now + ms(10);
        let _ = link.next(now);
        fill(&mut link, now);
    }
    let waiting = link.held_bytes();
    assert!(waiting <= (64 << 10) + 2 * (32 << 10), "{waiting}");
    // A minute later the peer reads at once everything there is.
    now = now + ms(60_000);
    let (begin, mut passed) = (now, 0);
    while now.since(begin) < ms(1_000) {
        match link.next(now) {
            Out::Write(bytes) => {
                passed += bytes.len();
                link.wrote(bytes.len());
            }
            Out::Wait(_) if link.wants_input() => link.push(now, chunk.clone()),
            Out::Wait(due) => now = due.unwrap(),
            Out::End(_) => unreachable!(),
        }
    }
    assert!(passed <= 1_000_000 + waiting + 100_000 + (32 << 10), "{passed}");
}

#[test]
fn slow_close_holds_the_end_only() {
    let events = [(0, Send(5)), (10, End(Ending::Half))];
    assert_eq!(run(&[it(slow_close(700))], &events), "0:5 710:Half");
    let then = |event| [(10, End(Ending::Half)), (300, event)];
    assert_eq!(run(&[it(slow_close(700))], &then(Lift(NAME))), "300:Half");
    assert_eq!(run(&[it(slow_close(700))], &then(Put(it(slow_close(100))))), "400:Half");
    assert_eq!(run(&[it(slow_close(700))], &[(0, Put(it(slow_close(1)))), (9, End(Ending::Close))]), "10:Close");
}

#[test]
fn timeout_swallows_and_closes_after_the_last_chunk() {
    assert_eq!(run(&[it(timeout(500))], &[]), "500:Close");
    assert_eq!(run(&[it(timeout(500))], &[(250, Send(5)), (500, Send(5)), (750, Send(5))]), "1250:Close");
    assert_eq!(run(&[it(timeout(0))], &[(250, Send(5))]), "");
    assert_eq!(run(&[it(timeout(500))], &[(100, Send(5)), (250, End(Ending::Half))]), "250:Half");
    assert_eq!(run(&[it(timeout(500))], &[(400, Put(it(timeout(300))))]), "700:Close");
}

#[test]
fn lifting_what_has_swallowed_closes() {
    assert_eq!(run(&[it(timeout(0))], &[(250, Send(5)), (300, Lift(NAME))]), "300:Close");
    assert_eq!(run(&[it(timeout(0))], &[(300, Put(share(0.0, timeout(0))))]), "300:Close");
    assert_eq!(run(&[it(timeout(0))], &[(300, Put(it(latency(1))))]), "300:Close");
    // It never touched this link: nothing is lost.
    assert_eq!(run(&[share(0.0, timeout(0))], &[(1, Send(5)), (2, Lift(NAME)), (3, Send(6))]), "1:5 3:6");
}

#[test]
fn reset_waits_for_something_to_happen() {
    assert_eq!(run(&[it(reset(100))], &[]), "");
    assert_eq!(run(&[it(reset(100))], &[(50, Send(5))]), "150:Reset");
    assert_eq!(run(&[it(reset(100))], &[(50, End(Ending::Half))]), "150:Reset");
    assert_eq!(run(&[it(reset(0))], &[(50, Send(5))]), "50:Reset");
    // On a connection that was open before, it is an orderly close.
    assert_eq!(run(&[], &[(1, Put(it(reset(100)))), (50, Send(5))]), "150:Close");
    assert_eq!(run(&[share(0.0, reset(0))], &[(50, Send(5)), (60, End(Ending::Half))]), "50:5 60:Half");
}

#[test]
fn a_reset_that_is_lifted_does_not_wait() {
    assert_eq!(run(&[it(reset(9_000))], &[(50, Send(5)), (60, Lift(NAME))]), "60:Reset");
    assert_eq!(run(&[it(reset(9_000))], &[(50, Lift(NAME)), (60, Send(5))]), "60:5");
    assert_eq!(run(&[it(reset(9_000))], &[(50, Send(5)), (60, Put(it(reset(100))))]), "150:Reset");
    let mut link = link(&[it(reset(9_000))]);
    link.push(Mono::ZERO, Bytes::from_static(b"x"));
    let _ = link.next(Mono::ZERO);
    assert!(!link.wants_input(), "the sender waits");
}

#[test]
fn half_close_ends_behind_what_came_before_it() {
    assert_eq!(run(&[it(half_close(0))], &[(5, Put(it(half_close(0))))]), "0:Half");
    assert_eq!(run(&[it(half_close(100))], &[(50, Send(5))]), "50:5 100:Half");
    assert_eq!(run(&[it(half_close(100))], &[(50, End(Ending::Half))]), "50:Half");
    assert_eq!(run(&[it(half_close(100))], &[(50, End(Ending::Close))]), "50:Close");
    assert_eq!(run(&[it(half_close(100))], &[(60, Put(it(half_close(200)))), (150, Send(5))]), "150:5 200:Half");
    assert_eq!(run(&[it(half_close(100))], &[(60, Lift(NAME)), (150, Send(5))]), "150:5");
    assert_eq!(run(&[share(0.0, half_close(0))], &[(50, Send(5))]), "50:5");
    // What a fault before it holds comes after the end: it is lost.
    assert_eq!(run(&[named("a", latency(300)), it(half_close(100))], &[(0, Send(5))]), "100:Half");
    assert_eq!(run(&[it(half_close(100)), named("b", latency(300))], &[(0, Send(5))]), "300:5 300:Half");

    let mut link = link(&[it(half_close(0))]);
    assert!(!link.is_sender_unheard(), "not yet");
    link.push(Mono::ZERO, Bytes::from_static(b"x"));
    assert_eq!(link.next(Mono::ZERO), Out::Write(Bytes::from_static(b"x")));
    link.wrote(1);
    assert_eq!(link.next(Mono::ZERO), Out::End(Ending::Half));
    assert!(link.is_sender_unheard() && !link.wants_input());
    assert!(link.lift(&NAME.into()));
    assert_eq!(link.next(Mono::ZERO), Out::End(Ending::Half), "an end that was told cannot be taken back");
    link.end(Ending::Half);
    assert!(!link.is_sender_unheard());
}

#[test]
fn slicer_writes_pieces_with_pauses() {
    assert_eq!(run(&[it(slicer(25, 10_000))], &[(0, Send(100))]), "0:25 10:25 20:25 30:25");
    assert_eq!(run(&[it(slicer(25, 0))], &[(0, Send(100)), (0, End(Ending::Half))]), "0:25 0:25 0:25 0:25 0:Half");
    // The last pause comes before the end, and before the next chunk.
    assert_eq!(run(&[it(slicer(9, 10_000))], &[(0, Send(5)), (1, End(Ending::Half))]), "0:5 10:Half");
    assert_eq!(run(&[it(slicer(9, 10_000))], &[(0, Send(5)), (1, Send(6))]), "0:5 10:6");
    // Pauses below the tick of timers are kept to the microsecond where the clock allows.
    assert_eq!(run(&[it(slicer(1, 250))], &[(0, Send(3))]), "0:1 0.25:1 0.5:1");
}

#[test]
fn what_a_slicer_has_begun_leaves_in_one_piece() {
    let then = |event| [(0, Send(100)), (15, event), (16, Send(20))];
    assert_eq!(run(&[it(slicer(25, 10_000))], &then(Lift(NAME))), "0:25 10:25 15:50 16:20");
    assert_eq!(run(&[it(slicer(25, 10_000))], &then(Put(it(slicer(10, 1_000))))), "0:25 10:25 15:50 16:10 17:10");
}

#[test]
fn a_short_pause_holds_on_average() {
    let mut link = link(&[it(slicer(1, 100))]);
    link.push(Mono::ZERO, Bytes::from(vec![0; 1_000]));
    let (mut now, mut pieces) = (Mono::ZERO, 0);
    while pieces < 1_000 {
        match link.next(now) {
            Out::Write(bytes) => {
                pieces += 1;
                link.wrote(bytes.len());
            }
            // A timer that ticks in milliseconds.
            _ => now = Mono::from_millis(now.as_millis() + 1),
        }
    }
    assert!((95..=105).contains(&now.as_millis()), "{now:?}");
}

#[test]
fn limit_data_counts_over_the_whole_connection() {
    assert_eq!(run(&[it(limit(100))], &[(0, Send(60)), (1, Send(60))]), "0:60 1:40 1:Close");
    assert_eq!(run(&[it(limit(100))], &[(0, Send(100))]), "0:100 0:Close");
    assert_eq!(run(&[it(limit(0))], &[]), "");
    assert_eq!(run(&[it(limit(0))], &[(7, Send(1))]), "7:Close");
    assert_eq!(run(&[it(limit(100))], &[(0, Send(60)), (1, End(Ending::Half))]), "0:60 1:Half");
    // An update keeps the count; only lifting and placing again begins anew.
    let raised = [(0, Send(60)), (1, Put(it(limit(70)))), (2, Send(60))];
    assert_eq!(run(&[it(limit(100))], &raised), "0:60 2:10 2:Close");
    let lowered = [(0, Send(60)), (1, Put(it(limit(10)))), (2, Send(60))];
    assert_eq!(run(&[it(limit(100))], &lowered), "0:60 2:Close");
    let again = [(0, Send(60)), (1, Lift(NAME)), (1, Put(it(limit(50)))), (2, Send(60))];
    assert_eq!(run(&[it(limit(100))], &again), "0:60 2:50 2:Close");
}

#[test]
fn corrupted_bytes_are_others_and_as_many() {
    let (whole, some) = (Bytes::from(vec![7; 10_000]), Ratio::of(1, 10).unwrap());
    let through = |share| {
        let mut link = link(&[it(Effect::Corrupt { share })]);
        link.push(Mono::ZERO, whole.clone());
        match link.next(Mono::ZERO) {
            Out::Write(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    };
    let damaged = |bytes: &Bytes| bytes.iter().filter(|byte| **byte != 7).count();
    assert_eq!(damaged(&through(Ratio::ONE)), 10_000, "an other byte is never the same");
    assert!((850..1_150).contains(&damaged(&through(some))), "{}", damaged(&through(some)));
    assert_eq!(through(some), through(some), "the same seed, the same bytes");
    assert_eq!(through(some).len(), whole.len());
}

#[test]
fn lost_chunks_are_gone_whole_and_who_has_lost_some_is_closed_when_it_is_lifted() {
    let loss = |percent| it(Effect::Loss { share: Ratio::of(percent, 100).unwrap() });
    assert_eq!(run(&[loss(100)], &[(1, Send(5)), (2, Send(6)), (3, End(Ending::Half))]), "3:Half");
    assert_eq!(run(&[loss(100)], &[(1, Send(5)), (2, Lift(NAME)), (3, Send(6))]), "2:Close");
    assert_eq!(run(&[loss(100)], &[(1, Lift(NAME)), (2, Send(5)), (3, End(Ending::Half))]), "2:5 3:Half");
    let sends: Vec<(u64, Do)> = (1..1_001).map(|at| (at, Send(at as usize))).collect();
    let told = run(&[loss(30)], &sends);
    let passed: Vec<(u64, usize)> = told
        .split(' ')
        .map(|one| one.split_once(':').unwrap())
        .map(|(at, size)| (at.parse().unwrap(), size.parse().unwrap()))
        .collect();
    assert!((620..780).contains(&passed.len()), "{}", passed.len());
    assert!(passed.iter().all(|(at, size)| *at == *size as u64), "at once, and in one piece");
    // Less than all of it from now on; none is drawn for twice, however often it is asked.
    assert_eq!(run(&[loss(100)], &[(1, Put(loss(1))), (2, Send(5))]), "2:5");
}

#[test]
fn a_corruption_can_be_changed_on_the_way() {
    let corrupt = |percent| it(Effect::Corrupt { share: Ratio::of(percent, 100).unwrap() });
    let mut link = link(&[corrupt(100)]);
    link.put(Mono::ZERO, corrupt(0));
    link.push(Mono::ZERO, Bytes::from_static(b"same"));
    assert_eq!(link.next(Mono::ZERO), Out::Write(Bytes::from_static(b"same")));
}

#[test]
fn faults_work_one_after_the_other() {
    let chain = [named("a", limit(50)), named("b", latency(100)), named("c", slow_close(200))];
    assert_eq!(run(&chain, &[(0, Send(80))]), "100:50 300:Close");
    assert_eq!(run(&chain, &[(0, Send(80)), (50, Lift("b")), (60, Lift("c"))]), "50:50 60:Close");
    // The end of one fault takes what lies before it along, not what has passed it.
    let chain = [named("a", latency(1_000)), named("b", timeout(50)), named("c", slow_close(10))];
    assert_eq!(run(&chain, &[(0, Send(80))]), "60:Close");
    let chain = [named("a", reset(10)), named("b", latency(100))];
    assert_eq!(run(&chain, &[(5, Send(80))]), "15:Reset");
    let chain = [named("a", latency(10)), named("b", reset(5)), named("c", rate(0))];
    assert_eq!(run(&chain, &[(0, Send(80)), (1, Send(9)), (12, Lift("b"))]), "12:Reset");
}

#[test]
fn a_full_link_that_is_lifted_closes_and_an_ended_one_takes_nothing() {
    let mut link = link(&[it(limit(5))]);
    link.push(Mono::ZERO, Bytes::from_static(b"12345"));
    assert_eq!(link.next(Mono::ZERO), Out::Write(Bytes::from_static(b"12345")));
    link.wrote(2);
    assert_eq!(link.next(Mono::ZERO), Out::Write(Bytes::from_static(b"345")));
    link.wrote(3);
    assert_eq!(link.next(Mono::ZERO), Out::End(Ending::Close));
    link.push(Mono::ZERO, Bytes::from_static(b"late"));
    link.end(Ending::Half);
    link.put(Mono::ZERO, named("late", timeout(1)));
    assert!(!link.wants_input());
    assert!(!link.lift(&"late".into()), "past the end nothing is placed");
    assert!(link.lift(&NAME.into()));
    assert_eq!((link.next(Mono::ZERO), link.held_bytes()), (Out::End(Ending::Close), 0));
}

#[test]
fn a_share_keeps_its_draw_whatever_the_neighbours_do() {
    let touched = |n: u64, share: f64, neighbours: bool| {
        let prng = link_prng(42, "place", n, Direction::Downstream);
        let fault = Fault { share: Share::clamped(share), ..it(timeout(0)) };
        let mut link = Link::new(Mono::ZERO, Direction::Downstream, prng, &[]);
        if neighbours {
            link.put(Mono::ZERO, named("before", Effect::Noop));
        }
        link.put(Mono::ZERO, fault);
        if neighbours {
            link.put(Mono::ZERO, named("after", Effect::Noop));
            link.lift(&"before".into());
        }
        link.push(Mono::ZERO, Bytes::from_static(b"x"));
        matches!(link.next(Mono::ZERO), Out::Wait(_))
    };
    let hit = |share, neighbours| (0..400).filter(|&n| touched(n, share, neighbours)).collect::<Vec<_>>();
    let some = hit(0.3, false);
    assert!((80..160).contains(&some.len()), "{}", some.len());
    assert_eq!(some, hit(0.3, true), "neighbours change nobody's fate");
    assert!(some.iter().all(|n| hit(0.6, false).contains(n)), "a share that grows lets none go");
    assert_eq!((hit(0.0, false).len(), hit(-1.0, false).len(), hit(f64::NAN, false).len()), (0, 0, 0));
    assert_eq!((hit(1.0, false).len(), hit(5.0, false).len()), (400, 400));
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        Just(Effect::Noop),
        (-50..50_i64, 0..60_u64).prop_map(|(delay_ms, jitter)| Effect::Latency { delay_ms, jitter: ms(jitter) }),
        (1..200_000_u64).prop_map(rate),
        (0..50_u64).prop_map(slow_close),
        (0..100_usize, 0..200_usize, 0..3_000_u64).prop_map(|(average, variation, delay)| Effect::Slicer {
            average,
            variation,
            delay: Duration::from_micros(delay)
        }),
        (0..9_000_u64).prop_map(limit),
        (0..60_u64).prop_map(timeout),
        (0..60_u64).prop_map(reset),
        (0..60_u64).prop_map(half_close),
    ]
}

fn loses(effect: Effect) -> bool {
    matches!(
        effect,
        Effect::LimitData { .. } | Effect::Timeout { .. } | Effect::ResetPeer { .. } | Effect::HalfClose { .. }
    )
}

proptest! {
    /// Whatever comes and goes: what comes out is the beginning of what went in, in order and without holes; all of it
    /// if no fault that loses was there; and nothing is held at the end.
    #[test]
    fn bytes_come_out_as_they_went_in(
        first in proptest::collection::vec(effect(), 0..4),
        steps in proptest::collection::vec((0..30_u64, 0..4_usize, 1..3_000_usize, effect(), 0..3_usize), 1..60),
    ) {
        let names = ["0", "1", "2", "3"];
        let faults: Vec<Fault> = first.iter().zip(names).map(|(effect, name)| named(name, *effect)).collect();
        let mut can_lose = first.iter().any(|&effect| loses(effect));
        let (mut link, mut now) = (link(&faults), Mono::ZERO);
        let (mut sent, mut got, mut ending) = (Vec::<u8>::new(), Vec::<u8>::new(), None);
        let mut settle = |link: &mut Link, now: Mono, got: &mut Vec<u8>| loop {
            match link.next(now) {
                Out::Write(bytes) => {
                    // A peer takes a part at a time.
                    let len = bytes.len().div_ceil(2);
                    got.extend_from_slice(&bytes[..len]);
                    link.wrote(len);
                }
                Out::End(how) => {
                    ending = Some(how);
                    return None;
                }
                Out::Wait(due) => return due,
            }
        };
        for (wait, what, len, effect, which) in steps {
            now = now + ms(wait);
            match what {
                0 | 1 if link.wants_input() => {
                    let bytes: Vec<u8> = (0..len).map(|n| ((sent.len() + n) * 7 % 251) as u8).collect();
                    sent.extend_from_slice(&bytes);
                    link.push(now, bytes.into());
                }
                2 => {
                    can_lose |= loses(effect);
                    link.put(now, named(names[which], effect));
                }
                3 => {
                    link.lift(&names[which].into());
                }
                _ => {}
            }
            settle(&mut link, now, &mut got);
        }
        link.end(Ending::Half);
        for _ in 0..1_000_000 {
            match settle(&mut link, now, &mut got) {
                Some(due) => {
                    prop_assert!(due > now);
                    now = due;
                }
                None => break,
            }
        }
        prop_assert!(sent.starts_with(&got), "{} of {} bytes", got.len(), sent.len());
        prop_assert_eq!(link.held_bytes(), 0);
        prop_assert!(ending.is_some());
        if !can_lose {
            prop_assert_eq!(got.len(), sent.len());
            prop_assert_eq!(ending, Some(Ending::Half));
        }
    }
}
