"""Parts of the page that take what no emulated board sends: too much, in pieces, or forever."""

from __future__ import annotations

from page import Page


def test_events_may_come_in_any_pieces(page: Page) -> None:
    heard = page.script("""
        const { EventParser } = await import("/dashboard/stream.js");
        const text = ': a comment\\nevent: hello\\r\\ndata: {"a":\\ndata: 1}\\n\\nid: 3\\n\\ndata:plain\\n\\nevent: tick\\ndata: x: y\\n\\ndata: no end';
        const all = [];
        for (let size = 1; size <= text.length; size++) {
            const heard = [];
            const parser = new EventParser((name, data) => heard.push([name, data]));
            for (let at = 0; at < text.length; at += size) parser.feed(text.slice(at, at + size));
            all.push(heard);
        }
        return all;
    """)
    assert len(heard) > 50
    for events in heard:
        assert events == [["hello", '{"a":\n1}'], ["message", "plain"], ["tick", "x: y"]]


def test_an_event_without_end_is_given_up(page: Page) -> None:
    assert page.script("""
        const { EventParser } = await import("/dashboard/stream.js");
        const parser = new EventParser(() => {});
        try {
            for (let count = 0; count < 64; count++) parser.feed("x".repeat(1 << 20));
        } catch (error) {
            return error.message;
        }
    """) == "The server sent an event without end."


def test_activities_make_room_for_newer_ones(page: Page) -> None:
    # Three million activities on each of two chips, every one for two requests.
    kept = page.script("""
        const { Activities } = await import("/dashboard/activities.js");
        const activities = new Activities([0, 7]);
        const chip = activities.chips.get(7);
        const room = chip.began.length;
        for (let tick = 0; tick < 1500; tick++) {
            const list = [];
            for (let at = tick * 2000; at < (tick + 1) * 2000; at++) {
                list.push([0, 0, [0, 7], "pass", at, at + 1, null, [at.toString(16).padStart(8, "0"), "ffffffff"]]);
            }
            activities.take(list.reverse(), () => 0);
        }
        const last = (chip.end - 1) & chip.mask;
        const first = chip.first & chip.mask;
        const middle = chip.from(2_990_000.5);
        return {
            room, after: chip.began.length, total: activities.total,
            last: [chip.began[last], activities.label(chip, last, 0), activities.isOf(chip, last, 0xffffffff)],
            held: chip.end - chip.first, first: chip.began[first],
            found: chip.ended[middle & chip.mask],
        };
    """)
    assert kept["room"] == kept["after"] == kept["held"]
    assert kept["total"] == 3_000_000
    assert kept["last"] == [2_999_999, 2_999_999, True]
    assert kept["first"] == 3_000_000 - kept["held"]
    assert kept["found"] == 2_990_001


def test_the_state_stays_bounded_for_hours(page: Page) -> None:
    # Ten hours of ticks, each with answers of its own.
    sizes = page.script("""
        const { State } = await import("/dashboard/state.js");
        const hello = await new Promise((resolve) => resolve({
            run: "one", slo_ms: 100, board: { chips: [{ id: 0 }], links: [] },
            pipelines: [{ slices: [{ stage: "vision", layers: "0-26", chips: [0], predicted_ms: 5 }] }],
        }));
        const state = new State();
        state.greet(hello);
        for (let tick = 1; tick <= 72_000; tick++) {
            const now = tick * 500;
            const id = tick.toString(16).padStart(8, "0").padEnd(32, "0");
            state.take({
                now, waiting: 1, queue_capacity: 64, pipelines: [{ in_service: true, in_flight: 1 }], outcomes: { done: tick },
                slices: [[{ passes: tick, requests: 2 * tick, busy_ms: 250 * tick, running: 0, restarts: 0 }]], chips: { 0: 250 * tick },
                answered: [[id, null, "done", now - 40 - (tick % 7), now]], activities: [],
            }, now + 3);
        }
        const { passes, busy, seconds } = state.measured(state.slices[0]);
        const { p50, rate } = state.figures();
        return {
            answered: state.answered.size, history: state.history.length, snapshots: state.snapshots.length,
            slow: state.slow.reduce((sum, { requests }) => sum + requests.length, 0), slowest: state.slowest().map((one) => one[4] - one[3]),
            load: state.load(0), pass: busy / passes, rate, p50, seconds, head: state.head(36_000_003),
        };
    """)
    assert sizes["answered"] <= 8192 and sizes["history"] <= 150 and sizes["snapshots"] <= 25 and sizes["slow"] <= 12 * 48
    assert sizes["slowest"] == [46] * 12
    assert sizes["load"] == 0.5 and sizes["pass"] == 250 and sizes["rate"] == 2 and 40 <= sizes["p50"] <= 46
    assert sizes["seconds"] == 10 and sizes["head"] == 36_000_000 - 700


def test_times_of_which_something_is_missing_are_known(page: Page) -> None:
    gaps = page.script("""
        const { State } = await import("/dashboard/state.js");
        const hello = { run: "one", board: { chips: [{ id: 0 }], links: [] }, pipelines: [] };
        const state = new State();
        const tick = (now, leftOut) => state.take({
            now, waiting: 0, queue_capacity: 1, pipelines: [], outcomes: {}, slices: [], chips: { 0: 0 },
            answered: [], activities: [], activities_left_out: leftOut,
        }, now);
        state.greet(hello);
        for (const [now, leftOut] of [[500, 0], [1000, 5], [1500, 1], [2000, 0]]) tick(now, leftOut);
        state.greet({ ...hello }); // connected again
        for (const [now, leftOut] of [[9000, 0], [9500, 0]]) tick(now, leftOut);
        return state.activities.gaps;
    """)
    assert gaps == [[500, 1500], [2000, 9000]]
