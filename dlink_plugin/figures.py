"""Pictures of the modality gap. Each function returns a matplotlib ``Figure``, which
the caller saves; pyplot and its global state stay out of it, so any thread may draw.

Colors are Okabe and Ito's, which survive the common forms of color blindness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "clouds",
    "comparison",
    "cosine_histograms",
    "few_pairs",
    "journey",
    "migration",
    "migration_panels",
    "start_step_sweep",
]

_AUDIO, _TEXT, _BRIDGED, _GRAY = "#D55E00", "#56B4E9", "#00583E", "#8C8C8C"
_SAW = {"nothing": _GRAY, "means": "#CC79A7", "text": "#0072B2", "pairs": _BRIDGED}
_ARROW = {
    "arrowstyle": "-|>",
    "mutation_scale": 9,
    "color": "black",
    "alpha": 0.55,
    "linewidth": 0.6,
    "shrinkA": 0,
    "shrinkB": 0,
}
_DPI = 140
_CLIPS_DRAWN = 500
_SHIFTS = 50


def migration(
    audio: torch.Tensor | np.ndarray,
    text: torch.Tensor | np.ndarray,
    bridged: torch.Tensor | np.ndarray,
    *,
    title: str = "Audio embeddings before and after the bridge",
    arrows: int = 60,
    seed: int = 0,
) -> Figure:
    """Where the bridge takes the audio embeddings, in the plane of the two main axes.

    The axes are the principal components of text and audio stacked; the bridged
    embeddings have no say in them. Above 500 clips a random 500 are drawn.

    Arguments
    ---------
    audio : torch.Tensor | np.ndarray
        Shape (N, d): as the encoder gives them; L2-normalized here.
    text : torch.Tensor | np.ndarray
        Shape (N, d): row i is a caption of clip i.
    bridged : torch.Tensor | np.ndarray
        Shape (N, d): row i is where the bridge takes ``audio[i]``.
    title : str
        Above the figure.
    arrows : int
        At most so many clips have an arrow from audio to bridged audio.
    seed : int
        Of the choice of clips.

    Returns
    -------
    figure : matplotlib.figure.Figure
        About 1,000 pixels wide.

    Raises
    ------
    ValueError
        If the shapes differ, N < 2, or a row is zero or not finite.

    Example
    -------
    >>> audio, text = np.eye(8)[:4], np.eye(8)[4:]
    >>> figure = migration(audio, text, text)
    >>> figure.axes[0].get_xlabel()
    'principal component 1 (14 % of the variance)'
    """
    audio, text, bridged = _unit_rows(audio=audio, text=text, bridged=bridged)
    center, axes, share = _principal_plane(np.vstack([text, audio]))
    shown = np.random.default_rng(seed).permutation(len(audio))[:_CLIPS_DRAWN]
    start, goal, end = ((x[shown] - center) @ axes for x in (audio, text, bridged))

    figure = Figure(figsize=(7.2, 5.6), dpi=_DPI, layout="constrained")
    panel = figure.add_subplot()
    # Bridged audio lies on top of text: small and filled over large and hollow.
    panel.scatter(*goal.T, 36, facecolors="none", edgecolors=_TEXT, label="text")
    panel.scatter(*start.T, 10, color=_AUDIO, lw=0, label="audio")
    panel.scatter(*end.T, 8, color=_BRIDGED, lw=0, label="bridged audio")
    for tail, head in zip(start[:arrows], end[:arrows], strict=True):
        panel.annotate("", head, tail, arrowprops=_ARROW)
    _name_axes(panel, share)
    panel.set_title(title)
    _legend(figure, columns=3)
    return figure


def clouds(audio: torch.Tensor | np.ndarray, text: torch.Tensor | np.ndarray) -> Figure:
    """Audio and text embeddings in the plane of their two main axes.

    Arguments
    ---------
    audio : torch.Tensor | np.ndarray
        Shape (N, d); L2-normalized here. Above 500 pairs the first 500 are drawn.
    text : torch.Tensor | np.ndarray
        Shape (N, d).

    Returns
    -------
    figure : matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the shapes differ, N < 2, or a row is zero or not finite.

    Example
    -------
    >>> figure = clouds(np.eye(8)[:4], np.eye(8)[4:])
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['text', 'audio']
    """
    audio, text = _unit_rows(audio=audio, text=text)
    center, axes, share = _principal_plane(np.vstack([text, audio]))
    start, goal = ((x[:_CLIPS_DRAWN] - center) @ axes for x in (audio, text))
    figure = Figure(figsize=(7.2, 5.6), dpi=_DPI, layout="constrained")
    panel = figure.add_subplot()
    panel.scatter(*goal.T, 36, facecolors="none", edgecolors=_TEXT, label="text")
    panel.scatter(*start.T, 10, color=_AUDIO, lw=0, label="audio")
    _name_axes(panel, share)
    panel.set_title("Audio and text embeddings")
    _legend(figure, columns=2)
    return figure


def cosine_histograms(
    audio: torch.Tensor | np.ndarray,
    text: torch.Tensor | np.ndarray,
    bridged: torch.Tensor | np.ndarray,
) -> Figure:
    """Cosines of audio with its own caption and with other clips', before and after.

    A bridge that only moves the mean lifts both; what retrieval needs is the distance
    between the two. Other clips' captions are those 1 to 50 rows further on, so that
    N clips cost 50 N cosines and not N^2.

    Arguments
    ---------
    audio : torch.Tensor | np.ndarray
        Shape (N, d): as the encoder gives them; L2-normalized here.
    text : torch.Tensor | np.ndarray
        Shape (N, d): row i is a caption of clip i.
    bridged : torch.Tensor | np.ndarray
        Shape (N, d): row i is where the bridge takes ``audio[i]``.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Two panels, one above the other, that share both axes.

    Raises
    ------
    ValueError
        If the shapes differ, N < 2, or a row is zero or not finite.

    Example
    -------
    >>> audio, text = np.eye(8)[:4], np.eye(8)[4:]
    >>> figure = cosine_histograms(audio, text, text)
    >>> [panel.get_title(loc="left") for panel in figure.axes]
    ['before the bridge', 'after the bridge']
    """
    audio, text, bridged = _unit_rows(audio=audio, text=text, bridged=bridged)
    figure = Figure(figsize=(7.2, 5.0), dpi=_DPI, layout="constrained")
    panels = figure.subplots(2, sharex=True, sharey=True)
    cosines = {
        "before the bridge": _cosines(audio, text),
        "after the bridge": _cosines(bridged, text),
    }
    lowest = min(values.min() for pair in cosines.values() for values in pair)
    bins = np.linspace(min(lowest, 0), 1, 61)
    for panel, (name, (paired, unpaired)) in zip(panels, cosines.items(), strict=True):
        _histogram(panel, unpaired, bins, _GRAY, "another clip's caption")
        _histogram(panel, paired, bins, _BRIDGED, "its own caption")
        means = f"mean {paired.mean():.2f} with its own, {unpaired.mean():.2f} with"
        panel.set_title(f"{means} another's", loc="right", fontsize="medium")
        panel.set_title(name, loc="left")
        panel.set_ylabel("density")
    panels[-1].set_xlabel("cosine of an audio embedding with a caption (dashed: mean)")
    _legend(figure, columns=2)
    figure.suptitle("Cosine similarity of audio and text")
    return figure


def journey(
    texts: torch.Tensor | np.ndarray,
    audio: torch.Tensor | np.ndarray,
    bridged: torch.Tensor | np.ndarray,
    captions: Sequence[str],
) -> Figure:
    """Where one sound is in the map of texts, before and after the bridge.

    Arguments
    ---------
    texts : torch.Tensor | np.ndarray
        Shape (M, d), M >= 2: the map, in the plane of its two main axes.
    audio : torch.Tensor | np.ndarray
        Shape (d,).
    bridged : torch.Tensor | np.ndarray
        Shape (d,).
    captions : Sequence[str]
        The M texts, of which the three nearest to the bridged sound are named.

    Returns
    -------
    figure : matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the widths differ, M < 2, or a row is zero or not finite.

    Example
    -------
    >>> figure = journey(np.eye(4)[:3], np.eye(4)[3], np.eye(4)[0], ["a", "b", "c"])
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['texts', 'the sound', 'behind the bridge']
    """
    both = np.stack([np.asarray(audio), np.asarray(bridged)])
    (texts,), (both,) = _unit_rows(texts=texts), _unit_rows(sound=both)
    center, axes, share = _principal_plane(texts)
    spots, (start, end) = (texts - center) @ axes, (both - center) @ axes
    figure = Figure(figsize=(7.2, 5.6), dpi=_DPI, layout="constrained")
    panel = figure.add_subplot()
    panel.scatter(*spots.T, 18, facecolors="none", edgecolors=_TEXT, label="texts")
    panel.scatter(*start, 60, color=_AUDIO, lw=0, label="the sound", zorder=3)
    panel.scatter(*end, 60, color=_BRIDGED, lw=0, label="behind the bridge", zorder=3)
    panel.annotate("", end, start, arrowprops={**_ARROW, "alpha": 1, "linewidth": 1.2})
    for rank, nearest in enumerate((texts @ both[1]).argsort()[::-1][:3]):
        panel.annotate(
            captions[nearest],
            spots[nearest],
            (0.02, 0.94 - 0.05 * rank),
            textcoords="axes fraction",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "color": _GRAY, "linewidth": 0.6},
        )
    _name_axes(panel, share)
    _legend(figure, columns=3)
    return figure


def start_step_sweep(
    rows: Sequence[Mapping[str, float]],
    *,
    chosen: tuple[int, int] | None = None,
    criteria: Sequence[str] = (
        "relative_modality_gap",
        "recall@1_audio_to_text",
        "paired_cosine",
    ),
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """What the start step and the number of steps of the reverse process do.

    Arguments
    ---------
    rows : Sequence[Mapping[str, float]]
        One per setting: ``start_step``, ``steps`` and every criterion's value.
    chosen : tuple[int, int], optional
        ``(start_step, steps)`` to mark; it must be among the rows.
    criteria : Sequence[str]
        Keys of ``rows``; one panel each.
    references : Mapping[str, Mapping[str, float]], optional
        Name -> criterion -> value, drawn as horizontal lines: ``{"none": ...,
        "ceiling": ...}``. A criterion that a reference lacks is left out.

    Returns
    -------
    figure : matplotlib.figure.Figure
        One panel per criterion, one line per number of steps.

    Raises
    ------
    ValueError
        If ``rows`` is empty, lacks a criterion, or has no setting ``chosen``.

    Example
    -------
    >>> rows = [{"start_step": s, "steps": 3, "paired_cosine": 0.9} for s in (50, 100)]
    >>> figure = start_step_sweep(rows, chosen=(50, 3), criteria=["paired_cosine"])
    >>> len(figure.axes)
    1
    """
    picked = _checked_rows(rows, chosen, criteria)
    counts = sorted({row["steps"] for row in rows})
    colors = colormaps["viridis"](np.linspace(0.05, 0.85, len(counts)))
    width = max(4.2, 3.4 * len(criteria))
    figure = Figure(figsize=(width, 3.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(criteria), squeeze=False)[0]
    for panel, criterion in zip(panels, criteria, strict=True):
        for count, color in zip(counts, colors, strict=True):
            _line(panel, rows, count, criterion, color)
        _reference_lines(panel, references or {}, criterion)
        if picked is not None:
            spot = picked["start_step"], picked[criterion]
            label = f"chosen: start {chosen[0]}, {_steps(chosen[1])}"
            panel.plot(*spot, "*", ms=13, mfc="#F0E442", mec="black", label=label)
        panel.set_title(criterion.replace("_", " "))
        panel.set_xlabel("start step")
    _legend(figure, columns=len(criteria) + 1)
    return figure


def comparison(rows: Mapping[str, Mapping], criterion: str) -> Figure:
    """One criterion of many bridges: a dot with its standard deviation for each.

    Arguments
    ---------
    rows : Mapping[str, Mapping]
        Name -> "saw", if that is known, and criterion -> {"mean", "std"}; those
        without it are left out.
    criterion : str
        Which one.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Bridges from top to bottom in the order given, colored by what they saw; lines
        mark "none" and "ceiling".

    Example
    -------
    >>> row = {"saw": "pairs", "paired_cosine": {"mean": 0.9, "std": 0.01}}
    >>> figure = comparison({"mlp": row, "ridge": row}, "paired_cosine")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['mlp', 'ridge']
    """
    values = {name: row[criterion] for name, row in rows.items() if criterion in row}
    figure = Figure(
        figsize=(7.2, 1.6 + 0.28 * len(values)), dpi=_DPI, layout="constrained"
    )
    panel = figure.add_subplot()
    for place, (name, value) in enumerate(values.items()):
        saw = rows[name].get("saw")
        bar = {"xerr": value["std"], "capsize": 3, "fmt": "o"}
        bar |= {"color": _SAW.get(saw, _BRIDGED), "label": saw and f"saw {saw}"}
        panel.errorbar(value["mean"], place, **bar)
    for name, style in (("none", "--"), ("ceiling", ":")):
        if name in values:
            panel.axvline(values[name]["mean"], color=_GRAY, ls=style, label=name)
    panel.set_yticks(range(len(values)), values.keys())
    panel.set_ylim(len(values) - 0.4, -0.6)  # from top to bottom
    panel.grid(axis="y", alpha=0.3)
    panel.set_xlabel(f"{criterion.replace('_', ' ')} (bar: std over runs)")
    _legend(figure, columns=3)
    return figure


def few_pairs(curves: Mapping[str, Mapping[int, Mapping]]) -> Figure:
    """What bridges make of fewer training pairs.

    Arguments
    ---------
    curves : Mapping[str, Mapping[int, Mapping]]
        Bridge -> number of training clips -> criterion -> {"mean", "std"}.

    Returns
    -------
    figure : matplotlib.figure.Figure
        A panel for each of the relative gap, recall@10, separability and CIDEr-D that
        is there.

    Example
    -------
    >>> row = {"cider_d": {"mean": 0.8, "std": 0.01}}
    >>> len(few_pairs({"mlp": {100: row, 400: row}}).axes)
    1
    """
    wanted = ("relative_modality_gap", "recall@10_audio_to_text",
              "linear_separability", "cider_d")  # fmt: skip
    there = {key for of in curves.values() for row in of.values() for key in row}
    shown = [key for key in wanted if key in there]
    figure = Figure(figsize=(3.1 * len(shown), 3.2), dpi=_DPI, layout="constrained")
    for place, key in enumerate(shown):
        panel = figure.add_subplot(1, len(shown), place + 1)
        for name, of in curves.items():
            points = {n: row[key] for n, row in of.items() if key in row}
            means = [each["mean"] for each in points.values()]
            bars = [each["std"] for each in points.values()]
            panel.errorbar(
                points.keys(), means, bars, capsize=3, marker="o", label=name
            )
        panel.set_xscale("log")
        ticks = sorted({n for of in curves.values() for n in of})
        panel.set_xticks(ticks, ticks, rotation=45)
        panel.minorticks_off()
        panel.set_title(key.replace("_", " "))
        panel.set_xlabel("training clips")
        panel.grid(alpha=0.3)
    _legend(figure, columns=len(curves))
    return figure


def migration_panels(
    audio: torch.Tensor | np.ndarray,
    text: torch.Tensor | np.ndarray,
    moved: Mapping[str, torch.Tensor | np.ndarray],
    *,
    clips: int = 300,
    seed: int = 0,
) -> Figure:
    """Where each bridge takes the audio embeddings, all panels in the same axes.

    Axes and colors are those of ``migration``.

    Arguments
    ---------
    audio : torch.Tensor | np.ndarray
        Shape (N, d).
    text : torch.Tensor | np.ndarray
        Shape (N, d): row i is a caption of clip i.
    moved : Mapping[str, torch.Tensor | np.ndarray]
        Name -> (N, d), in the same space.
    clips : int
        At most so many are drawn, the same ones everywhere.
    seed : int
        Of the choice of clips.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Four panels a row.

    Raises
    ------
    ValueError
        If the shapes differ, N < 2, or a row is zero or not finite.

    Example
    -------
    >>> audio, text = np.eye(8)[:4], np.eye(8)[4:]
    >>> figure = migration_panels(audio, text, {"none": audio, "perfect": text})
    >>> [panel.get_title() for panel in figure.axes]
    ['none', 'perfect']
    """
    audio, text, *ends = _unit_rows(audio=audio, text=text, **moved)
    center, axes, share = _principal_plane(np.vstack([text, audio]))
    shown = np.random.default_rng(seed).permutation(len(audio))[:clips]
    start, goal, *ends = ((x[shown] - center) @ axes for x in (audio, text, *ends))

    lines = -(-len(ends) // 4)
    size = (11.0, 0.8 + 2.6 * lines)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    panels = figure.subplots(lines, 4, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, name, end in zip(panels, moved, ends, strict=False):
        panel.scatter(*goal.T, 14, facecolors="none", edgecolors=_TEXT, label="text")
        panel.scatter(*start.T, 5, color=_AUDIO, lw=0, label="audio")
        panel.scatter(*end.T, 5, color=_BRIDGED, lw=0, label="bridged audio")
        panel.set_title(name)
        panel.set_aspect("equal")
    for empty in panels[len(ends) :]:
        empty.remove()
    explained = " and ".join(f"{100 * part:.0f} %" for part in share)
    figure.suptitle(f"First two principal components of text and audio ({explained})")
    _legend(figure, columns=3, markerscale=2)
    return figure


def _legend(figure: Figure, columns: int, markerscale: float = 1) -> None:
    """One legend below all panels, each label once."""
    labeled = {}
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        labeled |= dict(zip(labels, handles, strict=True))
    figure.legend(
        labeled.values(),
        labeled.keys(),
        loc="outside lower center",
        ncols=columns,
        markerscale=markerscale,
        frameon=False,
    )


def _unit_rows(**named: torch.Tensor | np.ndarray) -> list[np.ndarray]:
    arrays = {}
    for name, rows in named.items():
        if isinstance(rows, torch.Tensor):
            rows = rows.detach().cpu().double().numpy()
        arrays[name] = np.asarray(rows, dtype=np.float64)
    shapes = {name: rows.shape for name, rows in arrays.items()}
    first = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1 or len(first) != 2 or first[0] < 2:
        raise ValueError(
            f"The shapes are {shapes}; pass arrays of one shape (N, d), N >= 2, "
            "whose rows i are the same clip."
        )
    for name, rows in arrays.items():
        bad = ~(np.isfinite(rows).all(1) & rows.any(1))
        if bad.any():
            raise ValueError(
                f"Row {bad.argmax()} of {name} is all zeros or not finite; leave that "
                "clip out of all arrays or embed it again."
            )
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in arrays.values()]


def _principal_plane(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Center (d,), first two axes (d, 2) and their shares of the variance."""
    center = rows.mean(0)
    _, singular, axes = np.linalg.svd(rows - center, full_matrices=False)
    axes = axes[:2]
    # An SVD leaves the sign open: the largest coordinate of an axis is positive.
    largest = np.abs(axes).argmax(1)
    axes = axes * np.sign(axes[[0, 1], largest])[:, None]
    return center, axes.T, singular[:2] ** 2 / (singular**2).sum()


def _name_axes(panel: Axes, share: np.ndarray) -> None:
    name = "principal component {} ({:.0f} % of the variance)"
    panel.set_xlabel(name.format(1, 100 * share[0]))
    panel.set_ylabel(name.format(2, 100 * share[1]))
    panel.set_aspect("equal", adjustable="datalim")


def _cosines(audio: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paired cosines, (N,), and those with the texts of the next clips, (N k,)."""
    shifts = range(1, min(len(text) - 1, _SHIFTS) + 1)
    unpaired = [(audio * np.roll(text, -shift, axis=0)).sum(1) for shift in shifts]
    # Rounding may leave a cosine just above 1, outside the last bin.
    return np.minimum((audio * text).sum(1), 1), np.minimum(np.hstack(unpaired), 1)


def _histogram(
    panel: Axes, values: np.ndarray, bins: np.ndarray, color: str, label: str
) -> None:
    panel.hist(values, bins, density=True, color=color, alpha=0.6, label=label)
    panel.axvline(values.mean(), color=color, ls="--", lw=1.5)


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _line(panel: Axes, rows, count: int, criterion: str, color) -> None:
    line = sorted(
        (row["start_step"], row[criterion]) for row in rows if row["steps"] == count
    )
    panel.plot(*zip(*line, strict=True), "o-", ms=4, color=color, label=_steps(count))


def _reference_lines(panel: Axes, references, criterion: str) -> None:
    styles = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
    for index, (name, values) in enumerate(references.items()):
        if criterion in values:
            style = styles[index % len(styles)]
            panel.axhline(values[criterion], color=_GRAY, ls=style, label=name)


def _checked_rows(rows, chosen, criteria) -> Mapping[str, float] | None:
    """The chosen row, once every row has every criterion."""
    if not rows:
        raise ValueError("rows is empty; pass one dict per start step and step count.")
    for index, row in enumerate(rows):
        missing = [k for k in ("start_step", "steps", *criteria) if k not in row]
        if missing:
            raise ValueError(
                f"Row {index} has no {missing[0]!r}; measure it or leave it out of "
                "criteria."
            )
    if chosen is None:
        return None
    for row in rows:
        if (row["start_step"], row["steps"]) == tuple(chosen):
            return row
    raise ValueError(
        f"chosen is {chosen}, which no row has; pass the (start_step, steps) of one."
    )
