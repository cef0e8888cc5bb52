"""Every wrong input of `corpus/` ends within seconds in one sentence that names what is wrong."""

from __future__ import annotations

import signal

import pytest
from corpus import Case, Said, all_cases

SECONDS, LONGEST = 60, 400  # a case may take; a sentence may have, in characters without the folder's own name
CASES = all_cases()


@pytest.fixture
def time_limit():
    """A test that hangs is ended."""

    def end(*_):
        pytest.fail(f"took more than {SECONDS} seconds")  # no OSError, which could pass for a message

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.slow
@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{module}: {case.name}") for module, case in CASES])
def test_a_wrong_input_is_named_in_one_sentence(case: Case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if case.says is None:
        case.run(tmp_path)
        return
    try:
        said = case.run(tmp_path)
    except (ValueError, OSError) as error:  # CheckpointError is a ValueError
        sentence = str(error)
    else:
        assert isinstance(said, Said), f"taken silently: {said!r}"
        assert said.code == 2, said.stderr
        assert said.stderr.endswith("\n")
        sentence = said.stderr[:-1]
    assert case.says in sentence
    assert case.names in sentence
    assert "\n" not in sentence
    assert len(sentence.replace(str(tmp_path), "")) <= LONGEST


def test_no_two_cases_have_one_name():
    names = [(module, case.name) for module, case in CASES]
    assert len({*names}) == len(names)
