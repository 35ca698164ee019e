# SPDX-License-Identifier: Apache-2.0
"""Numbers as a reader wants them: with unit, factors and points told apart, no false digits."""

import math
from typing import TypeGuard

MISSING = "–"
SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def finite(value: float | None) -> TypeGuard[float]:
    """True for a number that can be drawn and divided: neither absent nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def plain(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, thousands grouped; tiny ones in powers of ten.

    Examples:
        >>> plain(39.2412), plain(1234567), plain(0.0000031), plain(float("inf"))
        ('39.2', '1,234,567', '3.1e−6', '∞')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if exponent < -4 or exponent >= 15:
        mantissa = f"{rounded / 10.0**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
        return f"{mantissa}e{exponent}".replace("-", MINUS)
    if exponent >= digits:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{rounded:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def exact(value: float | None) -> str:
    """A number as somebody set it: at most six digits, no padding zeros.

    Examples:
        >>> exact(0.001), exact(44213), exact(1e-05)
        ('0.001', '44,213', '1e−5')
    """
    if not finite(value):
        return plain(value)
    text = plain(value, 6)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def count(value: float | None) -> str:
    """A whole number with thousands grouped.

    Examples:
        >>> count(431080)
        '431,080'
    """
    return f"{value:,.0f}" if finite(value) else plain(value)


def scaled_unit(
    largest: float, units: tuple[str, ...] = ("B", "kB", "MB", "GB", "TB")
) -> tuple[float, str]:
    """The divisor (a power of 1000) and its unit that suit numbers up to `largest`."""
    power = 0
    while power < len(units) - 1 and largest >= 999.5 * 1000.0**power:
        power += 1
    return 1000.0**power, units[power]


def size(value: float | None) -> str:
    """Bytes in decimal units (1 kB = 1000 bytes) with three digits.

    Examples:
        >>> size(43912).replace(SPACE, " "), size(512).replace(SPACE, " ")
        ('43.9 kB', '512 B')
    """
    if not finite(value):
        return plain(value)
    divisor, unit = scaled_unit(abs(value))
    return f"{plain(value / divisor) if divisor > 1 else count(value)}{SPACE}{unit}"


def amount(value: float | None) -> str:
    """How many: exact below a million, else three digits with M (10⁶), G (10⁹) or T (10¹²).

    Examples:
        >>> amount(431080), amount(2293000).replace(SPACE, " ")
        ('431,080', '2.29 M')
    """
    if not finite(value) or value < 1e6:
        return count(value)
    divisor, unit = scaled_unit(value, ("", "k", "M", "G", "T"))
    return f"{plain(value / divisor)}{SPACE}{unit}"


def factor(value: float | None) -> str:
    """A ratio: ``39.2×``."""
    return f"{plain(value)}×" if finite(value) else plain(value)


def percent(fraction: float | None, decimals: int = 2) -> str:
    """A fraction of one as a percentage: 0.9919 is ``99.19 %``."""
    if not finite(fraction):
        return plain(fraction)
    return f"{100 * fraction:.{decimals}f}{SPACE}%".replace("-", MINUS)


def signed(value: float, text: str) -> str:
    """`text` (without a sign) behind ``+`` or a true minus."""
    return f"{MINUS if value < 0 else '+'}{text}" if value else text


def points(difference: float | None, decimals: int = 2) -> str:
    """A difference of two fractions in percentage points: −0.0006 is ``−0.06 pt``."""
    if not finite(difference):
        return plain(difference)
    rounded = round(100 * difference, decimals)
    return f"{signed(rounded, f'{abs(rounded):.{decimals}f}')}{SPACE}pt"


def milliseconds(value: float | None) -> str:
    """A latency in milliseconds."""
    return f"{plain(value)}{SPACE}ms" if finite(value) else plain(value)


def energy(value: float | None) -> str:
    """An energy given in microjoules."""
    return f"{plain(value)}{SPACE}µJ" if finite(value) else plain(value)


def duration(seconds: float | None) -> str:
    """How long something took: seconds, then minutes, then hours.

    Examples:
        >>> duration(754.2).replace(SPACE, " ")
        '12 min 34 s'
    """
    if not finite(seconds):
        return plain(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min{SPACE}{rest}{SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h{SPACE}{minutes}{SPACE}min"


def compared(before: float | None, after: float | None, less: str, more: str) -> str:
    """The change in words: a factor, or a percentage of `before` where it is less than a tenth.

    Examples:
        >>> compared(400.0, 100.0, "smaller", "larger"), compared(7.0, 7.0, "fewer", "more")
        ('4.00× smaller', 'unchanged')
        >>> compared(100.0, 102.5, "smaller", "larger").replace(SPACE, " ")
        '2.5 % larger'
    """
    if not finite(before) or not finite(after):
        return MISSING
    if before == after:
        return "unchanged"
    word = less if before > after else more
    if min(before, after) <= 0:
        return f"infinitely {word}" if max(before, after) > 0 else MISSING
    ratio = max(before, after) / min(before, after)
    if ratio < 1.1:
        return f"{plain(100 * abs(after - before) / before, 2)}{SPACE}% {word}"
    return f"{factor(ratio)} {word}"


def shortened(text: str, length: int) -> str:
    """At most `length` characters; long text loses its middle, since both ends tell names apart.

    Examples:
        >>> shortened("features.denseblock4.denselayer16.conv2", 15)
        'feature…6.conv2'
    """
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"
