import subprocess
import sys

import pytest

import dlink_plugin


@pytest.mark.parametrize("name", dlink_plugin.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(dlink_plugin, name).__doc__
    assert name in dir(dlink_plugin)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = dlink_plugin.Nothing


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, dlink_plugin\n"
        "heavy = {'torch', 'numpy', 'transformers', 'speechbrain', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_bridges_import_nothing_of_ours_from_outside():
    """The arrows point one way: bridges know tensors, and no other room."""
    program = (
        "import sys, dlink_plugin.bridges\n"
        "ours = [m for m in sys.modules if m.startswith('dlink_plugin.')]\n"
        "print(sorted(m for m in ours if not m.startswith('dlink_plugin.bridges')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
