"""The report of two programs: text of bounded length, and JSON of a documented schema."""

import json
import re
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from obscura_jax.parity.findings import Mend, Report, Verdict
from obscura_jax.parity.operation_rows import rows_of
from obscura_jax.parity.report import SCHEMA, as_json, as_list, as_text, verdict_line
from obscura_jax.parity.trace import Source
from tests.support.program_reports import (
    CONSTANT,
    CONSTANTS,
    DIFFERENT,
    EPSILON,
    EQUAL,
    GATE,
    OPERATIONS,
    PAIRS,
    REFUSED,
    SIDES,
    moved,
)


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (EQUAL, "equal"),
        (CONSTANTS, "equal, with float32 constants at audio_jax.py:67"),
        (
            replace(CONSTANTS, findings=(CONSTANT, replace(GATE, kind="constant"), CONSTANT)),
            "equal, with float32 constants at audio_jax.py:67 and 1 more line",
        ),
        (
            DIFFERENT,
            "differs, first at audio_torch.py:31 (PyTorch) and audio_jax.py:46 (JAX): "
            "audio_jax.py:40: eps: 1e-06 -> 1e-05 makes both equal here",
        ),
        (
            replace(DIFFERENT, findings=(GATE, EPSILON)),
            "differs, first at audio_torch.py:36 (PyTorch) and audio_jax.py:63 (JAX): "
            "results: JAX's is PyTorch's times 0.5 (1/2)",
        ),
        (
            replace(DIFFERENT, findings=(replace(EPSILON, mend=None, relation="", torch=None),)),
            "differs, first at audio_jax.py:46 (JAX): only PyTorch uses the literal 1e-05; "
            "only JAX uses the literal 1e-06",
        ),
        (
            replace(DIFFERENT, findings=(replace(GATE, relation="", shared=()),)),
            "differs, first at audio_torch.py:36 (PyTorch) and audio_jax.py:63 (JAX): "
            "the operations differ: mul in PyTorch and mul in JAX",
        ),
        (
            replace(DIFFERENT, findings=(CONSTANT,)),
            "differs, first in the gradients at audio_torch.py:36 (PyTorch) and "
            "audio_jax.py:63 (JAX): results: JAX's is PyTorch's times 0.5 (1/2)",
        ),
        (
            replace(DIFFERENT, findings=(), gradient_findings=()),
            "differs in logits, by 1.7e-01 in float64; no line was found",
        ),
        (
            replace(DIFFERENT, findings=(), gradient_findings=(), outputs=EQUAL.outputs),
            "differs in the gradient of layers.1.norm.weight and 7 more parameters; "
            "no line was found",
        ),
        (Report(Verdict.DIFFERS), "differs; no line was found"),
        (REFUSED, "not comparable: PyTorch returns 1 array and JAX 2"),
    ],
)
def test_the_verdict_is_one_line_and_the_last_one(report, line):
    assert verdict_line(report) == line
    assert str(report).splitlines()[-1] == f"verdict: {line}"


def test_a_mend_at_the_finding_does_not_repeat_its_line():
    line = EPSILON.jax.source
    mend = Mend("literal", replace(line, function="another"), "1e-06 -> 1e-05")
    report = replace(DIFFERENT, findings=(replace(EPSILON, mend=mend),))
    assert verdict_line(report).endswith("(JAX): 1e-06 -> 1e-05 makes both equal here")


def test_the_text_contains_what_was_found():
    text = as_text(replace(DIFFERENT, findings=(EPSILON, GATE)))
    words = " ".join(text.split())
    for part in (
        "PyTorch WaveNet: 212 operations, 190 matched",
        "JAX vmap(WaveNet): 260 operations, 231 matched",
        "logits (3, 11, 37) 1.7e-01 1.7e-01 DIFFERS",
        "state (3, 24) 2.2e-16 NaN equal",
        "1. the operations differ, in 3 places; effect 3.4e-06 of the output's root mean square",
        "audio_torch.py:31 normed = self.norm(x) native_group_norm, shape (3, 37, 24), in layers",
        "audio_jax.py:46 normed = (grouped - mean) / jnp.sqrt(var + self.eps) add, part of norm,",
        "both use var at audio_jax.py:48; only PyTorch uses the literal 1e-05; only JAX uses the",
        "relation results: close: at most 1.2e-05 of their size apart",
        "mend audio_jax.py:40: eps: 1e-06 -> 1e-05 makes both equal here",
        "gradients: 8 of 9 differ: layers.1.norm.weight by 2.0e-03,",
        "layers.5.norm.weight by 1.0e-02 and 3 more",
        "parameters of PyTorch whose values JAX does not use: mix.bias",
        "JAX rounds to lower precision at: audio_jax.py:48 (bfloat16)",
        "note: more differences may follow the last one listed",
    ):
        assert part in words, part
    assert "layers.0.norm.weight" not in words


def test_the_text_does_not_grow_with_the_model():
    many = 100
    names = tuple(f"layers.{i}.a_long_name_of_a_parameter" for i in range(many))
    large = replace(
        DIFFERENT,
        outputs=DIFFERENT.outputs * many,
        findings=tuple(moved(EPSILON, i) for i in range(many)),
        gradients=DIFFERENT.gradients * many,
        gradient_findings=tuple(moved(GATE, i) for i in range(many)),
        sides=tuple(replace(side, unmatched_parameters=names, lowered=names) for side in SIDES),
        notes=("a note " * 30,) * many,
    )
    larger = replace(large, findings=large.findings * many, notes=large.notes * many)
    text = as_text(large)
    assert text.count("\n") == as_text(larger).count("\n") <= 54
    assert as_text(DIFFERENT).count("\n") <= 30
    deep = replace(DIFFERENT, findings=large.findings, gradients=large.gradients)
    assert as_text(deep).count("\n") <= 35
    body = text.splitlines()[:-1]
    assert max(map(len, body)) <= 100
    assert "they part (PyTorch, then JAX): 100" in text
    assert sum(bool(re.match(r"  \d\. ", line)) for line in body) == 8 + 3
    assert "  and 92 more" in body


def test_outputs_that_only_constants_change_are_marked():
    output = replace(EQUAL.outputs[0], float64=3e-8, equal=False)
    report = replace(CONSTANTS, outputs=(output,))
    assert "3.0e-08   4.1e-07  equal but for constants\n" in as_text(report)
    for other in (
        replace(report, findings=(CONSTANT, GATE)),
        replace(report, complete=False),
        replace(report, findings=()),
    ):
        assert "3.0e-08   4.1e-07  DIFFERS\n" in as_text(other)


def test_a_place_without_a_line_is_one_line():
    """Its name would otherwise be printed twice."""
    constant = replace(CONSTANT.jax, op="constant", source=None, code="")
    text = as_text(replace(CONSTANTS, findings=(replace(CONSTANT, jax=constant),)))
    assert "\n     JAX       constant, shape (3, 37, 24)\n" in text
    assert text.count("constant, shape") == 1
    text = as_text(CONSTANTS)
    assert "\n     JAX       audio_jax.py:67  return total * HALF_POWER, skip\n" in text


def test_a_line_in_a_notebook_is_named_by_its_cell(monkeypatch):
    names = {"kernel/3141592.py": ("Cell", "In[4]")}
    shell = SimpleNamespace(compile=SimpleNamespace(format_code_name=names.get))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert str(Source("kernel/3141592.py", 7)) == "In[4]:7"
    assert str(Source("folder/port.py", 7)) == "port.py:7"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert str(Source("kernel/3141592.py", 7)) == "3141592.py:7"


def test_findings_at_the_same_lines_are_one():
    text = as_text(replace(DIFFERENT, findings=(EPSILON, GATE, EPSILON)))
    assert "they part (PyTorch, then JAX): 2" in text
    assert "in 6 places" in text
    other = replace(EPSILON, mend=replace(EPSILON.mend, words="1e-05 -> 1e-06"))
    text = as_text(replace(DIFFERENT, findings=(EPSILON, GATE, other)))
    assert "they part (PyTorch, then JAX): 3" in text


def test_the_text_cannot_control_a_terminal():
    report = replace(DIFFERENT, findings=(replace(GATE, relation="\x1b[31mred\x07"),))
    assert all(c.isprintable() or c == "\n" for c in as_text(report))
    assert "[31mred" in as_text(report)


def test_every_operation_is_next_to_its_match():
    rows = [(a and a.index, b and b.index, equal) for a, b, equal in
            ((row.torch, row.jax, row.equal) for row in rows_of(OPERATIONS))]  # fmt: skip
    assert rows == [
        (None, 0, False),
        (0, 1, True),
        (1, None, False),
        (0, 2, True),
        (2, 3, True),
        (4, 3, True),
        (5, None, True),
        (None, 4, False),
    ]
    lines = as_list(DIFFERENT).splitlines()
    assert len(lines) == 1 + len(rows)
    assert max(map(len, lines)) <= 100
    assert lines[5].split() == [
        "2", "mul(3,37,24)", "audio_torch.py:36", "=", "3", "mul(3,37,24)", "audio_jax.py:63"
    ]  # fmt: skip
    assert lines[7].endswith("=     99 is not in the list")


def test_the_json_contains_the_report():
    content = json.loads(as_json(DIFFERENT))
    assert content["schema"] == SCHEMA == "obscura_jax.parity.programs/1"
    assert (content["verdict"], content["equal"], content["exit_code"]) == ("differs", False, 1)
    assert content["sentence"] == verdict_line(DIFFERENT)
    assert content["outputs"][1] == {
        "name": "state", "shape": [3, 24], "float64": 2.2e-16, "native": None, "equal": True
    }  # fmt: skip
    finding = content["findings"][1]
    assert finding["torch"]["source"] == {
        "file": str(PAIRS / "audio_torch.py"), "line": 31, "function": "forward"
    }  # fmt: skip
    mend = asdict(EPSILON.mend)
    assert mend["source"].pop("text") == ""  # a recording's line, which is a place's code
    assert finding["mend"] == mend
    assert content["findings"][2]["mend"] is None
    assert [row["match"] for row in content["operations"]] == [o.match for o in OPERATIONS]
    assert content["versions"].keys() >= {"python", "jax", "numpy"}
    documented = set(re.findall(r"\w+", as_json.__doc__))
    assert (
        set(content) | set(finding) | set(finding["torch"]) | set(content["sides"][0]) <= documented
    )
    assert json.loads(as_json(REFUSED))["reason"] == REFUSED.reason
