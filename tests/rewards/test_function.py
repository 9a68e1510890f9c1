"""Python functions as rewards: what they are given, and every way in which they go wrong."""

from __future__ import annotations

import asyncio
from functools import partial
from threading import Event, current_thread
from time import perf_counter, sleep

import numpy as np
import pytest
import torch

from lit_rlhf.rewards import FunctionReward, Sample

ASKED = ({"role": "user", "content": "Hi"},)
SAMPLES = [
    Sample("p1", "four", ASKED, (1, 2), [3], {"answer": "4", "level": 1}, "train.jsonl:1"),
    Sample("p2", "b", ASKED, (1,), [4, 5], {"answer": "b"}, "train.jsonl:2", finished=False),
]
ROWS = r"train\.jsonl:1 to train\.jsonl:2"


def given(*names):
    """A function that names these, and a list of what it was given."""
    calls = []
    scope = {"calls": calls}
    exec(f"def reward({', '.join(names)}):\n    calls.append(({', '.join(names)},))\n    return [0, 1]", scope)
    return scope["reward"], calls


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("messages", [list(ASKED)] * 2),
        ("prompt_tokens", [[1, 2], [1]]),
        ("response_tokens", [[3], [4, 5]]),
        ("row", ["train.jsonl:1", "train.jsonl:2"]),
        ("finished", [True, False]),
        ("answer", ["4", "b"]),
        ("level", [1, None]),
        ("samples", SAMPLES),
        ("prompts", ["p1", "p2"]),
    ],
)
def test_a_function_is_given_lists_of_what_it_names(name, lists):
    function, calls = given("responses", name)
    assert FunctionReward(function)(SAMPLES) == [0.0, 1.0]
    assert calls == [(["four", "b"], lists)]


def test_a_function_that_names_one_response_is_called_for_each():
    calls = []

    def reward(prompt, response, answer, level, messages, sample):
        calls.append((prompt, answer, level, messages, sample.row))
        return len(response)

    assert FunctionReward(reward)(SAMPLES) == [4.0, 1.0]
    assert calls == [("p1", "4", 1, list(ASKED), "train.jsonl:1"), ("p2", "b", None, list(ASKED), "train.jsonl:2")]


def test_the_samples_alone_will_do():
    assert FunctionReward(lambda samples: [len(sample.response) for sample in samples])(SAMPLES) == [4.0, 1.0]
    assert FunctionReward(lambda samples: 1 / 0)([]) == []


def test_keyword_arguments_take_everything():
    calls = []

    def reward(responses, **others):
        calls.append(others)
        return [1, 1]

    FunctionReward(reward)(SAMPLES)
    assert set(calls[0]) == {
        *("prompts", "samples", "messages", "prompt_tokens", "response_tokens", "row", "finished", "answer", "level"),
    }


def test_arguments_go_before_columns_and_defaults_stay():
    def reward(response, answer, level="easy", scale=1.0, other="default"):
        return scale * (answer == "given") * (other == "default")

    assert FunctionReward(reward, {"scale": 0.5, "answer": "given"})(SAMPLES) == [0.5, 0.5]
    everything = FunctionReward(lambda responses, **others: [others["answer"]] * 2, {"answer": 3})
    assert everything(SAMPLES) == [3.0, 3.0]
    with pytest.raises(ValueError, match="unexpected keyword argument 'scal'"):
        FunctionReward(reward, {"scal": 0.5})(SAMPLES)


def test_methods_partials_and_objects_are_functions_too():
    class Judge:
        def __call__(self, response):
            return len(response)

        def score(self, responses):
            return [1, 2]

    assert FunctionReward(Judge())(SAMPLES) == [4.0, 1.0]
    assert FunctionReward(Judge().score)(SAMPLES) == [1.0, 2.0]
    assert FunctionReward(partial(lambda scale, response: scale * len(response), 2))(SAMPLES) == [8.0, 2.0]
    assert [FunctionReward(one).name for one in (Judge(), Judge().score, sleep_for)] == ["Judge", "score", "sleep_for"]


@pytest.mark.parametrize(
    "scores",
    [(1, 0.5), torch.tensor([1, 0.5]), np.array([1, 0.5]), [True, 0.5], [torch.tensor(1.0), torch.tensor([0.5])],
     [np.float32(1.0), np.float64(0.5)], [np.bool_(True), 0.5]],
)  # fmt: skip
def test_numbers_come_in_many_forms(scores):
    found = FunctionReward(lambda responses: scores)(SAMPLES)
    assert found == [1.0, 0.5]
    assert all(type(score) is float for score in found)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (None, "answered with None; it must give a list"),
        (1.0, "answered with 1.0; it must give a list"),
        ("ab", "answered with 'ab'; it must give a list"),
        ({"a": 1}, "it must give a list"),
        ([1], "gave 1 scores for 2 responses"),
        ([1, 2, 3], "gave 3 scores for 2 responses"),
        (torch.ones(1), "gave 1 scores for 2 responses"),
        (torch.tensor(1.0), "it must give a list"),
        ([1, None], r"train\.jsonl:2: reward 'judge' gave None; it must give a finite number"),
        ([float("nan"), 1], r"train\.jsonl:1: reward 'judge' gave nan"),
        ([1, float("-inf")], r"train\.jsonl:2: reward 'judge' gave -inf"),
        (torch.tensor([1, torch.nan]), r"train\.jsonl:2: reward 'judge' gave nan"),
        ([1, "2"], r"train\.jsonl:2: reward 'judge' gave '2'"),
        ([[1], [2]], r"train\.jsonl:1: reward 'judge' gave \[1\]"),
        ([1, 1j], r"train\.jsonl:2: reward 'judge' gave 1j"),
    ],
)
def test_what_is_no_number_is_refused_with_its_row(scores, words):
    def judge(responses):
        return scores

    with pytest.raises(ValueError, match=words):
        FunctionReward(judge)(SAMPLES)


def test_one_that_gives_none_for_a_response_is_refused_with_its_row():
    def judge(response):
        return None if response == "b" else 1

    with pytest.raises(ValueError, match=r"train\.jsonl:2: reward 'judge' gave None"):
        FunctionReward(judge)(SAMPLES)


def test_what_a_function_raises_comes_with_its_name_and_rows():
    def judge(responses):
        return responses["a"]

    def judge_one(response):
        return {"four": 1}[response]

    async def ask_one(response):
        await asyncio.sleep(0)
        return {"four": 1}[response]

    with pytest.raises(ValueError, match=f"{ROWS}: reward function judge raised TypeError: list") as raised:
        FunctionReward(judge)(SAMPLES)
    assert isinstance(raised.value.__cause__, TypeError)
    for function in (judge_one, ask_one):
        with pytest.raises(ValueError, match=rf"^train\.jsonl:2: reward function {function.__name__} raised KeyErr"):
            FunctionReward(function)(SAMPLES)


def test_an_interrupt_is_not_swallowed():
    def judge(responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionReward(judge)(SAMPLES)


def test_async_functions_are_awaited_together():
    running, most = [], []

    async def judge(response):
        running.append(response)
        most.append(len(running))
        await asyncio.sleep(0.01)
        running.remove(response)
        return len(response)

    async def judge_all(responses):
        await asyncio.sleep(0)
        return [7, 8]

    many = SAMPLES * 10
    assert FunctionReward(judge)(many) == [4.0, 1.0] * 10
    assert max(most) == 20
    most.clear()
    FunctionReward(judge, max_concurrency=3)(many)
    assert max(most) == 3
    assert FunctionReward(judge_all)(SAMPLES) == [7.0, 8.0]


def test_it_works_inside_a_running_event_loop_and_lets_functions_have_their_own():
    async def judge(response):
        return len(response)

    def own_loop(response):
        return asyncio.run(judge(response))

    async def notebook():
        return FunctionReward(judge)(SAMPLES), FunctionReward(own_loop)(SAMPLES)

    assert asyncio.run(notebook()) == ([4.0, 1.0], [4.0, 1.0])


def sleep_for(responses, seconds=30.0):
    Event().wait(seconds)
    return [1, 1]


async def sleep_all(response):
    await asyncio.sleep(30)


async def block_all(responses):
    sleep(1)


@pytest.mark.parametrize("function", [sleep_for, sleep_all, block_all])
def test_one_that_hangs_is_left_behind_and_said_so(function):
    begin = perf_counter()
    message = rf"train\.jsonl:1: reward function {function.__name__} gave no scores for 2 responses within 0\.05 sec"
    with pytest.raises(ValueError, match=message):
        FunctionReward(function, timeout=0.05)(SAMPLES)
    assert perf_counter() - begin < 0.9


def test_no_time_out_waits():
    assert FunctionReward(sleep_for, {"seconds": 0.05}, timeout=None)(SAMPLES) == [1.0, 1.0]


def test_it_does_not_keep_a_process_alive():
    found = []
    FunctionReward(lambda responses: found.append(current_thread().daemon) or [1, 1])(SAMPLES)
    assert found == [True]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda answer: 1, r"names \['answer'\]; a reward names `responses`"),
        (lambda: 1, "names nothing"),
        (lambda response, prompts: 1, r"names \['prompts', 'response'\]; name lists or single"),
    ],
)
def test_a_function_that_asks_for_no_response_is_refused(function, words):
    with pytest.raises(ValueError, match=words):
        FunctionReward(function)


def test_a_column_that_is_not_there_is_named():
    message = (
        r"train\.jsonl:1: reward function <lambda> names `answr`, and there is no such column; there are answer, level"
    )
    with pytest.raises(ValueError, match=message):
        FunctionReward(lambda responses, answr: [1, 1])(SAMPLES)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"max_concurrency": 0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 0"):
        FunctionReward(sleep_for, **wrong)
