import pytest

from dlink_plugin.ablation import _Known


def test_a_row_is_kept_for_what_it_was_made_from(tmp_path):
    path = tmp_path / "rows" / "a.json"
    assert _Known(path, {"seed": 1}).criteria is None
    _Known(path, {"seed": 1}).keep({"cider_d": 0.5})
    assert _Known(path, {"seed": 1}).criteria == {"cider_d": 0.5}
    assert _Known(path, {"seed": 2}).criteria is None


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_a_damaged_row_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="a.json is not .*; delete it"):
        _Known(tmp_path / "a.json", {})
