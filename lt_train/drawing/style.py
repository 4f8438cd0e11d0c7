"""What all plots share: the style, figures as SVG text or pixels, legends, means for curves."""

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

INK = "#010203"  # becomes the page's text colour, whether that is dark or light
COLORS = [  # Okabe and Ito 2008, and two
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#8c8c8c",
    "#7e57c2",
]
# with which curves of the same course can still be told apart
DASHES = [
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (9, 2)),
    (0, (3, 3)),
    (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5)),
    (0, (1, 3)),
]
MARKERS = "osD^vPX*"
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **dict.fromkeys(INKED, INK),
}
WIDTH = 9.0  # inches
READABLE = 11  # pixels, the height of the smallest text
SMALL = 8.5  # points, the smallest text: 11 pixels of a screen
ERROR_BAR = {"ecolor": INK, "elinewidth": 1}


@dataclass(frozen=True)
class Look:
    """How a row looks in all plots."""

    color: str
    dash: Any = "-"
    marker: str = "o"
    width: float = 1.4  # points

    @property
    def line(self) -> dict[str, Any]:
        """Matplotlib's arguments of a curve."""
        return {"color": self.color, "linestyle": self.dash, "linewidth": self.width}

    @property
    def points(self) -> dict[str, Any]:
        """Those of the markers on it."""
        return {"marker": self.marker, "markersize": 2 + 1.5 * self.width}


# later ones are thinner: of curves that lie on each other, all can be seen
LOOKS = [
    Look(*each, width=2.4 - 0.18 * place) for place, each in enumerate(zip(COLORS, DASHES, MARKERS))
]


def least_width(figure: Figure) -> int:
    """Pixels, below which the figure's smallest text would be too small to read."""
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    smallest = min((text.get_fontsize() for text in texts), default=10.0)
    return round(figure.get_figwidth() * 72 * READABLE / smallest)


def label_powers(axis: Axis, subs: tuple[float, ...] = (1,)) -> None:
    """Label a logarithmic axis with plain numbers, at ``subs`` times each power of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, salt: str) -> str:
    """The figure as an SVG element to stand in a page; ``salt`` keeps its ids apart from other
    figures'.
    """
    buffer = io.StringIO()
    metadata = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    with matplotlib.rc_context({"svg.hashsalt": f"lt-train {salt}"}), warnings.catch_warnings():
        # the reader's browser has fonts for every script
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r' id="[\w.]+_\d+"', "", text)  # names of groups, which all figures have alike


def to_pixels(figure: Figure) -> np.ndarray:
    """The figure on white, (H, W, 3) uint8."""
    figure.set(facecolor="white", dpi=150)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box will do
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def short(name: str, length: int) -> str:
    """``name`` on one line of at most so many characters."""
    name = " ".join(name.split())
    if len(name) > length:
        name = name[: length - 1] + "…"
    # Matplotlib leaves labels with a leading _ out of legends
    return f"\u200b{name}" if name.startswith("_") else name


def legend_label(name: str) -> str:
    """What a row is called in a legend."""
    return short(name, 60)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Name what ``axes`` show, below the figure, in as many columns as there is room for."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1
    if labels:
        room = 12 * figure.get_figwidth()  # in characters
        columns = max(1, min(len(labels), int(room / (max(map(len, labels)) + 7))))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def deviation(values: list[float]) -> float:
    """Standard deviation of the sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def binned(values: np.ndarray, bins: int) -> np.ndarray:
    """Means of ``bins`` runs of neighbouring values, or the values themselves if they are no more;
    NaN is left out.
    """
    if len(values) <= bins:
        return values
    return np.array([mean_rows(part[:, None])[0] for part in np.array_split(values, bins)])


def mean_rows(rows: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Mean over rows of what is not NaN; NaN where nothing is."""
    return np.ma.masked_invalid(np.array(rows, np.float64)).mean(axis=0).filled(np.nan)
