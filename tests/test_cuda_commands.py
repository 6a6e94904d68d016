"""The commands per token of a program for a GPU, counted in the text of XLA's plan."""

from pathlib import Path

import pytest

from obscura_jax.scale.cuda_commands import Commands, commands_per_token, compile_with_plan

PLAN = """\
001: kCustomKernel [source | next=002 (1)] wrapped_iota grid: [8, 1, 1] threads: [128, 1, 1]
002: kWhile        [prev=001 (1) | sink        ]   \n\
condition:
    003: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    000: kCommandBuffer [source       | next=240 (1)] \n\
        004: kCustomKernel [source       | sink        ] loop_compare_fusion_4 grid: [1, 1, 1]
        005: kDynamicSliceFusion [source | sink        ] params=1, results=1
            006: kCopy [source | sink] kCopy
        007: kAllReduce [source          | sink        ] kAllReduce
    240: kConditional   [prev=000 (1) | next=000 (1)]       \n\
      false_branch:
        206: kWhile        [prev=205 (1) | next=212 (1)]               \n\
condition:
            207: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
          body:
            208: kCustomKernel [source       | next=209 (1)] input_reduce_fusion grid: [18, 1, 1]
        212: kCustomKernel [prev=206 (1) | sink        ] loop_select_fusion_1 grid: [393, 1, 1]
      true_branch:
        213: kCopy [source | sink] kCopy
    241: kAsyncStart    [prev=056 (3)  | next=119 (4) ] stream=communication_stream[0], async_id=60
        242: kAllReduce [source | sink] kAllReduce
    243: kAsyncDone     [source        | sink         ] async_id=60
250: kCustomKernel [source | next=002 (1)] after grid: [8, 1, 1] threads: [128, 1, 1]
"""


def in_one_graph(plan):
    """Return the plan with every operation in one graph, and no other graph."""
    plan = plan.replace("000: kCommandBuffer", "000: kSequential")
    lines = [line if line == "condition:" else "    " + line for line in plan.splitlines()]
    return "\n".join(["000: kCommandBuffer [source | sink] ", *lines])


def test_one_iteration_of_the_loop_is_counted():
    found = commands_per_token(PLAN)
    # The condition, three in the graph, one copy in the branch, and one sum.
    assert found.least == Commands(commands=6, graphs=1, host_returns=2)
    # The other branch has a loop of two kernels, and a kernel.
    assert found.most == Commands(commands=8, graphs=1, host_returns=3, inner_loops=1)


def test_a_loop_in_a_graph_does_not_return_to_the_host():
    found = commands_per_token(in_one_graph(PLAN))
    assert found.least == Commands(commands=6)
    assert found.most == Commands(commands=8, inner_loops=1)


@pytest.mark.parametrize("kind", ["kCustomKernel", "kCopy", "kAllReduce", "kAsyncDone"])
def test_every_further_command_is_counted(kind):
    added = f"    300: {kind} [source | sink] more\n"
    before, after = (
        commands_per_token(plan) for plan in (PLAN, PLAN.replace("250:", added + "250:"))
    )
    assert after.least.commands - before.least.commands == (kind != "kAsyncDone")


def test_an_empty_branch_costs_nothing():
    empty = PLAN.replace("        213: kCopy [source | sink] kCopy\n", "")
    assert empty != PLAN
    assert commands_per_token(empty).least.commands == commands_per_token(PLAN).least.commands - 1


def test_the_longest_loop_is_the_one_over_tokens():
    short = (
        PLAN
        + "260: kWhile [source | sink]   \ncondition:\n  body:\n    261: kCopy [source | sink]\n"
    )
    assert commands_per_token(short) == commands_per_token(PLAN)


def test_a_plan_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="no loop; give the plan of a decode program"):
        commands_per_token(PLAN.splitlines()[0])


class Lowered:
    """Write files as XLA does when it compiles."""

    def __init__(self, **texts):
        self.texts = texts

    def compile(self, compiler_options):
        folder = Path(compiler_options["xla_dump_to"])
        for name, text in self.texts.items():
            (folder / f"module_0001.jit_decode.{name}.txt").write_text(text)
        return "compiled"


def test_the_plan_with_graphs_is_taken_if_there_are_any():
    without = {"thunk_sequence": "without", "thunk_metadata": "none"}
    assert compile_with_plan(Lowered(**without)) == ("compiled", "without")
    both = without | {"thunk_sequence_after_thunk_passes": "with graphs"}
    assert compile_with_plan(Lowered(**both)) == ("compiled", "with graphs")


def test_a_compilation_without_a_plan_is_reported():
    with pytest.raises(ValueError, match="no plan of commands; compile for CUDA"):
        compile_with_plan(Lowered(thunk_metadata=""))
