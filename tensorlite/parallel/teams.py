"""The choice of a team."""

from __future__ import annotations

from tensorlite.parallel.processes import Processes
from tensorlite.parallel.threads import Workers

TEAMS: dict[str, type[Workers]] = {team.name: team for team in (Workers, Processes)}


def make_team(name: str, count: int) -> Workers:
    """A team of ``count`` workers: "threads" or "processes".

    Raises:
        ValueError: for another name, or less than one worker.
    """
    if name not in TEAMS:
        raise ValueError(f"unknown team {name!r}: it is one of {', '.join(TEAMS)}.")
    return TEAMS[name](count)
