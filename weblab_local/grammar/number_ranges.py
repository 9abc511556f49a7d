"""Ranges of numbers as alternatives of a GBNF grammar, whose rules know only digits."""

import math

MAX_DIGITS = 15
"""Of whole numbers: as many as a double, which is what most JSON readers make of them, tells apart."""
FURTHEST = 10**MAX_DIGITS - 1


def alternatives(
    minimum: float | None,
    above: float | None,
    maximum: float | None,
    below: float | None,
    *,
    whole: bool,
) -> list[str]:
    """GBNF for the numbers from `minimum` to `maximum`, above `above` and below `below`; [] where there are none.

    None is no bound. Bounds of numbers that are not `whole` have to be so themselves. `fraction` is another rule.
    """
    lows = [(math.ceil(minimum), False)] if minimum is not None else []
    highs = [(math.floor(maximum), False)] if maximum is not None else []
    if above is not None:
        lows.append((math.floor(above) + 1, False) if whole else (int(above), True))
    if below is not None:
        highs.append((math.ceil(below) - 1, False) if whole else (int(below), True))
    low, open_low = max(lows, default=(-FURTHEST, False))
    high, open_high = min(highs, key=lambda bound: (bound[0], not bound[1]), default=(FURTHEST, False))
    low, high = max(low, -FURTHEST), min(high, FURTHEST)
    found = []
    if high >= 0:
        found += _between(max(low, 0), high, open_low and low >= 0, open_high, whole)
    if low < 0:
        negative = _between(max(-high, 0), -low, open_high and high <= 0, open_low, whole)
        found += [f'"-" ({one})' for one in negative]
    return found


def _between(low: int, high: int, open_low: bool, open_high: bool, whole: bool) -> list[str]:
    """Alternatives for the numbers from `low` >= 0 to `high`; an open end is not one of them."""
    if whole:
        return _integers(low, high)
    found = []
    least = low + 1 if open_low else low
    if least < high:
        found.append(f"({' | '.join(_integers(least, high - 1))}) fraction?")
    if open_low and low < high:
        found.append(f'"{low}." [0-9]{{0,14}} [1-9]')
    if low <= high and not open_high and not (open_low and low == high):
        found.append(f'"{high}"')
    return found


def _integers(low: int, high: int) -> list[str]:
    """Alternatives for the whole numbers from `low` >= 0 to `high`, one for each number of digits."""
    found = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)
        found.append(_digits(str(low), str(last)))
        low = last + 1
    return found


def _digits(low: str, high: str) -> str:
    """The numbers between two of the same number of digits."""
    if low == high:
        return f'"{low}"'
    rest = len(low) - 1
    if not rest:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return f'"{low[0]}" ({_digits(low[1:], high[1:])})'
    found = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        found.append(f'"{first}" ({_digits(low[1:], "9" * rest)})')
        first += 1
    if high[1:] != "9" * rest:
        found.append(f'"{last}" ({_digits("0" * rest, high[1:])})')
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}] [0-9]{{{rest}}}")
    return " | ".join(found)
