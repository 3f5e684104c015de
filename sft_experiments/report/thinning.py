"""Fewer points for the same picture: curves of many runs on one page."""

from collections.abc import Sequence

from sft_experiments.report.curves import Event

TOTAL_POINTS = 40_000  # train events on a page, all runs together: about 2 MB, and drawn in a second
MOST_PER_RUN = 1_000
LEAST_PER_RUN = 120


def points_per_run(num_runs: int) -> int:
    return max(LEAST_PER_RUN, min(MOST_PER_RUN, TOTAL_POINTS // max(num_runs, 1)))


def thinned(events: Sequence[Event], limit: int, keep_extremes_of: Sequence[str]) -> list[Event]:
    """At most about ``limit`` events in order: in each stretch, those where a watched metric is lowest or highest.

    Spikes survive, unlike with every n-th point or a moving mean. The first and the last event stay.
    """
    if len(events) <= limit:
        return list(events)
    num_stretches = max(limit // (2 * len(keep_extremes_of)), 1)
    kept = {0, len(events) - 1}
    for stretch in range(num_stretches):
        start, end = (len(events) * position // num_stretches for position in (stretch, stretch + 1))
        for name in keep_extremes_of:
            present = [index for index in range(start, end) if isinstance(events[index].get(name), int | float)]
            if present:
                kept.add(min(present, key=lambda index: events[index][name]))
                kept.add(max(present, key=lambda index: events[index][name]))
    return [events[index] for index in sorted(kept)]
