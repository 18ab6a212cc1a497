//! Shares of many choices, a line for each situation; and what must hold in every one.

use proptest::prelude::*;

use super::*;

/// One endpoint and how it is at the moment.
#[derive(Clone, Debug)]
struct At {
    endpoint: Endpoint,
    is_well: bool,
    is_out: bool,
    ramp: f64,
    in_flight: u32,
    latency: f64,
}

struct World(Vec<At>);

impl Endpoints for World {
    fn is_well(&self, place: usize) -> bool {
        self.0[place].is_well
    }
    fn is_out(&self, place: usize) -> bool {
        self.0[place].is_out
    }
    fn ramp(&self, place: usize) -> f64 {
        self.0[place].ramp
    }
    fn in_flight(&self, place: usize) -> u32 {
        self.0[place].in_flight
    }
    fn latency(&self, place: usize) -> f64 {
        self.0[place].latency
    }
}

/// `east w2 p1 sick full slow ramp=0.5 calls=3 ms=20`: a zone, `-` for none, and what is unusual.
fn read(line: &str) -> World {
    let endpoint = |(place, text): (usize, &str)| {
        let mut words = text.split_whitespace();
        let zone = words.next().filter(|zone| *zone != "-").map(Into::into);
        let endpoint = Endpoint { zone, ..Endpoint::at(format!("h:{place}")) };
        let mut at = At { endpoint, is_well: true, is_out: false, ramp: 1.0, in_flight: 0, latency: 0.0 };
        for word in words {
            match word.split_once('=') {
                None if word == "sick" => at.is_well = false,
                None if word == "out" => at.is_out = true,
                None if word == "full" => at.in_flight = 100,
                Some(("w", weight)) => at.endpoint.weight = weight.parse().unwrap(),
                Some(("p", priority)) => at.endpoint.priority = priority.parse().unwrap(),
                Some(("ramp", ramp)) => at.ramp = ramp.parse().unwrap(),
                Some(("calls", calls)) => at.in_flight = calls.parse().unwrap(),
                Some(("ms", ms)) => at.latency = ms.parse().unwrap(),
                _ => panic!("{word}"),
            }
        }
        at
    };
    World(line.split(',').enumerate().map(endpoint).collect())
}

fn plan(world: &World, config: BalanceConfig) -> Plan {
    let endpoints: Vec<Endpoint> = world.0.iter().map(|at| at.endpoint.clone()).collect();
    Plan::new(&endpoints, "east", config, 100)
}

const DRAWS: u32 = 20_000;

/// Shares in percent of many choices with nothing changing between them.
fn shares_with(line: &str, config: BalanceConfig, avoid: Avoid) -> Vec<u32> {
    let world = read(line);
    let (plan, mut prng, mut counts) = (plan(&world, config), Prng::new(9), vec![0_u32; world.0.len()]);
    for _ in 0..DRAWS {
        if let Some(choice) = plan.choose(&world, avoid, &mut prng) {
            counts[choice.place] += 1;
        }
    }
    counts.into_iter().map(|count| (count * 100 + DRAWS / 2) / DRAWS).collect()
}

fn shares(line: &str) -> Vec<u32> {
    shares_with(line, BalanceConfig::default(), Avoid::default())
}

#[test]
fn who_gets_how_much() {
    let table: &[(&str, &[u32])] = &[
        // No zones: all are equal.
        ("-, -, -, -", &[25, 25, 25, 25]),
        ("- sick, -", &[0, 100]),
        ("- sick, - sick", &[0, 0]),
        // The busiest of three never wins a pair.
        ("- calls=0, - calls=1, - calls=2", &[67, 33, 0]),
        ("- calls=5, - calls=9", &[100, 0]),
        // Weights are shares while all is alike, and nothing is nothing.
        ("- w=9, - w=1", &[90, 10]),
        ("- w=1, - w=2, - w=5", &[12, 25, 63]),
        ("- w=0, -", &[0, 100]),
        ("- w=0, - w=0", &[0, 0]),
        // As busy for their weight: nothing changes. Busier: it is spared.
        ("- w=3 calls=6, - w=1 calls=2", &[75, 25]),
        ("- w=3 calls=6, - w=1 calls=4", &[94, 6]),
        // Clearly slower: the other. Hardly slower: both. Slow and idle against quick and busy: the product decides.
        ("- ms=20, - ms=10", &[0, 100]),
        ("- ms=14, - ms=10", &[50, 50]),
        ("- ms=20, - ms=10 calls=3", &[100, 0]),
        ("- ms=20 w=9, - ms=10 w=1", &[81, 19]),
        // Who is not known gets a fair first try.
        ("- ms=500, -", &[50, 50]),
        // Own zone first; a zone that nobody told is near.
        ("east, west, -", &[50, 0, 50]),
        ("west, south", &[50, 50]),
        // Spill by degrees: all of it to 5 in 7, and no more than 1.4 times its share below.
        ("east sick, west", &[0, 100]),
        ("east sick, east, west", &[0, 70, 30]),
        ("east sick, east, east, east, west", &[0, 33, 33, 33, 0]),
        ("east w=9 sick, east w=1, west", &[0, 14, 86]),
        ("east sick, east, west sick, west, south p=1", &[0, 70, 0, 30, 0]),
        // What nobody can carry is shared by what each could.
        ("east sick, east sick, east sick, east, west sick, west sick, west sick, west", &[0, 0, 0, 50, 0, 0, 0, 50]),
        // Full: only what finds no room goes on; where all is full, home waits.
        ("east full, west", &[0, 100]),
        ("east full, east calls=99, west", &[0, 100, 0]),
        ("east full, west full", &[100, 0]),
        // Priority before zone.
        ("east p=1, west", &[0, 100]),
        ("east p=1, west sick", &[100, 0]),
        ("west p=1, west p=7, east p=1, west sick", &[0, 0, 100, 0]),
        // Back by degrees, within a group and as a group.
        ("- ramp=0.1, -", &[5, 95]),
        ("- ramp=0.1, - calls=50", &[10, 90]),
        ("east ramp=0.1, west", &[10, 90]),
        ("east ramp=0.5, west", &[50, 50]),
        ("east ramp=0.1, west sick", &[100, 0]),
    ];
    for (line, wanted) in table {
        let got = shares(line);
        let is_near = |(got, wanted): (&u32, &u32)| got.abs_diff(*wanted) <= u32::from(*wanted % 100 != 0);
        assert!(got.iter().zip(*wanted).all(is_near), "{line}: {got:?}, wanted {wanted:?}");
    }
    assert!(
        plan(&read("-"), BalanceConfig::default()).choose(&read("-"), Avoid::default(), &mut Prng::new(1)).is_some()
    );
    assert!(
        Plan::new(&[], "east", BalanceConfig::default(), 1)
            .choose(&World(vec![]), Avoid::default(), &mut Prng::new(1))
            .is_none()
    );
}

#[test]
fn what_has_failed_goes_elsewhere() {
    let (failed, busy) = (|failed| Avoid { failed, busy: 0 }, |busy| Avoid { failed: 0, busy });
    let table: &[(&str, Avoid, &[u32])] = &[
        ("-, -", failed(1), &[0, 100]),
        ("-, - sick", failed(1), &[100, 0]),
        ("- sick, - calls=9", failed(2), &[0, 100]),
        // Another zone before another endpoint of the same.
        ("east, east, west, south", failed(1), &[0, 0, 50, 50]),
        ("east, east, west, south", failed(0b101), &[0, 0, 0, 100]),
        ("east, east, west", failed(0b101), &[0, 100, 0]),
        ("east, east, west full", failed(1), &[0, 100, 0]),
        ("east, east full, west full", failed(1), &[0, 100, 0]),
        ("east, west", failed(3), &[100, 0]),
        ("east, west full", failed(0b11), &[100, 0]),
        // A second copy stays near.
        ("east, east, west", busy(1), &[0, 100, 0]),
        ("east, west", busy(1), &[0, 100]),
        ("east, west ramp=0.1", busy(1), &[0, 100]),
    ];
    for (line, avoid, wanted) in table {
        assert_eq!(shares_with(line, BalanceConfig::default(), *avoid), *wanted, "{line} {avoid:?}");
    }
}

#[test]
fn in_a_panic_nobody_is_ill() {
    let panic = |share| BalanceConfig { panic_below: Ratio::new(share).unwrap(), ..BalanceConfig::default() };
    let table: &[(&str, f64, &[u32])] = &[
        ("- sick, - sick, -", 0.3, &[0, 0, 100]),
        ("- sick, - sick, -", 0.5, &[33, 33, 33]),
        ("- sick, - sick", 0.01, &[50, 50]),
        ("- sick w=9, - w=1", 0.1, &[0, 100]),
        ("- sick w=9, - w=1", 0.2, &[90, 10]),
        // Who is taken out by hand is asked in no panic, and is the cause of none.
        ("- out, - sick, - sick", 0.5, &[0, 50, 50]),
        ("- out, - out, -", 0.5, &[0, 0, 100]),
        ("- out, - sick, -", 0.5, &[0, 0, 100]),
        ("- out, - out", 0.5, &[0, 0]),
    ];
    for (line, below, wanted) in table {
        let got = shares_with(line, panic(*below), Avoid::default());
        assert!(got.iter().zip(*wanted).all(|(got, wanted)| got.abs_diff(*wanted) <= 1), "{line} {below}: {got:?}");
    }
}

#[test]
fn a_return_takes_its_time() {
    let at = |ms| Mono::from_millis(ms);
    let ten = Duration::from_secs(10);
    assert_eq!(ramp(None, at(5), ten), 1.0);
    let course = [0, 500, 5_000, 9_999, 60_000].map(|ms| (ramp(Some(at(0)), at(ms), ten) * 100.0).round());
    assert_eq!(course, [10.0, 10.0, 50.0, 100.0, 100.0]);
    assert_eq!(ramp(Some(at(0)), at(0), Duration::ZERO), 1.0, "at once, where none is wanted");
    assert_eq!(ramp(Some(at(0)), at(1), Duration::ZERO), 1.0);
}

#[test]
fn a_value_stays_where_it_is() {
    let of = |line: &str| -> Vec<usize> {
        let world = read(line);
        let plan = plan(&world, BalanceConfig::default());
        (0..10_000)
            .map(|value| {
                plan.choose_for(assign::mark("r", &[value as u8, (value >> 8) as u8]), &world, Avoid::default())
                    .unwrap()
                    .place
            })
            .collect()
    };
    let share = |places: &[usize], wanted| places.iter().filter(|place| **place == wanted).count();
    let moved = |one: &[usize], other: &[usize]| one.iter().zip(other).filter(|(one, other)| one != other).count();
    let all = of("-, - w=2, -");
    assert_eq!(all, of("- calls=9, - w=2 ms=9, - ms=3"), "whatever the load is");
    assert!((4_700..5_300).contains(&share(&all, 1)) && (2_240..2_760).contains(&share(&all, 0)));
    let without = of("- sick, - w=2, -");
    assert_eq!(moved(&all, &without), share(&all, 0), "only those whose endpoint is gone");
    let (early, late) = (of("- ramp=0.2, - w=2, -"), of("- ramp=0.6, - w=2, -"));
    assert!((100..900).contains(&moved(&without, &early)) && (1_200..1_900).contains(&moved(&without, &late)));
    let back = |places: &[usize]| (0..10_000).filter(|value| places[*value] == 0).collect::<Vec<_>>();
    assert!(back(&early).iter().all(|value| late[*value] == 0), "who is back stays");
}

#[test]
fn home_is_the_first_group() {
    let look = |line| {
        let plan = plan(&read(line), BalanceConfig::default());
        (plan.can_spill(), plan.home().collect::<Vec<_>>())
    };
    assert_eq!(look("-, -"), (false, vec![0, 1]));
    assert_eq!(look("west, east, east sick"), (true, vec![1, 2]));
    assert_eq!(look("east p=1, west"), (true, vec![1]));
    assert_eq!(look("- w=0"), (false, vec![]));
}

fn at() -> impl Strategy<Value = At> {
    let zone = prop::sample::select(vec![None, Some("east"), Some("west"), Some("south")]);
    (zone, 0_u32..4, 0_u32..3, any::<bool>(), 0.1_f64..1.2, 0_u32..120, 0.0_f64..9.0).prop_map(
        |(zone, weight, priority, is_well, ramp, in_flight, latency)| At {
            endpoint: Endpoint { zone: zone.map(Into::into), weight, priority, ..Endpoint::at("h:1") },
            is_well,
            is_out: false,
            ramp: ramp.min(1.0),
            in_flight,
            latency,
        },
    )
}

proptest! {
    #[test]
    fn the_well_are_chosen_and_only_they(
        all in prop::collection::vec(at(), 0..9),
        failed in 0_u64..512,
        busy in 0_u64..512,
        seed in any::<u64>(),
    ) {
        let world = World(all);
        let plan = plan(&world, BalanceConfig::default());
        let chosen = plan.choose(&world, Avoid { failed, busy }, &mut Prng::new(seed));
        let usable: Vec<usize> =
            (0..world.0.len()).filter(|place| world.0[*place].is_well && world.0[*place].endpoint.weight > 0).collect();
        prop_assert_eq!(chosen.is_some(), !usable.is_empty());
        if let Some(Choice { place, is_away }) = chosen {
            prop_assert!(usable.contains(&place));
            prop_assert_eq!(is_away, !plan.home().any(|near| near == place));
            let untried = usable.iter().any(|other| !has(failed | busy, *other));
            prop_assert!(!untried || !has(failed | busy, place), "the tried come last");
        }
    }

    #[test]
    fn a_value_is_served_by_the_well(all in prop::collection::vec(at(), 0..9), failed in 0_u64..512, value in any::<u64>()) {
        let world = World(all);
        let plan = plan(&world, BalanceConfig::default());
        let avoid = Avoid { failed, busy: 0 };
        let chosen = plan.choose_for(value, &world, avoid);
        prop_assert_eq!(chosen, plan.choose_for(value, &world, avoid));
        let is_usable = |at: &At| at.is_well && at.endpoint.weight > 0;
        prop_assert_eq!(chosen.is_some(), world.0.iter().any(is_usable));
        prop_assert!(chosen.is_none_or(|it| is_usable(&world.0[it.place])));
    }

    #[test]
    fn home_is_kept_while_it_is_well(near in 1_usize..6, far in 1_usize..6, ill in 0_usize..3, seed in any::<u64>()) {
        let lines = (0..near + ill).map(|place| if place < ill { "east sick" } else { "east" });
        let world = read(&lines.chain((0..far).map(|_| "west")).collect::<Vec<_>>().join(","));
        let plan = plan(&world, BalanceConfig::default());
        let mut prng = Prng::new(seed);
        let draws = 500;
        let away = (0..draws).filter(|_| plan.choose(&world, Avoid::default(), &mut prng).unwrap().is_away).count();
        let wanted = 1.0 - (1.4 * near as f64 / (near + ill) as f64).min(1.0);
        if wanted == 0.0 {
            prop_assert_eq!(away, 0);
        }
        // Six standard deviations of a coin.
        let bound = 6.0 * (wanted * (1.0 - wanted) / f64::from(draws)).sqrt() + 1e-9;
        prop_assert!((away as f64 / f64::from(draws) - wanted).abs() <= bound, "{} of {}, wanted {}", away, draws, wanted);
    }

    #[test]
    fn no_stampede_on_return(calls in 0_u32..90, latency in 0.0_f64..50.0, seed in any::<u64>()) {
        // However idle and quick it is, and however busy the others are.
        let world = read(&format!("east ramp=0.1,west ms={latency} calls={calls},west ms=50 calls=90"));
        let plan = plan(&world, BalanceConfig::default());
        let mut prng = Prng::new(seed);
        let home = (0..1_000).filter(|_| !plan.choose(&world, Avoid::default(), &mut prng).unwrap().is_away).count();
        prop_assert!(home < 100 + 6 * 10, "{} of 1000", home);
    }
}
