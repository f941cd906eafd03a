"""Who has which stream: kept, shared, given up, and never taken from under what is heard."""

from spatial_v2a.inference.engine.allocator import FADE_TICKS, LINGER_TICKS, Allocation, Allocator

FREE_TICKS = LINGER_TICKS + FADE_TICKS + 1


def allocate(allocator: Allocator, *pictures: dict[int, float], times: int = 1) -> Allocation:
    """Allocates the pictures one after another, each so many times; gives the last tick."""
    for areas in pictures:
        for _ in range(times):
            allocation = allocator.step(areas)
    return allocation


def same(*ids: int) -> dict[int, float]:
    return dict.fromkeys(ids, 0.1)


def begun(allocation: Allocation) -> list[tuple[int, int, int]]:
    return [(part.object_stream, part.track_id, part.first_tick) for part in allocation.begun]


def test_every_object_has_a_stream_and_comes_back_to_it() -> None:
    allocator = Allocator(3)
    first = allocate(allocator, same(7, 9))
    assert first.objects_S == [{7}, {9}, set()] and begun(first) == [(0, 7, 0), (1, 9, 0)]
    assert first.fresh_S == [True, True, False] == first.plays_S == first.owned_S
    away = allocate(allocator, same(9), times=50)
    assert away.objects_S == [set(), {9}, set()] and away.owned_S == [True, True, False]
    back = allocate(allocator, same(7, 9))
    assert back.objects_S == [{7}, {9}, set()] and not any(back.fresh_S) and not back.begun


def test_an_object_is_heard_so_long_after_its_box() -> None:
    allocator = Allocator(2)
    allocate(allocator, same(7))
    plays = [allocate(allocator, {}).plays_S[0] for _ in range(LINGER_TICKS + 2)]
    assert plays == [True] * LINGER_TICKS + [False, False] and LINGER_TICKS == 3
    assert allocate(allocator, same(7)).plays_S[0]


def test_a_stream_changes_hands_when_it_has_faded_out_and_the_longest_idle_one_first() -> None:
    allocator = Allocator(2)
    allocate(allocator, same(1, 2), same(2))
    # The stream of 1 is still heard: 3 shares the last one meanwhile.
    for _ in range(FREE_TICKS - 2):
        shared = allocate(allocator, same(2, 3))
        assert shared.objects_S == [set(), {2, 3}] and not any(shared.fresh_S)
    freed = allocate(allocator, same(2, 3))
    assert freed.objects_S == [{3}, {2}] and freed.fresh_S == [True, False]
    allocate(allocator, same(3), {})
    allocate(allocator, {}, times=20)
    new = allocate(allocator, same(4))
    assert new.objects_S == [set(), {4}] and new.fresh_S == [False, True]
    assert [part[:2] for part in begun(new)] == [(1, 4)]


def test_more_objects_than_streams_share_the_last_one() -> None:
    allocator = Allocator(3)
    crowd = {1: 0.1, 2: 0.4, 3: 0.2, 4: 0.3, 5: 0.05}
    allocation = allocate(allocator, crowd)
    assert allocation.objects_S == [{2}, {4}, {1, 3, 5}], "the largest are alone"
    assert allocation.plays_S == [True] * 3 and begun(allocation) == [
        (0, 2, 0),
        (1, 4, 0),
        (2, 3, 0),
    ]
    # Equal sizes that tremble change nothing.
    for n in range(20):
        trembling = {i: area * (1.2 if (i + n) % 2 else 0.9) for i, area in crowd.items()}
        assert allocate(allocator, trembling).objects_S == allocation.objects_S, n


def test_of_those_who_share_the_largest_takes_a_stream_that_gets_free() -> None:
    allocator = Allocator(2)
    allocate(allocator, {1: 0.3, 2: 0.2, 3: 0.1}, times=4)
    without_1 = {2: 0.1, 3: 0.2}
    for _ in range(FREE_TICKS - 1):
        assert allocate(allocator, without_1).objects_S == [set(), {2, 3}]
    freed = allocate(allocator, without_1)
    assert freed.objects_S == [{3}, {2}] and freed.fresh_S == [True, False]


def test_a_much_larger_object_gets_the_stream_of_a_small_one_which_fades_out_first() -> None:
    allocator = Allocator(2)
    assert allocate(allocator, {1: 0.1, 2: 0.1}).objects_S == [{1}, {2}]
    just_larger = {1: 0.1, 2: 0.1, 3: 0.149}
    assert allocate(allocator, just_larger, times=20).objects_S == [{1}, {2, 3}]
    much_larger = {1: 0.1, 2: 0.1, 3: 0.151}
    for _ in range(FADE_TICKS):
        closing = allocate(allocator, much_larger)
        assert closing.objects_S == [{1}, {1, 2, 3}] and closing.plays_S == [False, True]
    taken = allocate(allocator, much_larger)
    assert taken.objects_S == [{3}, {1, 2}] and taken.fresh_S == [True, False]
    assert begun(taken) == [(0, 3, taken.begun[0].first_tick)]
    # Now 1 is not larger than 3: nothing moves any more.
    assert allocate(allocator, much_larger, times=30).objects_S == [{3}, {1, 2}]


def test_an_id_that_changes_every_tick_takes_no_stream_that_is_heard() -> None:
    allocator = Allocator(3)
    heard_S = [-FREE_TICKS] * 3
    for tick in range(60):
        allocation = allocate(allocator, same(100 + tick, 1))
        for stream, objects in enumerate(allocation.objects_S):
            if allocation.fresh_S[stream]:
                assert tick - heard_S[stream] >= FREE_TICKS, f"stream {stream} in tick {tick}"
            if objects:
                heard_S[stream] = tick
        assert set().union(*allocation.objects_S) == {100 + tick, 1}, "nobody is left out"


def test_one_stream_is_shared_by_all_and_none_by_nobody() -> None:
    assert allocate(Allocator(1), {1: 0.1, 2: 0.9}, times=9).objects_S == [{1, 2}]
    nobody = allocate(Allocator(0), same(1, 2))
    assert (nobody.objects_S, nobody.fresh_S, nobody.plays_S, nobody.begun) == ([], [], [], [])
