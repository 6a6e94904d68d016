"""The runner of a page's examples executes them in order and reports every other output."""

import pytest

from tests.support import examples

PAGE = """
```python
# three.py: prints
print(1 + 1)
x = 0.333331
print(x)
```
```diff
--- three.py
-print(1 + 1)
+print(1 + 2)
+print("three")
-print(x)
+raise SystemExit(x > 0)
```
```console
$ python three.py
3
three
$ echo $?
1
```
```console
$ echo "0.333332 in 1.23s"
0.333331
```
"""


def test_the_examples_of_a_page_run_in_order(tmp_path):
    assert list(examples.differences(PAGE, examples.executed(PAGE, tmp_path))) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("three\n$", "four\n$", "python three.py: 'four' is now 'three'"),
        ("$?\n1", "$?\n0", "python three.py: 0 is now 1"),
        ("0.333331\n`", "0.3434\n`", 'echo "0.333332 in 1.23s": 0.3434 is now 0.333332'),
        ("1 + 2", "1 + 3", "python three.py: 3 is now 4"),
        ("> 0)", "> 1)", "python three.py: 1 is now 0"),
    ],
)
def test_another_output_is_detected(tmp_path, old, new, found):
    page = PAGE.replace(old, new)
    assert page != PAGE
    assert list(examples.differences(page, examples.executed(page, tmp_path))) == [found]


def test_a_diff_that_does_not_fit_is_detected(tmp_path):
    with pytest.raises(AssertionError, match=r"three\.py does not contain this once:\nprint\(2\)"):
        examples.executed(PAGE.replace("-print(x)", "-print(2)"), tmp_path)


PARTS = """
```console
$ export WORD=five
$ seq 9; echo $WORD
1
2
...
5
...
five
$ cat none
```
"""


def executed(page, folder):
    return examples.executed(page, folder, not_run=["^cat "])


def test_parts_of_an_output_are_shown_and_settings_are_kept(tmp_path):
    assert executed(PARTS, tmp_path) == PARTS
    assert examples.abridged(["a", "b"], ["a", "..."]) == ["a", "..."]
    assert examples.abridged(["a", "b"], ["c", "..."]) == ["a", "..."]
    assert examples.abridged(["a", "b"], ["...", "c"]) == ["...", "b"]
    assert examples.abridged(["a", "b"], []) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("2\n...", "3\n...", "3 is now 2"),
        ("\n5\n", "\n12\n", "12 is now 3"),
        ("five\n$ cat", "six\n$ cat", "'six' is now 'five'"),
        ("WORD=five", "WORD=six", "'five' is now 'six'"),
    ],
)
def test_another_part_is_detected(tmp_path, old, new, found):
    page = PARTS.replace(old, new)
    assert page != PARTS
    ((_, difference),) = (
        line.split(": ") for line in examples.differences(page, executed(page, tmp_path))
    )
    assert difference == found


def test_a_command_that_fails_is_detected(tmp_path):
    (found,) = examples.differences(PARTS, examples.executed(PARTS, tmp_path))
    assert found == "export WORD=five: '(nothing)' is now 'exit'"
