"""Any task of lm-eval over Halter's decoder: lm-eval brings rows, prompts and measures, Halter likelihoods and answers.

Texts become tokens and answers become text as lm-eval's own Hugging Face model (HFLM) makes them, so that scores are
equal to its: BOS where the tokenizer has one, control tokens read where a task writes them, white space at the end of a
context counted to the continuation, long contexts cut at the left, the last token of a row never fed to the model. A
rolling text begins with a BOS that is itself predicted, from another BOS: that model counts it, and so do we.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from halter.adapters.adapter import Adapter
from halter.data.example import Example
from halter.errors import Refusal
from halter.evaluation.options import TaskOptions
from halter.evaluation.questions import Question
from halter.evaluation.score import answers, likelihoods
from halter.files.extras import missing_extra
from halter.files.offline import quick_offline
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer

ASKED = "openai/gsm8k"
"""A data set of the hub, as good as any to see whether there is a way to it."""
MOST_ANSWER = 256
"""Tokens of an answer where a task does not say: lm-eval's own default."""
TASK = re.compile(rb"(?m)^(?:task|group|tag): *[\"']?([\w-]+)")
"""How a file of lm-eval's names what it holds."""
PARTS = (".yaml", ".yml", "")
"""Suffixes of such files, and of what they include."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call that, the first one first."""


@dataclass(frozen=True)
class Judge:
    """Answers what lm-eval asks of a model, over the base or the base with ``adapter``."""

    model: Decoder
    tokenizer: Tokenizer
    adapter: Adapter | None = None
    pass_tokens: int | None = None

    @property
    def context(self) -> int:
        return self.model.config.context

    def _begin(self, text: str) -> list[int]:
        """Ids of a text after BOS, one that the text writes itself included."""
        ids, bos = self._encode(text), self.tokenizer.bos_id
        written = bos is not None and text.startswith(self.tokenizer.token(bos))
        return ids if bos is None or written else [bos, *ids]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, control=True) if text else []

    def _start(self) -> int:
        """What a text without a context is predicted from."""
        start = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
        if start is None:
            raise Refusal(
                "no-start",
                "the tokenizer has neither a BOS nor an EOS, so a text has nothing before it",
                fix="set bos_token or eos_token in the checkpoint's tokenizer_config.json",
            )
        return start

    def _row(self, context: str, continuation: str, origin: str) -> Example:
        words = context.rstrip()
        continuation = context[len(words) :] + continuation
        head = self._begin(words) if words else [self._start()]
        rest = self._begin(words + continuation)[len(head) :] if words else self._encode(continuation)
        if not words and rest[:1] == head:
            rest = rest[1:]
        if len(rest) > self.context:
            what = f"a continuation of {len(rest)} tokens, which the model's context of {self.context} cannot hold"
            fix = "shorten the continuation, or leave the task out"
            raise Refusal("long-continuation", what, where=origin, fix=fix)
        return _example([*head, *rest], len(rest), self.context, origin)

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding says it) of each continuation after its context."""
        rows = [self._row(*pair, f"request {n}") for n, pair in enumerate(pairs)]
        return likelihoods(self.model, rows, self.adapter, self.pass_tokens)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood in nats of each whole text, its BOS included. One longer than the context goes in pieces
        of a context each; every token is predicted once, the last piece with all the context that there is room for."""
        rows, owners = [], []
        for number, text in enumerate(texts):
            ids = [self._start(), *self._begin(text)]
            for start in range(1, len(ids), self.context):
                end = min(start + self.context, len(ids))
                rows.append(_example(ids[:end], end - start, self.context, f"text {number}"))
                owners.append(number)
        sums = [0.0] * len(texts)
        for owner, (total, _) in zip(
            owners, likelihoods(self.model, rows, self.adapter, self.pass_tokens), strict=True
        ):
            sums[owner] += total
        return sums

    def until(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The answer to each prompt; its options are lm-eval's: ``until``, a length, ``do_sample``, ``temperature``."""
        groups: dict[GenerationOptions, list[int]] = {}
        for number, (_, told) in enumerate(asked):
            groups.setdefault(_options(told), []).append(number)
        said = [""] * len(asked)
        for options, numbers in groups.items():
            room = max(1, self.context - options.max_new_tokens)
            heads = [self._begin(asked[number][0])[-room:] for number in numbers]
            # The answer is decoded by itself, as that model does it: SentencePiece's first space is then no part of it.
            questions = [Question(EncodedPrompt(tuple(head), continues=False), "") for head in heads]
            found = answers(self.model, self.tokenizer, questions, self.adapter, options)
            for number, one in zip(numbers, found, strict=True):
                said[number] = one.text
        return said


def _example(ids: Sequence[int], targets: int, context: int, origin: str) -> Example:
    """The last ``context`` + 1 of ``ids`` as a row; its last token is predicted only, so ``context`` are read."""
    tokens = np.array(ids[-(context + 1) :], np.int32)
    supervised = np.arange(len(tokens)) >= len(tokens) - targets
    return Example(tokens, supervised, origin)


def _options(told: Mapping[str, Any]) -> GenerationOptions:
    stop = told.get("until") or ()
    length = next((int(told[name]) for name in LENGTHS if told.get(name) is not None), MOST_ANSWER)
    sampled = told.get("do_sample", True)
    return GenerationOptions(
        max_new_tokens=length,
        temperature=float(told.get("temperature") or 0.0) if sampled else 0.0,
        top_k=int(told.get("top_k") or 0),
        top_p=float(told.get("top_p") or 1.0),
        stop=(stop,) if isinstance(stop, str) else tuple(one for one in stop if one),
    )


def harness_model(judge: Judge) -> Any:
    """The judge as a model of lm-eval (lm_eval.api.model.LM). Refusal ``extra-missing``."""
    _lm_eval()
    from lm_eval.api.model import LM

    class HalterLM(LM):
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return judge.likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return judge.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return judge.until([request.args for request in requests])

    return HalterLM()


def _lm_eval() -> Any:
    try:
        import lm_eval.api.model
        import lm_eval.tasks
    except ImportError as error:
        raise missing_extra("eval", "tasks of lm-eval", "--tasks", error) from error
    return lm_eval


def task_manager(options: TaskOptions) -> Any:
    """lm-eval's list of tasks with the folder's. Refusals ``extra-missing``, and ``unknown-task`` with every one."""
    library = _lm_eval()
    if options.task_folder is None:
        _refuse_unnamed(options.task_names, vars(library.tasks).get("__path__", ()))
    manager = library.tasks.TaskManager(include_path=options.task_folder)
    strange = [name for name in options.task_names if name not in manager.all_tasks]
    if strange:
        raise _unknown(strange, manager.all_tasks)
    return manager


def _refuse_unnamed(names: Sequence[str], folders: Sequence[str]) -> None:
    """Refusal ``unknown-task`` of names that no file of these folders holds, before lm-eval reads all of them."""
    words = {name: re.compile(rb"(?<![\w-])%s(?![\w-])" % re.escape(name.encode())) for name in names}
    known: set[str] = set()
    for file in (file for folder in folders for file in Path(folder).rglob("*") if file.suffix in PARTS):
        with suppress(OSError):  # a folder
            text = file.read_bytes()
            words = {name: word for name, word in words.items() if not word.search(text)}
            known.update(name.decode() for name in TASK.findall(text))
        if not words:
            return
    if known:  # else they lie where nobody looked
        raise _unknown(list(words), sorted(known))


def _unknown(names: Sequence[str], known: Sequence[str]) -> Refusal:
    near = {name: close[0] for name in names if (close := get_close_matches(name, known, 1))}
    found = [f"{name} (did you mean {near[name]}?)" if name in near else name for name in names]
    fix = "`lm-eval ls tasks` lists those that it has; your own need --task-folder"
    return Refusal("unknown-task", "lm-eval has no such task", where="--tasks", found=found, fix=fix)


def task_scores(judge: Judge, options: TaskOptions) -> tuple[dict[str, float], dict[str, Any]]:
    """({task/measure: score}, {task: {"rows", "fewshot", "version"}}) of every task, by lm-eval.

    Refusals as of `task_manager`, and ``task-data`` where the rows of a task cannot be had.
    """
    manager, model = task_manager(options), harness_model(judge)
    library = _lm_eval()
    try:
        with quick_offline(ASKED):
            found = library.simple_evaluate(
                model=model,
                tasks=list(options.task_names),
                task_manager=manager,
                limit=options.task_limit,
                num_fewshot=options.fewshot,
                bootstrap_iters=0,
                log_samples=False,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
            )
    except OSError as error:  # no network, no such file
        what = f"the rows of a task cannot be had: {error}"
        raise Refusal(
            "task-data",
            what,
            where="--tasks",
            found=list(options.task_names),
            fix="fetch the rows once where there is a network, into HF_DATASETS_CACHE; or give --task-folder",
        ) from error
    scores = {}
    for task, measures in found["results"].items():
        for name, value in measures.items():
            measure, comma, chosen = name.partition(",")
            if comma and not measure.endswith("_stderr") and isinstance(value, int | float):
                scores[f"{task}/{measure}" + (f":{chosen}" if chosen != "none" else "")] = float(value)
    facts = {
        task: {
            "rows": (found["n-samples"].get(task) or {}).get("effective"),
            "fewshot": found["n-shot"].get(task),
            "version": found["versions"].get(task),
        }
        for task in found["results"]
    }
    return scores, facts
