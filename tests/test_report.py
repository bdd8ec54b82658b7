import json
import math

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from dlink_plugin import report
from dlink_plugin.gap import modality_gap


@pytest.fixture
def writer(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        yield writer


def events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


# Table


def test_the_table_has_a_row_for_each_system_in_order():
    generator = torch.Generator().manual_seed(0)
    audio, text = torch.randn(2, 20, 8, generator=generator)
    gaps = {"none": modality_gap(audio, text), "ceiling": modality_gap(text, text)}
    heads, line, *rows = report.gap_table(gaps).splitlines()
    columns = [cell.strip() for cell in heads.strip("|").split("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert set(line) == set("|- ") and line.count("|") == heads.count("|")
    assert [row[0] for row in cells] == ["none", "ceiling"]
    for name, row in zip(gaps, cells, strict=True):
        shown = dict(zip(columns, row, strict=True))
        assert shown.pop("bridge") == name
        assert shown == {key: f"{gaps[name][key]:.3f}" for key in shown}
    assert {"relative_modality_gap", "centroid_distance"} <= set(columns)
    assert {"linear_separability", "topology_error"} <= set(columns)


# JSON


def test_json_is_read_back_and_nothing_else_is_left(tmp_path):
    content = {"clips": 3, "none": {"recall@1_audio_to_text": 0.1}, "é": [1, None]}
    report.write_json(tmp_path / "gap.json", content)
    assert json.loads((tmp_path / "gap.json").read_text("utf-8")) == content
    report.write_json(str(tmp_path / "gap.json"), {})
    assert json.loads((tmp_path / "gap.json").read_text("utf-8")) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["gap.json"]


@pytest.mark.parametrize("problem", ["content", "disk"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, problem):
    path = tmp_path / "gap.json"
    report.write_json(path, {"old": 1})
    content = {"new": object()} if problem == "content" else {"new": 2}

    def torn(self, text, **options):
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError("no space left")

    if problem == "disk":
        monkeypatch.setattr(type(path), "write_text", torn)
    with pytest.raises((TypeError, OSError)):
        report.write_json(path, content)
    assert json.loads(path.read_text("utf-8")) == {"old": 1}


# TensorBoard


def test_figures_are_saved_and_shown(tmp_path, writer):
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    report.save_figures(tmp_path, {"sweep": figure, "cosines": figure}, writer, 12)
    writer.flush()
    for name in ("sweep", "cosines"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        (image,) = events(tmp_path).Images(f"figures/{name}")
        assert image.step == 12 and image.width > image.height > 0


def test_embeddings_are_labeled_by_kind_and_caption(tmp_path, writer):
    captions = ["a dog\tbarks", "rain\nfalls ", "a bell rings"]
    spaces = {"audio": torch.eye(3), "text": 2 * torch.eye(3)}
    report.log_embeddings(writer, 7, captions, spaces)
    (metadata,) = tmp_path.rglob("metadata.tsv")
    rows = [line.split("\t") for line in metadata.read_text().splitlines() if line]
    said = ["a dog barks", "rain falls", "a bell rings"]
    labels = [[kind, caption] for kind in spaces for caption in said]
    assert rows == [["kind", "caption"], *labels]
    (tensors,) = tmp_path.rglob("tensors.tsv")
    values = [list(map(float, row.split())) for row in tensors.read_text().splitlines()]
    assert values == torch.cat(list(spaces.values())).tolist()
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert "embeddings" in config and metadata.parent.parent.name == "00007"


def test_only_the_first_clips_are_projected(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(report, "_PROJECTED_CLIPS", 2)
    spaces = {"audio": torch.eye(5), "text": -torch.eye(5)}
    report.log_embeddings(writer, 0, list("abcde"), spaces)
    (tensors,) = tmp_path.rglob("tensors.tsv")
    rows = [list(map(float, row.split())) for row in tensors.read_text().splitlines()]
    assert rows == [*torch.eye(5)[:2].tolist(), *(-torch.eye(5))[:2].tolist()]


def test_the_end_of_a_run_is_read_back(tmp_path, writer):
    writer.add_scalar("train/loss", 0.5, 3)
    hparams = {
        **{"seed": 1234, "lr": 0.001, "clap": "mini", "strict": False},
        **{"start_steps": [0, 50], "opt_class": torch.optim.AdamW, "nothing": None},
    }
    metrics = {"relative_modality_gap": 0.25, "paired_cosine": 0.75}
    report.log_run(writer, 90, hparams, metrics, {"result": "| a |\n|---|"})
    found = events(tmp_path)
    scalars = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    finals = {f"test/{name}" for name in metrics}
    assert set(scalars) == {"train/loss", *finals}
    for name, value in metrics.items():
        (event,) = scalars[f"test/{name}"]
        assert event.step == 90 and math.isclose(event.value, value)
    (text,) = found.Tensors("run/result/text_summary")
    assert text.step == 90 and text.tensor_proto.string_val == [b"| a |\n|---|"]
    content = found.PluginTagToContent("hparams")
    start = content["_hparams_/session_start_info"]
    assert all(name.encode() in start for name in ("seed", "lr", "clap", "strict"))
    assert not any(name in start for name in (b"start_steps", b"opt_class", b"nothing"))
    assert all(tag.encode() in content["_hparams_/experiment"] for tag in finals)


def test_the_run_stays_one_run_in_tensorboard(tmp_path, writer):
    """add_hparams opens a second writer: its events belong to this very folder."""
    report.log_run(writer, 1, {"seed": 1}, {"gap": 1.0}, {})
    folders = {path.parent for path in tmp_path.rglob("events.*")}
    assert folders == {tmp_path}


# Over seeds


def write_run(path, cosine, clips=3):
    row = {"paired_cosine": cosine, "topology_error": 0.5}
    content = {"data": "toy", "clips": clips, "captions": 9, "none": row}
    content["bridged_minus_none"] = {"paired_cosine": [0.1, 0.0, 0.2]}
    path.write_text(json.dumps(content))
    return path


def test_several_seeds_give_mean_and_standard_deviation(tmp_path):
    values = enumerate((0.1, 0.2, 0.6))
    files = [write_run(tmp_path / f"{i}.json", value) for i, value in values]
    summary = report.over_seeds(files)
    assert summary["runs"] == 3 and summary["clips"] == 3
    assert "bridged_minus_none" not in summary
    assert summary["none"]["paired_cosine"]["mean"] == pytest.approx(0.3)
    assert summary["none"]["paired_cosine"]["std"] == pytest.approx(math.sqrt(0.07))
    assert "| paired_cosine | 0.300 ± 0.265 |" in report.seeds_table(summary)


@pytest.mark.parametrize("clips", [(3,), (3, 4), ()])
def test_runs_without_a_common_mean_are_refused(tmp_path, clips):
    files = [write_run(tmp_path / f"{i}.json", 0.1, n) for i, n in enumerate(clips)]
    with pytest.raises(ValueError, match="of two or more seeds"):
        report.over_seeds(files)


# Captions


def scores(none, link):
    return {
        "data": "x",
        "clips": 3,
        "tokenizer": "plain",
        "systems": {"none": {"cider_d": none, "vocab": 9.0},
                    "link": {"cider_d": link, "vocab": 8.0}},
        "relative_gain": {"cider_d": link / none - 1},
        "recovered": {},
        "skipped": {},
    }  # fmt: skip


def test_scores_of_several_seeds_have_a_mean_and_a_deviation(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, content in zip(files, [scores(0.5, 1.0), scores(0.7, 1.4)], strict=True):
        report.write_json(file, content)
    summary = report.over_seeds(files)
    assert summary["none"]["cider_d"]["mean"] == pytest.approx(0.6)
    assert summary["link"]["cider_d"]["std"] == pytest.approx(math.sqrt(0.08))
    assert summary["relative_gain"]["cider_d"] == {"mean": 1.0, "std": 0.0}
    assert "recovered" not in summary and summary["tokenizer"] == "plain"
    heads, _, cider, vocab = report.seeds_table(summary).splitlines()
    assert heads == "| criterion | none | link | relative_gain |"
    assert cider == "| cider_d | 0.600 ± 0.141 | 1.200 ± 0.283 | 1.000 ± 0.000 |"
    assert vocab == "| vocab | 9.000 ± 0.000 | 8.000 ± 0.000 |  |"


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("[" * 100_000, "is not JSON; give the gap.json"),
        ("[]", "is not a JSON object"),
        ("{}", "is no gap.json or scores.json"),
        ('{"data": "x", "clips": 3}', "is no gap.json or scores.json"),
        ('{"data": "x", "clips": 3, "systems": []}', "is no gap.json or scores.json"),
        ('{"data": "x", "clips": 3, "none": {"a": "b"}}', "is no gap.json or scores"),
        ('{"data": "x", "clips": 3, "none": {"a": NaN}}', "is no gap.json or scores"),
        ('{"data": "x", "clips": 3, "none": {"a": [1]}}', "is no gap.json or scores"),
    ],
)
def test_a_file_that_is_no_run_is_named(tmp_path, content, sentence):
    report.write_json(tmp_path / "a.json", scores(0.5, 1.0))
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        report.over_seeds([tmp_path / "a.json", tmp_path / "b.json"])
    assert str(tmp_path / "b.json") in str(caught.value)


def test_seeds_with_other_systems_have_no_mean(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    other = scores(0.5, 1.0)
    other["systems"]["third"] = other["systems"].pop("link")
    for file, content in zip(files, [scores(0.5, 1.0), other], strict=True):
        report.write_json(file, content)
    with pytest.raises(ValueError, match="different data, clips or systems"):
        report.over_seeds(files)
    with pytest.raises(ValueError, match=f"{files[1]} and {files[0]} of different"):
        report.over_seeds(files)


def test_a_ratio_that_is_void_for_a_seed_has_no_mean(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, ratio in zip(files, [{"cider_d": 1.0}, {}], strict=True):
        report.write_json(file, {**scores(0.5, 1.0), "relative_gain": ratio})
    summary = report.over_seeds(files)
    assert "relative_gain" not in summary and "link" in summary


def test_the_command_writes_summary_table_and_figure(tmp_path, capsys, monkeypatch):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, content in zip(files, [scores(0.5, 1.0), scores(0.7, 1.4)], strict=True):
        report.write_json(file, content)
    drawn, draw = {}, report.figures.comparison
    spy = lambda rows, key: drawn.update({key: list(rows)}) or draw(rows, key)  # noqa: E731
    monkeypatch.setattr(report.figures, "comparison", spy)
    summary, figure = tmp_path / "all.json", tmp_path / "all.png"
    report.main([str(path) for path in (summary, *files, "--figure", figure)])
    written = json.loads(summary.read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.over_seeds(files)))
    assert report.seeds_table(written) in capsys.readouterr().out
    assert drawn == {"cider_d": ["none", "link"]}
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_score_that_a_system_lacks_is_an_empty_cell():
    result = {"systems": {"a": {"cider_d": 1.0}, "b": {"rouge_l": 0.5}}}
    rows = report.scores_table(result).splitlines()[2:]
    assert rows == ["| a | 1.000 |  |", "| b |  | 0.500 |"]


def test_captions_stand_beside_their_references():
    systems = {"none": ["a | b", "c"], "link": ["x\ny", "z"]}
    references = [["one", "two", "three"], ["four"]]
    lines = report.captions_table(systems, references, 5).splitlines()
    assert lines[0] == "| references | none | link |"
    assert lines[2:] == ["| one / two | a / b | x y |", "| four | c | z |"]
    assert len(report.captions_table(systems, references, 1).splitlines()) == 3


# A comparison


@pytest.fixture
def compared():
    def value(mean):
        return {"mean": mean, "std": 0.01}

    cell = {"difference": 0.1, "low": 0.05, "high": 0.15, "verdict": "better"}
    return {
        "data": "a test",
        "clips": 20,
        "seeds": [1, 2],
        "folds": 1,
        "bridges": {
            "none": {"paired_cosine": value(0.5), "saw": "nothing", "seconds": 0.0},
            "mlp": {"paired_cosine": value(0.9), "cider_d": value(1.0), "saw": "pairs",
                    "seconds": 12.3},
            "ridge": {"saw": "pairs", "error": "ValueError: a|b"},
        },
        "diffusion_link_against": {"diffgap": {"paired_cosine": cell}},
    }  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_comparison_says_why_a_bridge_has_no_figures(compared):
    heads, _, *rows = report.comparison_table(compared["bridges"]).splitlines()
    assert cells(heads) == ["bridge", "saw", "paired cosine", "cider d", "seconds"]
    assert cells(rows[0]) == ["`none`", "nothing", "0.500 ± 0.010", "", "0"]
    expected = ["`mlp`", "pairs", "0.900 ± 0.010", "1.000 ± 0.010", "12"]
    assert cells(rows[1]) == expected
    assert cells(rows[2])[:3] == ["`ridge`", "pairs", "failed: ValueError: a/b"]
    assert len(cells(rows[2])) == len(cells(heads))


def test_rivals_are_shown_with_their_intervals(compared):
    table = report.rivals_table(compared["diffusion_link_against"])
    assert "| `diffgap` | better: +0.100 [+0.050, +0.150] |" in table
    assert report.rivals_table({}) == ""


def test_a_comparison_is_written_and_shown(compared, tmp_path, capsys):
    audio, text = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0))
    report.write_comparison(tmp_path, audio, text, {"none": audio}, compared)
    assert json.loads((tmp_path / "compare.json").read_text()) == compared
    page = (tmp_path / "compare.md").read_text()
    assert page.startswith("a test: 20 clips, 2 seed(s), 1 fold(s)\n\n| bridge |")
    assert page.strip() in capsys.readouterr().out
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert pictures == {"paired_cosine.png", "cider_d.png", "migration.png"}
    tags = events(tmp_path / "tensorboard" / "mlp").Tags()["scalars"]
    assert set(tags) == {"test/paired_cosine", "test/cider_d"}
