import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dlink_plugin.figures import (
    comparison,
    cosine_histograms,
    migration,
    migration_panels,
    start_step_sweep,
)


@pytest.fixture
def clouds():
    """Audio to the right of text, bridged audio close to text; 80 clips in 16-d."""
    rng = np.random.default_rng(0)
    clips, gap = rng.normal(size=(80, 16)), 3 * np.eye(16)[0]
    noise = 0.3 * rng.normal(size=(3, 80, 16))
    return clips + noise[0] + gap, clips + noise[1] - gap, clips + noise[2] - gap


@pytest.fixture
def rows():
    return [
        {"start_step": s, "steps": k, "paired_cosine": 0.9 - s / 1e4 + k / 100}
        for s in (200, 50, 100)
        for k in (5, 1)
    ]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def offsets(figure):
    """Label -> plotted points of the scatter plots of the first panel."""
    return {
        c.get_label(): np.asarray(c.get_offsets()) for c in figure.axes[0].collections
    }


def lines(panel):
    return {line.get_label(): line for line in panel.get_lines()}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_figures_are_saved_without_pyplot(tmp_path):
    script = (
        "import sys, numpy as np; from dlink_plugin import figures as f;"
        "x = np.random.default_rng(0).normal(size=(3, 9, 4));"
        f"f.migration(*x).savefig(r'{tmp_path}/a.png');"
        f"f.cosine_histograms(*x).savefig(r'{tmp_path}/b.pdf');"
        "rows = [{'start_step': 1, 'steps': 1, 'x': 1.0}];"
        f"f.start_step_sweep(rows, criteria=['x']).savefig(r'{tmp_path}/c.png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert all((tmp_path / name).stat().st_size for name in ("a.png", "b.pdf", "c.png"))


# Migration


def test_migration_draws_the_projections_and_the_explained_variance(clouds):
    audio, text, bridged = (unit(x) for x in clouds)
    figure = migration(*clouds, title="A title")
    stacked = np.vstack([text, audio])
    values, vectors = np.linalg.eigh(np.cov(stacked.T))
    axes = vectors[:, [-1, -2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    drawn = offsets(figure)
    for name, x in (("audio", audio), ("text", text), ("bridged audio", bridged)):
        expected = (x - stacked.mean(0)) @ axes
        found = drawn[name]
        np.testing.assert_allclose(
            found[found[:, 0].argsort()], expected[expected[:, 0].argsort()], atol=1e-9
        )
    share = 100 * values[-1] / values.sum()
    assert f"({share:.0f} % of the variance)" in figure.axes[0].get_xlabel()
    assert figure.axes[0].get_title() == "A title"
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() * figure.dpi == pytest.approx(1000, rel=0.02)


def test_migration_arrows_run_from_audio_to_its_bridged_place(clouds):
    figure = migration(*clouds, arrows=7)
    drawn = offsets(figure)
    arrows = figure.axes[0].texts
    assert len(arrows) == 7
    for index, arrow in enumerate(arrows):
        np.testing.assert_allclose(arrow.xyann, drawn["audio"][index])
        np.testing.assert_allclose(arrow.xy, drawn["bridged audio"][index])
    assert len(migration(*clouds, arrows=1000).axes[0].texts) == 80
    assert not migration(*clouds, arrows=0).axes[0].texts


def test_migration_is_deterministic_and_thins_out_large_sets(clouds):
    assert png(migration(*clouds, seed=3)) == png(migration(*clouds, seed=3))
    many = [np.tile(x, (7, 1)) for x in clouds]
    drawn = offsets(migration(*many, arrows=0))
    assert {len(points) for points in drawn.values()} == {500}


def test_migration_does_not_hide_text_under_bridged_audio(clouds):
    _, text, _ = clouds
    collections = {
        c.get_label(): c for c in migration(text + 1, text, text).axes[0].collections
    }
    hollow, filled = collections["text"], collections["bridged audio"]
    assert len(hollow.get_facecolor()) == 0
    assert hollow.get_sizes()[0] > 3 * filled.get_sizes()[0]


def test_tensors_and_arrays_draw_the_same(clouds):
    tensors = [torch.tensor(x, requires_grad=True) for x in clouds]
    assert png(migration(*tensors)) == png(migration(*clouds))


# Histograms


def test_histograms_mark_the_means_of_the_cosines(clouds):
    audio, text, bridged = (unit(x) for x in clouds)
    figure = cosine_histograms(*clouds)
    before, after = figure.axes
    for panel, x in ((before, audio), (after, bridged)):
        cosines = x @ text.T
        paired = np.diag(cosines).mean()
        near = [cosines[i, (i + k) % 80] for i in range(80) for k in range(1, 51)]
        marks = sorted(line.get_xdata()[0] for line in panel.get_lines())
        assert marks == pytest.approx([np.mean(near), paired])
        assert f"mean {paired:.2f} with its own" in panel.get_title(loc="right")
        for container in panel.containers:
            area = sum(bar.get_width() * bar.get_height() for bar in container)
            assert area == pytest.approx(1)  # no cosine falls outside the bins
    assert before.get_xlim() == after.get_xlim()
    assert before.get_ylim() == after.get_ylim()
    assert legend(figure) == ["another clip's caption", "its own caption"]


def test_histograms_of_identical_embeddings_stay_inside_the_bins():
    same = np.tile(np.random.default_rng(0).normal(size=33), (5, 1))
    figure = cosine_histograms(same, same, same)
    for container in figure.axes[1].containers:
        assert container[-1].get_height() > 0
    png(figure)


# Sweep


def test_sweep_draws_one_sorted_line_per_number_of_steps(rows):
    figure = start_step_sweep(rows, criteria=["paired_cosine"])
    (panel,) = figure.axes
    drawn = lines(panel)
    assert list(drawn) == ["1 step", "5 steps"]
    np.testing.assert_array_equal(drawn["5 steps"].get_xdata(), [50, 100, 200])
    np.testing.assert_allclose(drawn["5 steps"].get_ydata(), [0.945, 0.94, 0.93])
    assert panel.get_title() == "paired cosine"


def test_sweep_marks_the_chosen_setting_and_the_references(rows):
    rows = [row | {"recall@1_audio_to_text": 0.3} for row in rows]
    references = {
        "none": {"paired_cosine": 0.5},
        "ceiling": {"paired_cosine": 0.8, "recall@1_audio_to_text": 0.4},
    }
    figure = start_step_sweep(
        rows,
        chosen=(100, 5),
        criteria=["recall@1_audio_to_text", "paired_cosine"],
        references=references,
    )
    recall, cosine = (lines(panel) for panel in figure.axes)
    star = "chosen: start 100, 5 steps"
    assert cosine[star].get_xydata()[0] == pytest.approx([100, 0.94])
    assert recall[star].get_xydata()[0] == pytest.approx([100, 0.3])
    assert cosine["none"].get_ydata()[0] == 0.5
    assert "none" not in recall and recall["ceiling"].get_ydata()[0] == 0.4
    # The first panel lacks "none"; the legend does not.
    assert sorted(legend(figure)) == sorted(cosine)


def test_sweep_legend_fits_into_the_figure(rows):
    rows = [row | {"steps": k} for row in rows for k in (1, 2, 3, 5, 10)]
    for criteria in (["paired_cosine"], ["paired_cosine"] * 3):
        figure = start_step_sweep(
            rows,
            chosen=(100, 10),
            criteria=criteria,
            references={"none": {"paired_cosine": 0.5}},
        )
        png(figure)
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.get_figwidth() * figure.dpi


# Errors


@pytest.mark.parametrize("draw", [migration, cosine_histograms])
def test_unusable_embeddings_are_refused(draw, clouds):
    audio, text, bridged = clouds
    with pytest.raises(ValueError, match=r"'bridged': \(79, 16\).*one shape \(N, d\)"):
        draw(audio, text, bridged[1:])
    with pytest.raises(ValueError, match="N >= 2"):
        draw(audio[:1], text[:1], bridged[:1])
    bridged[4] = 0
    with pytest.raises(ValueError, match="Row 4 of bridged is all zeros or not fin"):
        draw(audio, text, bridged)


def test_incomplete_sweeps_are_refused(rows):
    with pytest.raises(ValueError, match="rows is empty"):
        start_step_sweep([])
    with pytest.raises(ValueError, match="Row 0 has no 'relative_modality_gap'"):
        start_step_sweep(rows)
    with pytest.raises(ValueError, match=r"chosen is \(60, 5\), which no row has"):
        start_step_sweep(rows, chosen=(60, 5), criteria=["paired_cosine"])


# The comparison


@pytest.fixture
def bridges():
    def row(saw, mean, std):
        return {"saw": saw, "seconds": 1.0, "paired_cosine": {"mean": mean, "std": std}}

    return {
        "none": row("nothing", 0.6, 0.0),
        "decap": row("text", 0.8, 0.01),
        "mlp": row("pairs", 0.9, 0.02),
        "ceiling": row("nothing", 0.95, 0.0),
        "chance": {"saw": "nothing", "seconds": 0.0},
    }


def test_a_comparison_has_a_dot_and_a_bar_for_each_bridge(bridges):
    (panel,) = comparison(bridges, "paired_cosine").axes
    assert [t.get_text() for t in panel.get_yticklabels()] == list(bridges)[:-1]
    dots = [c.lines[0].get_xydata()[0].tolist() for c in panel.containers]
    assert dots == [[0.6, 0], [0.8, 1], [0.9, 2], [0.95, 3]]
    bars = [c.lines[2][0].get_segments()[0][:, 0] for c in panel.containers]
    assert bars[2] == pytest.approx([0.88, 0.92])
    assert lines(panel)["none"].get_xdata()[0] == 0.6
    assert lines(panel)["ceiling"].get_xdata()[0] == 0.95
    top, bottom = panel.get_ylim()[::-1]
    assert top < bottom  # the first bridge is on top


def test_dots_are_colored_by_what_a_bridge_saw(bridges):
    figure = comparison(bridges, "paired_cosine")
    colors = [c.lines[0].get_color() for c in figure.axes[0].containers]
    assert colors[0] == colors[3] and len(set(colors)) == 3
    shown = {"saw nothing", "saw text", "saw pairs", "none", "ceiling"}
    assert set(legend(figure)) == shown


def test_migration_panels_share_axes_and_clips(clouds):
    audio, text, bridged = clouds
    moved = {
        "none": audio,
        "half": audio + bridged,
        "all": bridged,
        "a": text,
        "b": text,
    }
    figure = migration_panels(audio, text, moved, clips=30)
    assert [panel.get_title() for panel in figure.axes] == list(moved)
    assert len({panel.get_xlim() for panel in figure.axes}) == 1
    points = [
        {c.get_label(): np.asarray(c.get_offsets()) for c in panel.collections}
        for panel in figure.axes
    ]
    for each in points:
        assert all(len(rows) == 30 for rows in each.values())
        assert np.array_equal(each["text"], points[0]["text"])
        assert np.array_equal(each["audio"], points[0]["audio"])
    assert np.allclose(points[0]["bridged audio"], points[0]["audio"])
    assert np.allclose(points[3]["bridged audio"], points[3]["text"])
    # the same plane as the single picture's
    single = offsets(migration(audio, text, bridged, arrows=0))
    assert {tuple(p) for p in points[2]["bridged audio"].round(9)} <= {
        tuple(p) for p in single["bridged audio"].round(9)
    }


def test_migration_panels_refuse_other_shapes(clouds):
    audio, text, bridged = clouds
    with pytest.raises(ValueError, match="mlp.*one shape"):
        migration_panels(audio, text, {"mlp": bridged[:-1]})
