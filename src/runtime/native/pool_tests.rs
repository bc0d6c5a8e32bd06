use super::*;

const MIB: u64 = 1 << 20;

fn bounds() -> PoolBounds {
    PoolBounds { sandboxes_max: 4, ready_min: 2, memory_bytes_max: 100 * MIB, keep: Duration::from_secs(600) }
}

type Numbers = Shelves<&'static str, (), u32>;

fn ask(shelves: &mut Numbers, kind: &'static str, now: Instant) -> Found<u32> {
    shelves.take(&kind, now, |_| true, || ())
}

/// Fills until nothing more is due; the kinds filled, in order.
fn fill(shelves: &mut Numbers, now: Instant, memory_bytes: u64) -> Vec<&'static str> {
    let mut filled = Vec::new();
    while let Next::Fill(kind) = shelves.next(now) {
        filled.push(kind);
        assert!(filled.len() < 100, "it ends");
        let number = filled.len() as u32;
        assert_eq!(shelves.put(&kind, number, memory_bytes, now), None);
    }
    filled
}

/// A full shelf of Pythons, and when it was filled.
fn filled() -> (Numbers, Instant) {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    ask(&mut shelves, "python", now);
    fill(&mut shelves, now + PAUSE, MIB);
    (shelves, now + PAUSE)
}

#[test]
fn nothing_is_made_ready_before_somebody_asks_and_then_it_is() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    assert_eq!(shelves.next(now), Next::Rest);
    assert_eq!(ask(&mut shelves, "python", now), Found::Nothing);
    assert_eq!(fill(&mut shelves, now + PAUSE, MIB), ["python", "python"]);
    assert_eq!((shelves.ready(), shelves.memory_bytes()), (2, 2 * MIB));
}

#[test]
fn each_is_given_out_once() {
    let (mut shelves, now) = filled();
    let taken = [(); 3].map(|()| ask(&mut shelves, "python", now));
    assert_eq!(taken, [Found::Ready(1), Found::Ready(2), Found::Nothing]);
    assert_eq!(ask(&mut shelves, "bash", now), Found::Nothing, "another kind has none of these");
}

#[test]
fn one_that_does_not_suit_stays_for_the_next() {
    let (mut shelves, now) = filled();
    assert_eq!(shelves.take(&"python", now, |number| *number > 2, || ()), Found::Unsuited);
    assert_eq!(shelves.take(&"python", now, |number| *number > 1, || ()), Found::Ready(2));
    assert_eq!(ask(&mut shelves, "python", now), Found::Ready(1));
}

#[test]
fn those_that_are_not_as_wanted_are_replaced_one_after_another() {
    let (mut shelves, later) = filled();
    assert_eq!(shelves.outdated(later, |_| true), None);
    assert_eq!(shelves.outdated(later, |number| *number > 2), Some(1));
    assert_eq!(shelves.outdated(later, |number| *number > 2), None, "the shelf is short by one already");
    assert_eq!(shelves.next(later), Next::Fill("python"));
    assert_eq!(shelves.outdated(later, |number| *number > 2), None, "its like is on its way");
    assert_eq!(shelves.put(&"python", 3, MIB, later), None);
    assert_eq!(shelves.outdated(later, |number| *number > 2), Some(2));
}

#[test]
fn what_is_replaced_waits_for_a_command_and_no_longer() {
    let (mut shelves, later) = filled();
    shelves.put_off(later);
    let is_as_wanted = |number: &u32| *number > 2;
    assert_eq!(shelves.outdated(later, is_as_wanted), None);
    assert_eq!(shelves.outdated_at(later, |_| true), None, "nothing is to be replaced");
    let due = shelves.outdated_at(later, is_as_wanted).expect("both are");
    assert_eq!(due, later + PAUSE);
    assert_eq!(shelves.outdated(due, is_as_wanted), Some(1));
}

#[test]
fn a_burst_is_kept_ready_for_within_the_bounds_and_is_forgotten_in_time() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    for _ in 0..3 {
        ask(&mut shelves, "python", now);
    }
    assert_eq!(fill(&mut shelves, now + PAUSE, MIB).len(), 3);
    for _ in 0..100 {
        ask(&mut shelves, "python", now);
    }
    assert_eq!(fill(&mut shelves, now + PAUSE, MIB).len(), 4, "all that there may be");
    let later = now + Duration::from_secs(BURST_SECONDS + 1);
    ask(&mut shelves, "python", later);
    let mut dropped = 0;
    while let Next::Drop(_) = shelves.next(later) {
        dropped += 1;
    }
    assert_eq!((dropped, shelves.ready()), (1, 2), "3 were left, 2 is the least that is kept");
}

#[test]
fn a_kind_that_nobody_asks_for_any_more_has_none() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    ask(&mut shelves, "python", now);
    fill(&mut shelves, now + PAUSE, MIB);
    let before = now + Duration::from_secs(599);
    assert_eq!(shelves.next(before), Next::Rest, "the control: it is kept until then");
    let after = now + Duration::from_secs(600);
    assert!(matches!(shelves.next(after), Next::Drop(1)));
    assert!(matches!(shelves.next(after), Next::Drop(2)));
    assert_eq!(shelves.next(after), Next::Rest);
}

#[test]
fn whoever_asked_last_gets_room_from_whoever_asked_longest_ago() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    let second = Duration::from_secs(1);
    ask(&mut shelves, "oldest", now);
    ask(&mut shelves, "older", now + second);
    assert_eq!(fill(&mut shelves, now + 2 * second, MIB).len(), 4);
    let then = now + 3 * second;
    ask(&mut shelves, "new", then);
    assert!(matches!(shelves.next(then + PAUSE), Next::Drop(_)));
    assert_eq!(shelves.next(then + PAUSE), Next::Fill("new"));
    assert_eq!(shelves.put(&"new", 9, MIB, then), None);
    assert_eq!(shelves.next(then + PAUSE), Next::Rest, "with one of its own it makes do");
    assert_eq!((ask(&mut shelves, "new", then), shelves.ready()), (Found::Ready(9), 3));
}

#[test]
fn memory_is_bounded_and_what_does_not_fit_comes_back() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    for _ in 0..4 {
        ask(&mut shelves, "large", now);
    }
    assert_eq!(fill(&mut shelves, now + PAUSE, 40 * MIB).len(), 2, "a third would be expected to pass the bound");
    let mut shelves = Numbers::new(bounds(), now);
    ask(&mut shelves, "larger", now);
    assert_eq!(shelves.next(now + PAUSE), Next::Fill("larger"));
    assert_eq!(shelves.put(&"larger", 7, 101 * MIB, now + PAUSE), Some(7));
    assert_eq!(shelves.next(now + 2 * BACK_OFF), Next::Rest, "and it is not tried again: it has no place");
    ask(&mut shelves, "small", now);
    assert_eq!(fill(&mut shelves, now + 2 * BACK_OFF, MIB), ["small", "small"], "which keeps no other from its own");
}

#[test]
fn one_that_is_not_as_wanted_is_not_made_in_vain_for_ever() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    ask(&mut shelves, "other", now);
    assert_eq!(fill(&mut shelves, now + PAUSE, 45 * MIB).len(), 2);
    let then = now + Duration::from_secs(1);
    ask(&mut shelves, "python", then);
    for number in [11, 12] {
        assert_eq!(shelves.next(then + PAUSE), Next::Fill("python"));
        assert_eq!(shelves.put(&"python", number, MIB, then + PAUSE), None);
    }
    let later = then + Duration::from_secs(1);
    let is_as_wanted = |number: &u32| *number < 11;
    assert_eq!(shelves.outdated(later, is_as_wanted), Some(11));
    assert_eq!(shelves.next(later), Next::Fill("python"));
    assert_eq!(shelves.put(&"python", 13, 40 * MIB, later), Some(13), "there is no room for it");
    let at_last = later + 2 * BACK_OFF;
    assert_eq!(shelves.outdated(at_last, is_as_wanted), None, "the other one stays");
    assert_eq!(shelves.next(at_last), Next::Rest, "the size of such a one is known by now");
    assert_eq!(ask(&mut shelves, "python", at_last), Found::Ready(12));
}

#[test]
fn a_kind_that_can_t_be_made_is_left_alone_until_it_is_asked_for_again() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    ask(&mut shelves, "broken", now);
    assert_eq!(shelves.next(now + PAUSE), Next::Fill("broken"));
    shelves.failed(&"broken", now + PAUSE);
    assert_eq!(shelves.next(now + PAUSE), Next::Rest);
    ask(&mut shelves, "broken", now + 2 * BACK_OFF);
    assert!(matches!(shelves.next(now + 3 * BACK_OFF), Next::Fill("broken")));
}

#[test]
fn right_after_a_request_nothing_is_filled_unless_little_is_left() {
    let now = Instant::now();
    let mut shelves = Numbers::new(PoolBounds { ready_min: 4, ..bounds() }, now);
    ask(&mut shelves, "python", now);
    fill(&mut shelves, now + PAUSE, MIB);
    let then = now + Duration::from_secs(5);
    ask(&mut shelves, "python", then);
    assert_eq!(shelves.next(then), Next::At(then + PAUSE));
    ask(&mut shelves, "python", then);
    ask(&mut shelves, "python", then);
    assert_eq!(shelves.next(then), Next::At(then + LULL), "one of four is left, and more may be asked for at once");
    let mut one_left = one_of_four_left(now);
    assert_eq!(one_left.next(now + PAUSE + LULL), Next::Fill("python"), "nobody asked for more");
    let mut none_left = one_of_four_left(now);
    ask(&mut none_left, "python", now + PAUSE);
    assert_eq!(none_left.next(now + PAUSE), Next::Fill("python"), "the next one would have to wait anyway");
}

#[test]
fn whoever_asks_without_a_pause_keeps_others_from_the_next_ones_for_a_while_and_no_longer() {
    let now = Instant::now();
    let mut shelves = one_of_four_left(now);
    let full = now + PAUSE;
    // None of them is of use to it, so one stays.
    let mut at = |after: Duration| {
        shelves.take(&"python", full + after, |_| false, || ());
        shelves.next(full + after)
    };
    assert_eq!(at(PAUSE_MAX / 1000 * 999), Next::At(full + PAUSE_MAX));
    assert_eq!(at(PAUSE_MAX), Next::Fill("python"));
}

/// A shelf for four that had all of them when one was taken.
fn one_of_four_taken(now: Instant) -> Numbers {
    let mut shelves = Numbers::new(PoolBounds { ready_min: 4, ..bounds() }, now);
    ask(&mut shelves, "python", now);
    fill(&mut shelves, now + PAUSE, MIB);
    ask(&mut shelves, "python", now + PAUSE);
    shelves
}

/// The same, and two more at the same time.
fn one_of_four_left(now: Instant) -> Numbers {
    let mut shelves = one_of_four_taken(now);
    for _ in 0..2 {
        ask(&mut shelves, "python", now + PAUSE);
    }
    shelves
}

#[test]
fn commands_put_a_filling_off_for_a_while_unless_little_is_left() {
    let now = Instant::now();
    let mut shelves = one_of_four_taken(now);
    let then = now + PAUSE;
    let begun: Vec<bool> = (0..100)
        .map(|command| {
            shelves.put_off(then + PAUSE / 2 * command);
            matches!(shelves.next(then + PAUSE / 2 * command), Next::Fill(_))
        })
        .collect();
    let first = begun.iter().position(|begun| *begun).expect("it is filled although commands go on") as u32;
    assert_eq!(PAUSE / 2 * first, PAUSE_MAX);
    let mut shelves = one_of_four_left(now);
    shelves.put_off(then);
    assert_eq!(shelves.next(then + LULL), Next::Fill("python"));
}

#[test]
fn sessions_that_come_again_and_again_with_commands_find_some_ready() {
    let mut now = Instant::now();
    let mut shelves = one_of_four_taken(now);
    now += PAUSE;
    for command in 0..200 {
        if command % 10 == 0 {
            assert!(matches!(ask(&mut shelves, "python", now), Found::Ready(_)), "{command}");
        }
        shelves.put_off(now);
        fill(&mut shelves, now, MIB);
        now += PAUSE / 2;
    }
}

#[test]
fn a_kind_taken_away_gives_back_what_it_had_and_those_of_no_use_can_be_picked_out() {
    let now = Instant::now();
    let mut shelves = Numbers::new(bounds(), now);
    ask(&mut shelves, "python", now);
    fill(&mut shelves, now + PAUSE, MIB);
    assert_eq!(shelves.retain(|number| *number != 1), [1]);
    assert_eq!(shelves.forget(&"python"), [2]);
    assert_eq!((shelves.ready(), shelves.recipe(&"python")), (0, None));
}

#[test]
fn kinds_are_bounded() {
    let now = Instant::now();
    let mut shelves: Shelves<usize, (), u32> = Shelves::new(bounds(), now);
    for kind in 0..KINDS_MAX * 3 {
        shelves.take(&kind, now + Duration::from_millis(kind as u64), |_| true, || ());
    }
    assert_eq!(shelves.by_kind.len(), KINDS_MAX);
    assert!(shelves.recipe(&(KINDS_MAX * 3 - 1)).is_some() && shelves.recipe(&0).is_none());
}
