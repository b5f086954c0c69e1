"""A sweep's file with a mistake in it: one line that says what and where, before anything runs."""

import re

import pytest

from dualstudent.cli import main
from sweep_fixture import Write


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [0, 1]", "seed = [0, 1]", "unknown key 'seed': did you mean 'seeds'"),
        ("seeds = [0, 1]", 'seeds = ["a"]', "no whole number"),
        ("seeds = [0, 1]", "seeds = 3", "seeds: a list is needed"),
        ('"0.06k"', '"many"', "no number of queries"),
        ('"soft", "hard"', '"sotf"', "did you mean 'soft'"),
        ("batch = 8, width = 4, noise", "bach = 8, width = 4, noise", "did you mean 'batch'"),
        ("batch = 8, width = 4, noise", 'batch = "8", width = 4, noise', "a int is wanted"),
        ("batch = 8, width = 4, noise", "batch = 1, width = 4, noise", "must be at least 2"),
        ('preset = "small"', 'preset = "smal"', "did you mean 'small'"),
        ('method = "dual-student"\npreset', 'method = "dual"\npreset', "unknown method 'dual'"),
        ('name = "one seed"', 'name = "one seed"\ntargets = ["digit"]', "did you mean 'digits'"),
        ('name = "one seed"', 'name = "narrow"\ntargets = ["digits"]\nextra = 1', "unknown key of a method"),
        ('seeds = [5]\nlabels = ["soft"]\nbudgets = [40]', "seeds = [0, 0]", "is there twice"),
        ("[[targets]]", "[[target]]", "unknown key 'target'"),
        ("points = 2", "points = 'x'", "a int is wanted"),
        ("points = 2", "precision = 'fp8'", "unknown precision 'fp8'"),
        ('path = "', 'options = { spce = "normalised" }\npath = "', "did you mean 'space'"),
        (
            'path = "',
            'training = { epoch = 3 }\ndata = "digits"\narch = "digits-cnn"\n#',
            "did you mean 'epochs'",
        ),
        ('name = "one seed"', 'name = "one seed"\nstart = "narow"', "start = 'narow': no run of that method"),
        (
            'name = "one seed"',
            'name = "one seed"\nstart = "narrow"',
            "no run of that method on digits, soft, seed 5",
        ),
        ("seeds = [5]", 'seeds = [1]\nstart = "narrow"', "2 runs (budgets) of that method"),
        ("points = 2", "points = 0", "points = 0: a whole number of at least 1"),
        ("points = 2", "threads = true", "threads = True: a whole number"),
        ('name = "one seed"', 'name = "one seed"\ntargets = 5', "targets: a list is needed"),
        ('name = "one seed"', 'name = "one seed"\ntargets = []', "targets: a list is needed"),
        ('name = "one seed"', 'name = "one seed"\ntargets = [["digits"]]', "unknown target"),
        ('name = "one seed"', 'name = "../one seed"', "no slashes"),
        ('path = "', 'seed = 3\npath = "', "a path, or seed with which it is trained: not both"),
        ('path = "', 'options = { space = "weird" }\npath = "', "option space = 'weird'"),
        ('path = "', 'options = { classes = "unknwn" }\npath = "', "option classes = 'unknwn'"),
        ("drops = [0.5]", 'drops = ["a"]', "option drops = ['a']"),
        ('path = "', 'epochs = "x"\ndata = "digits"\narch = "digits-cnn"\n#', "option epochs = 'x'"),
        ('path = "', 'split = "tset"\npath = "', "did you mean 'test'"),
        ('path = "', 'data = "digits"\narch = "digits-cn"\n#', "did you mean 'digits-cnn'"),
        ('path = "', 'target = "onnx:m.onnx"\npath = "', "leave path out"),
        ('path = "', 'target = "model"\n#', "(a folder: path = …)"),
        ('path = "', 'target = "onx:m.onnx"\ndata = "digits"\n#', "did you mean 'onnx'"),
        ('path = "', 'target = "http+json://x/y"\ndata = "digits"\n#', "unknown kind of target"),
        ('path = "', 'target = "torch:a:b"\n#', "data is missing"),
        ("[[targets]]", '[[targets]]\nname = "digits"\npath = "x"\n[[targets]]', "digits is there twice"),
        ("points = 2", "points = ", "is no TOML"),
    ],
)
def test_mistakes_are_one_line(
    old: str, new: str, said: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(**{old: new})
    assert main(["sweep", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert "spec.toml" in line


def test_missing_file_and_missing_target(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "nowhere.toml"]) == 2
    path = write()
    path.write_text(re.sub(r'path = ".*"', 'path = "nothing"', path.read_text()))
    assert main(["sweep", str(path)]) == 2
    assert "nothing" in capsys.readouterr().err
    path.write_text(path.read_text().replace('path = "nothing"', 'target = "onnx:no.onnx"\ndata = "digits"'))
    assert main(["sweep", str(path)]) == 2
    assert "no.onnx (a relative FILE is looked for beside the sweep's file)" in capsys.readouterr().err
    path.write_text(re.sub("onnx:no.onnx.*\ndata = .*", 'torch:a:b"\ndata = "digts"', path.read_text()))
    assert main(["sweep", str(path)]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert not (path.parent / "out" / "runs").exists(), "nothing was begun"
    assert main(["sweep", str(path), "--jobs", "0"]) == 2
