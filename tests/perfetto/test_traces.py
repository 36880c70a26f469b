"""Perfetto's own trace processor understands trace files as they are meant."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from conftest import Trace, opened
from processor import Processor

REQUIRED = {
    "M": {"name", "pid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "b": {"name", "cat", "id2", "pid", "ts"},
    "e": {"name", "cat", "id2", "pid", "ts"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
}


def test_perfetto_has_nothing_to_complain_about(each: Trace) -> None:
    complaints = each.perfetto.rows("select name, value from stats where severity != 'info' and value != 0")
    assert complaints == []


def test_every_event_has_what_its_phase_asks_for(each: Trace) -> None:
    assert {event["ph"] for event in each.events} == set(REQUIRED)
    for event in each.events:
        assert REQUIRED[event["ph"]] <= event.keys(), event
        assert 0 <= event.get("ts", 0) <= 60e6 and event.get("dur", 0) >= 0, event


def test_chips_are_tracks_of_the_board(each: Trace) -> None:
    tracks = each.perfetto.rows(
        "select process.name, thread.name from thread join process using (upid) where tid >= 1000 order by tid"
    )
    names = ["chip 0 · vision 0..27", "chip 1 · prefix 0..9", "chip 2 · vision 0..27", "chip 3 · prefix 9..18"]
    assert tracks == [("board loudbox-bh", name) for name in [*names, "chip 5 · expert 0..18"]]


def test_every_activity_is_a_slice_of_its_chip(each: Trace) -> None:
    found = each.perfetto.rows(
        "select tid, slice.ts, dur, slice.name from slice join thread_track on track_id = thread_track.id "
        "join thread using (utid)"
    )
    written = [
        (event["tid"], round(event["ts"] * 1000), round(event["dur"] * 1000), event["name"]) for event in each.of(ph="X")
    ]
    assert len(written) > 1000
    assert Counter(found) == Counter(written)


def test_slices_of_a_chip_follow_each_other(each: Trace) -> None:
    """A chip does one thing at a time, so nothing lies within anything else."""
    assert each.perfetto.value("select max(depth) from slice join thread_track on track_id = thread_track.id") == 0
    ends: dict[int, int] = defaultdict(int)
    slices = [(event["tid"], round(event["ts"] * 1000), round(event["dur"] * 1000)) for event in each.of(ph="X")]
    for tid, begin, duration in sorted(slices):
        assert begin >= ends[tid]
        ends[tid] = begin + duration


def test_payloads_can_be_asked_for(run: Trace) -> None:
    [row] = run.perfetto.rows(
        "select extract_arg(arg_set_id, 'args.kind'), extract_arg(arg_set_id, 'args.stage'),"
        " extract_arg(arg_set_id, 'args.layers'), extract_arg(arg_set_id, 'args.transport'),"
        " extract_arg(arg_set_id, 'args.bytes') > 0, extract_arg(arg_set_id, 'args.batch'),"
        " length(extract_arg(arg_set_id, 'args.members[0].trace'))"
        " from slice where slice.name = 'send to 3' limit 1"
    )
    assert row == ("send", "prefix", "0..9", "host", 1, 1, 32)
    cameras = "select distinct extract_arg(arg_set_id, 'args.cameras') from slice where name = 'vision 0..27' order by 1"
    assert run.perfetto.rows(cameras) == [(1,), (2,)]
    steps = "select max(extract_arg(arg_set_id, 'args.members[0].step')) from slice where category = 'activity'"
    assert run.perfetto.value(steps) == 9


def test_requests_lie_beside_each_other_with_their_parts_within(each: Trace) -> None:
    outcomes = each.perfetto.rows(
        "select extract_arg(slice.arg_set_id, 'args.outcome'), count(*) from slice"
        " join process_track on track_id = process_track.id join process using (upid)"
        " where slice.name = 'request' and depth = 0 and process.name = 'requests' group by 1"
    )
    assert dict(outcomes) == each.report["outcomes"]
    parts = each.perfetto.rows(
        "select part.name, sum(part.dur), count(*) from slice part join slice request on part.parent_id = request.id"
        " where request.name = 'request' and part.dur >= 0 and part.ts >= request.ts"
        " and part.ts + part.dur <= request.ts + request.dur group by 1"
    )
    within = each.perfetto.value("select count(*) from slice where category = 'request' and depth = 1")
    assert sum(count for *_, count in parts) == within > 0
    requests = each.perfetto.value("select sum(dur) from slice where name = 'request' and depth = 0")
    assert sum(duration for _, duration, _ in parts) == requests
    assert each.perfetto.value("select count(*) from slice where dur < 0") == 0


def test_what_began_has_ended(each: Trace) -> None:
    begun, ended = [
        Counter((event["cat"], event["id2"]["local"], event["name"]) for event in each.of(ph=phase)) for phase in "be"
    ]
    assert begun == ended


def test_arrows_lead_to_who_took_over(run: Trace) -> None:
    """Of every send to the receive of the same request, later or at the same time, on the chip that it went to."""
    arrows = run.perfetto.rows(
        "select a.name, from_thread.tid, b.name, to_thread.tid, b.ts >= a.ts,"
        " extract_arg(a.arg_set_id, 'args.members[0].request') = extract_arg(b.arg_set_id, 'args.members[0].request'),"
        " extract_arg(a.arg_set_id, 'args.bytes') = extract_arg(b.arg_set_id, 'args.bytes')"
        " from flow join slice a on slice_out = a.id join slice b on slice_in = b.id"
        " join thread_track from_track on a.track_id = from_track.id join thread from_thread on from_thread.utid = from_track.utid"
        " join thread_track to_track on b.track_id = to_track.id join thread to_thread on to_thread.utid = to_track.utid"
    )
    requests = run.report["outcomes"]["done"]
    ways = Counter((source - 1000, target - 1000) for _, source, _, target, *_ in arrows)
    assert ways == {(0, 1): requests, (2, 1): requests, (1, 3): requests, (1, 5): 9 * requests, (3, 5): 9 * requests}
    for name, source, other, target, in_order, same_request, same_bytes in arrows:
        assert (name, other) == (f"send to {target - 1000}", f"receive from {source - 1000}")
        assert in_order and same_request and same_bytes


def test_every_arrow_is_bound_at_both_ends(each: Trace) -> None:
    begun, ended = each.of(ph="s"), each.of(ph="f")
    assert each.perfetto.value("select count(*) from flow") == len(begun) == len(ended) > 100
    assert sorted(event["id"] for event in begun) == sorted(event["id"] for event in ended)
    times = {event["id"]: event["ts"] for event in begun}
    assert all(times[event["id"]] <= event["ts"] for event in ended)


def test_chips_are_as_busy_as_tensact_says(run: Trace) -> None:
    took = run.report["took_ms"]
    busy = run.perfetto.rows(
        "select tid - 1000, sum(dur) / 1e6 from slice join thread_track on track_id = thread_track.id"
        " join thread using (utid) group by tid"
    )
    for chip, milliseconds in busy:
        assert abs(1 - milliseconds / took - run.report["chips"][str(chip)]["idle"]) < 1e-9


def test_faults_show(faulty: Trace) -> None:
    assert faulty.perfetto.value("select count(*) from slice where name = 'stall'") >= 1
    again = "select count(*) from slice where name glob 'pipeline *, attempt 2'"
    assert faulty.perfetto.value(again) >= 1


def test_a_file_that_was_cut_off_opens_as_far_as_it_goes(run: Trace, folder: Path) -> None:
    cut = folder / "cut.json"
    whole = (folder / "run.json").read_text()
    # Behind an event: what a crash leaves behind a flush may also end within one, which Perfetto says.
    cut.write_text(whole[: whole.rindex(",\n", 0, len(whole) // 2)])
    perfetto = Processor(cut)
    some = perfetto.value("select count(*) from slice")
    perfetto.close()
    assert 0 < some < run.perfetto.value("select count(*) from slice")


def test_nothing_is_lost_on_a_board_of_32_chips(folder: Path) -> None:
    from conftest import tensact

    file = folder / "galaxy.json"
    galaxy = Path(__file__).parents[2] / "configs" / "galaxy-bh.toml"
    tensact("simulate", galaxy, *"--robots 64 --rate 10 --duration 500ms --trace-out".split(), file)
    trace = opened(file)
    assert trace.perfetto.value("select count(*) from thread where tid >= 1000") == 32
    test_perfetto_has_nothing_to_complain_about(trace)
    test_every_activity_is_a_slice_of_its_chip(trace)
    trace.perfetto.close()
