import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score

from dlink_plugin import gap
from dlink_plugin.gap import CRITERIA, modality_gap, paired_bootstrap

ROOT_HALF = np.sqrt(0.5)
RECALLS = [name for name in CRITERIA if name.startswith("recall")]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clouds(n=200, d=16, noise=0.8, shift=0.0, seed=0):
    """Audio and text around shared clip vectors; audio moved along one axis."""
    rng = np.random.default_rng(seed)
    clips = rng.normal(size=(n, d))
    audio = clips + noise * rng.normal(size=(n, d))
    audio[:, 0] += shift
    return unit(audio), unit(clips + noise * rng.normal(size=(n, d)))


# Values worked out by hand


def test_two_clips_by_hand():
    text = np.array([[1.0, 0.0], [0.0, 1.0]])
    audio = np.array([[1.0, 1.0], [-1.0, 1.0]])  # at 45 and 135 degrees
    values = modality_gap(audio, text, separability=False)
    distance = (1 - ROOT_HALF) / 2
    shift = 0.25 + (ROOT_HALF - 0.5) ** 2  # (0, 0.707) - (0.5, 0.5), squared
    assert values == pytest.approx(
        {
            "paired_cosine": ROOT_HALF,
            "unpaired_cosine": 0.0,  # 0.707 and -0.707
            "centroid_distance": np.sqrt(shift),
            "paired_distance": distance,
            "relative_modality_gap": distance / (distance + 0.5),  # within: cos 0
            "frechet_distance": shift + 1 + 1 - 2 * ROOT_HALF,
            # Audio 1 and text 2 are 45 degrees from both candidates: half a hit.
            "recall@1_audio_to_text": 0.75,
            "recall@1_text_to_audio": 0.75,
            **{name: 1.0 for name in RECALLS if "@1_" not in name},
            "topology_error": 0.0,  # both modalities at right angles
        },
        abs=1e-7,
    )


def test_three_clips_by_hand():
    text = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    audio = np.array([[2.0, 0.0]] * 3)
    values = modality_gap(audio, text, separability=False)
    assert values["paired_cosine"] == pytest.approx(0.0)  # 1, 0, -1
    assert values["unpaired_cosine"] == pytest.approx(0.0)
    assert values["centroid_distance"] == pytest.approx(np.hypot(1, 1 / 3))
    # Within text: cosines 0, -1, 0, so (1 - (-1/3)) / 2; within audio: 0.
    assert values["relative_modality_gap"] == pytest.approx(0.5 / (0.5 + 1 / 3))
    # Audio has no spread: tr S of the text is 1 + 1/3.
    assert values["frechet_distance"] == pytest.approx(1 + 1 / 9 + 4 / 3)
    assert values["topology_error"] == pytest.approx(np.sqrt((1 + 4 + 1) / 3))
    # Every audio points at text 1, and every text sees three equal audios.
    assert values["recall@1_audio_to_text"] == pytest.approx(1 / 3)
    assert values["recall@1_text_to_audio"] == pytest.approx(1 / 3)


def test_keys_come_in_table_order():
    audio, text = clouds(n=12)
    assert tuple(modality_gap(audio, text)) == CRITERIA
    without = tuple(name for name in CRITERIA if name != "linear_separability")
    assert tuple(modality_gap(audio, text, separability=False)) == without


# Limits


def test_identical_pairs_have_no_gap():
    _, text = clouds(n=60)
    values = modality_gap(text, text)
    for name in CRITERIA:
        if name.startswith("recall") or name == "paired_cosine":
            assert values[name] == pytest.approx(1.0)
        elif name == "linear_separability":
            assert values[name] == 0.5  # of two equal rows one is always wrong
        elif name != "unpaired_cosine":
            assert values[name] == pytest.approx(0.0, abs=1e-7)
            assert values[name] >= 0


@pytest.mark.parametrize("n", [2, 300])
def test_constant_embeddings_are_retrieved_by_chance(n):
    constant = np.tile(np.random.default_rng(0).normal(size=24), (n, 1))
    values = modality_gap(constant, 3 * constant)
    for name in RECALLS:
        k = int(name.split("@")[1].split("_")[0])
        assert values[name] == pytest.approx(min(k / n, 1.0))
    assert values["relative_modality_gap"] == 0.0
    assert values["linear_separability"] == 0.5


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_handful_of_clips_is_enough(n):
    audio, text = clouds(n=n, shift=20.0)
    text = text - 3 * audio.mean(0)  # two tight clouds, face to face
    values = modality_gap(audio, text)
    assert values["linear_separability"] == 1.0
    assert all(np.isfinite(value) for value in values.values())


# Agreement with independent computations


@pytest.mark.parametrize("n, d", [(200, 8), (40, 24)])
def test_frechet_distance_agrees_with_the_matrix_square_root(n, d):
    audio, text = clouds(n=n, d=d, shift=1.0)
    s1, s2 = np.cov(audio.T), np.cov(text.T)
    shift = np.sum((audio.mean(0) - text.mean(0)) ** 2)
    expected = shift + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert gap.frechet_distance(audio, text) == pytest.approx(expected, abs=1e-10)


def test_frechet_distance_is_exact_for_singular_covariances():
    audio, text = clouds(n=10, d=32, shift=1.0)
    centered = [x - x.mean(0) for x in (audio, text)]
    nuclear = np.linalg.norm(centered[0] @ centered[1].T, "nuc")
    shift = np.sum((audio.mean(0) - text.mean(0)) ** 2)
    traces = np.trace(np.cov(audio.T)) + np.trace(np.cov(text.T))
    expected = shift + traces - 2 * nuclear / 9
    assert gap.frechet_distance(audio, text) == pytest.approx(expected, abs=1e-10)
    # A slight ridge makes the covariances regular, and the textbook formula agrees.
    s1, s2 = (np.cov(x.T) + 1e-9 * np.eye(32) for x in (audio, text))
    root = sqrtm(s1).real
    textbook = shift + np.trace(s1 + s2 - 2 * sqrtm(root @ s2 @ root).real)
    assert gap.frechet_distance(audio, text) == pytest.approx(textbook, abs=1e-2)


def test_recall_agrees_with_sorting():
    audio, text = clouds(n=150, noise=1.5)
    values = modality_gap(audio, text, separability=False)
    cosines = audio @ text.T
    for name in RECALLS:
        k = int(name.split("@")[1].split("_")[0])
        scores = cosines if name.endswith("audio_to_text") else cosines.T
        nearest = np.argsort(-scores, axis=1)[:, :k]
        found = (nearest == np.arange(len(audio))[:, None]).any(1)
        assert values[name] == pytest.approx(found.mean())
    assert 0.05 < values["recall@1_audio_to_text"] < 0.95
    assert values["recall@1_audio_to_text"] != values["recall@1_text_to_audio"]


@pytest.mark.parametrize(("n", "d"), [(50, 24), (2000, 512)])
def test_closed_forms_agree_with_the_full_matrices(n, d):
    audio, text = clouds(n=n, d=d, shift=2.0)
    values = modality_gap(audio, text, separability=False)
    off = ~np.eye(n, dtype=bool)
    across, within_a, within_t = audio @ text.T, audio @ audio.T, text @ text.T
    assert values["unpaired_cosine"] == pytest.approx(across[off].mean())
    pairs = (1 - np.diag(across).mean()) / 2
    within = (2 - within_a[off].mean() - within_t[off].mean()) / 4
    expected = pairs / (pairs + within)
    assert values["relative_modality_gap"] == pytest.approx(expected)
    rms = np.sqrt(((within_a - within_t)[off] ** 2).mean())
    assert values["topology_error"] == pytest.approx(rms)


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_block_size_does_not_matter(block):
    audio, text = clouds(n=100, noise=1.5)
    text[3] = text[40]  # a tie, on two sides of a block's border
    blocked, whole = (
        gap.recall_hits(audio, text, block=size) for size in (block, 4096)
    )
    for name in RECALLS:
        np.testing.assert_array_equal(blocked[name], whole[name])


def test_a_duplicated_caption_is_half_a_hit():
    text = np.eye(6)
    text[1] = text[0]
    hits = gap.recall_hits(text, text)["recall@1_audio_to_text"]
    np.testing.assert_array_equal(hits, [0.5, 0.5, 1, 1, 1, 1])


# Behavior


def test_unrelated_pairs_are_retrieved_by_chance():
    audio, _ = clouds(n=1000, seed=1)
    related, text = clouds(n=1000, seed=2)
    chance = modality_gap(audio, text, separability=False)
    paired = modality_gap(related, text, separability=False)
    for name in RECALLS:
        p = int(name.split("@")[1].split("_")[0]) / 1000
        error = 3 * np.sqrt(p * (1 - p) / 1000)
        assert abs(chance[name] - p) < error
        assert paired[name] - p > 10 * error


def test_scale_type_and_precision_do_not_matter():
    audio, text = clouds(n=40)
    expected = modality_gap(audio, text)
    lengths = np.linspace(0.1, 9, 40)[:, None]
    assert modality_gap(audio * lengths, text) == pytest.approx(expected, abs=1e-7)
    parameter = torch.tensor(audio, requires_grad=True)
    assert modality_gap(parameter, torch.tensor(text)) == expected
    single = modality_gap(audio.astype(np.float32), text.astype(np.float32))
    assert single == pytest.approx(expected, abs=1e-5)
    half = modality_gap(torch.tensor(audio).bfloat16(), text)
    assert half["paired_cosine"] == pytest.approx(expected["paired_cosine"], abs=1e-2)


def test_inputs_are_left_as_they_are():
    audio, text = 5 * clouds(n=10)[0], 5 * clouds(n=10)[1]
    before = audio.copy(), text.copy()
    modality_gap(audio, text)
    paired_bootstrap(audio, audio, text, draws=5)
    np.testing.assert_array_equal(audio, before[0])
    np.testing.assert_array_equal(text, before[1])


def test_rotating_one_modality_keeps_its_topology_and_loses_its_pairs():
    audio, text = clouds(n=300)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))[0]
    before = modality_gap(audio, text, separability=False)
    both = modality_gap(audio @ rotation, text @ rotation, separability=False)
    one = modality_gap(audio @ rotation, text, separability=False)
    assert both == pytest.approx(before, abs=1e-7)
    assert one["topology_error"] == pytest.approx(before["topology_error"], abs=1e-7)
    assert one["recall@1_audio_to_text"] < 0.1 < before["recall@1_audio_to_text"]


def test_a_shifted_modality_bends_its_topology_and_mean_shift_mends_the_means():
    _, text = clouds(n=300)
    audio = unit(text + 0.5)  # renormalizing after a shift changes the angles
    before = modality_gap(audio, text, separability=False)
    shifted = audio - audio.mean(0) + text.mean(0)
    after = modality_gap(shifted, text, separability=False)
    assert before["topology_error"] > 0.1
    assert after["paired_cosine"] > before["paired_cosine"] + 0.1
    assert after["centroid_distance"] < 0.1 < before["centroid_distance"]


# Linear separability


def test_shifted_clouds_are_separable_and_equal_ones_are_not():
    apart = gap.linear_separability(*clouds(n=300, shift=30.0))
    some = gap.linear_separability(*clouds(n=300, shift=1.0))
    alike = gap.linear_separability(*clouds(n=300))
    assert apart == 1.0
    assert 0.6 < some < 0.9
    assert abs(alike - 0.5) < 3 * 0.5 / np.sqrt(600)


def test_a_clip_is_never_in_training_and_test_at_once():
    audio, text = clouds(n=40, d=128, noise=0.3)
    rows, labels = np.vstack([audio, text]), np.repeat([0, 1], 40)
    ungrouped = cross_val_score(
        LogisticRegression(C=1e4),
        rows * np.sqrt(128),
        labels,
        cv=KFold(5, shuffle=True, random_state=0),
    ).mean()
    # The twin in the training set has the other label: worse than guessing.
    assert ungrouped < 0.25
    assert abs(gap.linear_separability(audio, text) - 0.5) < 3 * 0.5 / np.sqrt(80)


def test_many_clips_are_subsampled_by_the_seed(monkeypatch):
    monkeypatch.setattr(gap, "_SEPARABILITY_CLIPS", 20)
    seen = []
    monkeypatch.setattr(gap, "_accuracy", lambda pairs, **_: seen.append(pairs))
    audio, text = clouds(n=50, d=4)
    for seed in (0, 0, 1):
        gap.linear_separability(audio, text, seed)
    first, again, other = seen
    assert first.shape == (20, 2, 4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    row = np.flatnonzero(np.isclose(audio, first[0, 0] / 2).all(1))
    np.testing.assert_allclose(text[row[0]], first[0, 1] / 2, atol=1e-6)


def test_the_strongest_penalty_wins_a_tie():
    _, text = clouds(n=12)
    pairs = np.stack([text, text], axis=1)
    assert gap._best_inverse_penalty(pairs) == min(gap._INVERSE_PENALTIES)


# Paired bootstrap


@pytest.fixture(scope="module")
def systems():
    a, text = clouds(n=400, shift=0.5, seed=1)
    rng = np.random.default_rng(2)
    return a, unit(a + 0.1 * rng.normal(size=a.shape) + 0.05), text


def test_bootstrap_reports_the_difference_inside_its_interval(systems):
    a, b, text = systems
    of_a, of_b = modality_gap(a, text), modality_gap(b, text)
    for name, (difference, low, high) in paired_bootstrap(a, b, text).items():
        assert difference == pytest.approx(of_a[name] - of_b[name], abs=1e-9)
        assert low < difference < high


def test_bootstrap_of_a_system_against_itself_is_exactly_zero(systems):
    a, _, text = systems
    for interval in paired_bootstrap(a, a, text, draws=50).values():
        assert interval == (0.0, 0.0, 0.0)


def test_bootstrap_is_antisymmetric_and_follows_its_seed(systems):
    a, b, text = systems
    forth = paired_bootstrap(a, b, text, seed=4)
    back = paired_bootstrap(b, a, text, seed=4)
    for name, (difference, low, high) in forth.items():
        assert back[name] == pytest.approx((-difference, -high, -low), abs=1e-9)
    assert forth == paired_bootstrap(a, b, text, seed=4)
    assert forth != paired_bootstrap(a, b, text, seed=5)


def test_bootstrap_width_is_the_analytic_one(systems):
    a, b, text = systems
    intervals = paired_bootstrap(a, b, text, draws=4000)
    hits = [gap.recall_hits(x, text)["recall@5_text_to_audio"] for x in (a, b)]
    for name, per_clip in (
        ("paired_cosine", (a * text).sum(1) - (b * text).sum(1)),
        ("recall@5_text_to_audio", hits[0] - hits[1]),
    ):
        error = per_clip.std() / np.sqrt(len(text))
        _, low, high = intervals[name]
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)
    # Pairing matters: two independent samples would be this much wider.
    unpaired = np.hypot((a * text).sum(1).std(), (b * text).sum(1).std())
    _, low, high = intervals["paired_cosine"]
    assert high - low < 0.5 * 2 * 1.96 * unpaired / np.sqrt(len(text))


def test_a_close_centroid_keeps_its_difference_inside(systems):
    a, _, text = systems
    matched = unit(a - a.mean(0) + text.mean(0))
    difference, low, high = paired_bootstrap(a, matched, text)["centroid_distance"]
    assert low < difference < high
    # Percentiles of the bare draws would miss it: their noise moves centroids apart.
    counts = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), size=500)
    drawn = [gap.centroid_distance(x, text, counts / 400) for x in (a, matched)]
    assert np.percentile(drawn[0] - drawn[1], 97.5) < difference


def test_weighted_relative_gap_leaves_repeated_clips_out():
    audio, text = clouds(n=6, d=3, shift=1.0)
    drawn = np.array([0, 0, 0, 2, 3, 5])
    other = drawn[:, None] != drawn
    pairs = (1 - (audio[drawn] * text[drawn]).sum(1).mean()) / 2
    within = [(1 - (x[drawn] @ x[drawn].T)[other].mean()) / 2 for x in (audio, text)]
    weights = np.bincount(drawn, minlength=6) / 6
    found = gap.relative_modality_gap(audio, text, weights)
    assert found == pytest.approx(pairs / (pairs + np.mean(within)))


def test_bootstrap_of_two_clips_is_finite():
    audio, text = clouds(n=2)
    intervals = paired_bootstrap(audio, text, text, draws=20)
    assert np.isfinite(list(intervals.values())).all()


# Resampling and migration


def test_resamples_are_those_of_the_paired_bootstrap(systems):
    a, b, text = systems
    of_a, of_b = (
        gap.resampled_criteria(x, text, draws=60, seed=3, frechet=False) for x in (a, b)
    )
    for name, expected in paired_bootstrap(a, b, text, draws=60, seed=3).items():
        assert gap.interval(of_a[name] - of_b[name]) == pytest.approx(expected)


def test_a_resampled_frechet_distance_is_that_of_the_drawn_clips():
    audio, text = clouds(n=60, d=4, shift=0.5)
    values = gap.resampled_criteria(audio, text, draws=3, seed=1)["frechet_distance"]
    assert values[0] == pytest.approx(gap.frechet_distance(audio, text))
    counts = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=3)
    for value, count in zip(values[1:], counts, strict=True):
        drawn = np.repeat(np.arange(60), count)
        expected = gap.frechet_distance(audio[drawn], text[drawn])
        assert value == pytest.approx(expected)


def test_a_common_shift_is_a_collective_migration():
    rng = np.random.default_rng(0)
    audio = unit(np.hstack([rng.normal(size=(50, 3)), np.full((50, 1), 9.0)]))
    target = audio * [1, 1, 1, -1]  # straight through the middle
    values = gap.migration_criteria(audio, target, target)
    assert values["displacement_cosine"] == pytest.approx(1, abs=0.02)
    assert values["nearest_text_nearer"] == 1.0
    back = gap.migration_criteria(target, audio, target)
    assert back["nearest_text_nearer"] == 0.0


def test_scattered_clips_do_not_migrate_together():
    rng = np.random.default_rng(0)
    audio, bridged, text = (unit(rng.normal(size=(400, 32))) for _ in range(3))
    values = gap.migration_criteria(audio, bridged, text)
    assert abs(values["displacement_cosine"]) < 0.15
    assert 0.35 < values["nearest_text_nearer"] < 0.65


def test_displacements_by_hand():
    audio, bridged = np.eye(3)[[0, 0]], np.eye(3)[[1, 2]]
    # (-1, 1, 0) and (-1, 0, 1), mean (-1, 1/2, 1/2): cosine 1.5 / sqrt(2 * 1.5)
    values = gap.migration_criteria(audio, bridged, np.eye(3)[[1, 1]])
    assert values["displacement_cosine"] == pytest.approx(1.5 / np.sqrt(3))
    assert values["nearest_text_nearer"] == 0.5


def test_what_stays_has_no_migration():
    audio, text = clouds(n=20)
    assert gap.migration_criteria(audio, audio, text) == {}


# Errors


@pytest.mark.parametrize(
    "audio, text, sentence",
    [
        (np.ones((3, 2)), np.ones((4, 2)), r"\(3, 2\) but text \(4, 2\)"),
        (np.ones((3, 2)), np.ones((3, 4)), r"\(3, 2\) but text \(3, 4\)"),
        (np.ones(3), np.ones((3, 2)), r"audio has shape \(3,\); pass \(N, d\)"),
        (np.ones((1, 2)), np.ones((1, 2)), "at least 2 clips"),
        (np.ones((2, 2)), np.array([[1, 2], [np.nan, 1]]), "Row 1 of text is not fin"),
        (np.array([[np.inf, 1], [1, 1]]), np.ones((2, 2)), "Row 0 of audio is not fin"),
        (np.array([[1, 1], [0, 0]]), np.ones((2, 2)), "Row 1 of audio is all zeros"),
    ],
)
def test_unusable_embeddings_are_refused(audio, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        modality_gap(audio, text)


def test_bootstrap_refuses_what_it_cannot_resample():
    rows = np.eye(3)
    with pytest.raises(ValueError, match=r"a has shape \(3, 3\) but b \(2, 3\)"):
        paired_bootstrap(rows, rows[:2], rows)
    with pytest.raises(ValueError, match="draws is 0"):
        paired_bootstrap(rows, rows, rows, draws=0)
