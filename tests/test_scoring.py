import csv
import importlib.util
import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch

from dlink_plugin import scoring
from dlink_plugin.scoring import (
    Scores,
    cider_d,
    clean,
    compare,
    plain_tokens,
    score,
    write_predictions,
)

ALWAYS = [
    *("cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4"),
    *("rouge_l", "vocab", "vocab_ratio"),
]
SAID = ["a man is speaking", "birds chirp while rain falls", "a dog barks twice"]
HEARD = [
    ["a man speaks", "someone is speaking", "a man is talking loudly"],
    ["birds are singing in the rain", "rain falls and birds chirp", "birds chirp"],
    ["a dog barks", "a dog is barking two times", "an animal barks"],
]


# Texts


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a [loud] dog", "a loud dog"),
        ("{a} (dog) [", "a dog"),
        (" a\tdog\n\n barks\r\n", "a dog barks"),
        ("a\x00dog\u2028barks\ud800", "a dog barks"),
        ("a\u00a0dog", "a dog"),
        ("Möwen, “schreien”!", "Möwen, “schreien”!"),
        ("([{}]) \n", ""),
        ("", ""),
    ],
)
def test_clean(caption, cleaned):
    assert clean(caption) == cleaned
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [  # all but the last are what the PTB tokenizer finds
        ("A man's dog, the dogs' bark.", "a man 's dog the dogs bark"),
        ("It isn't; I can't!", "it is n't i ca n't"),
        ("they're we've he'll I'm he'd", "they 're we 've he 'll i 'm he 'd"),
        ("five o'clock", "five o'clock"),
        ("a well-known tick-tock - yes -- no", "a well-known tick-tock yes no"),
        ("2.5 minutes, 10,000 at 3:30.", "2.5 minutes 10,000 at 3:30"),
        ("“loud” 'voice' ‘low’ it’s \"x\"", "loud voice low it 's x"),
        ("vroom...vroom; zoom: hiss", "vroom vroom zoom hiss"),
        ("Éclair Ünder", "éclair ünder"),
        ("... - ' \"", ""),
        ("steam/hiss & a*b", "steam hiss a b"),
    ],
)
def test_plain_tokens(caption, tokens):
    assert plain_tokens(caption) == tokens
    assert plain_tokens(tokens) == tokens


# Known scores


def test_scores_of_three_captions_known_from_another_implementation():
    found = score(SAID, HEARD, tokenizer="plain", metrics=ALWAYS)
    assert found.corpus == {
        "cider_d": pytest.approx(2.524995, abs=1e-6),
        "bleu_1": pytest.approx(0.846154, abs=1e-6),
        "bleu_2": pytest.approx(0.769615, abs=1e-6),
        "bleu_3": pytest.approx(0.553129, abs=1e-6),
        "bleu_4": pytest.approx(8.1e-5, abs=1e-6),
        "rouge_l": pytest.approx(0.732523, abs=1e-6),
        "vocab": 12.0,
        "vocab_ratio": 12 / 24,
    }
    assert found.skipped == {}
    assert found.tokenizer == "plain: lower case, punctuation removed"
    assert set(found.clips) == set(ALWAYS) - {"vocab", "vocab_ratio"}
    for name in ("cider_d", "rouge_l"):
        assert math.fsum(found.clips[name]) / 3 == pytest.approx(found.corpus[name])
    assert all(type(value) is float for value in found.corpus.values())


def test_every_part_is_what_aac_metrics_says():
    from aac_metrics.functional import bleu_1, bleu_2, bleu_3, vocab

    found = score(SAID, HEARD, tokenizer="none", metrics=ALWAYS)
    for name, metric in (("bleu_1", bleu_1), ("bleu_2", bleu_2), ("bleu_3", bleu_3)):
        corpus, clips = metric(SAID, HEARD)
        assert found.corpus[name] == corpus[name].item()
        assert found.clips[name] == clips[name].tolist()
    words, _ = vocab(SAID, HEARD)
    assert found.corpus["vocab"] == words["vocab.cands"].item()
    assert found.corpus["vocab_ratio"] == words["vocab.ratio_full"].item()


@pytest.fixture
def published(reference_folder):
    file = reference_folder / "conette_audiocaps_test.json"
    return json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("tokenizer", ["none", "plain"])
def test_a_published_system_gets_its_published_scores(published, tokenizer):
    texts = published["candidates"], published["references"]
    found = score(*texts, tokenizer=tokenizer, metrics=ALWAYS)
    for name in set(ALWAYS) - {"vocab", "vocab_ratio"}:
        expected = published["corpus_scores"][name]
        assert found.corpus[name] == pytest.approx(expected, abs=1e-4), name
    if tokenizer == "none":  # its "woman's" is one word, for PTB and us it is two
        expected = published["cider_d_per_clip"]
        assert found.clips["cider_d"] == pytest.approx(expected, abs=1e-6)


def test_the_right_captions_beat_shuffled_ones(published):
    references = published["references"][:200]
    perfect = [refs[0] for refs in references]
    shuffled = random.Random(0).sample(perfect, len(perfect))
    high = score(perfect, references, tokenizer="plain", metrics=ALWAYS).corpus
    low = score(shuffled, references, tokenizer="plain", metrics=ALWAYS).corpus
    for name in ("cider_d", "bleu_1", "bleu_4", "rouge_l"):
        assert high[name] > 2 * low[name]
    assert high["vocab"] == low["vocab"]


# With the real jars


@pytest.fixture
def jars():
    for file in ("stanford_nlp/stanford-corenlp-3.4.1.jar", "meteor/meteor-1.5.jar"):
        try:
            scoring._folder_with(file)
        except scoring._Unavailable as error:
            pytest.skip(str(error))


def test_a_published_system_gets_its_published_meteor(published, jars):
    texts = published["candidates"], published["references"]
    found = score(*texts, tokenizer="none", metrics=["meteor"])
    expected = published["corpus_scores"]["meteor"]
    assert found.corpus["meteor"] == pytest.approx(expected, abs=1e-3)


def test_an_empty_caption_has_no_meteor_and_moves_no_other(jars):
    found = score(["", *SAID], [["rain"], *HEARD], metrics=["meteor"])
    expected = [0, 0.8242, 0.4310, 0.4870]
    assert found.clips["meteor"] == pytest.approx(expected, abs=1e-4)


def test_ptb_tokens_are_those_of_aac_metrics(jars):
    from aac_metrics import evaluate

    bark = "A dog's bark isn't loud."
    said = [bark, "Rain; wind - hail!", bark]
    heard = [["a dog's bark", "It isn't loud"], ["Hail, rain"], ["A well-known dog"]]
    found = score(said, heard, metrics=ALWAYS)
    assert found.tokenizer == "PTB (Stanford CoreNLP, Java)"
    folder = scoring._folder_with("stanford_nlp/stanford-corenlp-3.4.1.jar")
    corpus, _ = evaluate(said, heard, metrics=["cider_d", "bleu_1"], cache_path=folder)
    for name, value in corpus.items():
        assert found.corpus[name] == pytest.approx(value.item(), abs=1e-9)


def test_plain_tokens_are_nearly_always_those_of_ptb(reference_folder, jars):
    table = reference_folder / "audiocaps_captions" / "test.csv"
    with open(table, newline="", encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    ptb, _ = scoring._tokenize(captions, "ptb")
    other = [text for text, tokens in ptb.items() if tokens != plain_tokens(text)]
    assert len(ptb) > 4000
    assert len(other) <= len(ptb) / 1000, other


# What is not there


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with neither jars nor models; its cache folder."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "pycocoevalcap" else find(name, *rest),
    )
    monkeypatch.setenv("AAC_METRICS_CACHE_PATH", str(tmp_path))
    monkeypatch.setenv("FENSE_DATA", str(tmp_path / "fense"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("AAC_METRICS_JAVA_PATH", raising=False)
    return tmp_path


FAKE_JAVA = """#!{python}
import json, os, sys, time
mode, words = os.environ["FAKE_JAVA"], sys.argv[1:]
if words == ["-version"]:
    print('openjdk version "17.0.15" 2025-04-15', file=sys.stderr)
elif mode == "hangs":
    time.sleep(60)
elif mode == "fails":
    sys.exit(1)
elif "edu.stanford.nlp.process.PTBTokenizer" in words:
    print(open(words[-1]).read().lower().replace(".", " ."), end="")
elif "-out" in words:
    clips = len(json.load(open(words[3])))
    score = float("nan") if mode == "nan" else 0.5
    out = [{{"image_id": i, "scores": {{"All": {{"f": score}}}}}} for i in range(clips)]
    json.dump(out, open(words[words.index("-out") + 1], "w"))
"""


@pytest.fixture
def fake_java(bare, monkeypatch):
    """fake_java(mode): PTB and SPICE work, or whatever is asked of Java fails."""
    from aac_metrics.functional.spice import check_spice_install

    java = bare / "bin" / "java"
    java.parent.mkdir()
    java.write_text(FAKE_JAVA.format(python=sys.executable))
    java.chmod(0o755)
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", str(java))
    spice = sys.modules[check_spice_install.__module__]
    monkeypatch.setattr(spice, "check_spice_install", lambda path: None)
    for name in (
        *("stanford_nlp/stanford-corenlp-3.4.1.jar", "meteor/meteor-1.5.jar"),
        *("meteor/data/paraphrase-en.gz", "spice/spice-1.0.jar"),
        "spice/lib/stanford-corenlp-3.6.0-models.jar",
    ):
        file = bare / "aac-metrics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return lambda mode: monkeypatch.setenv("FAKE_JAVA", mode)


def test_without_java_the_rest_is_scored(bare, monkeypatch):
    monkeypatch.setenv("PATH", str(bare))
    found = score(SAID, HEARD)
    assert list(found.corpus) == ALWAYS
    assert found.tokenizer.startswith("plain")
    for name in ("meteor", "spice", "spider"):
        assert "Java is not there; install it" in found.skipped[name]
    with pytest.raises(RuntimeError, match="No PTB tokenization: Java is not there"):
        score(SAID, HEARD, tokenizer="ptb")


def test_without_jars_and_models_it_is_said_how_to_get_them(bare, monkeypatch):
    monkeypatch.setenv("AAC_METRICS_JAVA_PATH", sys.executable)
    found = score(SAID, HEARD)
    assert list(found.corpus) == ALWAYS
    assert found.tokenizer.startswith("plain")
    assert "meteor-1.5.jar is not there; run: pip" in found.skipped["meteor"]
    for name in ("spice", "spider", "fense", "fer", "sbert_sim"):
        assert "download_metrics" in found.skipped[name]
    assert "paraphrase-TinyBERT" in found.skipped["sbert_sim"]


def test_jars_of_pycocoevalcap_are_laid_out(bare, monkeypatch):
    package = bare / "pycocoevalcap"
    for name in ("meteor/data", "meteor/meteor-1.5.jar", "tokenizer/nlp.jar"):
        (package / name).mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "meteor/data/paraphrase-en.gz").write_text("words")
    found = scoring._linked(str(package))
    home = Path(found.name, "aac-metrics")
    assert (home / "meteor/data/paraphrase-en.gz").read_text() == "words"
    assert (home / "stanford_nlp/nlp.jar").exists()
    scoring._linked.cache_clear()
    monkeypatch.setattr("pathlib.Path.symlink_to", raise_os_error)
    found = scoring._linked(str(package))
    copy = Path(found.name, "aac-metrics/meteor/data/paraphrase-en.gz")
    assert copy.read_text() == "words" and not copy.parents[1].is_symlink()
    scoring._linked.cache_clear()


def raise_os_error(*args, **options):
    raise OSError("not allowed")


def test_spice_and_ptb_are_read_from_java(fake_java):
    fake_java("works")
    found = score(["A man.", "Rain."], [["a man"], ["rain falls"]])
    assert found.tokenizer.startswith("PTB")
    assert found.corpus["spice"] == 0.5 and found.clips["spice"] == [0.5, 0.5]
    assert found.corpus["cider_d"] > 1  # the words were found, not their full stops
    assert found.corpus["spider"] == (found.corpus["cider_d"] + 0.5) / 2


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("fails", "CalledProcessError"), ("nan", "nan"), ("hangs", "within 1 seconds")],
)
def test_a_metric_that_fails_costs_no_other(fake_java, monkeypatch, mode, reason):
    fake_java(mode)
    monkeypatch.setattr(scoring, "_SPICE_SECONDS", 1)
    metrics = ["rouge_l", "spice", "spider"]
    found = score(SAID, HEARD, tokenizer="plain", metrics=metrics)
    assert list(found.corpus) == ["rouge_l"] and found.corpus["rouge_l"] > 0.7
    assert reason in found.skipped["spice"] and reason in found.skipped["spider"]


def test_a_java_that_fails_leaves_plain_tokens(fake_java):
    fake_java("fails")
    found = score(SAID, HEARD, metrics=[*ALWAYS, "meteor"])
    assert found.tokenizer.startswith("plain")
    assert list(found.corpus) == ALWAYS and "Error" in found.skipped["meteor"]
    with pytest.raises(RuntimeError, match="No PTB tokenization: "):
        score(SAID, HEARD, tokenizer="ptb")


@pytest.fixture
def tiny_models(bare):
    """FENSE's models, tiny and random, where downloads would be."""
    from aac_metrics.functional.fer import BERTFlatClassifier
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = {word for refs in HEARD for ref in refs for word in ref.split()}
    vocabulary = bare / "vocab.txt"
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary.write_text("\n".join((*special, *sorted(words))))
    bert = bare / "bert"
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    BertModel(BertConfig(99, 8, **sizes)).save_pretrained(bert)
    BertTokenizerFast(str(vocabulary)).save_pretrained(bert)

    def snapshot(repo):
        folder = bare / "hub" / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots").mkdir()
        return folder / "snapshots" / "abc"

    sentences = snapshot("sentence-transformers/paraphrase-TinyBERT-L6-v2")
    SentenceTransformer(str(bert)).save(str(sentences))
    encoder = bert.rename(snapshot("small/bert"))
    classifier = BERTFlatClassifier(str(encoder), 6)
    classifier.clf.bias.data[5] = 100.0  # every caption has an error
    states = classifier.state_dict()
    states["encoder.embeddings.position_ids"] = torch.ones(1)  # as older releases save
    checkpoint = {"model_type": "small/bert", "num_classes": 6, "state_dict": states}
    (bare / "fense").mkdir()
    torch.save(checkpoint, bare / "fense/echecker_clotho_audiocaps_base.ckpt")


@pytest.fixture
def calls(monkeypatch):
    """Attempts to reach the hub; the libraries do not know that they are offline."""
    attempts = []

    def refuse(*args, **options):
        attempts.append(args)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", False)
    monkeypatch.setattr("requests.Session.send", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    return attempts


FENSE = ["fense", "fer", "sbert_sim"]


def test_fense_needs_its_models_and_no_hub(tiny_models, calls):
    found = score(SAID, HEARD, tokenizer="plain", metrics=FENSE)
    assert found.skipped == {}
    assert found.corpus["fer"] == 1.0
    expected = [0.1 * value for value in found.clips["sbert_sim"]]
    assert found.clips["fense"] == pytest.approx(expected)
    assert calls == []


def test_sbert_sim_does_not_need_the_fluency_model(tiny_models, calls, bare):
    (bare / "fense/echecker_clotho_audiocaps_base.ckpt").unlink()
    found = score(SAID, HEARD, tokenizer="plain", metrics=FENSE)
    assert list(found.corpus) == ["sbert_sim"]
    assert found.skipped.keys() == {"fense", "fer"}
    assert calls == []


# Edge cases


def test_one_clip_has_no_cider_but_the_rest():
    found = score(SAID[:1], HEARD[:1], tokenizer="plain", metrics=ALWAYS)
    assert list(found.corpus) == ALWAYS[1:]
    assert "single clip is undefined; score two" in found.skipped["cider_d"]
    with pytest.raises(ValueError, match="single clip is undefined; score two"):
        cider_d(SAID[:1], HEARD[:1])


@pytest.mark.parametrize("said", [["x", "y", "z"], ["", "[]", " \n"]])
def test_no_word_in_common_is_a_score_of_zero(said):
    found = score(said, HEARD, tokenizer="plain", metrics=ALWAYS)
    assert found.skipped == {}
    for name in ("cider_d", "bleu_1", "rouge_l"):
        assert found.corpus[name] == pytest.approx(0, abs=1e-6)
    assert found.corpus["vocab"] == len("".join(map(clean, said)))


def test_references_without_a_word_do_not_count():
    heard = [[*HEARD[0], "..."], [" ", *HEARD[1]], HEARD[2]]
    found = score(SAID, heard, tokenizer="plain", metrics=ALWAYS)
    assert found == score(SAID, HEARD, tokenizer="plain", metrics=ALWAYS)


def test_brackets_change_no_score():
    said = [f"[{caption}]" for caption in SAID]
    heard = [[ref.replace("a ", "(a) ") for ref in refs] for refs in HEARD]
    for tokenizer in ("none", "plain"):
        options = {"tokenizer": tokenizer, "metrics": ALWAYS}
        assert score(said, heard, **options) == score(SAID, HEARD, **options)


@pytest.mark.parametrize(
    ("said", "heard", "message"),
    [
        ([], [], "0 captions do not fit 0 clips"),
        (SAID[:2], HEARD, "2 captions do not fit 3 clips"),
        (SAID, [HEARD[0], [], HEARD[2]], "Clip 1 has no reference"),
        (SAID, [*HEARD[:2], ["...", "()"]], "Clip 2 has no reference"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, said, heard, message):
    with pytest.raises(ValueError, match=message):
        score(said, heard)
    with pytest.raises(ValueError, match=message):
        cider_d(said, heard)
    with pytest.raises(ValueError, match=message):
        compare({"none": said}, heard, bridge="ridge")
    with pytest.raises(ValueError, match=message):
        write_predictions(tmp_path / "x.csv", ["a"] * len(said), said, heard)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tokenizer": "bert"}, "No tokenizer 'bert'; choose one of auto, plain"),
        ({"metrics": ["rouge"]}, r"No metric \['rouge'\]; choose of cider_d, bleu_1"),
    ],
)
def test_unknown_names_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        score(SAID, HEARD, **option)


# Comparison


@pytest.fixture
def made_up(monkeypatch):
    """made_up(a={...}, b={...}): compare sees these scores."""

    def compared(systems, **options):
        given = iter(systems.values())
        monkeypatch.setattr(
            scoring, "_score", lambda *args: Scores(next(given), {}, {}, "plain")
        )
        captions = dict.fromkeys(systems, SAID)
        return compare(captions, HEARD, tokenizer="plain", **options)

    return compared


NONE = {"cider_d": 0.4, "bleu_1": 0.0, "rouge_l": 0.5, "vocab": 10.0, "fer": 0.5}
RIDGE = {"cider_d": 0.5, "bleu_1": 0.1, "vocab": 30.0, "fer": 0.2}
CEILING = {"cider_d": 0.8, "bleu_1": 0.4, "rouge_l": 0.9, "vocab": 50.0, "fer": 0.1}


def test_gain_and_recovered_share(made_up):
    systems = {"none": NONE, "ridge": RIDGE, "ceiling": CEILING}
    result = made_up(systems, bridge="ridge")
    assert result["systems"] == systems
    assert result["relative_gain"] == {"cider_d": pytest.approx(0.25)}
    assert result["recovered"] == pytest.approx({"cider_d": 0.25, "bleu_1": 0.25})
    assert "void" not in result


@pytest.mark.parametrize("ceiling", [None, NONE, {**NONE, "cider_d": 0.1}])
def test_nothing_is_recovered_without_a_higher_ceiling(made_up, ceiling):
    systems = {"none": NONE, "ridge": RIDGE} | ({"top": ceiling} if ceiling else {})
    result = made_up(systems, bridge="ridge", ceiling="top")
    assert result["recovered"] == {}
    assert result["relative_gain"] == {"cider_d": pytest.approx(0.25)}


def test_there_is_no_ratio_without_a_bridge(made_up):
    for systems, name in (({"none": NONE}, "ridge"), ({"none": NONE}, "none")):
        result = made_up(systems, bridge=name)
        assert result["relative_gain"] == result["recovered"] == {}
        assert "void" not in result


@pytest.mark.parametrize(
    ("raw", "void"), [(0.1999, "is 0.200"), (0.2, ""), (None, "is undefined")]
)
def test_a_gain_over_next_to_nothing_is_void(made_up, raw, void):
    none = {"rouge_l": 0.5} | ({} if raw is None else {"cider_d": raw})
    ridge = {"cider_d": 0.6, "rouge_l": 0.6}
    result = made_up({"raw": none, "ridge": ridge}, bridge="ridge", base="raw")
    if void:
        assert result["relative_gain"] == {}
        assert void in result["void"] and "'raw'" in result["void"]
    else:
        gain = {"rouge_l": 0.2, "cider_d": 2.0}
        assert result["relative_gain"] == pytest.approx(gain)
        assert "void" not in result


def test_a_comparison_is_plain_json_with_the_scores_of_each(bare):
    systems = {
        "none": ["a man", "rain falls", ""],
        "ridge": ["a (man) is speaking", "birds chirp", "a dog barks"],
        "ceiling": ("a man speaks", "birds chirp", "[]"),
    }
    references = tuple(map(tuple, HEARD))
    result = compare(systems, references, bridge="ridge", tokenizer="plain")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["clips"] == 3
    assert result["empty_captions"] == {"none": 1, "ridge": 0, "ceiling": 1}
    assert result["tokenizer"].startswith("plain")
    assert {"meteor", "spice", "fense"} <= result["skipped"].keys()
    for name, said in systems.items():
        alone = score(said, HEARD, tokenizer="plain", metrics=ALWAYS)
        assert result["systems"][name] == alone.corpus
    none, ridge, top = (result["systems"][name]["cider_d"] for name in systems)
    assert result["relative_gain"]["cider_d"] == pytest.approx(ridge / none - 1)
    assert result["recovered"]["cider_d"] == pytest.approx(
        (ridge - none) / (top - none)
    )
    assert not {"vocab", "vocab_ratio"} & result["relative_gain"].keys()


# Predictions


def read(path, width):
    from aac_metrics.eval import load_csv_file

    columns = [f"caption_{i}" for i in range(1, width + 1)]
    return load_csv_file(path, mrefs_columns=columns)


def test_predictions_are_read_back_by_aac_metrics(tmp_path):
    said = ['a "loud", low dog', "[print(1)]", "rain,\nwind 'n' hail", ""]
    heard = [
        ["a [b", "c] d", "['x', 'y']"],
        ["one", "two", "three"],
        ['"quoted"', "comma, comma", "line\r\nbreak"],
        ["Möwe", "x", "y"],
    ]
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    write_predictions(path, ["a,1.wav", "b.wav", "ü.wav", "d.wav"], said, heard)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]
    predictions, references = read(path, 3)
    assert predictions == [*('a "loud", low dog', "print1"), "rain, wind 'n' hail", ""]
    assert references == [[clean(ref) for ref in refs] for refs in heard]
    with open(path, newline="", encoding="utf-8") as file:
        names = [row["fname"] for row in csv.DictReader(file)]
    assert names == ["a,1.wav", "b.wav", "ü.wav", "d.wav"]


def test_predictions_score_as_what_was_written(tmp_path):
    said = ["A [man] is speaking.", "birds\nchirp", "a (dog) barks, twice"]
    write_predictions(str(tmp_path / "x.csv"), ["a", "b", "c"], said, HEARD)
    assert cider_d(*read(tmp_path / "x.csv", 3)) == cider_d(said, HEARD)


def test_clips_with_fewer_references_have_them_over_again(tmp_path):
    heard = [["a", "b", "c", "d", "e"], ["f", "...", "g"], ("h",)]
    write_predictions(tmp_path / "x.csv", ["1", "2", "3"], SAID, heard)
    _, references = read(tmp_path / "x.csv", 5)
    assert references == [list("abcde"), list("fgfgf"), list("hhhhh")]


def test_predictions_hold_no_formula(tmp_path):
    hostile = ["=cmd|' /C calc'!A0", "@SUM(A1)", "- a dog barks"]
    names = ["=1.wav", "-0dX_9_30.flac", "-1+1.wav"]
    write_predictions(tmp_path / "x.csv", names, hostile, [[h] for h in hostile])
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == ["'=1.wav", "-0dX_9_30.flac", "'-1+1.wav"]
    for row, text in zip(rows, hostile, strict=True):
        assert row[1:] == [f"'{clean(text)}"] * 2
        assert plain_tokens(row[1]) == plain_tokens(text)
    predictions, references = read(tmp_path / "x.csv", 1)
    assert cider_d(predictions, references) == cider_d(hostile, [[h] for h in hostile])


def test_predictions_need_a_name_for_each(tmp_path):
    with pytest.raises(ValueError, match="2 names do not fit 3 predictions"):
        write_predictions(tmp_path / "x.csv", ["a", "b"], SAID, HEARD)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_predictions(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_predictions(path, ["a", "b", "\ud800"], SAID, HEARD)
    assert path.read_text() == "old"


def test_subsets_are_means_over_their_clips_of_the_whole_score():
    written = ["a dog barks", "rain falls", "a man speaks", "birds sing"]
    references = [["a dog barks"], ["it rains"], ["a man speaks"], ["a bird"]]
    rows = {"odd": [1, 3], "none": []}
    result = compare(
        {"none": written}, references, bridge="none", metrics=["cider_d", "bleu_1"],
        subsets=rows,
    )  # fmt: skip
    whole = score(written, references, tokenizer="plain", metrics=["cider_d"])
    expected = (whole.clips["cider_d"][1] + whole.clips["cider_d"][3]) / 2
    scores = result["systems"]["none"]
    assert scores["cider_d_odd"] == pytest.approx(expected)
    assert set(scores) == {"cider_d", "bleu_1", "cider_d_odd"}
    assert result["clips_of"] == {"odd": 2}
