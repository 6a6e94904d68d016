"""`obscura look`: a page in a file, and one line for each mistake."""

import re
from dataclasses import replace

import pytest

from obscura_jax import load_tokenizer, look, save_model
from obscura_jax.cli.main import main
from obscura_jax.interop.checkpoint import load_model
from obscura_jax.nn.model import GPTModel
from tests.support.models import BIASED, model_of

NO_ABLATIONS = ("--no-ablations", "--no-compile-cache")


@pytest.fixture
def small(tmp_path):
    """The folder of a model of 17 tokens, which has no tokenizer."""
    save_model(tmp_path / "small", BIASED, model_of(BIASED))
    return tmp_path / "small"


def test_a_page_is_written_and_written_again(tmp_path, capsys):
    path = tmp_path / "look.html"
    for text in ("A list", "A tuple"):
        main(["look", "tiny", text, "--html", str(path), *NO_ABLATIONS])
        assert capsys.readouterr().out == f"{path}\n"
        assert f'"text":"{text[:1]}"' in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["look.html"]


def test_two_models_side_by_side(tmp_path, capsys):
    path = tmp_path / "look.html"
    words = ("--beside", "tiny", "--beside-dtype", "bfloat16")
    main(["look", "tiny", "A list", "--html", str(path), *words, *NO_ABLATIONS])
    assert re.findall('"name":"(.*?)"', path.read_text()) == ["tiny", "tiny (bfloat16)"]


def test_ids_of_a_model_without_a_tokenizer(small, tmp_path, fails):
    path = tmp_path / "look.html"
    assert "give token ids (--ids)" in fails("look", small, "A", "--html", path)
    main(["look", str(small), "3 4", "--ids", "--html", str(path), *NO_ABLATIONS])
    assert '{"id":3,"text":" 3"' in path.read_text()


def test_markup_in_the_text_stays_text(tmp_path, capsys):
    path = tmp_path / "look.html"
    text = "</script><script>alert(1)</script><!--"
    main(["look", "tiny", text, "--html", str(path), *NO_ABLATIONS])
    page = path.read_text()
    assert page.count("</script>") == 2  # the data and the program of the page
    assert "alert(1)" not in page
    assert "\\u003c/" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny", "A"), "give either --html FILE"),
        (("tiny", "A", "--html", "x.html", "--serve"), "give either --html FILE"),
        (("tiny", "--html", "x.html"), "the text is missing"),
        (("tiny", "", "--html", "x.html"), "the text is empty"),
        (("tiny", "word " * 300, "--html", "x.html"), "at most 256"),
        (("tiny", "A", "--html", ""), "destination is empty"),
        (("tiny", "A", "--html", "."), "is a folder"),
        (("missing", "A", "--html", "x.html"), "missing"),
        (("tiny", "A", "--html", "x.html", "--beside-dtype", "float32"), "add --beside OTHER"),
        (("tiny", "A", "--serve", "--port", "65536"), "from 0 to 65535"),
        (("tiny", "x y", "--ids", "--html", "x.html"), "not a list of token ids"),
        (("tiny", "99999", "--ids", "--html", "x.html"), "outside the vocabulary"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    assert message in fails("look", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_page_is_kept(tmp_path, fails):
    path = tmp_path / "notes.html"
    path.write_text("mine")
    assert "is not a page of obscura look" in fails("look", "tiny", "A", "--html", path)
    assert path.read_text() == "mine"


def test_a_text_beyond_the_context(small, tmp_path, fails):
    text = " ".join("3" for _ in range(12))
    said = fails("look", small, text, "--ids", "--html", tmp_path / "x.html")
    assert "12 tokens, and small reads at most 11" in said


def test_models_of_other_vocabularies(small, tmp_path, fails):
    words = ("--beside", small, "--ids", "--html", tmp_path / "x.html")
    said = fails("look", "tiny", "3", *words)
    assert "tiny has 4096 tokens and small has 17" in said


def test_show_is_a_page_in_a_notebook(tmp_path, small):
    model, params = load_model("tiny")
    tokenizer = load_tokenizer("tiny", model.cfg)
    page = look.show(model, params, [3, 4], tokenizer=tokenizer, ablate=False)
    assert page._repr_html_().startswith('<iframe sandbox="allow-scripts"')
    assert "&lt;!doctype html&gt;" in page._repr_html_()
    page.save(tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text() == page.html
    with pytest.raises(ValueError, match="tokenizer of a model of 4096 tokens is unknown"):
        look.show(model, params, "A")
    other = replace(model.cfg, vocab_size=300)
    with pytest.raises(ValueError, match="model has 4096 tokens and other has 300"):
        look.show(model, params, [3], tokenizer=tokenizer, other=(GPTModel(other), {"x": params}))
