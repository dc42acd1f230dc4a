"""Fills the templates of the pages. A page is one file that runs only its own script. It asks the network for nothing; one that
is served while a run trains asks its own server whether the run went on.
"""

import base64
import datetime
import hashlib
import math
import pathlib
import shlex

import jinja2
from markupsafe import Markup

from mtjudge_jax.report.plots import page_color

_FOLDER = pathlib.Path(__file__).parent / "templates"


def render_page(template: str, *, scripts: tuple[str, ...] = ("page",), **values) -> str:
    """The page. Its content security policy allows only the page's own script, by hash, so no text in it can start another."""
    script = "".join((_FOLDER / f"{name}.js.jinja").read_text(encoding="utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"score": _format_score, "percent": _format_percent, "ci": format_ci, "duration": format_duration}
    environment.filters |= {"time": format_time, "shell_lines": shell_lines, "page_color": page_color}
    return environment.get_template(template).render(script=Markup(script), script_hash=digest, **values)


def shell_lines(command: str) -> str:
    """The command with each flag on a line of its own, still one command for a shell."""
    words = [shlex.quote(word) for word in shlex.split(command)]
    return " \\\n  ".join([" ".join(words[:2]), *words[2:]])


def _format_score(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _format_percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.0f}\u00a0%"


def format_ci(interval: tuple[float, float] | None, scale: int = 1) -> str:
    """(0.78, 0.84) -> "0.78 to 0.84"; with scale=100 "78 to 84 %"."""
    if interval is None or not all(map(math.isfinite, interval)):
        return "unknown"
    low, high = interval
    return f"{low:.2f} to {high:.2f}" if scale == 1 else f"{scale * low:.0f} to {scale * high:.0f}\u00a0%"


def format_duration(seconds: float | None) -> str:
    """75 -> "1 min 15 s"; 4.2 -> "4.2 s"; 7260 -> "2 h 1 min"."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    text = f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    return text.replace(" ", "\u00a0")


def format_time(seconds: float) -> str:
    """ "28 Nov 2026, 22:35 UTC", "" for 0."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%d %b %Y, %H:%M} UTC" if seconds else ""
