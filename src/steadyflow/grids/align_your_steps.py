"""The schedules of Align Your Steps (Sabour, Fidler & Kreis 2024, 2404.14507).

The authors optimised ten steps for each of three models, and publish the noise levels sigma/alpha; other numbers of
steps have the levels that lie between them at equal spaces, linearly in ln(sigma/alpha). A run of N steps has the first
N of N + 1 levels and then the clean estimate, as in diffusers and ComfyUI.
"""

import bisect
import math

from ..errors import InputError
from ..schedules import Schedule
from .registry import Maker, register

TABLES: dict[str, tuple[float, ...]] = {
    "ays-sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""The levels of ten steps of Stable Diffusion 1.5, SDXL and Stable Video Diffusion: tables of the paper's appendix."""

_SLACK = 0.02
"""How far an end of a table may lie beyond that of a path: levels are rounded to three digits, and the continuous path
of Stable Diffusion ends one per cent below its table."""


def _maker(name: str, table: tuple[float, ...]) -> Maker:
    falling = [math.log(level) for level in table]
    rising = [-level for level in falling]
    cells = len(table) - 1

    def level_at(place: float) -> float:
        """ln(sigma/alpha) at a place in [0, 1] of the table."""
        cell = min(int(place * cells), cells - 1)
        return falling[cell] + (place * cells - cell) * (falling[cell + 1] - falling[cell])

    def place_of(ratio: float) -> float:
        """The place in [0, 1] of a level; an end of the table for levels beyond or next to it."""
        if ratio >= table[0] * (1.0 - _SLACK):
            return 0.0
        if ratio <= table[-1] * (1.0 + _SLACK):
            return 1.0
        level = -math.log(ratio)
        cell = bisect.bisect_right(rising, level) - 1
        return (cell + (level - rising[cell]) / (rising[cell + 1] - rising[cell])) / cells

    def times(schedule: Schedule, steps: int, t_max: float, t_min: float) -> tuple[float, ...]:
        default_min, default_max = schedule.t_range
        most, least = schedule.ratio(max(t_max, default_max)), schedule.ratio(min(t_min, default_min))
        if most < table[0] * (1.0 - _SLACK) or least > table[-1] * (1.0 + _SLACK):
            raise InputError(
                f"grid {name!r}: its noise levels sigma/alpha run from {table[0]:g} to {table[-1]:g}, but those of "
                f"{type(schedule).__name__} from {most:.4g} to {least:.4g}; give a t_max and a t_min that contain them"
            )
        a, b = place_of(schedule.ratio(t_max)), place_of(schedule.ratio(t_min))
        if not a < b:
            raise InputError(
                f"grid {name!r}: none of its noise levels lies between t_max = {t_max} and t_min = {t_min}"
            )
        places = (a + (b - a) * k / steps for k in range(steps + 1))
        found = (schedule.t_from_log_snr(-2.0 * level_at(place)) for place in places)
        return tuple(min(max(t, t_min), t_max) for t in found)

    return times


for _name, _table in TABLES.items():
    register(_name, _maker(_name, _table), to_clean=True)
