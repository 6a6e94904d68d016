"""The lab names the line of a class that differs, and a change of our model that explains it."""

from pathlib import Path

import pytest

from obscura_jax.interop.course_state import named_tensors
from obscura_jax.parity.findings import Finding, Mend, Place
from obscura_jax.parity.gpt import places, torch_reference
from obscura_jax.parity.gpt.lab import compare_implementations
from obscura_jax.parity.gpt.references import reference
from obscura_jax.parity.gpt.report import verdict
from obscura_jax.parity.gpt.wording import sentence
from obscura_jax.parity.trace import Source
from tests.support.models import BIASED, model_of
from tests.test_parity_guests import compare_guest

SOURCE = Path(torch_reference.__file__).read_text("utf-8")
TANH = "0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))"
POSITIONS = "pos_emb(torch.arange(in_idx.shape[-1], device=in_idx.device))"
PARTS = "(self.num_heads, -1)).transpose(-3, -2)"


def compare_edited(folder, old, new):
    """Return the report on the course's model with one mistake, in a user's file."""
    assert SOURCE.count(old) == 1
    (folder / "mine.py").write_text(SOURCE.replace(old, new))
    params = model_of(BIASED)
    theirs = reference(f"{folder / 'mine.py'}:GPTModel", BIASED, named_tensors(BIASED, params))
    return compare_implementations("x", BIASED, params, theirs, steps=0, new_tokens=0)


def check_line(report, folder, text):
    """Check that the first place is the only line of the user's file that contains `text`."""
    lines = (folder / "mine.py").read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if text in line)
    section = report.sections[0]
    found = section.places[0].torch
    assert (found.source.file, found.source.line) == (str(folder / "mine.py"), number)
    assert found.code == lines[number - 1].strip()
    assert f"at mine.py:{number}" in section.cause
    assert section.cause in verdict(report)


@pytest.mark.parametrize(
    ("old", "new", "line", "first", "mend"),
    [
        (
            "self.eps = 1e-5",
            "self.eps = 1e-6",
            "torch.sqrt(variance + self.eps)",
            "trf_blocks.0.norm1",
            "PyTorch's values are ours with 1e-06 instead of 1e-05",
        ),
        (
            "(2 / torch.pi) ** 0.5",
            "0.7979",
            "torch.tanh(0.7979",
            "trf_blocks.0.ff.layers.1",
            "PyTorch's values are ours with 0.7979 instead of 0.7978845608",
        ),
        (TANH, "nn.functional.gelu(x)", "gelu(x)", "trf_blocks.0.ff.layers.1", "gelu(approximate"),
        (TANH, "nn.functional.silu(x)", "silu(x)", "trf_blocks.0.ff.layers.1", "silu for gelu"),
        ("diagonal=1", "diagonal=2", "masked_fill", "trf_blocks.0.att.context", "our tril at"),
        (
            "scores = queries @ keys.mT\n    scores",
            "scores = keys @ queries.mT\n    scores",
            "keys @ queries.mT",
            "trf_blocks.0.att.context",
            "the operands in the other order",
        ),
        (
            "context.transpose(-3, -2).flatten(-2)",
            "context.reshape(x.shape)",
            "context.reshape(x.shape)",
            "trf_blocks.0.att.context",
            "before they are merged",
        ),
    ],
)
def test_a_mistake_with_a_known_change_is_explained(tmp_path, old, new, line, first, mend):
    report = compare_edited(tmp_path, old, new)
    assert report.first[1].name == first
    check_line(report, tmp_path, line)
    assert mend in report.sections[0].cause
    assert report.sections[0].places[0].mend is not None


@pytest.mark.parametrize(
    ("old", "new", "line", "first", "words"),
    [
        (
            "centered = x - x.mean(dim=-1, keepdim=True)",
            "centered = x",
            "variance = centered.square()",
            "trf_blocks.0.norm1",
            "differ in 5 places",
        ),
        (
            "queries, keys = heads(self.W_query(x)), heads(self.W_key(x))",
            "queries, keys = heads(self.W_query(x)), heads(self.W_value(x))",
            "    scores = queries @ keys.mT\n".strip("\n"),
            "trf_blocks.0.att.context",
            "only ours uses",
        ),
        (
            "self.ff(self.norm2(x))",
            "self.ff(x)",
            "return self.layers(x)",
            "trf_blocks.0.ff.layers.0",
            "only PyTorch uses trf_blocks.0.ff.layers.0.weight",
        ),
        (
            "return self.out_head(self.final_norm(x))",
            "return self.final_norm(x) @ self.tok_emb.weight.T",
            "self.tok_emb.weight.T",
            "logits",
            "tok_emb.weight",
        ),
        (
            "self.out_head(self.final_norm(x))",
            "self.out_head(x)",
            "return self.out_head(x)",
            "logits",
            "only PyTorch uses out_head.weight",
        ),
        (
            f"tok_emb(in_idx) + {POSITIONS}",
            "tok_emb(in_idx)",
            "centered = x - x.mean",
            "embeddings",
            "",
        ),
        (POSITIONS, POSITIONS[:-1] + ".flip(0))", ".flip(0)", "pos_emb", ""),
    ],
)
def test_the_line_of_any_other_mistake_is_found(tmp_path, old, new, line, first, words):
    report = compare_edited(tmp_path, old, new)
    assert report.first[1].name == first
    check_line(report, tmp_path, line)
    assert words in report.sections[0].cause


def test_a_class_without_a_mistake_has_no_places(tmp_path):
    """This is the control of the tests above."""
    report = compare_edited(tmp_path, "self.eps = 1e-5", "self.eps = 2e-5 / 2")
    assert report.equal
    assert all(not section.places and section.cause is None for section in report.sections)


def test_two_mistakes_are_both_found(tmp_path):
    report = compare_edited(
        tmp_path, SOURCE, SOURCE.replace("= 1e-5", "= 1e-6").replace("0.044715", "0.0447")
    )
    words = [sentence(place) for place in report.sections[0].places]
    assert len(words) == 2
    assert "1e-06 instead of 1e-05" in words[0]
    assert "0.0447 instead of 0.044715" in words[1]
    assert report.sections[0].cause == words[0]


def test_a_class_that_cannot_be_observed_still_gets_a_verdict():
    report = compare_guest("Shy")
    assert "first at logits, by " in verdict(report)
    assert "no line was found, because " in verdict(report)
    assert "guests.py:Shy fails under observation: RuntimeError: observed" in verdict(report)


def test_a_difference_after_the_last_common_value_names_the_last_operation():
    (line,) = (n for n, text in enumerate(open_guests(), 1) if "+ 0.5  # nudged" in text)
    words = verdict(compare_guest("Nudged"))
    assert f"PyTorch's add at guests.py:{line}" in words
    assert "adding 0.5" in words


def open_guests():
    from tests.support import guests

    return Path(guests.__file__).read_text().splitlines()


@pytest.mark.parametrize(
    ("path", "name", "later"),
    [
        ("trf_blocks.1.norm2", "trf_blocks.0.ff.layers.1", True),
        ("trf_blocks.0.norm2", "trf_blocks.0.ff.layers.1", False),
        ("trf_blocks.1.norm1", "trf_blocks.0", False),  # the next block is the first to use it
        ("trf_blocks.2.norm1", "trf_blocks.0", True),
        ("trf_blocks.0.norm1", "embeddings", False),
        ("trf_blocks.1.norm1", "embeddings", True),
        ("trf_blocks.1", "logits", False),
        ("final_norm", "trf_blocks.1", False),
        ("", "trf_blocks.1.norm1", False),
    ],
)
def test_a_line_after_the_first_difference_is_recognized(path, name, later):
    assert places._is_later(path, name) is later


def place(file, line, op, fused=""):
    return Place(op, fused, Source(file, line), "code", "", (3, 5))


OTHER = Source("m.py", 4)
BOTH = "gelu at mine.py:31 and our tanh at layers.py:76"
THEIRS, OURS = place("/a/mine.py", 31, "mul", "gelu"), place("/b/layers.py", 76, "tanh")


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (
            Finding("operation", THEIRS, OURS, mend=Mend("literal", OURS.source, "2 for 3")),
            f"{BOTH} differ; PyTorch's values are ours with 2 instead of 3",
        ),
        (
            Finding(
                "operation", THEIRS, OURS, mend=Mend("unary", Source("m.py", 4), "exp for sin")
            ),
            f"{BOTH} differ; one change at m.py:4 makes ours the same: exp for sin",
        ),
        (
            Finding("operation", THEIRS, OURS, relation="results: JAX's is PyTorch's times 2"),
            f"{BOTH} differ; results: ours is PyTorch's times 2",
        ),
        (
            Finding("operation", THEIRS, OURS, torch_only=("a",), jax_only=("b",), occurrences=3),
            f"{BOTH} differ in 3 places; only PyTorch uses a; only ours uses b",
        ),
        (Finding("operation", THEIRS, OURS), f"{BOTH} differ"),
        (Finding("operation", THEIRS, None), "gelu at mine.py:31 differs"),
    ],
)
def test_a_place_is_worded_for_the_author_of_the_class(finding, words):
    assert sentence(finding) == f"PyTorch's {words}"
