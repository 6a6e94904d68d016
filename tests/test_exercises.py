"""Our solutions of the exercises succeed, and others are answered with what is wrong."""

import ast
import io
import re
from contextlib import redirect_stdout

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest

from obscura_jax import check_exercise
from obscura_jax.exercises.solutions import EXERCISES
from tests.support import notebooks as runner

READ = {
    name: nbformat.read(runner.NOTEBOOKS / f"{name}.ipynb", as_version=4) for name in runner.ORDER
}
FOLDED = re.compile(
    r"<details>\n<summary>Solution</summary>\n\n```python\n(.*)\n```\n\n</details>", re.DOTALL
)
PORT = "port_and_prove"  # its check is `compare`


@pytest.fixture(autouse=True)
def as_in_a_notebook():
    """The reader's JAX allows what that of the tests forbids."""
    with jax.debug_key_reuse(False), jax.numpy_rank_promotion("allow"):
        yield


def exercise(name):
    """Return the cell of a notebook's exercise, and the code of the solution below it."""
    cells = READ[name].cells
    (at,) = [n for n, cell in enumerate(cells) if cell.source.startswith("## Exercise: ")]
    assert len(cells) - at <= 4  # only a link to the next notebook follows
    return cells[at + 1], FOLDED.fullmatch(cells[at + 2].source)[1]


def answer(name, solution):
    """Run an exercise's cell with `solution` in place of its function; return what it prints.

    Of the notebook's earlier cells only the imports are run.
    """
    cell, _ = exercise(name)
    earlier = [c.source for c in READ[name].cells if c.cell_type == "code" and c.id != cell.id]
    lines = [node for source in earlier for node in runner.parsed(source).body]
    program = [node for node in lines if isinstance(node, ast.Import | ast.ImportFrom)]
    (function,) = ast.parse(solution).body
    for node in ast.parse(cell.source).body:
        program.append(function if isinstance(node, ast.FunctionDef) else node)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(ast.unparse(program), {"__name__": "exercise"})
    return printed.getvalue().splitlines()[-1]


# A part of each solution, a plausible mistake in its place, and the start of the answer to it.
MISTAKES = {
    "ch01_setup": ("uniform(row_key,", "uniform(key,", "your draw differs from ours by 0."),
    "ch02_text": (
        "range(0, len(ids) - length, stride)",
        "range(0, len(ids) - length - 1, stride)",
        "your sliding_window returns the shape (4, 4), and ours (5, 4); ",
    ),
    "ch03_attention": (
        "jnp.where(past, scores, -jnp.inf)",
        "scores",
        "your attention differs from ours by 1.7 at [0, 3], where yours is ",
    ),
    "ch04_model": ("return x + ", "return y + ", "your block differs from ours by "),
    "ch04_generation": (" & ~stopped", "", "your generation differs from ours at ["),
    "ch05_training": ("(1 - 0.9**step)", "1", "your adamw differs from ours by "),
    "parity": (
        "np.abs(ours - theirs).max() < 1e-11 * np.abs(ours).max()",
        "np.allclose(ours, theirs)",
        "your verdict differs from ours, where yours is True, ours False; ",
    ),
    PORT: (
        "approximate=False",
        "approximate=True",
        "verdict: differs, first at ",
    ),
    "functional_jax": (
        "jnp.minimum(1, limit / norm)",
        "limit / norm",
        "your clipped_gradient differs from ours by ",
    ),
}


@pytest.mark.parametrize("name", runner.ORDER)
def test_the_committed_exercise_is_not_filled_in(name):
    cell, _ = exercise(name)
    shown = "".join(output.text for output in cell.outputs)
    empty = "the JAX side returns no arrays but NoneType" if name == PORT else "returns nothing yet"
    assert empty in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", runner.ORDER)
def test_the_folded_solution_is_right_and_a_mistake_in_it_is_found(name):
    _, solution = exercise(name)
    right = (
        r"verdict: equal" if name == PORT else r"your \w+ equals ours (exactly|within .* float64)"
    )
    assert re.fullmatch(right, answer(name, solution))
    old, new, start = MISTAKES[name]
    assert solution.count(old) == 1
    assert answer(name, solution.replace(old, new)).startswith(start)


def test_every_exercise_is_in_one_notebook():
    cells = [exercise(name)[0].source for name in runner.ORDER]
    named = [name for cell in cells for name in re.findall(r'check_exercise\("(\w+)"', cell)]
    assert sorted(named) == sorted(EXERCISES)


# --- what readers bring

ours = EXERCISES["attention"].ours
calls = iter(range(1000))


def with_nan(queries, keys, values):
    return ours(queries, keys, values).at[6, 4].set(jnp.nan)


def impure(queries, keys, values):
    return ours(queries, keys, values) + next(calls)


@pytest.mark.parametrize(
    ("yours", "sentence"),
    [
        (lambda q, k, v: None, "returns nothing yet; fill in the function and run this cell again"),
        (lambda q, k, v: ours(q, k, v) + 1e-15, r"equals ours within [\d.]+e-1[56] in float64"),
        (lambda q, k, v: np.asarray(ours(q, k, v)), "equals ours exactly"),
        (lambda q, k, v: ours(q, k, v).tolist(), "equals ours exactly"),
        (jax.jit(ours), r"equals ours .*"),
        (
            lambda q, k, v: ours(q, k, v).at[3, 1].add(1e-9),
            r"differs from ours by 1e-09 at \[3, 1\], where yours is \S+, ours \S+; see that .*",
        ),
        (
            lambda q, k, v: ours(q, k, v)[:, :4],
            r"returns the shape \(7, 4\), and ours \(7, 5\); .*",
        ),
        (lambda q, k, v: ours(q, k, v).astype("float32"), "returns float32, and ours float64; .*"),
        (lambda q, k, v: ours(q, k, v).astype("bfloat16"), "returns bfloat16, and ours .*"),
        (lambda q, k, v: ours(q, k, v).astype(int), "returns int64, and ours float64; .*"),
        (with_nan, r"returns NaN at \[6, 4\]; look for .*"),
        (impure, "returns something else when it is called again; .*"),
        (
            lambda q, k, v: [[1.0], [2.0, 3.0]],
            "returns rows of unequal lengths; return an array .*",
        ),
        (lambda q, k, v: {"a": q}, r"returns a dict; return an array of the shape \(7, 5\)"),
        (lambda q, k, v: "0.5", "returns a str; .*"),
        (lambda q, k, v: ours(q, k, v) + 0j, "returns an array of complex128; .*"),
        (lambda q, k, v: jax.random.split(jax.random.key(0)), "returns something that is not .*"),
        (lambda q, k: q, r"takes other arguments; define it with \(queries, keys, values\)"),
        (jnp.ones((7, 5)), "is not a function; pass the function itself, not its result"),
    ],
)
def test_the_answer_says_what_is_wrong(yours, sentence):
    assert re.fullmatch(f"your attention {sentence}", check_exercise("attention", yours))


def test_a_function_must_leave_its_arguments_as_they_are():
    def my_windows(ids, length, stride):
        ids.pop()

    assert check_exercise("sliding_window", my_windows) == (
        "your sliding_window changes its arguments; return new values instead"
    )


def test_several_results_are_compared_each():
    right = EXERCISES["sliding_window"].ours
    listed = check_exercise("sliding_window", lambda *words: [*right(*words)])
    assert listed == "your sliding_window equals ours exactly"
    first = check_exercise("sliding_window", lambda *words: [right(*words)[0]])
    wanted = "where ours has other parts; return arrays of the shapes ((5, 4), (5, 4))"
    assert first == f"your sliding_window returns a list {wanted}"
    stacked = check_exercise("sliding_window", lambda *words: np.array(right(*words)))
    assert stacked == f"your sliding_window returns one array {wanted}"
    swapped = check_exercise("sliding_window", lambda *words: right(*words)[::-1])
    assert re.match(r"your sliding_window differs from ours at \[0\]\[\d, \d\], where", swapped)


def test_no_tolerance_in_float32_separates_rounding_from_mistakes():
    exercise, separable = EXERCISES["verdict"], {}
    for dtype in (np.float32, np.float64):
        found = {True: [], False: []}
        with jax.enable_x64(True):
            for first, second, x in exercise.cases():
                a, b = (np.asarray(function(jnp.asarray(x, dtype))) for function in (first, second))
                assert a.dtype == dtype
                found[exercise.ours(first, second, x)].append(np.abs(a - b).max() / np.abs(a).max())
        separable[dtype] = max(found[True]) < min(found[False])
    assert separable == {np.float32: False, np.float64: True}


@pytest.mark.parametrize("read", [lambda ids: int(ids[-1]), lambda ids: ids[ids == ids[-1]][0]])
def test_a_loop_that_cannot_be_compiled_is_not_enough(read):
    def my_generation(model, params, prompt, room, stop):
        ids = EXERCISES["generation"].ours(model, params, prompt, room, stop)
        return ids.at[-1].set(read(ids))  # Python needs a value, or the number of matches

    assert check_exercise("generation", my_generation).startswith(
        "your generation equals ours, but cannot be compiled, because Python decides by a value; "
    )


@pytest.mark.parametrize("error", [ZeroDivisionError, TypeError, ValueError])
def test_an_exception_of_the_reader_is_not_caught(error):
    def fails(queries, keys, values):
        raise error("inside")

    with pytest.raises(error, match="inside"):
        check_exercise("attention", fails)


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(ValueError, match=r"name must be one of draw, .*, got 'atten'"):
        check_exercise("atten", ours)
